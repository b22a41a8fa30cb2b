"""The report is complete, every page needs nothing but itself, and what is missing or mixed is named."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ConfigError, InputError
from pipeline.experiment.distribution import EVERY
from pipeline.experiment.features import save_features
from pipeline.experiment.figures import curve_plot, hidden_path, spread
from pipeline.experiment.report import PAGES, write_report
from pipeline.experiment.report_contents import duration
from pipeline.experiment.report_inputs import read_findings
from pipeline.experiment.report_pictures import grids
from pipeline.experiment.report_table import ALL
from pipeline.experiment.tables import DISTRIBUTIONS
from pipeline.experiment.trackable import entries

Pixels = NDArray[np.uint8]

DATASETS = ("faces", "objects", "rooms")
METHODS = {"ddnm": (0.21, 1.0), "copaint": (0.16, 3.9), "tiramisu": (0.15, 4.4)}  # typical LPIPS, seconds
MASKS = {  # rows and columns seen, as parts of the side
    "left": ((0, 1), (0, 0.5)),
    "top": ((0, 0.5), (0, 1)),
    "expand1": ((0.375, 0.625), (0.375, 0.625)),
    "expand2": ((0.25, 0.5), (0.25, 0.5)),
    "v_strip": ((0.28, 0.64), (0.47, 0.53)),
    "h_strip": ((0.47, 0.53), (0.28, 0.64)),
    "wide": ((0, 0.7), (0.2, 1)),
}
MEASURED = {
    "started": "2025-03-04T05:06:07+00:00",
    "device": "cpu",
    "hardware": {"cpu": "Example CPU", "cores": 2, "memory_gb": 8},
    "versions": {"python": "3.11.9", "torch": "2.11.0"},
    "git_commit": "0123456789abcdef",
    "execution": "20250304-050607",
}


def gradient(rng: np.random.Generator, size: int) -> Pixels:
    """A picture with a direction and a colour of its own, [size, size, 3]."""
    line = np.linspace(0, 1, size)
    plane = line[:, None, None] * rng.uniform(0, 160, 3) + line[None, :, None] * rng.uniform(0, 90, 3)
    return plane.astype(np.uint8)


class World:
    """A finished profile on disk, made up; the scores are drawn, not measured."""

    def __init__(
        self,
        root: Path,
        *,
        datasets: tuple[str, ...] = DATASETS,
        methods: dict[str, tuple[float, float]] = METHODS,
        picture: Callable[[str, np.random.Generator, int], Pixels] = lambda _, rng, size: gradient(rng, size),
        size: int = 16,
        images: int = 6,
        column: str = "lpips_domain",
        key: str = "test-{:04d}",
        priors: tuple[str, ...] = (),
    ) -> None:
        self.runs, self.out = root / "runs", root / "reports" / "made-up"
        self.root, self.size, self.methods, self.column = self.runs / "made-up", size, methods, column
        self.rng = np.random.default_rng(0)
        self.keys = [key.format(index) for index in range(images)]
        self.images = {d: np.stack([picture(d, self.rng, size) for _ in self.keys]) for d in datasets}
        self.params: dict[str, Any] = {
            "profile": "made-up",
            "image_size": size,
            "sweep": {
                "datasets": list(datasets),
                "methods": list(methods),
                "masks": list(MASKS),
                "split": "test",
            },
            "report": {"reference": next(iter(methods)), "images": 4, "bootstrap": 200},
        }
        for dataset in datasets:
            self.dataset(dataset)
            for model in ("vqgan", "ddpm"):
                self.training(model, dataset)
            for model in priors:
                self.prior(model, dataset)
        self.save("trunk/trunk.json", {"schema": 1, "accuracies": {"faces/glasses": 0.97, "rooms/window": 0.94}})
        self.save("lpips/lpips.json", {"column": column})

    def save(self, name: str, value: dict[str, Any]) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=1))

    def load(self, name: str) -> Any:
        return json.loads((self.root / name).read_text())

    def training(self, model: str, dataset: str) -> None:
        folder = self.root / model / dataset
        folder.mkdir(parents=True)
        picture = "reconstructions.png" if model == "vqgan" else "samples.png"
        tiles = self.images[dataset][:4]
        Image.fromarray(np.concatenate([np.concatenate(tiles, 1), np.concatenate(tiles[::-1], 1)])).save(
            folder / picture
        )
        lines = []
        for step in range(0, 2001, 20):
            loss = 0.4 * np.exp(-step / 400) + 0.02
            metrics = {"train/loss": loss * self.rng.uniform(0.9, 1.1)}
            if step % 200 == 0:
                metrics["val/loss"] = loss * 1.05 + 0.004
                if model == "vqgan":
                    metrics |= {"val/perplexity": 180 - 150 * np.exp(-step / 300), "val/usage": 1 - np.exp(-step / 250)}
            lines.append(json.dumps({"step": step, "seconds": step / 10, "metrics": metrics}))
        (folder / "curve.jsonl").write_text("\n".join(lines) + "\n")
        last = json.loads(lines[-1])["metrics"]
        record = {"schema": 1, "kind": "train", "stage": f"train_{model}", "dataset": dataset, "fingerprint": "ab" * 32}
        record |= {"profile": "made-up", "params": {"steps": 2000}, "inputs": {"data": "cd" * 32}, "metrics": last}
        measured = MEASURED | {"seconds": 210.0}
        self.save(f"{model}/{dataset}/record.json", record | {"artifacts": [picture], "measured": measured})

    def prior(self, model: str, dataset: str) -> None:
        """A circuit of 40 s, or a transformer of 100 s that is worse at first and better in the end."""
        seconds, start, end = (40.0, 4.0, 3.1) if model == "circuit" else (100.0, 7.9, 2.9)
        end += 0.2 * list(self.images).index(dataset)
        rows = [
            {
                "step": step,
                "seconds": 5 + (0.95 * seconds - 5) * step / 12,
                "metrics": {"train/kept_bits_per_token": bits - 0.1},
            }
            | ({} if step % 2 else {"metrics": {"val/bits_per_token": bits}})
            for step, bits in enumerate(end + (start - end) * np.exp(-np.arange(13) / 3), 0)
        ]
        folder = self.root / model / dataset
        folder.mkdir(parents=True)
        (folder / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        bits = {"train/bits_per_token": end - 0.2, "val/bits_per_token": end, "test/bits_per_token": end + 0.05}
        metrics = bits | {"parameters": 123456.0, "train/gflop": 78.9}
        record = {"schema": 1, "kind": "train", "stage": f"train_{model}", "dataset": dataset, "profile": "made-up"}
        record |= {"fingerprint": hashlib.sha256(f"{model} {dataset}".encode()).hexdigest(), "artifacts": []}
        record |= {"params": {model: {"states": 64}}, "inputs": {"tokens": "cd" * 32, "data": "ab" * 32}}
        if model == "circuit":
            metrics |= {"states": 64.0, "codes": 231.0, "test/unigram_bits": 6.8, "test/quadtree_random_bits": 4.1}
            for index, mask in enumerate(MASKS):
                metrics[f"test/hidden/{mask}"] = 1.0 if mask.endswith("strip") else 0.5 + 0.05 * index
                metrics[f"test/conditional_bits/{mask}"] = bits["test/bits_per_token"] - 0.3 + 0.05 * index
                metrics[f"test/unigram_conditional_bits/{mask}"] = 6.7 + 0.02 * index
            tried = [(1.0, "hclt", "untied", 0.3), (1.5, "hclt", "shared", 0.3), (1.2, "quadtree", "untied", 0.0)]
            candidates = [
                {"structure": structure, "tie": tie, "spread": spread, "val_bits": val + end, "seconds": 1.5 * number}
                for number, (val, structure, tie, spread) in enumerate(sorted(tried, key=lambda one: one[1:]), 1)
            ]
            chosen = {"structure": "hclt", "tie": "untied", "spread": 0.3}
            vocabulary = {"kept": list(range(231)), "compact": [0] * 256, "log_share": [0.0] * 256}
            description = {"kind": "circuit", "chosen": chosen, "vocabulary": vocabulary}
            self.save(f"circuit/{dataset}/model.json", description)
            self.save(f"circuit/{dataset}/candidates.json", {"chosen": chosen, "candidates": candidates})
            for name in ("samples.png", "completions.png"):
                Image.fromarray(np.concatenate(self.images[dataset][:4], 1)).save(folder / name)
                record["artifacts"].append(name)
        self.save(
            f"{model}/{dataset}/record.json", record | {"metrics": metrics, "measured": MEASURED | {"seconds": seconds}}
        )

    def dataset(self, dataset: str) -> None:
        splits = {"train": {"count": 1200}, "val": {"count": 60}, "test": {"count": len(self.keys)}}
        self.save(
            f"data/{dataset}/manifest.json", {"schema": 1, "dataset": dataset, "splits": splits, "digest": "9a" * 32}
        )
        codebook = {"usage": 0.98, "perplexity": 171.5}
        self.save(
            f"tokens/{dataset}/tokens.json", {"schema": 1, "dataset": dataset, "tokens": 64, "codebook": codebook}
        )
        rows: list[dict[str, Any]] = []
        scored = []
        for method, (typical, seconds) in self.methods.items():
            records = []
            for mask in MASKS:
                record = self.cell(dataset, mask, method, seconds)
                records.append(record)
                rows += self.scores(dataset, mask, method, typical)
                scored.append({"mask": mask, "method": method, "fingerprint": record["fingerprint"], "metrics": {}})
            self.save(f"inpaint/{dataset}/{method}/cells.json", {"cells": records})
        self.save_scores(dataset, rows)
        lpips = {"column": self.column, "trunk_sha256": "ef" * 32, "reason": "no file found and no network"}
        self.save(f"scores/{dataset}/score.json", {"schema": 1, "dataset": dataset, "lpips": lpips, "cells": scored})

    def scores(self, dataset: str, mask: str, method: str, typical: float) -> list[dict[str, Any]]:
        difficulty = 0.6 + 0.15 * list(MASKS).index(mask) + 0.1 * list(self.images).index(dataset)
        drawn = np.random.default_rng(list(MASKS).index(mask)).normal(0, 0.02, len(self.keys))  # shared: paired images
        values = typical * difficulty + drawn + self.rng.normal(0, 0.006, len(self.keys))
        return [
            {
                "dataset": dataset, "mask": mask, "method": method, "image_id": key, "sample": 0,
                self.column: v, f"{self.column}_unpasted": 1.1 * v, "psnr": 25 - 40 * v, "psnr_hidden": 22 - 40 * v,
                "ssim": 1 - v, "ssim_hidden": 0.9 - v, "psnr_unpasted": 24 - 40 * v, "ssim_unpasted": 0.95 - v,
            }
            for key, v in zip(self.keys, values, strict=True)
        ]  # fmt: skip

    def save_scores(self, dataset: str, rows: list[dict[str, Any]]) -> None:
        path = self.root / "scores" / dataset / "scores.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def cell(self, dataset: str, mask: str, method: str, seconds: float) -> dict[str, Any]:
        truth = self.images[dataset]
        (top, bottom), (left, right) = (np.round(np.array(span) * self.size).astype(int) for span in MASKS[mask])
        known = np.zeros(truth.shape[:3], np.bool_)
        known[:, top:bottom, left:right] = True
        noise = self.rng.normal(0, 80 * self.methods[method][0], truth.shape)
        wrong = np.where(known[..., None], truth, np.roll(truth, 1, axis=0)[:, :, ::-1])
        samples = np.clip(0.5 * truth + 0.5 * wrong + noise, 0, 255).astype(np.uint8)[:, None]
        record = {"schema": 1, "kind": "cell", "profile": "made-up", "dataset": dataset, "mask": mask, "method": method}
        record["fingerprint"] = hashlib.sha256(f"{dataset} {mask} {method}".encode()).hexdigest()
        record |= {"params": {"steps": 250}, "seed": 7, "image_size": self.size, "image_ids": self.keys, "samples": 1}
        backwards = 0.0 if method == "ddnm" else 250.0
        record["evaluations"] = {"forwards": 250.0, "backwards": backwards, "circuit": 0.0, "codec": 0.0}
        spread = float(self.rng.uniform(0.95, 1.05))
        record["measured"] = MEASURED | {"seconds_per_image": seconds * spread, "batch_size": 6}
        folder = self.root / "inpaint" / dataset / method
        folder.mkdir(parents=True, exist_ok=True)
        packed = np.frombuffer(json.dumps(record).encode(), np.uint8)
        np.savez(folder / f"{mask}.npz", samples=samples, known=known, record=packed)
        return record

    def report(self) -> Path:
        return write_report(
            profile="made-up",
            runs=self.runs,
            out=self.out,
            params=self.params,
            truth=lambda dataset: (self.keys, self.images[dataset]),
        )


SMALL = {"datasets": ("faces",), "methods": {"ddnm": (0.21, 1.0), "tiramisu": (0.15, 4.4)}}
PAIR = {"datasets": ("faces", "rooms"), "methods": {"tiramisu": (0.15, 4.4)}, "images": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("world"))
    made.report()
    return made


def read(world: World, name: str) -> str:
    """A page of a world that was reported."""
    return (world.out / f"{name}.html").read_text()


@pytest.fixture(scope="module")
def page(world: World) -> str:
    return read(world, "index")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A small profile with true LPIPS, whose images have names that HTML would take for its own."""
    made = World(tmp_path_factory.mktemp("plain"), column="lpips", key="<script>{}", **SMALL)
    made.report()
    return made


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A profile with circuits and transformers."""
    made = World(tmp_path_factory.mktemp("told"), **PAIR, priors=("circuit", "transformer"))
    made.report()
    return made


@pytest.fixture
def small(tmp_path: Path) -> World:
    return World(tmp_path, **SMALL)


class Outline(HTMLParser):
    """Elements that are open, every attribute that could make a browser fetch something, and what lacks a text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.untold: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "link", "input", "img", "br", "wbr"}:
            self.open.append(tag)
        given = {name for name, _ in attrs}
        if (tag == "img" and "alt" not in given) or ("role" in given and "aria-label" not in given and tag != "aside"):
            self.untold.append(self.get_starttag_text() or tag)
        if tag == "th" and not given & {"scope", "aria-hidden"}:
            self.untold.append(self.get_starttag_text() or tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href"}]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def gallery(world: World) -> Any:
    """What the page of pictures can show."""
    html = read(world, "pictures")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html)[1])


def pixels(uri: str) -> Pixels:
    """The picture of a data URI."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/webp;base64,")))))


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    parser.close()
    return parser


def check_page(html: str) -> None:
    """Elements are closed and told to who cannot see them, ids unique and found, and nothing loaded from elsewhere."""
    found = outline(html)
    assert (found.open, found.untold) == ([], [])
    assert len(found.ids) == len(set(found.ids))
    here = {link[1:] for link in found.links if link.startswith("#")}
    assert here <= set(found.ids)
    pages = {link.partition("#")[0] for link in found.links if not link.startswith(("#", "data:"))}
    assert pages <= set(PAGES)
    assert re.search(r"url\((?!#|data:)|@import|https?://(?!www\.w3\.org)", html) is None


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
        for mask, lines in zip(MASKS, dataset["grids"], strict=True):
            for shown in lines:
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


def section(world: World) -> str:
    """The section on the tractable prior."""
    page = read(world, "circuit")
    return page[page.index('<section id="prior">') :].partition("</section>")[0]


def lines(html: str) -> list[str]:
    """Rows of the tables as one reads them."""
    rows = re.findall("<tr.*?</tr>", html, flags=re.DOTALL)
    return [" ".join(re.sub("<[^>]*>", " ", row).replace("\N{NARROW NO-BREAK SPACE}", " ").split()) for row in rows]


def test_bits_are_said_in_a_sentence(told):
    said = (
        "takes 3.150 to 3.350 bits for a token it has not met, where independent tokens take 6.800 and a transformer "
    )
    assert f"{said}2.950 to 3.150." in section(told)


def test_bits_of_circuit_and_transformer_are_compared_at_equal_time(told):
    rows = lines(section(told))
    # the transformer was last validated after 31.7 of the circuit's 40 s: 2.9 + 5 exp(-4/3)
    assert "circuit 3.150 3.100 2.900 3.100 123,456 78.9 40.0 s" in rows
    assert "transformer 2.950 2.900 2.700 4.218 123,456 78.9 1 min 40 s" in rows
    for yardstick in ("quad-tree, random start 4.100", "unigram 6.800", "uniform 8.000"):  # 256 codes, 231 kept
        assert rows.count(yardstick) == 2
    assert "faces hclt untied 0.3 64 231 of 256 123,456" in rows


def test_conditional_bits_stand_beside_those_of_independent_tokens(told):
    rows = lines(section(told))
    assert "left 50 % 2.850 6.700 −3.850 3.050 6.700 −3.650" in rows
    assert "v_strip 100 % nothing seen 3.050 6.780 −3.730 3.250 6.780 −3.530" in rows
    assert sum("nothing seen" in row for row in rows) == 2


def test_candidates_are_listed_best_first(told):
    html = section(told)
    rows = lines(html[html.index("3 candidates for rooms") :])
    assert rows[1:4] == [
        "hclt untied 0.3 4.300 3.00 s",
        "quadtree untied 0 4.500 4.50 s",
        "hclt shared 0.3 4.800 1.50 s",
    ]
    assert html.count('<tr class="chosen"><th scope="row">hclt</th><td class="text">untied</td>') == 2


def test_the_curve_of_a_circuit_begins_with_the_best_of_its_trials(told):
    plot = re.search(r'<svg [^>]*aria-label="validation bits per token of faces.*?</svg>', section(told), re.DOTALL)[0]
    circuit, held, transformer = (
        np.array(re.findall(r"[ML] (\S+) (\S+)", path), np.float64)
        for path in re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--(?:accent|second)\)', plot)
    )
    assert [len(circuit), len(held), len(transformer)] == [3 + 7, 2, 7]
    assert (
        circuit[0, 1] < circuit[1, 1] == circuit[2, 1] < circuit[3, 1]
    )  # downwards: 4.6, 4.1, the same as 4.3 is no better, 4.0
    np.testing.assert_allclose(
        np.diff(circuit[:3, 0]), 1.5 / 95 * (transformer[-1, 0] - circuit[0, 0]) / (1 - 1.5 / 95)
    )


def test_the_circuits_pictures_are_shown_once_each(told):
    html = section(told)
    for title in ("Completions of faces", "Completions of rooms", "Samples of faces", "Samples of rooms"):
        assert len(re.findall(f'<img class="sheet" src="data:image/webp[^"]*" alt="{title}', html)) == 1
    assert html.count("<img") == 4
    assert read(told, "record").count('class="sheet" src') == 2 * 2  # those of two networks


def test_numbers_of_the_circuit_are_beside_the_page(told):
    metrics = json.loads((told.out / "metrics.json").read_text())
    assert metrics["faces"]["circuit"]["bits_per_token"] == pytest.approx(3.15)
    assert metrics["rooms"]["circuit"]["conditional_bits"]["left"] == pytest.approx(3.05)
    assert set(metrics["rooms"]["circuit"]["conditional_bits"]) == set(MASKS)
    table = json.loads((told.out / "table.json").read_text())["circuit"]["faces"]
    assert table["uniform"] == 8.0
    assert table["transformer"]["val_bits_in_circuit_seconds"] == pytest.approx(2.9 + 5 * np.exp(-4 / 3))
    assert table["conditional"]["top"]["difference"] == pytest.approx(2.9 - 6.72)
    assert [candidate["chosen"] for candidate in table["candidates"]] == [False, True, False]
    curve = list(csv.DictReader((told.out / "plots" / "curves" / "circuit_faces.csv").open()))
    assert list(curve[0]) == ["step", "seconds", "train/kept_bits_per_token", "val/bits_per_token"]
    assert float(curve[12]["seconds"]) == pytest.approx(38)
    assert {row["step"] for row in curve if not row["val/bits_per_token"]} == {"1", "3", "5", "7", "9", "11"}


def test_the_stages_of_the_prior_are_timed_and_their_machines_told(told):
    rows = lines(read(told, "record"))
    assert "train_circuit 40.0 s 40.0 s 80.0 s" in rows
    assert "train_transformer 1 min 40 s 1 min 40 s 3 min 20 s" in rows


def test_without_transformers_there_is_no_column_for_them(tmp_path):
    world = World(tmp_path, **PAIR, priors=("circuit",))
    for dataset in PAIR["datasets"]:
        (world.root / "transformer" / dataset).mkdir(parents=True)  # as the stage leaves it that is told not to train
    world.report()
    html = section(world)
    assert "circuit 3.150 3.100 2.900 123,456 78.9 40.0 s" in lines(html)
    assert "transformer" not in html
    assert "equal time" not in html
    assert "transformer" not in json.loads((world.out / "table.json").read_text())["circuit"]["faces"]


@pytest.mark.parametrize("priors", [(), ("transformer",)])
def test_without_circuits_the_page_says_how_to_make_one(tmp_path, priors):
    world = World(tmp_path, **PAIR, priors=priors)
    (world.root / "circuit" / "rooms").mkdir(parents=True)  # as a stage leaves it that has nothing to do
    world.report()
    assert "dvc repro train_circuit" in section(world)
    assert "<table" not in section(world)
    assert "circuit" not in json.loads((world.out / "metrics.json").read_text())["faces"]
    assert "circuit" not in json.loads((world.out / "table.json").read_text())


def test_a_transformer_that_was_validated_too_late_has_no_bits_at_equal_time(tmp_path):
    world = World(tmp_path, **PAIR, priors=("circuit", "transformer"))
    path = world.root / "transformer" / "faces" / "curve.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[-1:]))
    world.report()
    assert "transformer 2.950 2.900 2.700 – 123,456 78.9 1 min 40 s" in lines(section(world))
    assert "transformer 3.150 3.100 2.900 4.365 123,456 78.9 1 min 40 s" in lines(section(world))


def test_a_circuit_that_was_only_started_has_a_curve_of_its_trials(tmp_path):
    world = World(tmp_path, **PAIR, priors=("circuit",))
    (world.root / "circuit" / "faces" / "curve.jsonl").write_text("")
    world.report()
    plots = [
        re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--accent\)', plot) for plot in section(world).split("<svg ")
    ]
    assert [path.count("L") + 1 for paths in plots for path in paths] == [3, 3 + 7]
    assert "circuit 3.150 3.100 2.900 123,456 78.9 40.0 s" in lines(section(world))


def test_shares_that_differ_between_datasets_are_a_range(tmp_path):
    world = World(tmp_path, **PAIR, priors=("circuit",))
    record = world.load("circuit/rooms/record.json")
    record["metrics"] |= {"test/hidden/left": 0.6249, "test/hidden/v_strip": 0.99}
    world.save("circuit/rooms/record.json", record)
    world.report()
    rows = lines(section(world))
    assert any(row.startswith("left 50–62 % 2.850") for row in rows)
    assert any(row.startswith("v_strip 99–100 % 3.050") for row in rows)


def test_a_curve_that_ends_early_goes_on_dotted():
    steps, values = np.arange(9.0), np.linspace(2, 1, 9)
    even = curve_plot({"a": (steps, values), "b": (steps, values + 1)}, name="bits")
    short = curve_plot({"a": (steps, values), "b": (steps[:5], values[:5])}, name="bits", over="seconds", unit=" s")
    assert [svg.count("stroke-dasharray") for svg in (even, short)] == [0, 1]
    assert 'aria-label="bits over seconds of training"' in short
    assert ">4 s<" in short


def test_circuits_and_transformers_are_shown_as_runs(told):
    found = {
        (entry.tags["stage"], entry.tags["dataset"]): entry
        for entry in entries(told.runs, told.runs / "none", "made-up")
    }
    circuit = found["train_circuit", "rooms"]
    assert list(circuit.files) == ["samples.png", "completions.png"]
    assert circuit.params["circuit.states"] == "64"
    chosen = {"chosen.structure": "hclt", "chosen.tie": "untied", "chosen.spread": "0.3", "data_hash": "ab" * 32}
    assert chosen.items() <= circuit.tags.items()
    assert circuit.metrics["test/conditional_bits/left"] == pytest.approx(3.05)
    assert circuit.curve[-1].metrics == pytest.approx({"val/bits_per_token": 3.3 + 0.7 * np.exp(-4)})
    transformer = found["train_transformer", "rooms"]
    assert transformer.metrics["test/bits_per_token"] == pytest.approx(3.15)
    assert not [tag for tag in transformer.tags if tag.startswith("chosen")]


def lose_rows(world: World) -> None:
    path = world.root / "scores" / "faces" / "scores.csv"
    path.write_text("".join(line for line in path.open() if ",wide,tiramisu," not in line))


def mix_columns(world: World) -> None:
    path = world.root / "scores" / "faces" / "scores.csv"
    path.write_text(path.read_text().replace(",psnr,", ",lpips,", 1))


def other_trunk(world: World) -> None:
    record = world.load("scores/rooms/score.json")
    world.save("scores/rooms/score.json", record | {"lpips": record["lpips"] | {"trunk_sha256": "00" * 32}})


def other_column(world: World) -> None:
    record = world.load("scores/rooms/score.json")
    world.save("scores/rooms/score.json", record | {"lpips": record["lpips"] | {"column": "lpips"}})


def newer_cell(world: World) -> None:
    record = world.load("inpaint/faces/ddnm/cells.json")
    record["cells"][0]["fingerprint"] = "77" * 32
    world.save("inpaint/faces/ddnm/cells.json", record)


def lose_cell(world: World) -> None:
    record = world.load("inpaint/faces/ddnm/cells.json")
    world.save("inpaint/faces/ddnm/cells.json", {"cells": record["cells"][1:]})


def rename_images(world: World) -> None:
    world.keys = [f"other-{key}" for key in world.keys]


def enlarge_images(world: World) -> None:
    world.images = {dataset: np.repeat(images, 2, axis=1) for dataset, images in world.images.items()}


def shift_mask(world: World) -> None:
    path = world.root / "inpaint" / "faces" / "tiramisu" / "top.npz"
    with np.load(path) as cell:
        np.savez(path, **{**cell, "known": ~cell["known"]})


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lose_rows, "no rows for method tiramisu, mask wide"),
        (lambda world: (world.root / "scores" / "rooms" / "scores.csv").unlink(), r"rooms/scores.csv is missing"),
        (lambda world: (world.root / "scores" / "rooms" / "score.json").unlink(), r"rooms/score.json is missing"),
        (mix_columns, "holds lpips beside lpips_domain"),
        (other_trunk, "rooms with 0000"),
        (other_column, "rooms with lpips"),
        (newer_cell, "mask left it scores cell .* the samples on disk are cell 7777"),
        (lose_cell, "no cell for mask left"),
        (rename_images, "not among the split's images"),
        (enlarge_images, "data and samples are of different runs"),
        (shift_mask, "saw different pixels"),
        (lambda world: (world.root / "inpaint" / "faces" / "ddnm" / "wide.npz").unlink(), "wide.npz is missing"),
        (lambda world: (world.root / "ddpm" / "rooms" / "record.json").unlink(), r"ddpm/rooms/record.json is missing"),
        (
            lambda world: (world.root / "vqgan" / "rooms" / "curve.jsonl").unlink(),
            r"vqgan/rooms/curve.jsonl is missing",
        ),
        (lambda world: (world.root / "ddpm" / "faces" / "samples.png").unlink(), r"samples.png is named"),
        (lambda world: (world.root / "tokens" / "rooms" / "tokens.json").unlink(), r"tokens.json is missing"),
    ],
)
def test_what_is_missing_or_mixed_is_named(tmp_path, harm, said):
    world = World(tmp_path, datasets=("faces", "rooms"), methods=SMALL["methods"])
    harm(world)
    with pytest.raises(InputError, match=said):
        world.report()
    assert not world.out.exists()


def change_record(model: str, *, metrics: dict[str, Any] | None = None, **changes: Any) -> Callable[[World], None]:
    def harm(world: World) -> None:
        record = world.load(f"{model}/rooms/record.json")
        world.save(f"{model}/rooms/record.json", record | {"metrics": record["metrics"] | (metrics or {})} | changes)

    return harm


def change(name: str, **changes: Any) -> Callable[[World], None]:
    return lambda world: world.save(name, world.load(name) | changes)


def overwrite(name: str, text: str) -> Callable[[World], Any]:
    return lambda world: (world.root / name).write_text(text)


def remove(name: str) -> Callable[[World], None]:
    return lambda world: (world.root / name).unlink()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda world: shutil.rmtree(world.root / "circuit" / "rooms"), r"circuit/rooms/record.json is missing"),
        (lambda world: shutil.rmtree(world.root / "transformer" / "faces"), r"transformer/faces/record.json is missin"),
        (remove("circuit/rooms/curve.jsonl"), r"circuit/rooms/curve.jsonl is missing"),
        (remove("circuit/rooms/model.json"), r"circuit/rooms/model.json: expected a JSON object"),
        (remove("circuit/rooms/completions.png"), r"completions.png is named in the training record but missing"),
        (overwrite("circuit/rooms/samples.png", "no picture"), r"rooms/samples.png: expected a picture"),
        (overwrite("circuit/rooms/curve.jsonl", '{"step": 1'), r"curve.jsonl: expected lines with step, seconds"),
        (overwrite("transformer/rooms/curve.jsonl", '{"step": 1, "metrics": {"a": 1}}'), r"curve.jsonl: .*seconds"),
        (overwrite("transformer/rooms/curve.jsonl", ""), r"rooms/curve.jsonl: expected rows with the metric val/bits"),
        (change_record("circuit", artifacts=["samples.png"]), r"expected completions.png among the artifacts, found s"),
        (change_record("circuit", metrics={"test/unigram_bits": None}), r"rooms/record.json: .* test/unigram_bits, fo"),
        (change_record("circuit", metrics={"test/hidden/wide": np.nan}), r"as metric test/hidden/wide, found nan"),
        (change_record("transformer", metrics={"val/bits_per_token": "3"}), r"metric val/bits_per_token, found '3'"),
        (lambda world: world.params["sweep"]["masks"].append("cross"), "no cell for mask cross"),
        (remove("circuit/rooms/candidates.json"), r"circuit/rooms/candidates.json: expected a JSON object"),
        (change("circuit/rooms/model.json", chosen={"structure": "hclt"}), r"circuit/rooms: .*model.*KeyError: 'tie'"),
        (change("circuit/rooms/model.json", vocabulary={}), r"circuit/rooms: expected vocabulary .*: 'compact'"),
        (change("circuit/rooms/candidates.json", candidates=None), r"circuit/rooms: .*candidates.json.*NoneType"),
        (
            lambda world: world.save(
                "circuit/rooms/candidates.json",
                {"candidates": world.load("circuit/rooms/candidates.json")["candidates"][::-1]},
            ),
            r"circuit/rooms: .*seconds of candidates do not ascend",
        ),
        (
            change("circuit/rooms/candidates.json", candidates=[{"spread": 0, "val_bits": np.inf, "seconds": 1}]),
            r"circuit/rooms: .*val_bits of a candidate is not finite",
        ),
    ],
)
def test_what_is_missing_of_the_prior_is_named(tmp_path, harm, said):
    world = World(tmp_path, **PAIR, priors=("circuit", "transformer"))
    harm(world)
    with pytest.raises(InputError, match=said):
        world.report()
    assert not world.out.exists()


def test_a_mask_cannot_be_called_circuit(tmp_path, monkeypatch):
    monkeypatch.setitem(MASKS, "circuit", MASKS["left"])
    world = World(tmp_path, **PAIR, priors=("circuit",))
    with pytest.raises(ConfigError, match="rename the mask"):
        world.report()
    assert not world.out.exists()


def test_the_reference_must_be_a_method_of_the_sweep(small):
    small.params["report"]["reference"] = "dps"
    with pytest.raises(ConfigError, match=r"report\.reference is 'dps'.*ddnm, tiramisu"):
        small.report()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_hidden_path_covers_the_hidden_pixels_and_no_others(share):
    known = np.random.default_rng(0).uniform(size=(9, 9)) < share
    drawn = np.zeros((9, 9), int)
    for left, top, right, bottom in re.findall(r"M(\d+) (\d+)H(\d+)V(\d+)H\1Z", hidden_path(known)):
        drawn[int(top) : int(bottom), int(left) : int(right)] += 1
    np.testing.assert_array_equal(drawn, ~known)


def test_a_rectangle_is_one_piece():
    known = np.ones((32, 32), np.bool_)
    known[4:20, 6:30] = False
    assert hidden_path(known) == "M6 4H30V20H6Z"


def test_spread_keeps_order_and_distance():
    moved = spread(np.array([5.0, 0.0, 5.5, 40.0]), 10.0)
    ordered = moved[[1, 0, 2, 3]]
    assert (np.diff(ordered) >= 10.0 - 1e-9).all()
    assert spread(np.array([0.0, 20.0]), 10.0).tolist() == [0.0, 20.0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00312, "3.1 ms"),
        (0.0995, "0.10 s"),
        (3.214, "3.21 s"),
        (42.16, "42.2 s"),
        (250.4, "4 min 10 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds).replace("\N{NO-BREAK SPACE}", " ") == text
