"""The store of finished sweep cells: content-addressed, written whole or not at all, never an output of DVC.

A cell is one (dataset, mask, method). Its file is named by the fingerprint of everything that decides its result, so an
interrupted sweep goes on at the cell, and a change of code, parameters, data or weights never meets a stale one.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, reason
from pipeline.experiment.record import write_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """A finished cell.

    Attributes:
        record: what was run, on what, at what cost; everything outside "measured" is deterministic.
        samples: raw results, known pixels not pasted, uint8 [I, S, H, W, 3] for I images and S samples.
        known: the masks, bool [I, H, W].
    """

    record: Mapping[str, Any]
    samples: NDArray[np.uint8]
    known: NDArray[np.bool_]


def pack(cell: Cell) -> bytes:
    """A cell as the bytes of an .npz file."""
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(cell.record, sort_keys=True).encode(), np.uint8)
    np.savez_compressed(buffer, samples=cell.samples, known=cell.known, record=text)
    return buffer.getvalue()


def unpack(path: Path) -> Cell:
    """Read a cell.

    Raises:
        InputError: the file is missing, damaged (every array carries a checksum), or not a cell.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected a finished sweep cell, but found no file; run the stage inpaint.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            record = json.loads(arrays["record"].tobytes())
            cell = Cell(record, arrays["samples"], arrays["known"])
    except Exception as error:  # an arbitrary file can make numpy, zipfile and json fail in any way
        raise InputError(f"{path}: expected a finished sweep cell, but it cannot be read ({reason(error)}).") from error
    shape, masks = cell.samples.shape, cell.known.shape
    right_types = isinstance(record, dict) and cell.samples.dtype == np.uint8 and cell.known.dtype == np.bool_
    if not right_types or len(shape) != 5 or masks != (shape[0], *shape[2:4]):
        raise InputError(
            f"{path}: expected a finished sweep cell, but samples {shape} of {cell.samples.dtype}, masks {masks} of "
            f"{cell.known.dtype} and a record that is a {type(record).__name__} do not make one."
        )
    return cell


class CellStore:
    """Finished cells by fingerprint, below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, fingerprint: str) -> Path:
        """Where the cell with this fingerprint is, or would be."""
        return self.folder / f"{fingerprint}.npz"

    def find(self, fingerprint: str) -> Cell | None:
        """The finished cell, or None; a damaged file is set aside with a warning, and the cell counts as not done."""
        path = self.path(fingerprint)
        if not path.exists():
            return None
        try:
            cell = unpack(path)
            if cell.record.get("fingerprint") != fingerprint:
                raise InputError(
                    f"{path}: holds the cell {cell.record.get('fingerprint')}, not the one it is named after."
                )
        except InputError as error:
            aside = path.with_suffix(".damaged")
            path.replace(aside)
            log.warning("%s Set aside as %s; the cell is computed again.", error, aside.name)
            return None
        return cell

    def put(self, cell: Cell) -> None:
        """Keep a finished cell."""
        write_bytes(self.path(str(cell.record["fingerprint"])), pack(cell))
