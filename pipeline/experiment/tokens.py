"""Token grids on disk, as the stage encode writes them: read and checked."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import InputError, reason
from pipeline.experiment.record import read_json

AGAIN = "run the stage encode again"
BYTES_LIMIT = 4 * 2**30
"""Larger archives, unpacked, are taken for decompression bombs; 4 GiB are the tokens of 8 million images."""


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
    if not path.is_file():
        raise InputError(f"{path}: expected arrays `tokens` and `keys`, but found no file; {AGAIN}.")
    try:
        with zipfile.ZipFile(path) as packed:
            size = sum(member.file_size for member in packed.infolist())
        if size > BYTES_LIMIT:
            raise InputError(f"{path}: unpacked it takes {size:,} bytes, over the limit of {BYTES_LIMIT:,}; {AGAIN}.")
        with np.load(path, allow_pickle=False) as archive:
            return archive["tokens"], archive["keys"]
    except InputError:
        raise
    except Exception as error:  # an arbitrary file can make numpy and zipfile fail in any way
        raise InputError(f"{path}: expected arrays `tokens` and `keys`, but {said(error)}; {AGAIN}.") from error


def said(error: BaseException) -> str:
    """What numpy or zipfile says, without where in memory."""
    return re.sub(r": <.*", "", reason(error)).strip("'\"")
