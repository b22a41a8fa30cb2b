"""The report is complete, and every page needs nothing but itself."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiment.made_up import (
    DATASETS,
    MASKS,
    METHODS,
    PAIR,
    Pixels,
    World,
    check_page,
    gallery,
    lines,
    outline,
    pixels,
    read,
)
from pipeline.experiment.distribution import EVERY
from pipeline.experiment.features import save_features
from pipeline.experiment.report import PAGES
from pipeline.experiment.report_inputs import read_findings
from pipeline.experiment.report_pictures import grids
from pipeline.experiment.report_table import ALL
from pipeline.experiment.tables import DISTRIBUTIONS


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_well_formed_and_stand_alone(world, told, name):
    for each in (world, told):
        html = (each.out / name).read_text()
        check_page(html)
        assert html.count('aria-current="page"') == 1
        assert html.count("<h1") == 1


def test_there_are_no_other_pages(world):
    assert {path.name for path in world.out.glob("*.html")} == set(PAGES)


def test_page_says_who_wins_at_what_cost(page):
    text = " ".join("".join(outline(page).text).split())
    assert "tiramisu has the lowest mean domain LPIPS over 21 settings, clearly ahead of all others." in text
    said = re.search(r"the 21 settings go to tiramisu \((\d+)[,)].*?in (\d+) of them the lead", text)
    assert int(said[1]) >= int(said[2]) >= 10
    assert re.search(
        r"tiramisu takes 4\.\d+ s per image, 4\.\d times as long as ddnm, the fastest, whose mean is 0", text
    )
    for method in METHODS:
        assert page.count(f'<th scope="col">{method}</th>') >= 8


def test_the_map_leads_to_the_pictures_of_every_setting(page):
    links = re.findall(
        r'<a href="pictures\.html#(\w+)/(\w+)">', page[page.index('<div class="map">') :].partition("</div>")[0]
    )
    assert links == [(dataset, mask) for mask in MASKS for dataset in DATASETS]


def test_domain_lpips_is_announced_and_true_lpips_is_not(page, plain):
    assert "These are not LPIPS scores." in page
    assert ("ef" * 32)[:16] in page
    other = read(plain, "index")
    assert "These are not LPIPS scores." not in other
    assert "domain" not in "".join(outline(other).text)


def test_names_cannot_break_the_page(plain):
    for name in PAGES:
        assert outline((plain.out / name).read_text()).open == []
    assert {shown["id"] for shown in gallery(plain)["datasets"][0]["grids"][0]} == {f"<script>{i}" for i in range(4)}


def test_numbers_beside_the_page(world):
    out = world.out
    scores = list(csv.DictReader((out / "scores.csv").open()))
    assert len(scores) == 3 * 3 * 7 * 6
    table = list(csv.DictReader((out / "table.csv").open()))
    assert len(table) == 8 * (4 * 8) * 3  # metrics, lines of each dataset and of all, methods
    metrics = json.loads((out / "metrics.json").read_text())
    values = [float(row["lpips_domain"]) for row in scores if (row["mask"], row["method"]) == ("wide", "ddnm")]
    means = np.reshape(values, (3, 6)).mean(axis=1)
    np.testing.assert_allclose([metrics[dataset]["wide"]["ddnm"] for dataset in DATASETS], means, atol=1e-6)
    everything = [float(row["lpips_domain"]) for row in scores if row["method"] == "ddnm"]
    assert metrics["all datasets"]["average"]["ddnm"] == pytest.approx(np.mean(everything), abs=1e-6)
    line = next(row for row in table if (row["metric"], row["dataset"], row["mask"]) == ("psnr", "rooms", "average"))
    assert (line["method"], float(line["difference"])) == ("ddnm", 0.0)
    assert float(line["low"]) < float(line["mean"]) < float(line["high"])
    summed = list(csv.DictReader((out / "summary.csv").open()))
    assert len(summed) == (1 + 3 + 7) * 3  # over all settings, of each dataset, of each mask; methods
    assert float(summed[0]["mean"]) == pytest.approx(metrics["all datasets"]["average"]["ddnm"], abs=1e-6)
    assert metrics["all settings"]["ddnm"]["mean"] == float(summed[0]["mean"])
    full = json.loads((out / "table.json").read_text())
    assert (len(full["rows"]), full["reference"], full["lpips"]["column"]) == (len(table), "ddnm", "lpips_domain")


def test_plots_for_dvc(world):
    pareto = list(csv.DictReader((world.out / "plots" / "pareto.csv").open()))
    assert [row["method"] for row in pareto] == list(METHODS)
    assert [round(float(row["seconds_per_image"])) for row in pareto] == [1, 4, 4]
    curves = sorted(path.name for path in (world.out / "plots" / "curves").iterdir())
    assert curves == sorted(f"{model}_{dataset}.csv" for model in ("ddpm", "vqgan") for dataset in DATASETS)
    curve = list(csv.DictReader((world.out / "plots" / "curves" / "vqgan_faces.csv").open()))
    assert len(curve) == 101
    assert (curve[1]["step"], curve[1]["val/loss"]) == ("20", "")
    assert float(curve[10]["val/loss"]) > float(curve[20]["val/loss"]) > 0


def test_the_same_inputs_give_the_same_files(plain):
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in plain.out.rglob("*") if path.is_file()}

    first = files()
    (plain.out / "plots" / "curves" / "ddpm_cats.csv").write_text("step\n")
    plain.report()
    assert files() == first  # no draft is left behind, and what is no longer true is gone


def test_pictures_have_their_known_pixels_pasted(plain):
    found = gallery(plain)
    assert found["methods"] == ["ddnm", "tiramisu"]
    first = pixels(found["datasets"][0]["grids"][list(MASKS).index("left")][0]["results"][0])
    with np.load(plain.root / "inpaint" / "faces" / "ddnm" / "left.npz") as cell:
        known, sample = cell["known"][0], cell["samples"][0, 0]
    truth = plain.images["faces"][0]
    assert not np.array_equal(sample[known], truth[known])
    np.testing.assert_array_equal(first[known], truth[known])
    np.testing.assert_array_equal(first[~known], sample[~known])
    np.testing.assert_array_equal(pixels(found["datasets"][0]["truths"]["0"]), truth)
    counts = [len(lines) for dataset in found["datasets"] for lines in dataset["grids"]]
    assert counts == [plain.params["report"]["images"]] * 7


def test_pictures_say_their_score_and_which_is_best(world):
    rows = {
        (row["dataset"], row["mask"], row["method"], row["image_id"]): float(row["lpips_domain"])
        for row in csv.DictReader((world.out / "scores.csv").open())
    }
    found = gallery(world)
    for dataset in found["datasets"]:
        for mask, line in zip(MASKS, dataset["grids"], strict=True):
            for shown in line:
                scores = [rows[dataset["name"], mask, method, shown["id"]] for method in METHODS]
                printed = [f"{score:.3f}" for score in scores]
                assert shown["scores"] == printed
                assert shown["best"] == [score == min(printed, key=float) for score in printed]


def test_the_first_page_shows_an_image_of_every_dataset_under_another_mask(world, page):
    look = page[page.index('<section id="look">') :].partition('<section id="results">')[0]
    assert re.findall(r'aria-label="(\w+), (\w+)">', look) == [
        ("faces", "left"),
        ("objects", "expand1"),
        ("rooms", "v_strip"),
    ]
    results = re.findall(r'<img src="([^"]*)"', look)
    assert len(results) == 3 * len(METHODS)
    shown = gallery(world)["datasets"][1]["grids"][2][0]["results"]
    assert results[3:6] == shown


def test_pages_tell_validation_images_from_test_images(small):
    small.params["sweep"]["split"] = "val"
    small.report()
    for name, said in (("index", "validation image"), ("methodology", "sweep.split=test")):
        text = read(small, name)
        assert said in text, name
        assert "test image" not in text, name


def test_fewer_pictures_are_shown_if_the_page_would_become_too_large(small):
    findings = read_findings(small.root, small.params["sweep"])

    def truth(dataset: str) -> tuple[list[str], Pixels]:
        return small.keys, small.images[dataset]

    free = grids(findings, truth, 6)
    one = sum(strips[0].size for strips in free.strips.values())
    cut = grids(findings, truth, 6, characters=int(1.5 * one))
    assert {len(strips) for strips in free.strips.values()} == {6}
    assert {len(strips) for strips in cut.strips.values()} == {1}
    assert (cut.wished, len(cut.truths)) == (6, 1)


def test_a_profile_with_one_method_and_no_trainings_is_reported_without_them(tmp_path):
    world = World(tmp_path, datasets=("faces",), methods={"ddnm": (0.2, 1.0)}, images=1)
    for folder in ("vqgan", "ddpm", "trunk", "tokens"):
        shutil.rmtree(world.root / folder)
    page = world.report().read_text()
    assert "ddnm is the only method of this sweep" in page
    assert "Difference to" not in page
    assert 'id="models"' not in read(world, "record")
    for name in PAGES:
        check_page((world.out / name).read_text())


def test_distances_between_sets_of_pictures_stand_beside_the_metrics(tmp_path):
    """They are there if the score stage left features, with a line per dataset and one for all."""
    world = World(tmp_path, **PAIR)
    rng = np.random.default_rng(0)
    for shift, dataset in enumerate(PAIR["datasets"]):
        completions = rng.normal(shift, 1, (1, len(MASKS), 4, 1, 5)).astype(np.float32)
        truths = rng.normal(0, 1, (4, 5)).astype(np.float32)
        folder = world.root / "scores" / dataset
        save_features(folder, methods=["tiramisu"], truths=truths, completed=range(4), completions=completions)
    page = world.report().read_text()
    kernel, frechet = (metric.name for metric in DISTRIBUTIONS["lpips_domain"])
    assert page.count("Of all masks and samples of a dataset together") == 2
    rows = [row for row in csv.DictReader((world.out / "table.csv").open()) if row["metric"] == frechet]
    assert [(row["dataset"], row["mask"]) for row in rows] == [("faces", EVERY), ("rooms", EVERY), (ALL, EVERY)]
    assert float(rows[0]["mean"]) < float(rows[1]["mean"])
    assert f'<option value="{kernel}">' in page


def test_what_one_image_cannot_tell_is_a_dash(tmp_path):
    """The kernel distance needs pictures of two images."""
    world = World(tmp_path, **PAIR | {"images": 1})
    for dataset in PAIR["datasets"]:
        completions = np.ones((1, len(MASKS), 1, 1, 5), np.float32)
        save_features(
            world.root / "scores" / dataset,
            methods=["tiramisu"],
            truths=np.ones((1, 5), np.float32),
            completed=[0],
            completions=completions,
        )
    page = world.report().read_text()
    kernel = next(metric.name for metric in DISTRIBUTIONS["lpips_domain"])
    panel = page[page.index(f'data-metric="{kernel}"') :].partition("</table>")[0]
    assert lines(panel).count("all masks –") == 3
    assert "nan" not in outline(page).text
