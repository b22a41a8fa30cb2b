"""What a network saw in a dataset's true images and in their completions: a file beside the scores."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, reason
from pipeline.experiment.record import write_bytes

FILE = "features.npz"


@dataclass(frozen=True, kw_only=True)
class Features:
    """What a network saw in a dataset's true images and their completions; D features of a picture."""

    truths: NDArray[np.float64]
    """[R, D]: all true images."""
    completed: tuple[int, ...]
    """Which of them were completed, I positions among the R."""
    completions: NDArray[np.float64]
    """[methods, I, P, D]: P pictures of each image, masks times samples."""


def save_features(
    folder: Path,
    *,
    methods: Sequence[str],
    truths: NDArray[np.float32],
    completed: Sequence[int],
    completions: NDArray[np.float32],
) -> None:
    """Write `FILE`.

    Args:
        folder: to write to.
        methods: names along the first axis of `completions`.
        truths: features of all true images, [R, D].
        completed: positions among them of the images that were completed.
        completions: features of the completed pictures, [methods, masks, I, S, D].
    """
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, methods=np.array(methods), truths=truths, completed=np.array(completed), completions=completions
    )
    write_bytes(folder / FILE, buffer.getvalue())


def load_features(folder: Path, methods: Sequence[str]) -> Features:
    """Read `FILE` for the methods asked for, in that order.

    Raises:
        InputError: it is missing, damaged, or lacks a method.
    """
    path = folder / FILE
    try:
        with np.load(path, allow_pickle=False) as arrays:
            known, completions = arrays["methods"].tolist(), np.moveaxis(arrays["completions"].astype(np.float64), 1, 2)
            truths, completed = arrays["truths"].astype(np.float64), tuple(arrays["completed"].tolist())
        (methods_there, images, _, _, seen), (_, features) = completions.shape, truths.shape
        if (methods_there, images, seen) != (len(known), len(completed), features):
            raise ValueError(f"completions {completions.shape} and true images {truths.shape} do not go together")
    except Exception as error:  # an arbitrary file can make numpy and zipfile fail in any way
        raise InputError(
            f"{path}: expected features of true images and completions, but it cannot be read ({reason(error)}); run "
            "the score stage again."
        ) from error
    if missing := [name for name in methods if name not in known]:
        raise InputError(f"{path} has no features of the method {missing[0]}; run the score stage again.")
    chosen = completions[[known.index(name) for name in methods]]
    pooled = chosen.reshape(len(methods), len(completed), -1, truths.shape[1])
    return Features(truths=truths, completed=completed, completions=pooled)
