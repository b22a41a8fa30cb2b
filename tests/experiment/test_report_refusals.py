"""What is missing or mixed is named before anything is reported."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from experiment.made_up import (
    MASKS,
    PAIR,
    SMALL,
    World,
)
from pipeline.errors import ConfigError, InputError


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
