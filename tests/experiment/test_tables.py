"""Means, intervals, places and wins against values worked out by hand, and the laws a bootstrap has to keep."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.experiment.tables import (
    ALL,
    AVERAGE,
    METRICS,
    average_ranks,
    bootstrap_weights,
    collect,
    count_wins,
    interval,
    pareto_front,
    places,
    standing,
    summarise,
)

LPIPS, PSNR = METRICS["lpips"], METRICS["psnr"]


def score(mask="left", method="a", image_id="x", sample="0", lpips="0.1"):
    return {"mask": mask, "method": method, "image_id": image_id, "sample": sample, "lpips": lpips}


def table(cubes, masks=("left", "top"), metric=LPIPS, reference=0, resamples=200):
    cubes = {name: np.asarray(cube, np.float64) for name, cube in cubes.items()}
    return summarise(cubes, masks, metric, reference=reference, resamples=resamples)


def test_collect_averages_samples_and_keeps_the_asked_order():
    rows = [
        score(method="b", image_id="x", lpips="0.5"),
        score(method="b", image_id="y", lpips="0.7"),
        score(image_id="y", sample="0", lpips="0.2"),
        score(image_id="y", sample="1", lpips="0.4"),
        score(image_id="x", lpips="0.1"),
        score(method="not asked for", lpips="9"),
        score(mask="not asked for", lpips="9"),
    ]
    ids, cubes = collect(rows, ["lpips"], dataset="faces", masks=["left"], methods=["a", "b"])
    assert ids == ["y", "x"]
    np.testing.assert_allclose(cubes["lpips"], [[[0.3, 0.1], [0.7, 0.5]]])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([score()], "no rows for method b, mask left"),
        ([score(), score(method="b", image_id="y")], "method b, mask left has other images"),
        ([score(), score(), score(method="b")], "sample 0 appears twice"),
        ([score(), score(method="b", lpips="nan")], "expected a finite number, found 'nan'"),
        ([score(), score(method="b", lpips="")], "expected a finite number, found ''"),
    ],
)
def test_collect_names_what_is_wrong(rows, said):
    with pytest.raises(InputError, match=said) as error:
        collect(rows, ["lpips"], dataset="faces", masks=["left"], methods=["a", "b"])
    assert "faces" in str(error.value)


def test_weights_are_resamples_with_replacement():
    weights = bootstrap_weights(5, 4000, np.random.default_rng(0))
    assert weights.shape == (4000, 5)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    np.testing.assert_array_equal(weights * 5, np.round(weights * 5))
    np.testing.assert_allclose(weights.mean(axis=0), 0.2, atol=0.01)
    np.testing.assert_allclose(weights.var(axis=0), 0.2 * 0.8 / 5, rtol=0.1)  # multinomial variance p (1 - p) / n


def test_interval_is_the_percentile_interval():
    low, high = interval(np.stack([np.arange(101.0), np.full(101, 7.0)]))
    np.testing.assert_allclose(low, [2.5, 7.0])
    np.testing.assert_allclose(high, [97.5, 7.0])


def test_means_and_averages_by_hand():
    faces = [[[0.1, 0.3], [0.5, 0.5]], [[0.3, 0.5], [0.1, 0.3]]]  # [masks, methods, images]
    rooms = [[[1.0] * 8, [2.0] * 8], [[3.0] * 8, [4.0] * 8]]
    rows = table({"faces": faces, "rooms": rooms})
    names = [("faces", "left"), ("faces", "top"), ("faces", AVERAGE), ("rooms", "left"), ("rooms", "top")]
    assert [(row.dataset, row.mask) for row in rows] == [*names, ("rooms", AVERAGE), (ALL, AVERAGE)]
    means = [[0.2, 0.5], [0.4, 0.2], [0.3, 0.35], [1, 2], [3, 4], [2, 3], [1.15, 1.675]]  # datasets count alike
    np.testing.assert_allclose([row.mean for row in rows], means)
    np.testing.assert_allclose([row.difference for row in rows], [[0, b - a] for a, b in means])
    for row in rows[3:6]:  # nothing varies over the images of rooms
        np.testing.assert_allclose([row.low, row.high], [row.mean, row.mean])


def test_differences_are_paired():
    images = np.random.default_rng(1).uniform(0, 1, 30)
    row = table({"faces": [[images, images + 0.01]]}, masks=["left"])[0]
    assert row.high[1] - row.low[1] > 0.1
    np.testing.assert_allclose([row.difference_low[1], row.difference[1], row.difference_high[1]], 0.01)
    assert row.clear
    assert standing(row, LPIPS) == ["open", "worse"]
    assert standing(row, PSNR) == ["open", "better"]


def test_a_lead_that_the_images_do_not_bear_out_is_not_clear():
    images = np.random.default_rng(2).normal(0, 1, (2, 30))
    row = table({"faces": [images]}, masks=["left"])[0]
    assert row.difference_low[1] < 0 < row.difference_high[1]
    assert not row.clear
    assert standing(row, LPIPS) == ["open", "open"]


@pytest.mark.parametrize("metric", [LPIPS, PSNR])
def test_clear_means_ahead_of_every_other_method(metric):
    near, far = np.array([0.0, 0.1] * 10), np.array([5.0, 5.1] * 10)
    row = table({"faces": [[near, near[::-1], metric.sign * far]]}, masks=["left"], metric=metric)[0]
    assert not row.clear  # two tie at the head of the field
    row = table({"faces": [[near, near[::-1], -metric.sign * far]]}, masks=["left"], metric=metric)[0]
    assert row.clear


def test_intervals_cover_the_true_mean_about_as_often_as_they_say():
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(300):
        row = table({"faces": rng.normal(0.4, 0.1, (1, 1, 40))}, masks=["left"], resamples=300)[0]
        inside += bool(row.low[0] <= 0.4 <= row.high[0])
    assert 0.90 <= inside / 300 <= 0.98


def test_an_average_over_masks_follows_images_through_all_masks():
    image = np.random.default_rng(4).normal(0, 1, 25)
    same, opposite = table({"faces": [[image], [image]]})[-1], table({"faces": [[image], [-image]]})[-1]
    assert same.high[0] - same.low[0] > 0.3
    np.testing.assert_allclose([opposite.low[0], opposite.high[0]], 0, atol=1e-12)


def test_one_image_gives_no_interval():
    row = table({"faces": [[[0.1], [0.2]]]}, masks=["left"])[0]
    np.testing.assert_allclose(row.mean, [0.1, 0.2])
    assert np.isnan([row.low, row.high, row.difference_low, row.difference_high]).all()
    assert not row.clear


def test_a_datasets_intervals_do_not_depend_on_the_others():
    cube = np.random.default_rng(5).uniform(0, 1, (2, 3, 12))
    alone, together = table({"faces": cube}), table({"rooms": cube + 1, "faces": cube})
    np.testing.assert_array_equal([r.low for r in alone], [r.low for r in together if r.dataset == "faces"])


@pytest.mark.parametrize(
    ("metric", "mean", "expected"),
    [
        (LPIPS, [0.30, 0.10, 0.20], [3, 1, 2]),
        (LPIPS, [0.1004, 0.1001, 0.2], [1, 1, 2]),  # equal as printed; the next one is second
        (LPIPS, [0.1, 0.2, 0.2], [1, 2, 2]),
        (PSNR, [20.0, 25.0, 24.999], [2, 1, 1]),
    ],
)
def test_places(metric, mean, expected):
    np.testing.assert_array_equal(places(np.array(mean), metric), expected)


def test_wins_and_ranks_leave_averages_out_and_share_ties():
    images = np.array([0.0, 0.02, -0.02])
    means = np.array([[0.1, 0.2, 0.3], [0.1, 0.1, 0.3], [0.3, 0.2, 0.1], [0.1, 0.2, 0.2]])
    rows = table({"faces": means[..., None] + images}, masks=["left", "top", "wide", "text"])
    wins = count_wins(rows, LPIPS)
    assert wins.settings == 4
    np.testing.assert_array_equal(wins.alone, [2, 0, 1])
    np.testing.assert_array_equal(wins.shared, [1, 1, 0])
    np.testing.assert_array_equal(wins.total, [3, 1, 1])
    np.testing.assert_array_equal(wins.clear, [2, 0, 1])
    np.testing.assert_allclose(average_ranks(rows, LPIPS), [1.625, 2.0, 2.375])  # 1 1.5 3 1, 2 1.5 2 2.5, 3 3 1 2.5
    doubtful = [replace(row, clear=False) for row in rows]
    np.testing.assert_array_equal(count_wins(doubtful, LPIPS).clear, [0, 0, 0])


def test_pareto_front():
    cost, loss = np.array([1.0, 2.0, 3.0, 3.0, 0.5]), np.array([0.5, 0.4, 0.3, 0.35, 0.5])
    np.testing.assert_array_equal(pareto_front(cost, loss), [False, True, True, False, True])
    np.testing.assert_array_equal(pareto_front(np.ones(2), np.ones(2)), [True, True])


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [(0.1234, False, "0.123"), (-0.0126, True, "−0.013"), (0.0126, True, "+0.013"), (-0.0001, True, "0.000")],
)
def test_numbers_are_printed_as_one_reads_them(value, sign, text):
    assert LPIPS.text(value, sign=sign) == text
