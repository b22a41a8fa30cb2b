"""Statistics against values worked out by hand, scipy and direct loops, and the laws a bootstrap has to keep."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from pipeline.experiment.statistics import (
    average,
    average_rank,
    beats,
    bootstrap_weights,
    clearly_better,
    compare,
    count_wins,
    difference,
    duels,
    interval,
    places,
    ranks,
    seeds,
    tail,
)


def comparison(cubes, masks=("left", "top"), *, higher=False, digits=3, resamples=200):
    cubes = {name: np.asarray(cube, np.float64) for name, cube in cubes.items()}
    return compare(cubes, masks, higher=higher, digits=digits, resamples=resamples)


def drawn(seed=0, datasets=("faces", "rooms"), shape=(2, 4, 12)):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0.3, 0.05, shape).round(2) for name in datasets}


# --- resamples and intervals ---


def test_weights_are_resamples_with_replacement():
    weights = bootstrap_weights(5, 4000, np.random.default_rng(0))
    assert weights.shape == (4000, 5)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    np.testing.assert_array_equal(weights * 5, np.round(weights * 5))
    np.testing.assert_allclose(weights.mean(axis=0), 0.2, atol=0.01)
    np.testing.assert_allclose(weights.var(axis=0), 0.2 * 0.8 / 5, rtol=0.1)  # multinomial variance p (1 - p) / n


def test_interval_leaves_a_share_out_on_each_side():
    low, high = interval(np.stack([np.arange(101.0), np.full(101, 7.0)]), 0.025)
    np.testing.assert_allclose(low, [2.5, 7.0])
    np.testing.assert_allclose(high, [97.5, 7.0])


@pytest.mark.parametrize("images", [[4], [8], [200], [8, 8, 8], [5, 30]])
def test_tail_is_students_quantile_on_the_normal_scale(images):
    freedom = sum(n - 1 for n in images)
    expected = stats.norm.cdf(stats.t.ppf(0.025, freedom) * np.sqrt(sum(images) / freedom))
    assert tail(images) == pytest.approx(expected)


def test_tail_of_many_images_is_the_plain_one():
    assert tail([8]) == pytest.approx(0.0057, abs=5e-5)
    assert tail([100_000]) == pytest.approx(0.025, abs=1e-5)
    assert tail([8], level=0.9) > tail([8])


@pytest.mark.parametrize("images", [8, 12, 40])
def test_intervals_cover_the_true_mean_as_often_as_they_say(images):
    worlds = 3000  # as so many masks, whose images are drawn anew
    values = np.random.default_rng(images).normal(0.4, 0.1, (worlds, 1, images))
    draws = comparison({"faces": values}, range(worlds), resamples=600).draws[0, :, 0]
    low, high = interval(draws, tail([images]))
    assert 0.93 <= np.mean((low <= 0.4) & (high >= 0.4)) <= 0.965
    low, high = interval(draws, 0.025)
    assert np.mean((low <= 0.4) & (high >= 0.4)) < (0.92 if images < 20 else 0.95)  # why they are widened


def test_an_average_over_masks_follows_images_through_all_masks():
    image = np.random.default_rng(4).normal(0, 1, 25)
    once = average(comparison({"faces": [[image]]}, ["left"]))
    same = average(comparison({"faces": [[image], [image]]}))
    opposite = average(comparison({"faces": [[image], [-image]]}))
    np.testing.assert_allclose([same.low, same.high], [once.low, once.high])  # two masks of an image are one evidence
    np.testing.assert_allclose([opposite.low, opposite.high], 0, atol=1e-12)


def test_one_image_gives_no_interval():
    found = comparison({"faces": [[[0.1], [0.2]]]}, ["left"])
    for estimate in (average(found), difference(found, 0), average_rank(found)):
        assert np.isfinite(estimate.mean).all()
        assert np.isnan([estimate.low, estimate.high]).all()
    assert not clearly_better(found).any()
    assert count_wins(found).clear.tolist() == [0, 0]


def test_a_datasets_resamples_depend_on_nothing_but_its_name_and_number():
    cubes = drawn()
    alone, together = comparison({"rooms": cubes["rooms"]}), comparison(cubes)
    np.testing.assert_array_equal(alone.draws, together.only(dataset="rooms").draws)
    assert seeds("faces") != seeds("rooms")


# --- averages and differences ---


def test_averages_by_hand():
    faces = [[[0.1, 0.3], [0.5, 0.5]], [[0.3, 0.5], [0.1, 0.3]]]  # [masks, methods, images]
    rooms = [[[1.0] * 8, [2.0] * 8], [[3.0] * 8, [4.0] * 8]]
    found = comparison({"faces": faces, "rooms": rooms})
    means = {
        ("faces", "left"): [0.2, 0.5],
        ("faces", "top"): [0.4, 0.2],
        ("faces", None): [0.3, 0.35],
        ("rooms", None): [2, 3],
        (None, "left"): [0.6, 1.25],
        (None, None): [1.15, 1.675],  # datasets count alike
    }
    for (dataset, mask), expected in means.items():
        part = found.only(dataset=dataset, mask=mask)
        np.testing.assert_allclose(average(part).mean, expected)
        np.testing.assert_allclose(difference(part, 0).mean, [0, expected[1] - expected[0]])
    assert [found.only(mask="left").settings, found.settings] == [2, 4]
    assert found.only(dataset="rooms").images == (8,)
    still = average(found.only(dataset="rooms"))
    np.testing.assert_allclose([still.low, still.high], [[2, 3]] * 2)  # nothing varies over the images of rooms


def test_a_dataset_or_mask_that_is_not_there_is_an_error():
    for name in ("dataset", "mask"):
        with pytest.raises(ValueError, match="not in tuple"):
            comparison(drawn()).only(**{name: "bedrooms"})


def test_differences_are_paired():
    images = np.random.default_rng(1).uniform(0, 1, 30)
    found = comparison({"faces": [[images, images + 0.01]]}, ["left"])
    mean, of = average(found), difference(found, 0)
    assert mean.high[1] - mean.low[1] > 0.1
    np.testing.assert_allclose([of.low[1], of.mean[1], of.high[1]], 0.01)
    np.testing.assert_array_equal([of.low[0], of.mean[0], of.high[0]], 0)
    np.testing.assert_allclose(difference(found, 1).mean, [-0.01, 0])


def test_everything_is_what_direct_loops_over_resamples_give():
    cubes, resamples = drawn(), 60
    found = comparison(cubes, resamples=resamples)
    drawings = {name: bootstrap_weights(12, resamples, np.random.default_rng(seeds(name))) for name in cubes}
    means, ranked = [], []
    for index in range(resamples):
        settings = [cubes[name][mask] @ drawings[name][index] for name in cubes for mask in range(2)]
        means.append(np.mean(settings, axis=0))
        ranked.append(np.mean([stats.rankdata(np.round(setting, 3)) for setting in settings], axis=0))
    ends = 100 * np.array([found.tail, 1 - found.tail])
    for estimate, draws in ((average(found), means), (average_rank(found), ranked)):
        np.testing.assert_allclose([estimate.low, estimate.high], np.percentile(draws, ends, axis=0))


# --- ranks, places and wins ---


def test_ranks_are_those_of_scipy():
    losses = np.random.default_rng(6).integers(0, 4, (5, 7, 6)) / 10
    np.testing.assert_array_equal(ranks(losses, 1), stats.rankdata(losses, axis=-1))
    np.testing.assert_array_equal(ranks(losses + 1e-3, 1), stats.rankdata(losses, axis=-1))  # as printed
    assert np.isnan(ranks(np.full(3, np.nan), 1)).all()


def test_average_rank_by_hand():
    means = np.array([[0.1, 0.2, 0.3], [0.1, 0.1, 0.3], [0.3, 0.2, 0.1], [0.1, 0.2, 0.2]])
    cube = means[..., None] + np.array([0.0, 0.02, -0.02])
    found = comparison({"faces": cube}, ["left", "top", "wide", "text"])
    estimate = average_rank(found)
    np.testing.assert_allclose(estimate.mean, [1.625, 2.0, 2.375])  # 1 1.5 3 1, 2 1.5 2 2.5, 3 3 1 2.5
    np.testing.assert_allclose([estimate.low, estimate.high], [estimate.mean] * 2)  # no resample reorders them
    turned = average_rank(replace(found, higher=True))
    np.testing.assert_allclose(turned.mean, 4 - estimate.mean)


@pytest.mark.parametrize(
    ("losses", "digits", "expected"),
    [
        ([0.30, 0.10, 0.20], 3, [3, 1, 2]),
        ([0.1004, 0.1001, 0.2], 3, [1, 1, 2]),  # equal as printed; the next one is second
        ([0.1004, 0.1001, 0.2], 4, [2, 1, 3]),
        ([[0.1, 0.2, 0.2], [-25.0, -20.0, -24.999]], 2, [[1, 2, 2], [1, 2, 1]]),
    ],
)
def test_places(losses, digits, expected):
    np.testing.assert_array_equal(places(np.array(losses), digits), expected)


def test_wins_by_hand():
    means = np.array([[0.1, 0.2, 0.3], [0.1, 0.1, 0.3], [0.3, 0.2, 0.1], [0.1, 0.2, 0.2]])
    noise = np.array([0.01, 0.02, -0.03, 0.0])
    cube = means[..., None] + noise
    cube[3, 0] = [0.4, 0.1, -0.1, 0.0]  # its mean is best, but one image stands against it
    found = comparison({"faces": cube}, ["left", "top", "wide", "text"])
    wins = count_wins(found)
    assert wins.settings == 4
    np.testing.assert_array_equal(wins.alone, [2, 0, 1])
    np.testing.assert_array_equal(wins.shared, [1, 1, 0])
    np.testing.assert_array_equal(wins.total, [3, 1, 1])
    np.testing.assert_array_equal(wins.clear, [1, 0, 1])
    np.testing.assert_array_equal(count_wins(found.only(mask="wide")).total, [0, 0, 1])


def test_a_clear_win_is_ahead_of_every_other_method():
    near, far = np.array([0.0, 0.1] * 10), np.array([5.0, 5.1] * 10)
    for sign, higher in ((1, False), (-1, True)):
        found = comparison({"faces": [[sign * near, sign * near[::-1], sign * far]]}, ["left"], higher=higher)
        assert count_wins(found).clear.sum() == 0  # two tie at the head of the field
        ahead = near[::-1] - 0.01
        found = comparison({"faces": [[sign * near, sign * ahead, sign * far]]}, ["left"], higher=higher)
        np.testing.assert_array_equal(count_wins(found).alone, [0, 1, 0])
        assert count_wins(found).clear.sum() == 0  # ahead of one, but clearly only of the other
        found = comparison({"faces": [[sign * far, sign * near, sign * far[::-1]]]}, ["left"], higher=higher)
        np.testing.assert_array_equal(count_wins(found).clear, [0, 1, 0])


def test_a_lead_that_the_images_do_not_bear_out_is_not_clear():
    images = np.random.default_rng(2).normal(0, 1, (2, 30))
    found = comparison({"faces": [images]}, ["left"])
    of = difference(found, 0)
    assert of.low[1] < 0 < of.high[1]
    assert not clearly_better(found).any()


def test_a_lead_too_small_to_be_printed_is_shared():
    images = np.random.default_rng(2).uniform(0, 1, 30)
    found = comparison({"faces": [[images, images - 1e-6]]}, ["left"], digits=3)
    assert clearly_better(found)[0, 0, 1, 0]
    wins = count_wins(found)
    assert [wins.alone.tolist(), wins.shared.tolist(), wins.clear.tolist()] == [[0, 0], [1, 1], [0, 0]]


def test_the_only_method_wins_but_not_clearly():
    wins = count_wins(comparison({"faces": [[[0.1, 0.2]]]}, ["left"]))
    assert [*wins.alone, *wins.shared, *wins.clear] == [1, 0, 0]


def test_duels_by_hand():
    steps = np.array([[0.0, 0.1, 0.1], [0.0, 0.2, -0.1]])  # [masks, methods]
    found = comparison({"faces": steps[..., None] + np.random.default_rng(3).uniform(0, 1, 10)})
    duel = duels(found)
    np.testing.assert_array_equal(duel.better, [[0, 2, 1], [0, 0, 0], [1, 1, 0]])
    np.testing.assert_array_equal(duel.tied, [[2, 0, 0], [0, 2, 1], [0, 1, 2]])
    np.testing.assert_array_equal(duel.clear, duel.better)  # the differences are the same for all images


@pytest.mark.parametrize("higher", [False, True])
def test_duels_and_differences_agree(higher):
    found = comparison(drawn(7), higher=higher)
    duel = duels(found)
    assert (duel.better + duel.better.T + duel.tied == found.settings).all()
    for dataset in found.datasets:
        for mask in found.masks:
            part = found.only(dataset=dataset, mask=mask)
            for reference in range(4):
                of = difference(part, reference)
                expected = of.low > 0 if higher else of.high < 0
                np.testing.assert_array_equal(clearly_better(part)[0, 0, :, reference], expected)


def test_beats_by_hand():
    cube = np.array([[[0.1, 0.2, 0.3, 0.4], [0.1, 0.1, 0.5, 0.2]]])
    found = beats({"faces": cube}, 0, higher=False)["faces"]
    np.testing.assert_array_equal(found, [[[0.5] * 4, [0.5, 1, 0, 1]]])
    np.testing.assert_array_equal(beats({"faces": cube}, 0, higher=True)["faces"], 1 - found)
    share = average(comparison({"faces": found}, ["left"], higher=True, digits=2))
    np.testing.assert_allclose(share.mean, [0.5, 0.625])
