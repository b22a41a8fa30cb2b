"""Records on disk: whole or not at all; curves that go on where a training was killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.experiment.record import Curve, read_json, write_bytes, write_json

ROOT = Path(__file__).parents[2]


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# --- files ---


def test_a_file_is_written_with_its_folders_and_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "c.bin"
    for content in (b"first", b"", b"\x00" * 10000):
        write_bytes(path, content)
        assert path.read_bytes() == content
        assert files(tmp_path) == ["c.bin"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch, error, call):
    path = tmp_path / "c.bin"
    write_bytes(path, b"old")

    def interrupt(*_):
        raise error

    monkeypatch.setattr(os, call, interrupt)
    with pytest.raises(type(error)):
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == ["c.bin"]


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    """Killed for real just before the content is safe; the next write succeeds."""
    path = tmp_path / "c.bin"
    write_bytes(path, b"old")
    code = (
        "import os, pathlib, signal, sys\n"
        "from pipeline.experiment.record import write_bytes\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_bytes(pathlib.Path(sys.argv[1]), b'new')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, env={**os.environ, "PYTHONPATH": "."})
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    write_bytes(path, b"newer")
    assert path.read_bytes() == b"newer"


# --- JSON ---


def test_json_makes_the_round_trip_and_does_not_depend_on_order(tmp_path):
    value = {"b": [1, 2.5, None, True], "a": {"text": "caf\u00e9", "n": 1e-7}}
    write_json(tmp_path / "x.json", value)
    write_json(tmp_path / "y.json", dict(reversed(value.items())))
    assert read_json(tmp_path / "x.json") == value
    assert (tmp_path / "x.json").read_bytes() == (tmp_path / "y.json").read_bytes()
    assert (tmp_path / "x.json").read_text().endswith("}\n")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b"null", b"\xff\xfe", b'{"a": 1} x'])
def test_what_is_no_object_is_refused_by_name(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.json: expected a JSON object, but"):
        read_json(path)


def test_a_missing_record_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: .*run the stage"):
        read_json(tmp_path / "none.json")


def test_a_value_that_json_has_not_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert files(tmp_path) == []


# --- curves ---


def grown(path, steps):
    curve = Curve(path)
    for step in steps:
        curve.add(step, step / 3, {"train/loss": 1 / step, "train/rate": 0.5})
    return curve


def steps_of(curve):
    return [row["step"] for row in curve.rows()]


def test_a_curve_is_lines_of_json(tmp_path):
    curve = grown(tmp_path / "curve.jsonl", [10, 20])
    assert curve.rows() == [
        {"step": 10, "seconds": 3.333, "metrics": {"train/loss": 0.1, "train/rate": 0.5}},
        {"step": 20, "seconds": 6.667, "metrics": {"train/loss": 0.05, "train/rate": 0.5}},
    ]
    assert [json.loads(line) for line in curve.path.read_text().splitlines()] == curve.rows()


def test_a_curve_that_has_not_begun_is_empty(tmp_path):
    curve = Curve(tmp_path / "curve.jsonl")
    assert curve.rows() == []
    curve.keep_until(100)
    assert curve.rows() == []


def test_resuming_drops_what_comes_again(tmp_path):
    curve = grown(tmp_path / "curve.jsonl", [10, 20, 30, 40])
    curve.keep_until(25)
    assert steps_of(curve) == [10, 20]
    curve.add(30, 1.0, {})
    assert steps_of(Curve(tmp_path / "curve.jsonl")) == [10, 20, 30]
    assert files(tmp_path) == ["curve.jsonl"]


def test_a_line_cut_anywhere_is_dropped(tmp_path):
    whole = grown(tmp_path / "curve.jsonl", [10, 20, 30]).path.read_bytes()
    end = whole.rindex(b"\n", 0, len(whole) - 1) + 1
    for length in range(end, len(whole) - 1):  # all of the last line but its closing brace
        (tmp_path / "curve.jsonl").write_bytes(whole[:length])
        assert steps_of(Curve(tmp_path / "curve.jsonl")) == [10, 20]


@pytest.mark.parametrize("left", [0, 1, 15, -2, -1])
def test_rows_added_after_a_cut_line_are_not_lost(tmp_path, left):
    """Killed while a row was being written, the training goes on: the cut row is dropped, every later one is there.

    `left` is how much of the row for step 30 was written; -1 lacks the line's end only, and that row is whole.
    """
    path = tmp_path / "curve.jsonl"
    whole = grown(path, [10, 20, 30]).path.read_bytes()
    end = whole.rindex(b"\n", 0, len(whole) - 1) + 1
    path.write_bytes(whole[: end + left] if left >= 0 else whole[:left])
    kept = [10, 20, 30] if left == -1 else [10, 20]
    curve = Curve(path)
    assert steps_of(curve) == kept
    curve.add(40, 1.0, {})
    curve.add(50, 1.0, {})
    assert steps_of(Curve(path)) == [*kept, 40, 50]
