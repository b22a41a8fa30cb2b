"""No room on the disk: one sentence, nothing half-written, nothing finished lost, and on with it once there is room."""

import os
import resource
import subprocess
from pathlib import Path

import pytest
import torch

from faults.processes import finish, run
from faults.toy import STAGES, settled
from pipeline.codec.trunk import Trunk, TrunkConfig, save_trunk
from pipeline.experiment.record import write_bytes, write_json
from pipeline.files import NO_ROOM
from pipeline.training.fit import write_checkpoint
from pipeline.weights import save_weights


def drafts(root):
    return [path for path in root.rglob(".*") if path.is_file()]


def refused(root, stage, **settings):
    """What a stage says that must end with status 2 and a sentence."""
    status, words = run(root, stage, *STAGES[stage], **settings)
    assert status == 2, words
    assert "Traceback" not in words
    [sentence] = [line for line in words.splitlines() if "cannot be written" in line]
    assert "free some space and run the same command again" in sentence
    return sentence


SMALL = {"prepare": 20_000, "train_ddpm": 10_000, "inpaint": 3_000, "score": 1_000}
"""Bytes that no file may exceed, so that a file of the stage does not fit."""


@pytest.mark.parametrize("stage", SMALL)
def test_a_file_that_cannot_grow_is_named_and_not_left_half_written(whole, root, undo, stage):
    undo(stage)
    sentence = refused(root, stage, largest=SMALL[stage])
    assert "file too large" in sentence
    assert str(root) in sentence
    assert drafts(root) == []
    finish(root, stage, *STAGES[stage])
    assert settled(root) == settled(whole)


WRITERS = {
    "cell.npz": lambda folder: write_bytes(folder / "cell.npz", b"0" * 5000),
    "record.json": lambda folder: write_json(folder / "record.json", ["0" * 5000]),
    "last.ckpt": lambda folder: write_checkpoint(folder / "last.ckpt", {"weights": torch.zeros(5000)}),
    "model.safetensors": lambda folder: save_weights(folder, torch.nn.Linear(50, 50), {"kind": "toy"}),
    "model.json": lambda folder: save_weights(folder, torch.nn.Linear(2, 2), {"kind": "0" * 5000}),
    "trunk.safetensors": lambda folder: save_trunk(folder, Trunk(TrunkConfig(width=8, heads={"a": 2})), {}),
}
"""What writes a file that does not fit into 4000 bytes."""


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_names_its_file_and_leaves_nothing(tmp_path, name):
    (tmp_path / name).write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            WRITERS[name](tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno in NO_ROOM
    assert caught.value.filename == str(tmp_path / name)
    assert drafts(tmp_path) == []
    assert (tmp_path / name).read_bytes() == b"old"


@pytest.fixture
def small_disk(root):
    """A disk of eight megabytes that holds the folder work; needs the right to mount."""
    work = root / "work"
    aside = work.rename(root / "aside")
    work.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", work], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no right to mount a small disk ({mounted.stderr.strip()}); limits of file size stand in for it")
    try:
        for name in ("cache", "cells"):
            (work / name).mkdir()
            for path in (aside / name).iterdir() if name == "cache" else ():
                (work / name / path.name).write_bytes(path.read_bytes())
        yield work
    finally:
        subprocess.run(["umount", work], check=True)


def fill(folder, left):
    """Leave so many bytes free on a disk; returns the file that does it."""
    path = folder / "filler"
    with path.open("wb") as file:
        state = os.statvfs(folder)
        file.write(b"\0" * (state.f_bavail * state.f_frsize - left))
    return path


def test_a_full_disk_keeps_the_cells_that_are_finished(whole, root, undo, small_disk):
    filler = fill(small_disk, left=20_000)
    sentence = refused(root, "inpaint")
    assert f"{small_disk / 'cells'}/" in sentence
    assert "no space left on device" in sentence
    kept = {path: path.stat().st_mtime_ns for path in (small_disk / "cells").iterdir()}
    assert all(path.suffix == ".npz" for path in kept)
    assert 1 <= len(kept) < 3
    filler.unlink()
    finish(root, "inpaint", *STAGES["inpaint"])
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert settled(root) == settled(whole)


def test_a_full_disk_in_the_middle_of_a_training(whole, root, undo, small_disk):
    undo("train_ddpm")
    filler = fill(small_disk, left=30_000)
    assert "no space left on device" in refused(root, "train_ddpm")
    assert drafts(root) == []
    filler.unlink()
    finish(root, "train_ddpm", *STAGES["train_ddpm"])
    assert settled(root) == settled(whole)


def test_what_cannot_be_written_for_another_reason_is_not_called_full(root, undo):
    undo("score")
    folder: Path = root / "runs" / "smoke" / "scores"
    folder.rmdir()
    folder.write_text("in the way")
    status, words = run(root, "score", *STAGES["score"])
    assert status
    assert "free some space" not in words
