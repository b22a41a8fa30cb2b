"""A made-up profile to report on, and how its pages are read."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.experiment.report import PAGES, write_report

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


def read(world: World, name: str) -> str:
    """A page of a world that was reported."""
    return (world.out / f"{name}.html").read_text()


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


def section(world: World) -> str:
    """The section on the tractable prior."""
    page = read(world, "circuit")
    return page[page.index('<section id="prior">') :].partition("</section>")[0]


def lines(html: str) -> list[str]:
    """Rows of the tables as one reads them."""
    rows = re.findall("<tr.*?</tr>", html, flags=re.DOTALL)
    return [" ".join(re.sub("<[^>]*>", " ", row).replace("\N{NARROW NO-BREAK SPACE}", " ").split()) for row in rows]
