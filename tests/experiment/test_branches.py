import subprocess
import sys

import pytest
from dvc.repo import Repo

from pipeline.errors import UserError
from pipeline.experiment.branches import SHARED, branches, mend_locks, reproduce, surroundings

PIPELINE = """
stages:
  masks: {cmd: touch masks, outs: [masks]}
  train_trunk: {cmd: touch trunk, outs: [trunk]}
  resolve_lpips: {cmd: touch lpips, outs: [lpips]}
  first:
    matrix: {dataset: [x, x-ray]}
    cmd: python wait.py ${item.dataset}
    deps: [masks]
    outs: ["first.${item.dataset}"]
  second:
    matrix: {dataset: [x, x-ray], row: [a, b]}
    cmd: cp first.${item.dataset} second.${item.dataset}.${item.row}
    deps: ["first.${item.dataset}"]
    outs: ["second.${item.dataset}.${item.row}"]
  report:
    cmd: cat second.* > report
    deps: [second.x.a, second.x.b, second.x-ray.a, second.x-ray.b]
    outs: [report]
"""

WAIT = """
import sys, time
from pathlib import Path
mine = sys.argv[1]
other = {"x": "x-ray", "x-ray": "x"}[mine]
Path(f"here.{mine}").touch()
end = time.monotonic() + float(Path("patience").read_text())
while not Path(f"here.{other}").exists():
    if time.monotonic() > end:
        sys.exit("the other dataset did not come")
    time.sleep(0.05)
Path(f"first.{mine}").write_text(mine)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "wait.py").write_text(WAIT)
    (tmp_path / "patience").write_text("30")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


def test_datasets_run_at_the_same_time_and_are_joined(project):
    reproduce(project, ["x", "x-ray"], jobs=2)  # each waits for the other, so one after the other would fail
    assert (project / "report").read_text() == "x-rayx-rayxx"
    done = subprocess.run([sys.executable, "-m", "dvc", "status"], cwd=project, capture_output=True, text=True)
    assert "up to date" in done.stdout


def test_a_failing_dataset_is_named_and_keeps_what_the_other_finished(project):
    (project / "wait.py").write_text(WAIT.replace("mine = sys.argv[1]", "mine = sys.argv[1]\nassert mine == 'x'"))
    (project / "here.x-ray").touch()
    with pytest.raises(UserError, match=r"Stages of x-ray failed"):
        reproduce(project, ["x", "x-ray"], jobs=2)
    assert (project / "second.x.b").exists()
    assert not (project / "report").exists()
    (project / "wait.py").write_text(WAIT)
    (project / "here.x").unlink()
    (project / "here.x-ray").unlink()
    (project / "patience").write_text("0")
    with pytest.raises(UserError, match=r"status 255|status 1"):  # one job: each would wait for the other in vain
        reproduce(project, ["x", "x-ray"], jobs=1)


@pytest.mark.parametrize("cut", [0, 40, 200, -20])
def test_half_a_lock_loses_nothing(project, cut):
    """DVC writes dvc.lock in place; a kill leaves the first part of it, or nothing."""
    reproduce(project, ["x", "x-ray"], 2)
    (project / "dvc.lock").write_bytes((project / "dvc.lock").read_bytes()[:cut])
    (project / "wait.py").write_text("raise SystemExit('what was finished is run again')")
    reproduce(project, ["x", "x-ray"], 2)
    done = subprocess.run([sys.executable, "-m", "dvc", "status"], cwd=project, capture_output=True, text=True)
    assert "up to date" in done.stdout
    assert mend_locks(project) == []


def test_a_lock_that_dvc_is_writing_is_left_alone(project):
    (project / "dvc.lock").write_bytes(b"")
    with Repo(str(project)) as repo, repo.lock:
        assert mend_locks(project) == []
    assert mend_locks(project) == ["dvc.lock"]
    assert not (project / "dvc.lock").exists()


@pytest.mark.parametrize("left", [b"", b'{"write": {}, "rea', b'{"write": []}', b"\xff"])
def test_half_a_list_of_what_is_in_use_stops_nothing(project, left):
    """DVC writes it in place, before and after every stage."""
    reproduce(project, ["x", "x-ray"], 2)
    used = project / ".dvc" / "tmp" / "rwlock"
    assert used.exists()
    assert mend_locks(project) == []
    used.write_bytes(left)
    (project / "report").unlink()
    reproduce(project, ["x", "x-ray"], 2)
    assert (project / "report").exists()


def test_a_stage_goes_with_the_longest_name_it_bears():
    stages = ["masks", "prepare@x", "prepare@x-ray", "inpaint@x-ddnm", "inpaint@x-ray-ddnm", "inpaint@y-ddnm", "report"]
    assert branches(stages, ["x", "x-ray"]) == {
        "x": ["prepare@x", "inpaint@x-ddnm"],
        "x-ray": ["prepare@x-ray", "inpaint@x-ray-ddnm"],
    }


def test_a_branch_gets_its_share_of_the_cores_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert surroundings(0, 3)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert surroundings(0, 3)["OMP_NUM_THREADS"] == "5"


def test_branches_wait_for_nothing_but_their_own_and_the_shared(pipeline_stages):
    produced = {out: name for name, stage in pipeline_stages.items() for out in stage["outs"]}
    for name, stage in pipeline_stages.items():
        if "@" not in name:
            continue
        dataset = name.partition("@")[2].partition("-")[0]
        for dep in stage["deps"]:
            for out, maker in produced.items():
                if dep == out or out.startswith(f"{dep}/"):
                    assert maker in SHARED or maker.partition("@")[2].partition("-")[0] == dataset, (name, dep, maker)


@pytest.fixture(scope="module")
def pipeline_stages(tmp_path_factory):
    """The stages of the repository's own dvc.yaml with the values of the default profile filled in."""
    import shutil
    from pathlib import Path

    root, folder = Path(__file__).parents[2], tmp_path_factory.mktemp("own")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(root / name, folder)
    Repo.init(str(folder), no_scm=True)
    stages = [stage for stage in Repo(str(folder)).index.stages if getattr(stage, "name", None)]
    relative = lambda path: str(Path(path).relative_to(folder))  # noqa: E731
    return {
        stage.name: {
            "deps": [relative(dep.fs_path) for dep in stage.deps if dep.def_path != "params.yaml"],
            "outs": [relative(out.fs_path) for out in stage.outs],
        }
        for stage in stages
    }
