"""Queue experiments over a parameter with DVC, run them, and see that only what the parameter changes is computed.

    python tests/faults/queued_experiments.py

Works in a clone of the checked-out commit in a temporary folder, with this environment; takes minutes. DVC runs queued
experiments in copies of the repository without what git ignores: the cells are found through TIRAMISU_WORK. Exits with
status 1 if an experiment is missing, if results do not depend on the parameter, or if anything trained or computed
before is made again.
"""

import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SMALL = (
    "sweep.datasets=[faces]",
    "sweep.methods=[copaint]",
    "sweep.steered=[tiramisu]",
    "sweep.masks=[left]",
    "sweep.images=2",
    "report.images=2",
    "trunk.steps=5",
    "vqgan.trainer.steps=5",
    "vqgan.trainer.checkpoint_every=5",
    "ddpm.trainer.steps=5",
    "ddpm.trainer.checkpoint_every=5",
    "transformer.trainer.steps=0",
)
KEY, VALUES = "steered.tiramisu.until", (0.3, 0.7)
METRIC = "faces.left.tiramisu"


class Clone:
    """A clone of the repository, and commands in it."""

    def __init__(self, folder):
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        names = {
            f"GIT_{who}_{what}": "faults@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        self.folder, self.work = folder, folder / "work"
        path = f"{BIN}:{os.environ['PATH']}"
        self.environment = os.environ | names | {"PATH": path, "TIRAMISU_WORK": str(self.work)}

    def __call__(self, *command):
        with tempfile.TemporaryFile("w+") as out:  # a pipe would stay open as long as the queue's worker lives
            done = subprocess.run(command, cwd=self.folder, env=self.environment, stdout=out, stderr=subprocess.STDOUT)
            out.seek(0)
            said = out.read()
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{said[-5000:]}")
        return said

    def made(self):
        """Cells and checkpoints, and when they were written."""
        paths = [*self.work.glob("cells/*.npz"), *(self.work / "train").rglob("*.ckpt")]
        return {str(path.relative_to(self.work)): path.stat().st_mtime_ns for path in paths}


def run_queue(clone):
    clone("dvc", "exp", "run", "--queue", "-S", f"{KEY}={','.join(map(str, VALUES))}")
    clone("dvc", "queue", "start", "-j", "1")
    while any(word in clone("dvc", "queue", "status") for word in ("Queued", "Running")):
        time.sleep(5)


def main():
    with tempfile.TemporaryDirectory() as scratch:
        clone = Clone(Path(scratch) / "clone")
        clone(
            "python", "-m", "stages.profile", "smoke", "--force", *(word for set_ in SMALL for word in ("--set", set_))
        )
        clone("dvc", "repro")
        clone("git", "add", "--all")
        clone("git", "commit", "--quiet", "-m", "what the experiments share")
        before, begin = clone.made(), time.monotonic()
        run_queue(clone)
        rows = list(csv.DictReader(clone("dvc", "exp", "show", "--csv").splitlines()))
        found = {float(row[KEY]): float(row[METRIC]) for row in rows if row["State"] == "Success"}
        after = clone.made()
    print(f"{len(found)} experiments in {time.monotonic() - begin:.0f} s; {METRIC} by {KEY}: {found}")
    print(f"cells and checkpoints: {len(before)} before, {len(after)} after")
    right = {
        "every value has its experiment": set(found) == set(VALUES),
        "results depend on the value": len(set(found.values())) == len(VALUES),
        "what was there stays as it was": all(after.get(name) == moment for name, moment in before.items()),
        "there is one new cell for each, and no new checkpoint": len(after) - len(before) == len(VALUES)
        and all(name.startswith("cells") for name in after.keys() - before.keys()),
    }
    for sentence, holds in right.items():
        print(f"{sentence}: {'yes' if holds else 'NO'}")
    sys.exit(0 if all(right.values()) else 1)


if __name__ == "__main__":
    main()
