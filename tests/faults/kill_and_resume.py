"""Kill a small pipeline at random moments until it has survived enough, and compare it with an undisturbed run.

    python tests/faults/kill_and_resume.py --kills 50 --seed 0

Works in copies of this checkout in a temporary folder, with this environment. `dvc repro score` runs the stages up to
the scores; when they have finished in spite of the kills, they are compared, and another pipeline begins from nothing.
The moments are those of a Poisson process in processor time. Two kills of three are SIGKILL to the whole process
group, as when a machine goes down; the others to the process of the stage alone, as when the kernel needs its memory.
Exits with status 1 if anything that is not measured differs, or if MLflow lacks a run.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import psutil  # noqa: E402

from faults.toy import configure, settled  # noqa: E402
from pipeline.experiment.branches import mend_locks  # noqa: E402


def checkout(folder):
    """A copy of the files that git knows or would add, with the small pipeline's parameters and no results."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    for path in (ROOT / name for name in names if name):
        if path.is_file() and not path.is_symlink():
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    configure(folder)
    return folder


def start(folder, log):
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "TIRAMISU_EXECUTION": "faults"}
    command = [BIN / "dvc", "repro", "score"]
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, stdout=log, stderr=log)


def processor_time(process):
    """Seconds that the processes of a group have computed, those that have ended included."""
    try:
        alive = [process, *process.children(recursive=True)]
        return sum(sum(one.cpu_times()[:4]) for one in alive)
    except psutil.Error:  # one has just ended; its time is its parent's from now on
        return 0.0


def ends_before(process, moment):
    """Wait until a process has ended, True, or its group has computed for so long, False."""
    group = psutil.Process(process.pid)
    while process.poll() is None:
        if processor_time(group) > moment:
            return False
        time.sleep(0.25)
    return True


def running_stage(process):
    """The process of the stage that `dvc repro` is at, and the stage's name; None and "between stages" at no stage."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if words[1:2] == ["-m"] and words[2].startswith("stages."):
            return child, words[2].removeprefix("stages.")
    return None, "between stages"


def kill(process, alone):
    """Kill the stage alone or the whole group; returns the stage's name, or None if everything had ended."""
    try:
        child, name = running_stage(process)
        if child and alone:
            child.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    except (psutil.Error, ProcessLookupError):
        name = None
    process.wait()
    return name


def survive(folder, chance, mean, budget, log):
    """Run a pipeline to its end, killing it at most `budget` times; returns the stages killed.

    As `make repro` does, files that DVC was killed over are set aside.
    """
    killed = []
    while True:
        for name in mend_locks(folder):
            print(f"kill {len(killed)} damaged {name}", flush=True)
        process = start(folder, log)
        moment = chance.expovariate(1 / mean) if len(killed) < budget else float("inf")
        if not ends_before(process, moment):
            name = kill(process, alone=chance.random() < 1 / 3)
            killed += [name] if name else []
        elif process.returncode:
            sys.exit(f"the pipeline failed after {len(killed)} kills; see {log.name}")
        else:
            return killed


def shown(folder, log):
    """Whether MLflow holds every record once it has been brought up to date: a second time there is nothing to do."""
    track = [sys.executable, "-m", "stages.track"]
    subprocess.run(track, cwd=folder, stdout=log, stderr=log, check=True)
    again = subprocess.run(track, cwd=folder, capture_output=True, text=True, check=True).stdout
    return again.startswith("0 runs created, 0 updated")


def main(kills, seed, mean):
    chance, survived, differences, pipelines = random.Random(seed), Counter(), 0, 0
    scratch, begin = Path(tempfile.mkdtemp(prefix="faults-")), time.monotonic()
    source, log = checkout(scratch / "source"), (scratch / "log").open("w")
    whole = shutil.copytree(source, scratch / "whole")
    survive(whole, chance, mean, 0, log)
    expected = settled(whole)
    print(f"undisturbed: {time.monotonic() - begin:.0f} s, {len(expected)} files to compare", flush=True)
    while survived.total() < kills:
        pipelines += 1
        folder = shutil.copytree(source, scratch / f"killed{pipelines}")
        killed = survive(folder, chance, mean, kills - survived.total(), log)
        survived.update(killed)
        found, complete = settled(folder), shown(folder, log)
        differ = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
        drafts = len([path for path in folder.rglob(".*.tmp") if path.is_file()])
        differences += len(differ) + (not complete)
        print(
            f"pipeline {pipelines}: {len(killed)} kills, {len(differ)} of {len(expected)} files differ {differ}, "
            f"MLflow {'complete' if complete else 'INCOMPLETE'}, {drafts} drafts of killed processes left, unread",
            flush=True,
        )
    print(f"{survived.total()} kills in {pipelines} pipelines, {time.monotonic() - begin:.0f} s; by stage:")
    for name, count in survived.most_common():
        print(f"  {name}: {count}")
    if not differences:
        shutil.rmtree(scratch)
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mean", type=float, default=6.0, help="seconds of processor time between kills, on average")
    given = parser.parse_args()
    main(given.kills, given.seed, given.mean)
