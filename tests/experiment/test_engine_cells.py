"""Cells are the same wherever they run, and a worker that is killed loses only the one it is at."""

import pytest

from experiment.tiny_world import KilledOnce, attempts, bench_of, same, settled, tiny_world, units_of
from pipeline.errors import ConfigError, InputError, UserError
from pipeline.experiment.engine.backend import INLINE, parse
from pipeline.experiment.engine.dispatch import run_units
from pipeline.experiment.inpaint import inpaint
from pipeline.experiment.mishaps import CellError
from pipeline.experiment.run_sweep import Part, plan, run_sweep, survey


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny world, and what its cells are when they are run inline."""
    params, layout = tiny_world(tmp_path_factory.mktemp("world"))
    bench = bench_of(params, layout)
    assert all(outcome.ok for outcome in run_units(units_of(bench), bench, INLINE, logs=layout.logs))
    return params, layout, settled(layout)


@pytest.fixture
def elsewhere(world, tmp_path, monkeypatch):
    """The same world with an empty store."""
    params, layout, expected = world
    monkeypatch.setenv("TIRAMISU_WORK", str(tmp_path / "other"))
    monkeypatch.setenv("TIRAMISU_DEVICE", "cpu")
    return params, layout, expected


def test_killed_in_the_middle_of_a_cell_a_process_is_replaced_and_the_cells_are_the_same(elsewhere, tmp_path):
    params, layout, expected = elsewhere
    bench = bench_of(params, layout)
    units = units_of(bench)
    work = KilledOnce(bench, "faces/copaint/wide", tmp_path / "killed")
    assert all(outcome.ok for outcome in run_units(units, work, parse("process:1"), logs=layout.logs))
    assert (tmp_path / "killed").exists()
    assert attempts(layout) == {str(unit): 2 if str(unit) == work.victim else 1 for unit in units}
    assert same(settled(layout), expected)


def test_a_stage_runs_its_cells_where_the_environment_says(elsewhere, monkeypatch, capsys):
    params, layout, expected = elsewhere
    monkeypatch.setenv("TIRAMISU_ENGINE", "process:1")
    inpaint(params, layout, "faces", "ddnm")
    assert attempts(layout) == {"faces/ddnm/left": 1, "faces/ddnm/wide": 1}
    assert "inpaint faces ddnm: 2/2 cells" in capsys.readouterr().err
    assert same(settled(layout), [cell for cell in expected if cell[0]["method"] == "ddnm"])
    assert (layout.inpaint("faces", "ddnm") / "cells.json").exists()


def test_the_sweep_runs_what_is_missing_of_the_part_that_is_named(elsewhere, caplog):
    params, layout, expected = elsewhere
    run_sweep(params, layout, INLINE, Part(rows=["ddnm"], masks=["wide"]))
    with caplog.at_level("INFO"):
        run_sweep(params, layout, INLINE, Part(rows=["ddnm", "tiramisu"]))
    assert "4 cells: 1 are there, 3 are missing.\n  faces ddnm: 1 of 2\n  faces tiramisu: 0 of 2" in caplog.text
    assert same(settled(layout), [cell for cell in expected if cell[0]["method"] in ("ddnm", "tiramisu")])
    there = survey(bench_of(params, layout), Part())
    assert plan(there).startswith("6 cells: 4 are there, 2 are missing.")


def test_a_cell_that_fails_does_not_keep_the_others_from_being_run(elsewhere, monkeypatch):
    import pipeline.experiment.inpaint as stage

    params, layout, expected = elsewhere
    run_cell = stage.run_cell

    def fails_once(sweep, mask, name, bar):
        if (sweep.contestant.name, mask.name) == ("ddnm", "left"):
            raise CellError("faces, mask left, ddnm: that went wrong.")
        return run_cell(sweep, mask, name, bar)

    monkeypatch.setattr(stage, "run_cell", fails_once)
    with pytest.raises(UserError, match=r"1 of 6 cells failed, the others are kept\. The first: faces, mask left"):
        run_sweep(params, layout, INLINE, Part())
    done = [cell for cell in expected if (cell[0]["method"], cell[0]["mask"]) != ("ddnm", "left")]
    assert same(settled(layout), done)


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (Part(rows=["ddmn"]), "--rows: 'ddmn' is not in the sweep of params.yaml; did you mean 'ddnm'?"),
        (Part(rows=["dps"]), "--rows: 'dps' is not in the sweep of params.yaml; there are ddnm, copaint, tiramisu"),
        (Part(datasets=["rooms"]), "--datasets: 'rooms' is not in the sweep of params.yaml; there are faces"),
        (Part(masks=["lefft"]), "--masks: 'lefft' is not in the sweep of params.yaml; did you mean 'left'?"),
    ],
)
def test_a_part_that_is_not_swept_is_refused(elsewhere, part, sentence):
    params, layout, _ = elsewhere
    with pytest.raises(ConfigError) as caught:
        run_sweep(params, layout, INLINE, part)
    assert str(caught.value) == sentence


def test_what_is_missing_is_refused_before_any_worker_starts(elsewhere, tmp_path):
    params, layout, _ = elsewhere
    (layout.masks / "masks.json").rename(tmp_path / "masks.json")
    try:
        with pytest.raises(InputError, match=r"masks\.json"):
            run_sweep(params, layout, parse("process:1"), Part())
    finally:
        (tmp_path / "masks.json").rename(layout.masks / "masks.json")
