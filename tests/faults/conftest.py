"""A small world in which the stages have run undisturbed, and copies of it to disturb."""

import shutil
from pathlib import Path

import pytest

from faults.processes import finish
from faults.toy import OUTS, PROFILE, SMALLER, STAGES, configure

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The root of the undisturbed world."""
    root = tmp_path_factory.mktemp("whole")
    shutil.copytree(ROOT / "configs", root / "configs")
    configure(root, SMALLER)
    for stage, arguments in STAGES.items():
        finish(root, stage, *arguments)
    return root


@pytest.fixture
def root(whole, tmp_path):
    """A copy of it."""
    shutil.copytree(whole, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def undo(root):
    """Forget a stage: its outputs, and what it keeps outside them."""

    def forget(stage):
        shutil.rmtree(root / "runs" / PROFILE / OUTS[stage])
        if stage == "inpaint":
            shutil.rmtree(root / "work" / "cells")
        for folder in (root / "work" / "train").glob(f"{stage}-*"):
            shutil.rmtree(folder)

    return forget
