"""The stage masks: every mask of the sweep as files, so that cells depend on what was drawn and not on how."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data import masks as drawing
from pipeline.errors import InputError, misfit
from pipeline.experiment.layout import Layout
from pipeline.experiment.params import Params
from pipeline.experiment.record import read_json, write_json

INDEX = {"image_size": int, "masks": {str: {"files": int, "digest": str}}}
"""What masks.json says."""


@dataclass(frozen=True)
class MaskSet:
    """One mask per image: which pixels are known, bool [I, H, W], and a digest of them."""

    name: str
    known: NDArray[np.bool_]

    @property
    def digest(self) -> str:
        """SHA-256 of shape and pixels."""
        return hashlib.sha256(repr(self.known.shape).encode() + np.packbits(self.known).tobytes()).hexdigest()


def write_masks(params: Params, layout: Layout) -> None:
    """Draw or read the masks of the sweep, check them, and write one file per image and mask.

    Where a mask is the same for all images, one file stands for all.
    """
    drawn = {name: mask_of(params, name, layout.root) for name in params.sweep.masks}  # all before any is written
    index = {}
    for name, known in drawn.items():
        count = 1 if (known == known[0]).all() else len(known)
        for k in range(count):
            path = layout.masks / name / f"{k:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            drawing.save_mask(path, known[k])
        index[name] = {"files": count, "hidden": float(1.0 - known.mean()), "digest": MaskSet(name, known).digest}
    write_json(layout.masks / "masks.json", {"schema": 1, "image_size": params.image_size, "masks": index})


def mask_of(params: Params, name: str, root: Path, images: int | None = None) -> NDArray[np.bool_]:
    """The masks `name` of the first `images` images (`sweep.images`), bool [I, H, W]: files of mask_files, or drawn."""
    side, count = params.image_size, params.sweep.images if images is None else images
    if name in params.mask_files:
        draw = drawing.mask_folder(root / Path(params.mask_files[name]).expanduser())
    else:
        draw = drawing.MASKS[name]
    return np.stack([draw(side, side, k) for k in range(count)])


def read_masks(folder: Path, name: str, count: int) -> MaskSet:
    """Read what the stage wrote, for `count` images.

    Raises:
        InputError: a file is missing, damaged or changed.
    """
    index = read_json(path := folder / "masks.json")
    if wrong := misfit(index, INDEX):
        raise InputError(
            f"{folder / 'masks.json'}: expected the index of masks, but {wrong}; run the stage masks again."
        )
    if name not in index["masks"]:
        raise InputError(
            f"{folder / 'masks.json'}: has no mask {name!r}, only {', '.join(index['masks'])}; run the stage masks."
        )
    side, files = index["image_size"], index["masks"][name]["files"]
    if files not in (1, count):
        raise InputError(
            f"{path}: expected {name}.files to be 1 or {count}, one for each image, but it is {files}; run the stage "
            "masks again."
        )
    known = np.stack([drawing.load_mask(folder / name / f"{k:03d}.png", side, side) for k in range(files)])
    known = np.broadcast_to(known, (count, side, side)) if files == 1 else known
    if len(known) != count or MaskSet(name, known).digest != index["masks"][name]["digest"]:
        raise InputError(f"{folder / name}: its files are not what masks.json records; run the stage masks again.")
    return MaskSet(name, np.ascontiguousarray(known))
