"""`make track` and `make ui`, run as a user runs them."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from pipeline.experiment import tracking
from pipeline.experiment.params import read_yaml
from stages import track, ui

REPOSITORY = Path(__file__).parents[2]
PROFILE = read_yaml(REPOSITORY / "params.yaml")["profile"]


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """A folder with parameters, where the stages are called, in an environment that says nothing of MLflow."""
    for name in [*tracking.DEFAULTS, "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_TRACKING_URI"]:
        monkeypatch.setenv(name, "")  # so that what `open_store` sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.chdir(tmp_path)
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    return tmp_path


@pytest.fixture
def call(monkeypatch, capsys):
    """Call a stage with arguments; return its status, output and complaints."""

    def call(stage, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [stage.__name__, *arguments])
        status = stage.main()
        return status, *capsys.readouterr()

    return call


def write_training(root: Path) -> None:
    folder = root / "runs" / PROFILE / "vqgan" / "faces"
    folder.mkdir(parents=True)
    record = {
        "schema": 1,
        "kind": "train",
        "stage": "train_vqgan",
        "dataset": "faces",
        "fingerprint": "f" * 64,
        "profile": PROFILE,
        "params": {"steps": 2},
        "inputs": {"data": "d" * 64},
        "metrics": {"val/loss": 0.5},
        "artifacts": [],
        "measured": {"seconds": 1.0, "started": "2025-03-04T05:06:07+00:00", "git_commit": "abc", "execution": "e1"},
    }
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "curve.jsonl").write_text('{"step": 1, "seconds": 0.5, "metrics": {"train/loss": 2.0}}\n')


def test_track_tells_what_it_did(root, call):
    status, out, complaint = call(track)
    assert (status, complaint) == (0, "")
    assert out.startswith("0 runs created")
    assert "dvc repro" in out

    write_training(root)
    for expected in ("1 runs created, 0 updated, 0 already", "0 runs created, 0 updated, 1 already"):
        status, out, complaint = call(track)
        assert (status, complaint) == (0, "")
        assert out.startswith(expected)
        assert len(out.splitlines()) == 1
    assert (root / "mlflow.db").exists()
    assert len(list((root / "mlartifacts").rglob("record.json"))) == 1


def test_track_without_a_server_is_an_error(root, call, monkeypatch):
    write_training(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    status, out, complaint = call(track)
    assert (status, out) == (2, "")
    assert len(complaint.splitlines()) == 1
    assert "http://127.0.0.1:9 cannot be used" in complaint


@pytest.mark.parametrize("stage", ["track", "ui"])
def test_help_imports_nothing_heavy(stage):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{stage}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('stages.{stage}', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    sys.exit(end.code or any(name in sys.modules for name in ('torch', 'mlflow', 'numpy', 'pydantic')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"python -m stages" in done.stdout


def test_ui_refuses_a_busy_port(call):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, out, complaint = call(ui, "--port", port)
    assert (status, out) == (2, "")
    assert len(complaint.splitlines()) == 1
    assert f"Port {port}" in complaint


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(port: int):
    """Run `make ui` until its link is printed; yield the link."""
    command = [sys.executable, "-m", "stages.ui", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if found := re.search(r"http://\S+/#/experiments/\d+/runs\S*", line):
                    yield found[0]
                    break
            else:
                pytest.fail("".join(lines))
        finally:
            process.terminate()
            process.communicate(timeout=20)


def ask(server: str, question: dict) -> dict:
    body, kind = json.dumps(question).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server}/api/2.0/mlflow/runs/search", body, kind)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_ui_serves_the_runs_and_ends_when_told(root, call, monkeypatch):
    port = free_port()
    server = f"http://127.0.0.1:{port}"
    with serving(port) as link:
        assert link.startswith(f"{server}/#/experiments/")
        with urllib.request.urlopen(server) as page:
            assert b"<title>MLflow</title>" in page.read()

        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)  # as on a cluster
        write_training(root)
        assert call(track)[1].startswith("1 runs created")
        experiment = re.search(r"experiments/(\d+)/runs", link)[1]
        (found,) = ask(server, {"experiment_ids": [experiment], "filter": "tags.kind = 'train'"})["runs"]
        assert found["info"]["status"] == "FINISHED"
        status, links, complaint = call(ui, "--port", str(free_port()))
        assert (status, complaint) == (0, "")
        assert links.splitlines()[0] == f"The runs are at {link}"
        assert "searchFilter=tags.kind%20%3D%20%27row%27&compareRunsMode=CHART" in links.splitlines()[1]
    for _ in range(100):  # the server ends with the stage
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            time.sleep(0.1)
            continue
        return
    pytest.fail("the server is still there")
