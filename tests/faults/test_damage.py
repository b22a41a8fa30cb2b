"""Damaged files: cells are computed again, checkpoints are refused by name, and nothing is read half."""

import random

import numpy as np
import pytest
import torch

from faults.processes import finish, kill, run, start, until
from faults.toy import OUTS, PROFILE, STAGES, settled
from pipeline.errors import CheckpointError
from pipeline.training.fit import read_checkpoint, write_checkpoint


def flipped(content):
    position = random.Random(0).randrange(len(content) // 4, 3 * len(content) // 4)
    return content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :]


DAMAGE = {"flipped": flipped, "cut": lambda content: content[: len(content) * 2 // 3], "empty": lambda content: b""}


def spoil(path, kind):
    """Damage a file; returns what it was."""
    content = path.read_bytes()
    path.write_bytes(DAMAGE[kind](content))
    return content


def refused(root, stage):
    """What a stage says that must end with status 2 and a sentence, having written nothing."""
    status, words = run(root, stage, *STAGES[stage])
    assert status == 2, words
    assert "Traceback" not in words
    assert not (root / "runs" / PROFILE / OUTS[stage]).exists()
    return words


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_cell_alone_is_computed_again(whole, root, kind):
    first, *others = sorted((root / "work" / "cells").iterdir())
    times = [path.stat().st_mtime_ns for path in others]
    spoil(first, kind)
    words = finish(root, "inpaint", *STAGES["inpaint"])
    assert "computed again" in words
    assert [path.stat().st_mtime_ns for path in others] == times
    assert settled(root) == settled(whole)
    assert first.with_suffix(".damaged").exists()


def test_a_damaged_copy_of_a_cell_is_not_scored(whole, root, undo):
    undo("score")
    copy = root / "runs" / PROFILE / OUTS["inpaint"] / "left.npz"
    spoil(copy, "flipped")
    assert f"{copy}: expected a finished sweep cell" in refused(root, "score")
    finish(root, "inpaint", *STAGES["inpaint"])  # as DVC does, which sees that the stage's output has changed
    finish(root, "score", *STAGES["score"])
    assert settled(root) == settled(whole)


@pytest.mark.parametrize("kind", ["flipped", "cut"])
def test_damaged_weights_are_refused(whole, root, undo, kind):
    undo("inpaint")
    path = root / "runs" / PROFILE / OUTS["train_ddpm"] / "model.safetensors"
    content = spoil(path, kind)
    assert "the file is damaged or was exchanged: train it again or restore both" in refused(root, "inpaint")
    path.write_bytes(content)
    finish(root, "inpaint", *STAGES["inpaint"])
    assert settled(root) == settled(whole)


@pytest.mark.parametrize("kind", ["flipped", "cut"])
def test_a_damaged_checkpoint_of_a_training_is_refused_until_deleted(whole, root, undo, kind):
    undo("train_ddpm")
    training = start(root, "train_ddpm", *STAGES["train_ddpm"])
    until(lambda: list(root.glob("work/train/train_ddpm-*/last.ckpt")), training)
    assert kill(training)
    [checkpoint] = root.glob("work/train/train_ddpm-*/last.ckpt")
    spoil(checkpoint, kind)
    words = refused(root, "train_ddpm")
    assert f"{checkpoint}: expected a checkpoint" in words
    assert "delete it to train anew" in words
    checkpoint.unlink()
    finish(root, "train_ddpm", *STAGES["train_ddpm"])
    assert settled(root) == settled(whole)


def test_no_flipped_bit_gives_another_checkpoint(tmp_path):
    """Wherever a bit flips, the checkpoint is refused or read as it was (where a date in the archive was hit, say)."""
    path, values = tmp_path / "last.ckpt", {"weights": torch.arange(64.0), "step": 3, "name": "ema"}
    write_checkpoint(path, values)
    whole, unharmed = path.read_bytes(), 0
    for position in range(0, len(whole), 3):
        content = bytearray(whole)
        content[position] ^= 1 << position % 8
        path.write_bytes(content)
        try:
            found = read_checkpoint(path)
        except CheckpointError:
            continue
        assert np.array_equal(found["weights"], values["weights"])
        assert (found["step"], found["name"]) == (3, "ema")
        unharmed += 1
    assert unharmed < len(whole) / 3
