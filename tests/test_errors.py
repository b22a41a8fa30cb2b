"""The words of errors: one line, and the first place where values are not as they should be."""

import errno

import pytest

from pipeline.errors import InputError, misfit, one_line, reason

FORM = {"name": str, "sizes": [int], "share": float, "note": str | None, "parts": {str: {"count": int}}}
GOOD = {"name": "x", "sizes": [1, 2], "share": 1, "note": None, "parts": {"a": {"count": 3}}, "more": object()}


def test_what_fits_has_no_misfit():
    assert misfit(GOOD, FORM) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": 3}, "name should be a text, but is 3"),
        ({"sizes": [1, True]}, "sizes.1 should be a whole number, but is true"),
        ({"sizes": "12"}, "sizes should be a list, but is '12'"),
        ({"share": float("nan")}, "share should be a finite number, but is nan"),
        ({"share": 10**400}, "share should be a finite number"),
        ({"note": 0}, "note should be a text or null, but is 0"),
        ({"parts": {"a": {}}}, "parts.a.count is missing"),
        ({"parts": None}, "parts should be an object, but is null"),
    ],
)
def test_the_first_misfit_is_named(change, words):
    assert misfit({**GOOD, **change}, FORM).startswith(words)


def test_what_is_missing_at_the_top_is_named():
    assert misfit({}, FORM) == "name is missing"
    assert misfit([], FORM) == "it should be an object, but is []"


def test_an_error_is_one_line_of_print():
    assert str(InputError("a\nb\x1b[31m\udcff.png: x")) == "a b\\x1b[31m\\udcff.png: x"
    assert one_line("caf\u00e9 \u2192 x") == "caf\u00e9 \u2192 x"


def test_a_reason_has_no_words_of_python():
    assert reason(FileNotFoundError(errno.ENOENT, "No such file or directory", "x")) == "no such file or directory"
    assert reason(RecursionError("maximum recursion depth exceeded")) == "it is nested too deeply"
    assert reason(MemoryError()) == "it would take more memory than there is"
    assert reason(ValueError("two\nlines.")) == "two lines"
    assert reason(EOFError()) == "it is damaged"
