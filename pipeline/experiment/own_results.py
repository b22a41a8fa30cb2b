"""What came of pictures of one's own, in a folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

import numpy as np

from pipeline.data.images import encode_png
from pipeline.errors import InputError
from pipeline.experiment.own_images import OwnImage, Pixels
from pipeline.experiment.record import read_json, write_bytes
from pipeline.experiment.sheet import HIDDEN, Sheet

KIND = "inpaint_files"
"""What the record of such a folder says it is."""
ROWS, COLUMNS = 24, 8
"""Pictures, and samples of each, shown on the sheet at most."""
LETTERS, LINES = 11, 5
"""Of a picture's name, beside its row of the sheet."""


@dataclass(frozen=True, kw_only=True)
class Painted:
    """A picture and what came of it.

    Attributes:
        given: the picture.
        samples: uint8 [K, S, S, 3], seen pixels pasted.
        bits: per token, that the circuit takes to describe each sample: the fewer, the likelier; empty without circuit.
    """

    given: OwnImage
    samples: Pixels
    bits: list[float]

    @property
    def ranking(self) -> list[int]:
        """Numbers of the samples, the likeliest first; as they were drawn, if there are no bits."""
        return sorted(range(len(self.samples)), key=lambda k: self.bits[k] if self.bits else k)

    def files(self, large: bool) -> dict[str, Pixels]:
        """Samples by the names of their files; with `large` also at the picture's own size."""
        given = self.given
        found = {f"{given.key}/{k}.png": sample for k, sample in enumerate(self.samples)}
        if large:
            enlarged = given.paste_large(self.samples)
            found |= {f"{given.key}/{k}-{given.side}.png": sample for k, sample in enumerate(enlarged)}
        return found


@contextmanager
def whole_folder(folder: Path, replace: bool) -> Iterator[Path]:
    """Open a folder to write into, which takes the place of `folder` if the block ends without an error.

    Raises:
        InputError: `folder` is not empty; or, with `replace`, holds anything but results of this command.
    """
    folder = folder.resolve()
    refuse(folder, replace)
    draft, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        try:
            draft.mkdir(parents=True)
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be written ({error.strerror}); name another folder with --out"
            ) from error
        yield draft
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def refuse(folder: Path, replace: bool) -> None:
    """Refuse a folder whose content would be lost.

    Raises:
        InputError: it holds something.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file, but results are written to a folder; name another with --out")
    record = folder / "record.json"
    ours = read_json(record) if record.exists() else {}
    if ours.get("kind") != KIND:
        raise InputError(f"{folder}: holds something else already; name another folder with --out")
    if not replace:
        raise InputError(f"{folder}: holds results already; name another folder with --out, or give --replace")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if foreign := sorted(files - {"record.json", *ours["files"]}):
        raise InputError(f"{folder}: would be replaced, but {foreign[0]} is not of this command; move it away")


def write_samples(folder: Path, done: Sequence[Painted], large: bool) -> list[str]:
    """Write every sample as PNG, and the sheet; returns the names of the files."""
    names = ["sheet.png"]
    for painted in done:
        for name, pixels in painted.files(large).items():
            write_bytes(folder / name, encode_png(pixels))
            names.append(name)
    write_own_sheet(folder / "sheet.png", done)
    return names


def write_own_sheet(path: Path, done: Sequence[Painted]) -> None:
    """Draw each picture as it is seen, and its samples, the likeliest first."""
    shown, count = done[:ROWS], min(COLUMNS, len(done[0].samples))
    names = ["\n".join(wrap(painted.given.key, LETTERS)[:LINES]) for painted in shown]
    first = "likeliest first" if done[0].bits else ""
    sheet = Sheet(names, ["seen", first, *([""] * (count - 1))], shown[0].samples.shape[1])
    for place, painted in enumerate(shown):
        sheet.show(place, 0, np.where(painted.given.known[..., None], painted.given.image, np.uint8(HIDDEN)))
        for column, k in enumerate(painted.ranking[:count]):
            bits = f": {painted.bits[k]:.3f} bits/token" if painted.bits else ""
            sheet.show(place, 1 + column, painted.samples[k], f"{k}.png{bits}")
    sheet.save(path)
