"""Every unit is done at least once, and nothing that happens to a worker loses more than what it is at."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiment.errands import Clerk, Errand, send
from pipeline.errors import ConfigError, UserError
from pipeline.experiment.engine.backend import INLINE, Backend, chosen, parse
from pipeline.experiment.engine.desk import Desk
from pipeline.experiment.engine.dispatch import UnitError, choose, run_units
from pipeline.experiment.engine.process_crew import desks_of, visible_gpus

TESTS = Path(__file__).parents[1]

# --- the word that says where ---


@pytest.mark.parametrize(
    ("word", "backend"),
    [
        ("inline", INLINE),
        ("process", Backend(kind="process")),
        ("process:12", Backend(kind="process", workers=12)),
        ("ray", Backend(kind="ray")),
        ("ray:2", Backend(kind="ray", workers=2)),
        ("ray:auto", Backend(kind="ray", address="auto")),
        ("ray:10.0.0.1:6379", Backend(kind="ray", address="10.0.0.1:6379")),
        ("ray:3@head:6379", Backend(kind="ray", workers=3, address="head:6379")),
    ],
)
def test_a_word_names_a_backend(word, backend):
    assert parse(word) == backend


NO_WORDS = (
    "Inline inline:1 proces:2 process: process:0 process:-1 process:two process:2@head "
    "ray: ray:0@head ray:2@ ray:@head ray:2@a@b slurm"
)


@pytest.mark.parametrize("word", ["", *NO_WORDS.split()])
def test_other_words_are_refused_in_one_sentence(word):
    with pytest.raises(ConfigError, match=r"--engine: expected inline, process") as caught:
        parse(word)
    assert repr(word) in str(caught.value)


def test_the_environment_names_the_backend(monkeypatch):
    monkeypatch.delenv("TIRAMISU_ENGINE", raising=False)
    assert chosen() == INLINE
    monkeypatch.setenv("TIRAMISU_ENGINE", "process:3")
    assert chosen() == Backend(kind="process", workers=3)
    monkeypatch.setenv("TIRAMISU_ENGINE", "threads")
    with pytest.raises(ConfigError, match="TIRAMISU_ENGINE"):
        chosen()


# --- who does what ---


def test_a_worker_goes_on_with_what_it_has_open():
    a, b, c = (Errand("a", "2"), Errand("b", "2"), Errand("c", "2"))
    pending = [a, b, c]
    assert choose(pending, None, []) == a
    assert choose(pending, Errand("b", "1"), []) == b
    assert choose(pending, Errand("b", "1"), [Errand("b", "0")]) == b
    assert choose(pending, None, [Errand("a", "1")]) == b
    assert choose(pending, Errand("d", "1"), [Errand("a", "1"), Errand("b", "1")]) == c
    assert choose([a, b], None, [Errand("a", "1"), Errand("b", "1")]) == a


def test_gpus_are_given_out_in_turns_and_cores_are_shared(monkeypatch, tmp_path):
    desk = Desk(fn=print, logs=tmp_path, threads=1)
    monkeypatch.setenv("TIRAMISU_DEVICE", "cpu")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    assert visible_gpus() == []
    assert [d.threads for d in desks_of(None, desk)] == [1] * 8
    assert [d.threads for d in desks_of(3, desk)] == [2] * 3
    assert [d.threads for d in desks_of(20, desk)] == [1] * 20
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [d.threads for d in desks_of(4, desk)] == [3] * 4
    monkeypatch.delenv("TIRAMISU_DEVICE")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [d.environment["CUDA_VISIBLE_DEVICES"] for d in desks_of(3, desk)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    assert [dict(d.environment) for d in desks_of(None, desk)] == [
        {"CUDA_VISIBLE_DEVICES": name, "TIRAMISU_DEVICE": "cuda:0"} for name in ("5", "GPU-7")
    ]
    monkeypatch.setenv("TIRAMISU_DEVICE", "cuda:1")
    assert visible_gpus() == ["GPU-7"]


# --- errands ---


@pytest.fixture
def clerk(tmp_path):
    return Clerk(tmp_path)


def test_processes_survive_what_happens_to_them(clerk):
    """One unit kills its worker once, one at every attempt, one is wrong: every other is done once."""
    plain = [Errand(kind, f"{kind}{k}") for kind in ("a", "b") for k in range(3)]
    killed, deadly, wrong = Errand("killed", "k"), Errand("deadly", "d"), Errand("wrong", "w")
    outcomes = send(clerk, [killed, deadly, *plain, wrong], "process:2", retries=1)
    assert {unit for unit, outcome in outcomes.items() if outcome.ok} == {*plain, killed}
    assert [len(clerk.attempts(unit)) for unit in (killed, deadly, wrong)] == [2, 2, 1]
    assert all(len(clerk.attempts(unit)) == 1 for unit in plain)
    assert isinstance(outcomes[wrong].error, UnitError)
    assert "ZeroDivisionError: by nothing" in str(outcomes[wrong].error)
    assert "2 workers died at it" in str(outcomes[deadly].error)
    assert "SIGKILL" in str(outcomes[deadly].error)
    logs = clerk.folder / "logs"
    assert "Traceback" in (logs / "wrong" / "w.log").read_text()
    assert "said by a1" in (logs / "a" / "a1.log").read_text()
    processes = {clerk.attempts(unit)[0][0] for unit in plain}
    assert os.getpid() not in processes
    assert max(clerk.attempts(unit)[0][1] for unit in plain) > 0  # a worker keeps its copy of the clerk


def test_inline_units_are_done_here_and_errors_come_as_they_are(clerk):
    units = [Errand("wrong", "w"), Errand("a", "a0")]
    outcomes = send(clerk, units, "inline")
    assert isinstance(outcomes[units[0]].error, ZeroDivisionError)
    assert outcomes[units[1]].ok
    assert clerk.attempts(units[1])[0][0] == os.getpid()
    assert not (clerk.folder / "logs").exists()


@pytest.mark.parametrize("backend", ["inline", "process:1"])
def test_what_the_user_must_mend_stops_everything(clerk, backend):
    units = [Errand("refused", "r"), *(Errand("a", f"a{k}") for k in range(3))]
    with pytest.raises(UserError, match=r"The shard is damaged; prepare it again\."):
        send(clerk, units, backend)
    assert len(clerk.attempts(units[0])) == 1
    assert not any(clerk.attempts(unit) for unit in units[1:])


def test_workers_that_cannot_start_are_given_up(clerk):
    clerk.folder = Unreadable(clerk.folder)
    with pytest.raises(RuntimeError, match="2 workers died before they took up anything"):
        list(run_units([Errand("a", "a0")], clerk, parse("process:1"), logs=Path(clerk.folder), retries=1))


class Unreadable(type(Path())):
    """A path that cannot be read again in another process."""

    def __reduce__(self):
        return (int, ("none",))


def test_workers_end_with_whoever_hired_them(tmp_path):
    """SIGKILL of the parent leaves no worker behind, not even one at work."""
    code = (
        "import sys; from pathlib import Path; from experiment.errands import Errand, Sleepy, send\n"
        "send(Sleepy(Path(sys.argv[1])), [Errand('a', 'a0')], 'process:1')"
    )
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    noted = until(lambda: Clerk(tmp_path).attempts(Errand("a", "a0")))
    parent.kill()
    parent.wait()
    until(lambda: not running(noted[0][0]))


def until(call, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = call()
        if found:
            return found
        time.sleep(0.05)
    return pytest.fail("that took too long")


def running(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "zombie" not in status.read_text()
