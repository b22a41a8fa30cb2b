"""docs/methods.md: a row for every method, with the evaluations that its presets announce."""

import re
from pathlib import Path

import pytest

from benchmarks import methods_table
from pipeline.errors import InputError
from pipeline.methods import METHODS, PRESETS

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
ROWS = re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE, re.MULTILINE)


def counts(name):
    """{preset: (forwards, backwards)} as the page says."""
    found = re.findall(r"`(\w+)` (\d+)(?: \+ (\d+))?(?=<br>| \|)", dict(ROWS)[name])
    return {preset: (int(forwards), int(backwards or 0)) for preset, forwards, backwards in found}


def test_every_registered_method_has_one_row_in_the_order_of_the_registry():
    assert [name for name, _ in ROWS] == list(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_the_evaluations_in_a_row_are_those_the_presets_announce(name):
    assert counts(name) == {preset: (method.nfe(), method.nbe()) for preset, method in PRESETS[name].items()}


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_whole(name):
    cells = dict(ROWS)[name].split(" | ")
    assert len(cells) == 6
    assert all(len(cell.strip("- ")) > 0 for cell in cells)


def test_the_page_is_what_the_command_writes():
    assert methods_table.filled(PAGE) == PAGE, "run python -m benchmarks.methods_table --write"


def test_stale_numbers_are_put_right():
    assert "`paper` 2410<br>" in PAGE
    assert methods_table.filled(PAGE.replace("`paper` 2410<br>", "`paper` 9999<br>")) == PAGE


def test_a_method_without_a_row_is_named(monkeypatch):
    monkeypatch.setitem(PRESETS, "toy", PRESETS["ddnm"])
    with pytest.raises(InputError, match="toy is in one of them only"):
        methods_table.filled(PAGE)
