"""Bad input at the real commands: one line, exit status 2, no traceback, and nothing written."""

import os
import shutil
import subprocess
import sys
from functools import partial

import pytest

from fuzz.cases import contents, unclear
from fuzz.corpus_weights import FOREIGN
from fuzz.damage import overwrite
from fuzz.world import ROOT, make_world

VQGAN, TOKENS, DATA = "runs/smoke/vqgan/faces", "runs/smoke/tokens/faces", "runs/smoke/data/faces"


def as_it_is(root):
    """Nothing is spoiled; the command line is what is wrong."""


def edit(path, old, new):
    def spoil(root):
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new, 1))

    return spoil


def cut(path):
    def spoil(root):
        overwrite(path, (root / path).read_bytes()[:100], root)

    return spoil


COMMANDS = {
    "encode, unknown dataset": (as_it_is, "encode --dataset face", "faces"),
    "encode, dataset outside": (as_it_is, "encode --dataset ../../x", "--dataset"),
    "inpaint, unknown method": (as_it_is, "inpaint --dataset faces --method ddnn", "'ddnm'"),
    "inpaint_steered, unknown row": (as_it_is, "inpaint_steered --dataset faces --steered tiramisuu", "'tiramisu'"),
    "score, unknown option": (as_it_is, "score --dataset faces --fast", "--fast"),
    "prepare, no option": (as_it_is, "prepare", "--dataset"),
    "profile, unknown": (as_it_is, "profile smokee", "'smoke'"),
    "profile, broken setting": (as_it_is, "profile smoke --force --set sweep.images=[", "sweep.images"),
    "prepare, no params": (lambda root: (root / "params.yaml").unlink(), "prepare --dataset faces", "params.yaml"),
    "prepare, unknown key": (edit("params.yaml", "seed:", "sede:"), "prepare --dataset faces", "seed"),
    "masks, missing folder": (lambda root: shutil.rmtree(root / "mine"), "masks", "mine"),
    "encode, cut shard": (cut(f"{DATA}/val-000000.tar"), "encode --dataset faces", "val-000000.tar"),
    "encode, cut weights": (cut(f"{VQGAN}/model.safetensors"), "encode --dataset faces", "model.safetensors"),
    "train_circuit, cut tokens": (cut(f"{TOKENS}/train.npz"), "train_circuit --dataset faces", "train.npz"),
    "import_weights, payload": (
        partial(overwrite, "x.pt", FOREIGN["payload-in-zip"]),
        "import_weights --kind vqgan --checkpoint x.pt --out imported",
        "x.pt",
    ),
    "import_weights, unknown kind": (as_it_is, "import_weights --kind gan --checkpoint x --out y", "--kind"),
    "report, cut scores": (cut("runs/smoke/scores/faces/scores.csv"), "report", "scores.csv"),
}
"""Name -> what is spoiled, the command, and what its sentence must hold."""

FEW = ("inpaint, unknown method", "prepare, no option", "import_weights, payload", "encode, cut shard")
"""What the tests run; `long.py` runs all, because each takes seconds to start."""


def outputs(folder):
    """All files but caches."""
    return {name: digest for name, digest in contents(folder).items() if not name.startswith("work/")}


def complaint(world, folder, name):
    """What is wrong with the way in which a command refuses; None if nothing is."""
    spoil, command, word = COMMANDS[name]
    shutil.copytree(world, folder)
    spoil(folder)
    before = outputs(folder)
    stage, *options = command.split()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}", *options], cwd=folder, env=environment, capture_output=True, text=True
    )
    lines = [line for line in done.stderr.splitlines() if ": 0/" not in line]  # a bar may have begun
    if done.returncode != 2 or len(lines) != 1 or word not in lines[0] or done.stdout:
        return f"exits with {done.returncode} and says {done.stdout + done.stderr!r}"
    return unclear(lines[0]) or ("writes" if outputs(folder) != before else None)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    make_world(root)
    return root


@pytest.mark.parametrize("name", FEW)
def test_a_command_refuses_in_one_line(name, world, tmp_path):
    assert complaint(world, tmp_path / "copy", name) is None


def test_the_commands_are_the_stages():
    for _, command, _ in COMMANDS.values():
        assert (ROOT / "stages" / f"{command.split()[0]}.py").is_file()
    assert set(FEW) <= set(COMMANDS)
