"""What the report says of circuits and of the transformers beside them."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest

from experiment.made_up import (
    MASKS,
    PAIR,
    World,
    lines,
    read,
    section,
)
from pipeline.experiment.trackable import entries


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
