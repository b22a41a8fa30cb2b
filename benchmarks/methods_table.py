"""The numbers of docs/methods.md: `python -m benchmarks.methods_table [--write]`.

The table's words are written by hand; how often each preset asks the network is counted by the presets themselves, and
put into their two columns. Without `--write` the command says which rows are stale.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import measure
from pipeline.errors import InputError, UserError
from pipeline.methods import PRESETS

PAGE = measure.DOCS / "methods.md"
PLAIN = 250
"""Forwards of plain sampling, with which the cost is compared; a backward counts as a forward."""

EVALUATIONS, COST = 3, 4
"""Columns that are filled in."""


def numbers(name: str) -> tuple[str, str]:
    """The two cells of a method: evaluations of each of its presets, and their cost."""
    presets = PRESETS[name].items()
    counts = [(preset, method.nfe(), method.nbe()) for preset, method in presets]
    evaluations = [f"`{preset}` {forwards}{f' + {back}' if back else ''}" for preset, forwards, back in counts]
    costs = [f"{(forwards + back) / PLAIN:.2g}" for _, forwards, back in counts]
    return "<br>".join(evaluations), "<br>".join(costs)


def filled(text: str) -> str:
    """The page with all numbers as they are.

    Raises:
        InputError: a method has no row, or a row no method or another number of cells.
    """
    lines, rows = text.splitlines(), dict(table_rows(text))
    odd = set(rows) ^ set(PRESETS)
    if odd:
        raise InputError(
            f"expected one row in {PAGE.name} for each method of the registry, but {', '.join(sorted(odd))} is in "
            "one of them only; add or remove its row."
        )
    for name, place in rows.items():
        cells = lines[place].split(" | ")
        if len(cells) != len(lines[min(rows.values()) - 2].split(" | ")):
            raise InputError(f"expected as many cells in the row of {name} in {PAGE.name} as in the head of the table.")
        cells[EVALUATIONS], cells[COST] = numbers(name)
        lines[place] = " | ".join(cells)
    return "\n".join(lines) + "\n"


def table_rows(text: str) -> Iterator[tuple[str, int]]:
    """Name of the method and number of the line of every row."""
    for number, line in enumerate(text.splitlines()):
        if line.startswith("| `"):
            yield line.split("`")[1], number


def main() -> int:
    """Fill in or compare; 1 if the page is stale, 2 if it does not fit the registry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/methods.md")
    write = parser.parse_args().write
    try:
        return _update(PAGE, write=write)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def _update(page: Path, *, write: bool) -> int:
    before = page.read_text()
    after = filled(before)
    if write:
        page.write_text(after)
        return 0
    stale = [name for name, place in table_rows(before) if before.splitlines()[place] != after.splitlines()[place]]
    print(f"stale: {', '.join(stale)}; run it with --write" if stale else "up to date")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
