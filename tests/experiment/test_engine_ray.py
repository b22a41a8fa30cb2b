"""A Ray of two cores: cells as they are inline, workers that are killed, and words for what is missing."""

import os
import sys

import pytest

from experiment.errands import Clerk, Errand, send
from experiment.tiny_world import KilledOnce, attempts, bench_of, same, settled, tiny_world, units_of
from pipeline.errors import ConfigError, UserError
from pipeline.experiment.engine.backend import INLINE, Backend, parse
from pipeline.experiment.engine.dispatch import UnitError, run_units
from pipeline.experiment.engine.ray_crew import _join


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    """Ray on this machine, with a token of its own and nothing written into anybody's home."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("0123456789abcdef" * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("TIRAMISU_DEVICE", "cpu")
        ray = pytest.importorskip("ray")  # reads the environment as it is imported
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield ray
        ray.shutdown()


def test_killed_in_the_middle_of_a_cell_an_actor_is_replaced_and_the_cells_are_the_same(ray, tmp_path, monkeypatch):
    params, layout = tiny_world(tmp_path / "world")
    bench = bench_of(params, layout)
    units = units_of(bench)
    assert all(outcome.ok for outcome in run_units(units, bench, INLINE, logs=layout.logs))
    expected = settled(layout)
    monkeypatch.setenv("TIRAMISU_WORK", str(tmp_path / "other"))
    work = KilledOnce(bench, "faces/copaint/wide", tmp_path / "killed")
    assert all(outcome.ok for outcome in run_units(units, work, parse("ray:1"), logs=layout.logs))
    assert (tmp_path / "killed").exists()
    assert attempts(layout) == {str(unit): 2 if str(unit) == work.victim else 1 for unit in units}
    assert same(settled(layout), expected)


def test_actors_survive_what_happens_to_them(ray, tmp_path):
    clerk = Clerk(tmp_path)
    plain = [Errand(kind, f"{kind}{k}") for kind in ("a", "b") for k in range(3)]
    killed, deadly, wrong = Errand("killed", "k"), Errand("deadly", "d"), Errand("wrong", "w")
    outcomes = send(clerk, [killed, deadly, *plain, wrong], "ray:2", retries=1)
    assert {unit for unit, outcome in outcomes.items() if outcome.ok} == {*plain, killed}
    assert [len(clerk.attempts(unit)) for unit in (killed, deadly, wrong)] == [2, 2, 1]
    assert all(len(clerk.attempts(unit)) == 1 for unit in plain)
    assert isinstance(outcomes[wrong].error, UnitError)
    assert "ZeroDivisionError: by nothing" in str(outcomes[wrong].error)
    assert "2 workers died at it" in str(outcomes[deadly].error)
    assert "Traceback" in (tmp_path / "logs" / "wrong" / "w.log").read_text()
    assert "said by a1" in (tmp_path / "logs" / "a" / "a1.log").read_text()
    assert os.getpid() not in {clerk.attempts(unit)[0][0] for unit in plain}


def test_what_the_user_must_mend_stops_everything(ray, tmp_path):
    clerk, units = Clerk(tmp_path), [Errand("refused", "r"), Errand("a", "a0")]
    with pytest.raises(UserError, match=r"The shard is damaged; prepare it again\."):
        send(clerk, units, "ray:1")
    assert not clerk.attempts(units[1])


def test_where_no_cluster_answers_the_sentence_says_what_to_look_at(ray):
    with pytest.raises(ConfigError, match=r"Ray does not let us in at 127\.0\.0\.1:9 .*refused.*RAY_AUTH_TOKEN_PATH"):
        _join(ray, Backend(kind="ray", address="127.0.0.1:9"))


def test_without_ray_the_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'tiramisu-pipeline\[ray\]'"):
        send(Clerk(tmp_path), [Errand("a", "a0")], "ray")
