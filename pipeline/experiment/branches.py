"""The whole pipeline with the datasets side by side.

DVC runs one stage at a time. Here what the datasets share comes first, then the stages of each dataset run in a process
of their own (DVC holds its lock only between commands), and then DVC goes over everything and runs what joins the
datasets, or is missing still. The result is that of `dvc repro`.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from dvc.lock import LockError
from dvc.repo import Repo
from dvc.rwlock import RWLOCK_FILE
from dvc.rwlock import SCHEMA as RWLOCK_SCHEMA
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from voluptuous import Invalid

from pipeline.errors import ConfigError, UserError, at_least
from pipeline.experiment.engine.process_crew import visible_gpus
from pipeline.experiment.plain import parse_yaml

log = logging.getLogger(__name__)

SHARED = ("masks", "train_trunk", "resolve_lpips")
"""Stages that those of a dataset wait for, beside those of the same dataset."""

PER_CORE = 1.5
"""Datasets at once per core: their stages have parts, such as loading and compressing, that use one core or none."""


def reproduce(root: Path, datasets: Sequence[str], jobs: int | None = None) -> None:
    """Run the pipeline in `root`.

    Args:
        root: folder with dvc.yaml.
        datasets: of the sweep.
        jobs: datasets at once; None: one per GPU, without GPUs as many as the cores can take.

    Raises:
        UserError: a stage failed; what finished is kept.
    """
    jobs = min(jobs or default_jobs(), len(datasets))
    at_least(1, jobs=jobs)
    mend_locks(root)
    if jobs > 1:
        dvc(root, ["repro", *SHARED])
        names = subprocess.run(
            [*DVC, "stage", "list", "--name-only"], cwd=root, check=True, capture_output=True, text=True
        ).stdout.split()
        side_by_side(root, branches(names, datasets), jobs)
    dvc(root, ["repro"])


def mend_locks(root: Path) -> list[str]:
    """Set DVC's files aside that are damaged, and say so: DVC writes them in place, so a kill may leave half of one.

    Nothing is lost with dvc.lock, because DVC keeps a record of every finished stage in its run cache, and nothing with
    the list of paths in use. While another DVC is at work here, the files are that one's, half written or not.

    Returns:
        The names of those that were damaged.
    """
    found = []
    try:
        with Repo(str(root)) as repo, repo.lock:
            checks = {root / "dvc.lock": is_lock, Path(str(repo.tmp_dir)) / RWLOCK_FILE: is_list_of_use}
            for path, is_whole in checks.items():
                if path.exists() and not is_whole(path):
                    path.replace(path.with_name(f"{path.name}.damaged"))
                    log.warning("%s was damaged, as by a kill; set aside, finished stages are found again", path)
                    found.append(path.name)
    except LockError:
        pass
    return found


def is_lock(path: Path) -> bool:
    """Whether DVC can read a dvc.lock."""
    try:
        COMPILED_LOCKFILE_SCHEMA(parse_yaml(path.read_bytes(), str(path)))
    except (ConfigError, Invalid):
        return False
    return True


def is_list_of_use(path: Path) -> bool:
    """Whether DVC can read its list of the paths that processes use."""
    try:
        RWLOCK_SCHEMA(json.loads(path.read_bytes()))
    except (ValueError, Invalid):
        return False
    return True


DVC = (sys.executable, "-m", "dvc", "--wait-for-lock")


def default_jobs() -> int:
    """Datasets at once on this machine."""
    return len(visible_gpus()) or int(PER_CORE * (os.cpu_count() or 1))


def branches(stages: Sequence[str], datasets: Sequence[str]) -> dict[str, list[str]]:
    """The stages of each dataset, in the order given: `name@dataset` and `name@dataset-row`."""
    found: dict[str, list[str]] = {dataset: [] for dataset in datasets}
    for stage in stages:
        key = stage.partition("@")[2]
        whose = [dataset for dataset in datasets if key == dataset or key.startswith(f"{dataset}-")]
        if whose:
            found[max(whose, key=len)].append(stage)
    return found


def side_by_side(root: Path, stages: Mapping[str, Sequence[str]], jobs: int) -> None:
    """Run the stages of every dataset in order, `jobs` datasets at once; one that fails does not stop the others.

    Raises:
        UserError: a dataset failed.
    """
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)

    def branch(dataset: str) -> bool:
        slot = slots.get()
        try:
            dvc(root, ["repro", "--single-item", *stages[dataset]], surroundings(slot, jobs))
        except UserError:
            return False
        finally:
            slots.put(slot)
        return True

    log.info("%s side by side, %d at once", ", ".join(stages), jobs)
    with ThreadPoolExecutor(jobs) as pool:
        done = dict(zip(stages, pool.map(branch, stages), strict=True))
    failed = [dataset for dataset in stages if not done[dataset]]
    if failed:
        raise UserError(
            f"Stages of {', '.join(failed)} failed, as said above; what finished is kept, so mend it and run again."
        )


def surroundings(slot: int, jobs: int) -> dict[str, str]:
    """Environment of the branch in a slot: its share of the cores, and its GPU if there are several."""
    ours = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), **os.environ, "TIRAMISU_JOBS": str(jobs)}
    gpus = visible_gpus()
    return ours | {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if len(gpus) > 1 else ours


def dvc(root: Path, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Run DVC; from within a branch its lines are passed on whole, so that those of several datasets do not mix.

    Raises:
        UserError: DVC ended with another status than 0; it has said why.
    """
    if environment is None:
        status = subprocess.run([*DVC, *arguments], cwd=root).returncode
    else:
        with subprocess.Popen(
            [*DVC, *arguments], cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            for line in process.stdout or ():
                sys.stderr.write(line)
                sys.stderr.flush()
        status = process.returncode
    if status:
        raise UserError(f"`dvc {' '.join(arguments[:1])}` ended with status {status}; what finished is kept.")
