"""Records on disk: written whole or not at all, before anything else hears of a result."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

from pipeline.errors import InputError, misfit, reason
from pipeline.files import replacing


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is seen whole or not at all, also after a power cut."""
    with replacing(path) as draft:
        draft.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, indented, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: the file is missing or holds something else.
    """
    again = "run the stage that writes it again"
    if not path.is_file():
        raise InputError(f"{path}: expected a JSON object, but found no file; {again}.")
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a JSON object, but {reason(error)}; {again}.") from error
    if wrong := misfit(value, {}):
        raise InputError(f"{path}: expected a JSON object, but {wrong}; {again}.")
    return cast("dict[str, Any]", value)


class Curve:
    """A training curve: one JSON line per report, kept across interruptions."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[dict[str, Any]]:
        """The whole lines written so far; a line cut short by a kill is dropped."""
        rows = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def keep_until(self, step: int) -> None:
        """Drop what was reported after `step`: a resumed training reports it again."""
        rows = [row for row in self.rows() if row["step"] <= step]
        write_bytes(self.path, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def add(self, step: int, seconds: float, metrics: dict[str, float]) -> None:
        """Append a line, after whole lines only."""
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            self.keep_until(sys.maxsize)
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "seconds": round(seconds, 3), "metrics": metrics}) + "\n")
