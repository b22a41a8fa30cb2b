"""The report says how steered rows stand to their bases, what steering costs and what each part is worth."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiment.made_up import DATASETS, MASKS, World, check_page, gradient, lines, outline, read
from pipeline.errors import InputError
from pipeline.experiment.report_contents import arrange
from pipeline.experiment.report_inputs import read_findings
from pipeline.experiment.report_sheets import INSIGHTS
from pipeline.experiment.report_steering import compare, differences
from pipeline.experiment.tables import METRICS
from pipeline.steering.settings import PRESETS

PARTS = {"encode": 0.1, "circuit": 0.2, "decode": 0.15, "fusion": 0.05}
IMAGES = 6
SPREAD = 0.1 * np.array([1, -1, 1, -1, 1, -1])
"""Differences that vary so much that their interval holds zero."""


def steady(shift: float) -> dict[tuple[str, str], np.ndarray]:
    """The same difference to the base for every image of every setting."""
    return {(dataset, mask): np.full(IMAGES, shift) for dataset in DATASETS for mask in MASKS}


def steered_params(base: str = "copaint", warm: float = 1.0, preset: str = "ours", **changes: Any) -> dict[str, Any]:
    """Parameters as the record of a steered cell has them."""
    steering = dataclasses.asdict(dataclasses.replace(PRESETS[preset], **changes))
    return {"base": base, "warm": warm, "steering": steering, base: {"steps": 250}}


class SteeredWorld(World):
    """A finished profile with steered rows, whose differences to copaint are planned."""

    def __init__(
        self,
        root: Path,
        *,
        rows: dict[str, dict[str, Any]],
        shifts: dict[str, dict[tuple[str, str], np.ndarray]],
        plain: tuple[str, ...] = ("ddnm", "copaint"),
        datasets: tuple[str, ...] = DATASETS,
        images: int = IMAGES,
    ) -> None:
        self.rows, self.shifts = rows, shifts
        seconds = dict.fromkeys(plain, 2.0) | dict.fromkeys(rows, 2.4)
        methods = {name: (0.2, time) for name, time in seconds.items()}
        super().__init__(root, datasets=datasets, methods=methods, images=images, column="lpips")
        self.params["sweep"] |= {"methods": list(plain), "steered": list(rows)}

    def training(self, model: str, dataset: str) -> None:
        """Leave no networks: their curves and pictures take time to draw."""

    def scores(self, dataset: str, mask: str, method: str, typical: float) -> list[dict[str, Any]]:
        shift = {"ddnm": steady(0.05), "copaint": steady(0.0), **self.shifts}[method][dataset, mask]
        values = (0.3 + 0.02 * np.arange(IMAGES) + shift)[: len(self.keys)]
        columns = [self.column, f"{self.column}_unpasted"]
        return [
            {"dataset": dataset, "mask": mask, "method": method, "image_id": key, "sample": 0}
            | dict.fromkeys(columns, value)
            | {name: 30 - 10 * value for name in METRICS if name.startswith(("psnr", "ssim"))}
            for key, value in zip(self.keys, values, strict=True)
        ]

    def cell(self, dataset: str, mask: str, method: str, seconds: float) -> dict[str, Any]:
        record = super().cell(dataset, mask, method, seconds)
        record["measured"]["seconds_per_image"] = seconds
        if method in self.rows:
            record["params"] = self.rows[method]
            record["measured"]["split"] = dict(PARTS)
            record["evaluations"] |= {"circuit": 12.0, "codec": 24.0}
        return record


def section(world: World, name: str = "steering", of: str = "steering") -> str:
    """A section of a page of the world, reported anew."""
    world.report()
    page = read(world, of)
    return page[page.index(f'<section id="{name}">') :].partition("</section>")[0]


def words(html: str) -> str:
    """What one reads."""
    return " ".join("".join(outline(f"{html}</section>").text).split())


def table(world: World, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((world.out / "plots" / f"{name}.csv").open()))


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, str]:
    """One row: better in 18 settings, in one of them with an interval that holds zero; one tie; worse in two."""
    shifts = steady(-0.01)
    shifts["faces", "left"] = -0.01 + SPREAD
    shifts["faces", "top"] = np.full(IMAGES, 0.0001)  # prints as equal
    shifts["rooms", "left"] = shifts["rooms", "top"] = np.full(IMAGES, 0.01)
    world = SteeredWorld(
        tmp_path_factory.mktemp("counted"), rows={"tiramisu": steered_params()}, shifts={"tiramisu": shifts}
    )
    return world, section(world)


def test_settings_are_counted_in_words(counted):
    world, html = counted
    assert (
        "tiramisu is better than copaint, its base, in 18 of 21 settings and equal in faces top by LPIPS; the interval "
        "of the difference leaves out zero in 17, and in 3 where it is worse. The mean difference is −0.008"
    ) in words(html)
    assert "It is the best of all 3 rows in 19 of 21 settings, 1 shared." in words(html)
    told = json.loads((world.out / "table.json").read_text())["steering"][0]
    assert told["effect"]["mean"] == pytest.approx((17 * -0.01 + 0.0001 + 0.02 - 0.01) / 21)
    assert (told["best"], told["shared"], told["effect"]["tied"]) == (19, 1, ["faces top"])


def test_the_papers_counts_are_told_for_as_many_settings_only(counted, tmp_path):
    assert "count 18 of 21 settings in which Tiramisu is better than CoPaint, and 14 in which" in words(counted[1])
    few = SteeredWorld(
        tmp_path, rows={"tiramisu": steered_params()}, shifts={"tiramisu": steady(-0.01)}, datasets=("faces",)
    )
    assert "Liu et al. 2024 (photographs" not in words(section(few))


def test_differences_stand_by_dataset_and_mask(counted):
    rows = lines(counted[1])
    assert "left −0.010 −0.010 to −0.010" in rows
    assert "left +0.010 +0.010 to +0.010" in rows
    assert "top 0.000 0.000 to 0.000" in rows
    assert sum(row.startswith("average ") for row in rows) == 4
    assert "better than its base in 18 of 21 1 equal" in rows
    assert {"clearly better in 17", "clearly worse in 3", "best of all rows in 19 of 21 1 shared"} <= set(rows)
    found = table(counted[0], "steering_differences")
    assert len(found) == 4 * 8
    wide = next(row for row in found if (row["dataset"], row["mask"]) == ("objects", "wide"))
    assert [float(wide[name]) for name in ("difference", "low", "high")] == pytest.approx([-0.01] * 3)
    undecided = next(row for row in found if (row["dataset"], row["mask"]) == ("faces", "left"))
    assert float(undecided["low"]) < 0 < float(undecided["high"])


def test_the_time_is_split_and_compared_with_the_bases(counted):
    said = next(row for row in lines(counted[1]) if row.startswith("tiramisu 2.40 s"))
    assert said.replace("\N{NO-BREAK SPACE}", " ").replace("&#8239;", " ") == (
        "tiramisu 2.40 s 2.00 s +20.0 % 1.90 s 0.50 s 26.3 % 0.10 s 0.20 s 0.15 s 50 ms 500 base 500 12 24"
    )
    found = table(counted[0], "steering")
    assert [row["row"] for row in found] == ["copaint", "tiramisu"]
    assert [float(row["seconds"]) for row in found] == pytest.approx([2.0, 2.4])
    assert [float(row["extra"]) for row in found] == pytest.approx([0.0, 0.2])
    assert "not all timed alike" not in counted[1]


def test_rows_that_were_timed_elsewhere_are_named(tmp_path):
    world = SteeredWorld(
        tmp_path, rows={"tiramisu": steered_params()}, shifts={"tiramisu": steady(0.0)}, datasets=("faces",)
    )
    path = "inpaint/faces/tiramisu/cells.json"
    record = world.load(path)
    for cell in record["cells"]:
        cell["measured"]["device"] = "cuda:0"
    world.save(path, record)
    assert "timed alike: tiramisu on cuda:0, batch 6; copaint on cpu, batch 6." in words(section(world))


def test_times_that_nobody_took_are_not_shown(tmp_path):
    world = SteeredWorld(
        tmp_path, rows={"tiramisu": steered_params()}, shifts={"tiramisu": steady(0.0)}, datasets=("faces",)
    )
    path = "inpaint/faces/tiramisu/cells.json"
    record = world.load(path)
    for cell in record["cells"]:
        cell["measured"]["split"] = {}
        cell["evaluations"] |= {"circuit": 0.0, "codec": 0.0}
    world.save(path, record)
    html = section(world)
    said = next(row for row in lines(html) if row.startswith("tiramisu 2.40")).replace("&#8239;", " ")
    assert said == "tiramisu 2.40 s 2.00 s +20.0 % – – – – – – 500 base 500 – –"
    assert "the published formula are not timed" in words(html)


def test_one_row_makes_neither_curve_nor_ablation(counted):
    assert "against the steered share" not in counted[1]
    assert "make repro PROFILE=ablations" in counted[1]
    assert "What each part is worth" not in counted[1]
    assert not (counted[0].out / "plots" / "until.csv").exists()


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, str]:
    """Four rows that differ in `until`, two that differ in other things, and one of another base."""
    rows = {
        "until_10": steered_params(until=0.1),
        "until_90": steered_params(until=0.9),
        "tiramisu": steered_params(),
        "until_70": steered_params(until=0.7),
        "flow": steered_params(query="flow", refresh=0.0),
        "released": steered_params(preset="released"),
        "steered_ddnm": steered_params(base="ddnm"),
    }
    moved = {"until_10": -0.03, "until_90": -0.01, "tiramisu": -0.04, "until_70": -0.02, "flow": -0.015}
    moved |= {"released": 0.02, "steered_ddnm": 0.03}
    shifts = {name: steady(shift) for name, shift in moved.items()}
    world = SteeredWorld(tmp_path_factory.mktemp("studied"), rows=rows, shifts=shifts, datasets=("faces",))
    return world, section(world)


def test_rows_that_differ_in_until_make_a_curve_from_the_base_on(studied):
    world, html = studied
    found = table(world, "until")
    assert [row["row"] for row in found] == ["copaint", "until_90", "until_70", "tiramisu", "until_10"]
    assert [row["fraction"] for row in found] == ["0.0", "0.1", "0.3", "0.5", "0.9"]
    assert [float(row["mean"]) for row in found] == pytest.approx(0.35 + np.array([0, -0.01, -0.02, -0.04, -0.03]))
    assert float(found[0]["low"]) < 0.35 < float(found[0]["high"])
    assert html.count("<h3>How long to steer") == 1
    assert len(re.findall(r'<svg [^>]*aria-label="[^"]*against the steered share, copaint"', html)) == 2


def test_a_plot_has_a_point_for_each_row_and_the_base_at_the_left(studied):
    quality = re.search(r"<svg [^>]*against the steered share.*?</svg>", studied[1], re.DOTALL)[0]
    path = re.search(r'<path d="([^"]*)"[^>]*stroke: var\(--accent\); stroke-opacity: 0.5', quality)
    points = np.array(re.findall(r"[ML] (\S+) (\S+)", path[1]), np.float64)
    x, y = points.T
    np.testing.assert_allclose((x - x[0]) / (x[-1] - x[0]), np.array([0, 0.1, 0.3, 0.5, 0.9]) / 0.9, atol=1e-4)
    np.testing.assert_allclose((y - y[0]) / (y[3] - y[0]), [0, 0.25, 0.5, 1, 0.75], atol=1e-4)  # larger y is lower
    assert y[3] > y[0]


def test_what_a_row_changes_is_named_and_compared_with_ours(studied):
    rows = lines(studied[1])
    rows = rows[rows.index("row differs from tiramisu in difference to copaint difference to tiramisu time") :]
    said = [row.replace("\N{NO-BREAK SPACE}", " ") for row in rows[1:7]]
    even = "{0} {0} to {0}".format
    assert said == [
        f"until_10 until 0.1 {even('−0.030')} {even('+0.010')} 2.40 s",
        f"until_90 until 0.9 {even('−0.010')} {even('+0.030')} 2.40 s",
        f"tiramisu ours {even('−0.040')} – 2.40 s",
        f"until_70 until 0.7 {even('−0.020')} {even('+0.020')} 2.40 s",
        f"flow refresh 0 query flow {even('−0.015')} {even('+0.025')} 2.40 s",
        f"released released formula released until 0.9 known steered {even('+0.020')} {even('+0.060')} 2.40 s",
    ]
    assert studied[1].count("<h3>What each part is worth") == 1  # ddnm has one row


def test_every_row_is_compared_with_its_own_base(studied):
    world, html = studied
    assert "steered_ddnm is better than ddnm, its base, in 7 of 7 settings by LPIPS" in words(html)
    [other] = [row for row in table(world, "steering") if row["row"] == "steered_ddnm"]
    assert (other["base"], float(other["mean"])) == ("ddnm", pytest.approx(0.38))
    assert "<small>to ddnm</small>" in html


def test_a_row_whose_base_is_not_in_the_sweep_has_costs_only(tmp_path):
    world = SteeredWorld(
        tmp_path,
        rows={"tiramisu": steered_params()},
        shifts={"tiramisu": steady(-0.01)},
        plain=("ddnm",),
        datasets=("faces",),
    )
    html = section(world)
    assert "tiramisu is better" not in html
    assert "Difference to the base" not in html
    assert any(row.startswith("tiramisu 2.40") and " – – " in row for row in lines(html))
    assert table(world, "steering") == []


def test_one_image_has_no_interval(tmp_path):
    rows = {name: steered_params(until=until) for name, until in (("a", 0.9), ("b", 0.5), ("c", 0.1))}
    shifts = {name: {place: shift[:1] for place, shift in steady(-0.01).items()} for name in rows}
    world = SteeredWorld(tmp_path, rows=rows, shifts=shifts, datasets=("faces",), images=1)
    assert "leaves out zero in 0. The mean difference is −0.010. It is" in words(section(world))
    assert {(row["low"], row["high"]) for row in table(world, "until")} == {("", "")}
    assert {(row["low"], row["high"]) for row in table(world, "steering_differences")} == {("", "")}
    assert json.loads((world.out / "table.json").read_text())["steering"][0]["effect"]["low"] is None


def test_higher_may_be_better(studied):
    world = studied[0]
    results = arrange(read_findings(world.root, world.params["sweep"]), world.params["report"] | {"reference": "ddnm"})
    psnr = dataclasses.replace(results, metrics={"psnr": METRICS["psnr"]})
    effect = compare(differences(psnr, "copaint"), psnr, "tiramisu", "copaint")
    assert (effect.better, effect.clearly_better, effect.clearly_worse) == (7, 7, 0)
    assert effect.mean == pytest.approx(0.4)


def test_without_steered_rows_the_page_says_how_to_have_some(tmp_path):
    world = World(tmp_path, datasets=("faces",), methods={"ddnm": (0.2, 1.0), "tiramisu": (0.15, 2.0)})
    assert "No row of this sweep is steered" in words(section(world))
    assert "<table" not in section(world)


def test_the_first_page_says_how_the_steered_row_stands_and_splits_its_time(counted):
    page = read(counted[0], "index")
    assert "tiramisu is better than copaint, its base, in 18 of 21 settings" in page
    shares = dict(re.findall(r'width:([\d.]+)%" title="([a-z ]+): ', page[page.index('<div class="bars"') :]))
    parts = {part: float(share) / 100 * 2.4 for share, part in shares.items() if part in PARTS}
    assert parts == pytest.approx(PARTS, abs=1e-3)
    assert "21 % of it steering" in page.replace("&#8239;", " ")


def change(world: World, key: str, value: Any) -> None:
    record = world.load("inpaint/faces/tiramisu/cells.json")
    if value is None:
        del record["cells"][1][key]["split"]
    else:
        record["cells"][1][key] = value
    world.save("inpaint/faces/tiramisu/cells.json", record)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("measured", None, "tiramisu does not say how its time is split"),
        ("params", steered_params(until=0.2), "tiramisu differ between cells"),
        ("params", {"steering": {}, "base": "copaint"}, "tiramisu differ between cells"),
    ],
)
def test_records_that_do_not_hold_what_is_said_are_refused(tmp_path, key, value, said):
    world = SteeredWorld(
        tmp_path, rows={"tiramisu": steered_params()}, shifts={"tiramisu": steady(0.0)}, datasets=("faces",)
    )
    change(world, key, value)
    with pytest.raises(InputError, match=said):
        world.report()


def draw_sheets(world: World, dataset: str) -> None:
    """Leave what the stages strip and insight leave."""
    strip, insight = world.root / "strip" / dataset, world.root / "insight" / dataset
    for path in (strip / "strip.png", *(insight / f"{name}.png" for name in INSIGHTS)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(gradient(world.rng, 16)).save(path)
    world.save(f"strip/{dataset}/strip.json", {"row": "tiramisu", "base": "copaint", "params": {"warm": 0.8}})
    question = {
        "mask": "left",
        "image": "<b>test-0",
        "hidden_tokens": 32,
        "entropy": {"mean_hidden": 2.5, "sum_of_tokens": 80.0, "together": 61.0, "together_error": 1.5},
        "log2_prob": {"truth": -64.0, "most_probable": -40.0},
        "gain": {"patches": [{"bits": 12.25}]},
    }
    world.save(f"insight/{dataset}/insight.json", {"draws": 64, "images": [question]})


@pytest.fixture
def drawn(tmp_path: Path) -> SteeredWorld:
    world = SteeredWorld(
        tmp_path, rows={"tiramisu": steered_params()}, shifts={"tiramisu": steady(0.0)}, datasets=("faces", "rooms")
    )
    draw_sheets(world, "faces")
    return world


def test_sheets_of_walks_and_of_the_circuit_are_shown(drawn):
    drawn.report()
    page, circuit = read(drawn, "steering"), read(drawn, "circuit")
    for each in (page, circuit):
        check_page(each)
    assert page.count('<img class="sheet walk" src="data:image/webp') == 1
    assert circuit.count('<img class="sheet walk" src="data:image/webp') == len(INSIGHTS)
    text = "".join(outline(page).text)
    assert "faces: tiramisu beside copaint" in text
    assert "Above t = 0.8 T, the steered row takes one completion" in text
    assert "left <b>test-0 32 2.500 80 61 ± 1.5 −64 −40 12.2 bits" in [
        row.replace("&lt;", "<").replace("&gt;", ">") for row in lines(section(drawn, "insight", of="circuit"))
    ]


def test_without_sheets_their_place_says_how_to_make_them(counted):
    assert "dvc repro strip" in counted[1]
    assert "dvc repro insight" in read(counted[0], "circuit")
    assert "<img" not in counted[1]


def test_a_strip_without_a_row_is_not_shown(drawn):
    drawn.save("strip/faces/strip.json", {"row": None})
    (drawn.root / "strip" / "faces" / "strip.png").unlink()
    assert "dvc repro strip" in section(drawn)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("strip/faces/strip.json", "strip.json: expected the record of the stage strip, but KeyError"),
        ("insight/faces/insight.json", "insight.json: expected the record of the stage insight, but KeyError"),
    ],
)
def test_odd_records_of_sheets_are_refused(drawn, name, said):
    drawn.save(name, {"row": "tiramisu"})
    with pytest.raises(InputError, match=re.escape(said)):
        drawn.report()


def test_a_missing_sheet_is_named(drawn):
    (drawn.root / "insight" / "faces" / "gain.png").unlink()
    with pytest.raises(InputError, match=r"gain\.png: expected a picture"):
        drawn.report()
