"""Kill the smoke pipeline at several moments, run it again, and compare its records with an undisturbed run's.

    python tests/faults/kill_and_resume.py --moments 15 40 65 90

Works in two clones of the checked-out commit in a temporary folder, with this environment. Every kill is SIGKILL to the
whole process group. Exits with status 1 if anything outside "measured" differs.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def clone(folder):
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return folder


def start(folder, log):
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "TIRAMISU_EXECUTION": "faults"}
    command = "python -m stages.profile smoke && dvc repro"
    return subprocess.Popen(
        ["bash", "-c", command], cwd=folder, env=environment, start_new_session=True, stdout=log, stderr=log
    )


def settled(folder):
    """Everything that must not depend on interruptions: records without measurements, weights, pixels, scores."""
    runs, found = folder / "runs" / "smoke", {}
    for path in sorted(runs.rglob("record.json")):
        found[str(path.relative_to(runs))] = without_measurements(json.loads(path.read_text()))
    for path in sorted(runs.rglob("cells.json")):
        cells = json.loads(path.read_text())["cells"]
        found[str(path.relative_to(runs))] = [without_measurements(cell) for cell in cells]
    for pattern in ("*.safetensors", "*.tar", "scores.csv"):
        for path in sorted(runs.rglob(pattern)):
            found[str(path.relative_to(runs))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(runs.glob("inpaint/*/*/*.npz")):
        found[str(path.relative_to(runs))] = hashlib.sha256(np.load(path)["samples"].tobytes()).hexdigest()
    return found


def without_measurements(record):
    return {key: value for key, value in record.items() if key != "measured"}


def main(moments):
    with tempfile.TemporaryDirectory() as scratch:
        log = (Path(scratch) / "log").open("w")
        whole, broken = clone(Path(scratch) / "whole"), clone(Path(scratch) / "broken")
        begin = time.monotonic()
        if start(whole, log).wait():
            sys.exit("the undisturbed run failed")
        print(f"undisturbed: {time.monotonic() - begin:.0f} s")
        for moment in moments:
            process = start(broken, log)
            try:
                process.wait(timeout=moment)
                print(f"had finished before {moment} s")
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                done = len(list((broken / "work" / "cells").glob("*.npz"))) if (broken / "work").exists() else 0
                print(f"killed after {moment} s, with {done} cells finished")
            time.sleep(1)
        if start(broken, log).wait():
            sys.exit("the run after the kills failed")
        first, second = settled(whole), settled(broken)
        differ = [name for name in first.keys() | second.keys() if first.get(name) != second.get(name)]
        print(f"{len(first)} records and files compared, {len(differ)} differ: {differ}")
        sys.exit(1 if differ else 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=float, nargs="+", default=[15.0, 40.0, 65.0, 90.0])
    main(parser.parse_args().moments)
