"""The judge of the corpus finds what it is there to find: the test of the tests."""

import time
from pathlib import Path

import numpy as np
import pytest

from fuzz.cases import Case, judge, unclear
from pipeline.errors import InputError

SENTENCE = "x.png: expected a picture, found a page; replace or remove it"


def refuse(message):
    def read(root):
        raise InputError(message)

    return read


def leave(root):
    (root / "half").write_bytes(b"x")
    raise InputError(SENTENCE)


def crash(root):
    return {}["x"]


def never(root):
    while True:
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("read", "expect", "fault"),
    [
        (refuse(SENTENCE), "refused", None),
        (refuse(SENTENCE), "either", None),
        (refuse(SENTENCE), "accepted", "is refused"),
        (lambda root: None, "accepted", None),
        (lambda root: None, "refused", "is accepted"),
        (crash, "either", "raises KeyError"),
        (leave, "refused", "left ['half'] behind"),
        (refuse("y.png: expected a picture, found a page"), "refused", "does not name ['x.png']"),
        (lambda root: np.ones(2**42), "either", "raises"),
        (never, "either", "not done after"),
    ],
)
def test_what_is_wrong_is_found(read, expect, fault, tmp_path, monkeypatch):
    monkeypatch.setattr("fuzz.cases.SECONDS", 0.3)
    case = Case(kind="x", name="x", parts=(), spoil=lambda root: None, read=read, says=("x.png",), expect=expect)
    found = judge(case, Path(), tmp_path / "copy").fault
    assert (found is None) if fault is None else fault in found


@pytest.mark.parametrize(
    "message",
    [
        "too short",
        "x" * 1000,
        "two\nlines of which none is any use",
        "a KeyError('x') where a sentence should be",
        "[Errno 2] No such file or directory: 'x'",
        "cannot identify image file <_io.BytesIO object at 0x7f>",
        "red \x1b[31m text that escapes",
    ],
)
def test_what_is_no_clear_sentence_is_found(message):
    assert unclear(message)
    assert unclear(SENTENCE) is None
