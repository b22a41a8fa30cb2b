"""Progress: lines that are true, also after a resume, and a bar where there is a terminal."""

import io
import sys

import pytest

from pipeline.experiment import progress as module
from pipeline.experiment.progress import PlainBar, RichBar, clock, progress


class Terminal(io.StringIO):
    """Standard error on a screen."""

    def isatty(self):
        return True


@pytest.fixture
def seconds(monkeypatch):
    """A clock that stands still until told otherwise."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("duration", "text"),
    [(0, "0:00"), (0.4, "0:00"), (9, "0:09"), (59.6, "1:00"), (61, "1:01"), (3599.7, "1:00:00"), (86400, "24:00:00")],
)
def test_durations_are_written_as_on_a_clock(duration, text):
    assert clock(duration) == text


def test_an_unknown_duration_is_a_question_mark():
    assert clock(float("inf")) == "?"


def test_lines_come_now_and_then_and_at_the_end(seconds, capsys):
    bar = PlainBar("train", 100, "steps")
    for _ in range(100):
        seconds[0] += 0.3
        bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "train: 34/100 steps, 3.33/s, 0:20 left",
        "train: 68/100 steps, 3.33/s, 0:10 left",
        "train: 100/100 steps, 3.33/s, 0:00 left",
    ]


def test_a_note_stands_at_the_end_of_later_lines(seconds, capsys):
    bar = PlainBar("train", 3, "steps")
    bar.say("loss 0.5")
    seconds[0] += 20
    bar.advance()
    seconds[0] += 20
    bar.say("loss 0.4")
    bar.advance()
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("left, loss 0.5")
    assert second.endswith("left, loss 0.4")


def test_after_a_resume_only_new_work_counts_for_the_rate(seconds, capsys):
    """Steps 1..900 were done yesterday; 901 is the first of today."""
    bar = PlainBar("train", 1000, "steps")
    for step in range(901, 951):
        seconds[0] += 1
        bar.reach(step)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "train: 950/1000 steps, 1/s, 0:50 left"


def test_work_found_done_is_no_work(seconds, capsys):
    """All 300 units are in the store: nothing was done in no time, so no rate can be told."""
    bar = PlainBar("inpaint", 300, "evaluations")
    seconds[0] += 1e-6
    bar.reach(300)
    [line] = capsys.readouterr().err.splitlines()
    assert "300/300 evaluations" in line
    assert "e+" not in line


def test_fast_work_has_a_readable_rate(seconds, capsys):
    bar = PlainBar("encode", 50000, "images")
    seconds[0] += 2
    bar.advance(49999)
    bar.advance()
    assert "25000/s" in capsys.readouterr().err


def test_without_a_terminal_there_are_lines(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress("encode", 2, "images") as bar:
        assert isinstance(bar, PlainBar)
        bar.advance(2)
    assert stream.getvalue().startswith("encode: 2/2 images")


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress("encode", 7, "images") as bar:
        assert isinstance(bar, RichBar)
        bar.reach(3)
        bar.advance()
        bar.say("train")
    text = stream.getvalue()
    assert "encode" in text
    assert "4/7" in text
    assert "train" in text


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_an_error_in_the_block_gets_out(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    with pytest.raises(ZeroDivisionError), progress("train", 3) as bar:
        bar.advance()
        _ = 1 // 0
