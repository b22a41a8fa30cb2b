"""The report tells what the exact judge found, as its record has it, and says nothing where there is no record."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import posterior, posterior_page
from experiment.made_up import SMALL, World, check_page, outline, read
from pipeline.errors import InputError
from pipeline.experiment.report import write_report
from pipeline.experiment.report_judge import (
    COLUMNS,
    MASKS,
    RECORD,
    STEERED,
    WORLDS,
    limits,
    numbers,
    read_judgement,
)
from pipeline.oracles.distances import MEASURES
from pipeline.oracles.worlds import WORLDS as ORACLES

ROOT = Path(__file__).parents[2]
SCALES = {"mean_error": 0.01, "sd_ratio": 1.0, "mode_error": 0.04, "known_error": 0.0}


def judged(distance: float, spread: float) -> dict[str, Any]:
    """Measures of samples at `distance`, whose interval is `spread` wide to both sides."""
    measures = {"sliced_w2": distance} | SCALES
    return measures | {"intervals": {name: [value - spread, value + spread] for name, value in measures.items()}}


def made_up() -> dict[str, Any]:
    """A record of scenes with a floor of 0.02 ± 0.002: the band ends at 1.2 x floor."""
    floor = {name: {"mean": value, "sd": 0.002} for name, value in ({"sliced_w2": 0.02} | SCALES).items()}
    cost = {"forwards": 250.0, "backwards": 0.0, "seconds": 1.5}
    near = {"method": "ddnm", "preset": "paper"} | judged(0.026, 0.003) | cost
    far = {"method": "ddnm", "preset": "copaint_repo"} | judged(0.2, 0.01) | cost
    other = {"method": "<b>dps", "preset": "paper"} | judged(0.0251, 0.001) | cost | {"backwards": 1000.0}
    steered = {"method": "steered", "preset": "ddnm paper"} | judged(0.021, 0.002) | cost
    scene = {"exact_modes": [0.75, 0.25], "floor": floor, "exact_denoiser": judged(0.021, 0.03), "rows": []}
    rows = [near, far, other, steered]
    return {
        "machine": {"processor": "Example CPU", "threads": 1, "versions": {"python": "3.11.9", "torch": "2.11.0"}},
        "settings": {"n": 48, "repeats": 32, "resamples": 1000, "steps": 250},
        "scenes": [{"world": world, "mask": mask} | scene | {"rows": rows} for world in WORLDS for mask in MASKS],
    }


def written(folder: Path, record: dict[str, Any]) -> Path:
    path = folder / RECORD.name
    path.write_text(json.dumps(record))
    return path


def reported(world: World, judge: Path | None) -> str:
    write_report(
        profile="made-up",
        runs=world.runs,
        out=world.out,
        params=world.params,
        truth=lambda dataset: (world.keys, world.images[dataset]),
        judge=judge,
    )
    return read(world, "methodology")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("judged"), **SMALL)


@pytest.fixture(scope="module")
def page(world: World) -> str:
    return reported(world, written(world.runs, made_up()))


@pytest.fixture(scope="module")
def section(page: str) -> str:
    return re.search(r'<section id="judge">.*?</section>', page, re.DOTALL)[0]


def cells(section: str) -> dict[str, list[str]]:
    """Texts of the first table's cells, by the name of the row."""
    table = re.search(r"<table.*?</table>", section, re.DOTALL)[0]
    rows = [re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL) for row in table.split("<tr")[1:]]
    texts = [[" ".join("".join(outline(cell).text).split()) for cell in row] for row in rows]
    return {name: rest for name, *rest in texts}


def test_the_page_stays_whole(page):
    check_page(page)
    assert 'href="#judge"' in page


def test_the_table_says_what_the_record_has(section):
    found = cells(section)
    assert found["method, preset"] == [metric.label for metric in COLUMNS.values()] + ["forwards", "backwards"]
    row = ["0.026", "1.301.15–1.45", "0.0100.007–0.013", "1.001.00–1.00", "0.040.04–0.04", "0.000", "250", "0"]
    assert found["ddnm paper"] == row
    assert found["<b>dps paper"][-1] == "1,000"
    assert found["exact draws"] == [
        "0.020± 0.002", "1.00± 0.10", "0.010± 0.002", "1.00± 0.00", "0.04± 0.00", "0.000", "–", "–",
    ]  # fmt: skip
    assert found["exact denoiser"][1] == "1.050.00–2.55"  # an interval below 0 ends there
    assert found["exact denoiser"][-2:] == ["–", "–"]


def test_what_reaches_the_floor_is_told_apart(section):
    """The band ends at 1.2: 1.15–1.45 and 0.95–1.15 reach it, 1.205–1.305 and 9.5–10.5 do not."""
    first = re.search(r"<table.*?</table>", section, re.DOTALL)[0]
    assert re.findall(r'class="reached">([\d.]+)', first) == ["1.30", "1.05"]
    assert section.count("2 of 4 reach the floor") == 2 * len(WORLDS) * len(MASKS)


def test_steered_rows_are_shown_and_explained(section, tmp_path):
    assert cells(section)["steered ddnm paper"][1] == "1.050.95–1.15"
    assert section.count("<i>Steered</i> rows") == 1
    record = made_up()
    for scene in record["scenes"]:
        scene["rows"] = scene["rows"][:-1]
    assert not read_judgement(written(tmp_path, record)).steered


def test_tables_of_other_worlds_are_folded_away(section):
    outside = re.sub(r"<details>.*?</details>", "", section, flags=re.DOTALL)
    folded = re.findall(r"<details>.*?</details>", section, re.DOTALL)
    assert [outside.count("<table"), *(part.count("<table") for part in folded)] == [2, 2, 2]
    assert "Circuit world: 2 tables" in folded[0]
    assert "Axis world: 2 tables" in folded[1]
    assert "Mixture world, left half known" in outside
    assert "Mixture" not in "".join(folded)


def test_every_scene_has_its_plot_on_one_axis(section):
    plots = re.findall(r"<svg role.*?</svg>|<svg viewBox.*?</svg>", section, re.DOTALL)
    assert len(plots) == len(WORLDS) * len(MASKS)
    ticks = [re.findall(r">([\d.]+×)<", plot) for plot in plots]
    assert ticks[0] == ["1×", "2×", "5×", "10×"]
    assert ticks.count(ticks[0]) == len(plots)
    for plot in plots:
        assert [name in plot for name in (">exact denoiser<", ">ddnm paper<", ">&lt;b&gt;dps paper<")] == [True] * 3
        assert plot.count("var(--accent)") == 4  # line and point of the two rows that reach the floor
    assert len({re.search(r'aria-label="([^"]*)"', plot)[1] for plot in plots}) == len(plots)


def test_the_axis_holds_all_values(tmp_path):
    record = made_up()
    record["scenes"][3]["rows"].append({"method": "x", "preset": "y", "forwards": 1.0, "backwards": 0.0} | judged(2, 1))
    record["scenes"][0]["exact_denoiser"] = judged(0.01, 0.009)
    low, high = limits(read_judgement(written(tmp_path, record)).scenes)
    assert (low, high) == (pytest.approx(0.6 * 0.5), pytest.approx(1.15 * 150))


def test_numbers_are_beside_the_page(world, page):
    assert page.rindex("table.json") > page.index("<footer")
    told = json.loads((world.out / "table.json").read_text())["judge"]
    assert told["completions"] == 48
    assert [(scene["world"], scene["mask"]) for scene in told["scenes"]] == [(w, m) for w in WORLDS for m in MASKS]
    row = told["scenes"][0]["rows"][0]
    assert row["measures"]["ratio"] == pytest.approx({"value": 1.3, "low": 1.15, "high": 1.45})
    assert [row["reaches_floor"] for row in told["scenes"][0]["rows"]] == [True, False, False, True]


@pytest.mark.parametrize("there", [True, False])
def test_without_a_record_the_page_says_how_to_make_one(tmp_path, there):
    world = World(tmp_path, **SMALL)
    page = reported(world, tmp_path / RECORD if there else None)
    assert "python -m benchmarks.posterior --write" in page
    assert "reach the floor" not in page
    assert "judge" not in json.loads((world.out / "table.json").read_text())


def test_a_scene_without_methods_is_shown(tmp_path):
    record = made_up()
    record["scenes"][1]["rows"] = []
    judgement = read_judgement(written(tmp_path, record))
    assert [len(scene.judged) for scene in judgement.scenes] == [5, 1, 5, 5, 5, 5]
    assert "exact denoiser" in judgement.plots[1]


def test_the_record_of_the_repository_is_understood():
    """What the benchmark writes is what the page reads, and both call the same things by the same numbers."""
    record = json.loads((ROOT / RECORD).read_text())
    judgement = read_judgement(ROOT / RECORD)
    assert len(numbers(judgement)["scenes"]) == len(record["scenes"]) == len(WORLDS) * len(MASKS)
    for scene, found in zip(judgement.scenes, record["scenes"], strict=True):
        assert len(scene.rows) == len(found["rows"]) > 0
        for row, source in zip(scene.rows, found["rows"], strict=True):
            assert row.measures["ratio"].value == pytest.approx(posterior_page.ratio(found, source))
            assert scene.reaches(row) is not posterior_page.beyond(found, source)


def test_there_are_words_for_all_that_is_judged():
    assert posterior.RECORD == ROOT / RECORD
    assert (set(WORLDS), set(MASKS)) == (set(ORACLES), set(posterior.MASKS))
    assert set(COLUMNS) == {*MEASURES, "ratio"}
    assert STEERED == posterior.STEERED


def change(place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The record with another value at one place."""
    record = copy.deepcopy(made_up())
    *path, last = place
    inner: Any = record
    for part in path:
        inner = inner[part]
    inner[last] = value
    return record


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({}, "KeyError: 'scenes'"),
        (change(("scenes",), []), "scenes is empty"),
        (change(("scenes", 0, "world"), "mars"), "'mars' is none of mixture, circuit"),
        (change(("scenes", 0, "mask"), "wide"), "'wide' is none of left, expand1"),
        (change(("scenes", 0, "floor", "sliced_w2", "mean"), 0.0), "the floor of mixture, left is 0"),
        (change(("scenes", 2, "rows", 1, "sliced_w2"), float("nan")), "nan stands where a finite number should"),
        (change(("scenes", 2, "rows", 1, "sd_ratio"), None), "None stands where a finite number should"),
        (change(("scenes", 2, "rows", 1, "intervals"), {}), "KeyError: 'sliced_w2'"),
        (change(("scenes", 2, "rows", 1, "intervals", "sd_ratio"), [1.0]), "not enough values"),
        (change(("settings",), {"n": "many"}), "invalid literal"),
        (change(("machine",), "here"), "TypeError"),
    ],
)
def test_a_record_of_another_make_is_refused(tmp_path, record, said):
    path = written(tmp_path, record)
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        read_judgement(path)
    assert str(path) in str(caught.value)
    assert "python -m benchmarks.posterior --write" in str(caught.value)


def test_a_file_that_is_no_json_is_refused(tmp_path):
    path = tmp_path / RECORD.name
    path.write_text("<<<<<<< HEAD\n")
    with pytest.raises(InputError, match=RECORD.name):
        read_judgement(path)
