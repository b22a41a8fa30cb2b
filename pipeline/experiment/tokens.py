"""Token grids on disk, as the stage encode writes them: read and checked."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import InputError
from pipeline.experiment.record import read_json

AGAIN = "run the stage encode again"


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The token grids of one split.

    Attributes:
        tokens: int64 [N, L], a grid per image, row by row; each token in [0, codes).
        keys: names of the images, N of them.
        codes: size of the codebook.
    """

    tokens: Tensor
    keys: tuple[str, ...]
    codes: int


def read_tokens(folder: Path, split: str) -> Tokens:
    """Read `<split>.npz` and the number of codes in `tokens.json`.

    Raises:
        InputError: a file is missing or damaged, arrays have another shape or type than encode gives them, or a token
            is beyond the codebook.
    """
    codes = _codes(folder / "tokens.json")
    path = folder / f"{split}.npz"
    grids, keys = _arrays(path)
    if grids.dtype.kind not in "iu" or grids.ndim != 3 or 0 in grids.shape or grids.shape[1] != grids.shape[2]:
        raise InputError(
            f"{path}: expected integer tokens [images, side, side], found {grids.dtype} {list(grids.shape)}; {AGAIN}."
        )
    if keys.dtype.kind != "U" or keys.shape != grids.shape[:1]:
        raise InputError(
            f"{path}: expected one key for each of the {len(grids)} images, found {keys.dtype} {list(keys.shape)}; "
            f"{AGAIN}."
        )
    low, high = int(grids.min()), int(grids.max())
    if low < 0 or high >= codes:
        raise InputError(
            f"{path}: expected tokens from 0 to {codes - 1}, as tokens.json says, found {low} to {high}; {AGAIN}."
        )
    tokens = torch.from_numpy(grids.astype(np.int64)).flatten(1)
    return Tokens(tokens=tokens, keys=tuple(keys.tolist()), codes=codes)


def _codes(path: Path) -> int:
    """The size of the codebook."""
    codes = read_json(path).get("codes")
    if type(codes) is not int or codes < 1:
        raise InputError(f"{path}: expected the size of the codebook under `codes`, found {codes!r}; {AGAIN}.")
    return codes


def _arrays(path: Path) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """The arrays `tokens` and `keys` of an npz file."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive["tokens"], archive["keys"]
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: expected arrays `tokens` and `keys`, but {reason}; {AGAIN}.") from error
