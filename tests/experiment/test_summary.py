"""A metric in one line per method, against the statistics it sums up."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.experiment.statistics import average, average_rank, beats, compare, count_wins, difference, duels
from pipeline.experiment.summary import ALL, headline, summarise

MASKS, METHODS = ("left", "wide"), ("copaint", "ddnm", "tiramisu")


def world(datasets=("faces", "rooms"), masks=MASKS, images=10):
    rng = np.random.default_rng(1)
    shape = (len(masks), 3, images)
    cubes = {name: rng.normal(0.3, 0.05, shape) + np.array([0, 0.02, -0.06])[:, None] for name in datasets}
    return cubes, compare(cubes, masks, higher=False, digits=3, resamples=200)


def lines_of(found, cubes, reference=0):
    lines = summarise(found, cubes, METHODS, reference)
    return {(line["dataset"], line["mask"], line["method"]): line for line in lines}


def test_there_is_a_line_for_every_group_and_method():
    cubes, found = world()
    groups = [(ALL, ALL), ("faces", ALL), ("rooms", ALL), (ALL, "left"), (ALL, "wide")]
    assert list(lines_of(found, cubes)) == [(*group, method) for group in groups for method in METHODS]
    cubes, found = world(datasets=("faces",), masks=("left",))
    assert list(lines_of(found, cubes)) == [(ALL, ALL, method) for method in METHODS]


@pytest.mark.parametrize(("dataset", "mask"), [(None, None), ("rooms", None), (None, "wide")])
def test_a_line_says_what_the_statistics_say(dataset, mask):
    cubes, found = world()
    part = found.only(dataset=dataset, mask=mask)
    share = compare(beats(cubes, 0, higher=False), MASKS, higher=True, digits=2, resamples=200)
    estimates = {"mean": average(part), "difference": difference(part, 0), "rank": average_rank(part)}
    estimates["better"] = average(share.only(dataset=dataset, mask=mask))
    wins, clear = count_wins(part), duels(part).clear
    for index, method in enumerate(METHODS):
        line = lines_of(found, cubes)[dataset or ALL, mask or ALL, method]
        for name, estimate in estimates.items():
            told = [line[name], line[f"{name}_low"], line[f"{name}_high"]]
            assert told == pytest.approx([of[index] for of in (estimate.mean, estimate.low, estimate.high)], abs=1e-6)
        assert (line["settings"], line["wins"]) == (part.settings, wins.total[index])
        assert (line["shared"], line["clear"]) == (wins.shared[index], wins.clear[index])
        assert (line["clearly_better"], line["clearly_worse"]) == (clear[index, 0], clear[0, index])


def test_the_reference_is_compared_with_nothing():
    cubes, found = world()
    line = lines_of(found, cubes, reference=2)[ALL, ALL, "tiramisu"]
    assert [line[name] for name in ("difference", "difference_low", "difference_high", "better")] == [0, 0, 0, 0.5]
    assert line["clearly_better"] == line["clearly_worse"] == 0
    assert lines_of(found, cubes, reference=2)[ALL, ALL, "ddnm"]["clearly_worse"] > 0


def test_one_image_leaves_the_intervals_open():
    cubes, found = world(images=1)
    line = lines_of(found, cubes)[ALL, ALL, "ddnm"]
    assert [line[name] for name in ("mean_low", "difference_high", "rank_low", "better_low")] == [None] * 4
    assert None not in (line["mean"], line["difference"], line["rank"], line["better"])


def test_the_headline_is_of_all_settings():
    cubes, found = world()
    lines = summarise(found, cubes, METHODS, 0)
    told = headline(lines)
    assert list(told) == list(METHODS)
    first = lines_of(found, cubes)[ALL, ALL, "tiramisu"]
    assert told["tiramisu"] == {key: first[key] for key in ("mean", "rank", "wins", "clear")}
    assert sum(each["wins"] for each in told.values()) >= found.settings
