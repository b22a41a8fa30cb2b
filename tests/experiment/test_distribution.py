"""Kernel and Frechet distance of sets of pictures against direct loops, closed forms and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from pipeline.errors import InputError
from pipeline.experiment.distribution import EVERY, FEWEST, frechet, frechet_distances, kernel, kernel_distances
from pipeline.experiment.features import FILE, Features, load_features, save_features
from pipeline.experiment.statistics import average, bootstrap_weights, difference, seeds, tail


def features(seed=0, count=20, completed=tuple(range(3, 12)), methods=2, pictures=3, size=4, shift=0.0):
    """Of unrelated pictures; the first method's are drawn like the truths, the others are `shift` off."""
    rng = np.random.default_rng(seed)
    completions = rng.normal(1, 1, (methods, len(completed), pictures, size))
    completions[1:] += shift
    return Features(truths=rng.normal(1, 1, (count, size)), completed=completed, completions=completions)


def kernel_by_loops(found, method, weights=None):
    """The definition: means over all pairs of pictures that are not of one image."""
    scale = np.sqrt((found.truths**2).mean())
    weights = np.ones(len(found.truths)) if weights is None else weights
    ours = [
        (found.completed[i], picture / scale) for i, each in enumerate(found.completions[method]) for picture in each
    ]
    theirs = [(i, picture / scale) for i, picture in enumerate(found.truths)]

    def mean(left, right):
        pairs = [(weights[i] * weights[j], (x @ y / len(x) + 1) ** 3) for i, x in left for j, y in right if i != j]
        return sum(w * k for w, k in pairs) / sum(w for w, _ in pairs)

    return mean(ours, ours) + mean(theirs, theirs) - 2 * mean(ours, theirs)


def test_kernel_distance_is_its_double_loop():
    found = {"faces": features(0), "rooms": features(1, count=9, completed=(0, 4, 2, 8))}
    compared = kernel_distances(found, digits=3, resamples=10)
    assert (compared.datasets, compared.masks, compared.images) == (("faces", "rooms"), (EVERY,), (9, 4))
    for dataset, each in found.items():
        expected = [kernel_by_loops(each, method) for method in range(2)]
        np.testing.assert_allclose(average(compared.only(dataset=dataset)).mean, expected, rtol=1e-10)


def test_resamples_of_the_kernel_distance_are_its_double_loop_with_weights():
    found = features()
    draws = kernel_distances({"faces": found}, digits=3, resamples=4).draws[0, 0]
    rng, weights = np.random.default_rng(seeds("faces")), np.empty((4, 20))
    for part in (np.isin(np.arange(20), found.completed), ~np.isin(np.arange(20), found.completed)):
        weights[:, part] = bootstrap_weights(part.sum(), 4, rng) * part.sum()
    expected = [[kernel_by_loops(found, method, row) for row in weights] for method in range(2)]
    np.testing.assert_allclose(draws, expected, rtol=1e-10)


def test_kernel_distance_is_zero_for_the_truths_and_grows_with_the_shift():
    whole = features(count=12, completed=tuple(range(12)), pictures=1)
    truths = Features(truths=whole.truths, completed=whole.completed, completions=whole.truths[None, :, None])
    np.testing.assert_allclose(average(kernel_distances({"a": truths}, digits=3, resamples=2)).mean, 0, atol=1e-12)
    values = [average(kernel_distances({"a": features(shift=s)}, digits=3, resamples=2)).mean[1] for s in (0.3, 1, 2)]
    assert values[0] < values[1] < values[2]


def test_kernel_distance_is_unbiased_although_masks_of_an_image_are_alike():
    """Mean 0 over many worlds for pictures of the right distribution, even if those of an image are its truth."""
    rng, values = np.random.default_rng(5), []
    for _ in range(400):
        truths = rng.normal(0, 1, (12, 3))
        alike = np.repeat(truths[:6, None], 4, axis=1)
        found = Features(
            truths=truths, completed=tuple(range(6)), completions=np.stack([alike, rng.normal(size=(6, 4, 3))])
        )
        values.append(average(kernel_distances({"a": found}, digits=3, resamples=1)).mean)
    error = np.std(values, axis=0) / np.sqrt(len(values))
    assert (np.abs(np.mean(values, axis=0)) < 3 * error).all()


def test_differences_of_kernel_distances_have_intervals():
    found = kernel_distances({"a": features(count=40, completed=tuple(range(20)), shift=2.0)}, digits=3, resamples=300)
    of = difference(found, 0)
    assert of.low[1] > 0
    assert found.tail == tail([20])


def test_few_images_give_a_kernel_distance_without_interval_and_one_image_none():
    few = average(kernel_distances({"a": features(completed=tuple(range(FEWEST - 1)))}, digits=3, resamples=50))
    assert np.isfinite(few.mean).all()
    assert np.isnan([few.low, few.high]).all()
    enough = average(kernel_distances({"a": features(completed=tuple(range(FEWEST)))}, digits=3, resamples=50))
    assert np.isfinite([enough.low, enough.high]).all()
    assert np.isnan(average(kernel_distances({"a": features(completed=(2,))}, digits=3, resamples=50)).mean).all()


@pytest.mark.parametrize("factor", [1e-3, 1.0, 50.0])
def test_the_scale_of_the_network_does_not_matter(factor):
    found = features()
    larger = Features(truths=factor * found.truths, completed=found.completed, completions=factor * found.completions)
    for distance in (
        lambda each: kernel_distances(each, digits=3, resamples=2),
        lambda e: frechet_distances(e, digits=2),
    ):
        np.testing.assert_allclose(distance({"a": larger}).mean, distance({"a": found}).mean, rtol=1e-8)


def test_kernel_of_two_pictures():
    assert kernel(np.array([[1.0, 2.0]]), np.array([[3.0, -1.0]])).item() == pytest.approx((1 / 2 + 1) ** 3)


def test_frechet_distance_of_normal_distributions():
    m, n = np.array([1.0, -1.0, 0.5]), np.array([0.0, 2.0, 0.5])
    a, b = np.diag([1.0, 4.0, 9.0]), np.diag([4.0, 1.0, 0.0])  # commute: sum of squared differences of deviations
    assert frechet(m, a, n, b) == pytest.approx(1 + 9 + 0 + 1 + 1 + 9)
    assert frechet(m, a, m, a) == pytest.approx(0, abs=1e-12)
    rng = np.random.default_rng(0)
    c, d = (x @ x.T for x in rng.normal(size=(2, 3, 5)))
    expected = ((m - n) ** 2).sum() + np.trace(c + d - 2 * sqrtm(c @ d).real)
    assert frechet(m, c, n, d) == pytest.approx(expected)
    assert frechet(n, d, m, c) == pytest.approx(expected)


def test_frechet_distances_pool_masks_and_have_no_interval():
    found = features()
    estimate = average(frechet_distances({"a": found}, digits=2))
    scale = np.sqrt((found.truths**2).mean())
    for method in range(2):
        ours, theirs = found.completions[method].reshape(-1, 4) / scale, found.truths / scale
        expected = frechet(ours.mean(0), np.cov(ours.T), theirs.mean(0), np.cov(theirs.T))
        assert estimate.mean[method] == pytest.approx(expected)
    assert np.isnan([estimate.low, estimate.high]).all()
    one = features(completed=(1,), pictures=1)
    assert np.isnan(average(frechet_distances({"a": one}, digits=2)).mean).all()


# --- the file ---


def saved(folder, methods=("blended", "ddnm")):
    completions = np.arange(2 * 3 * 4 * 2 * 5, dtype=np.float32).reshape(
        2, 3, 4, 2, 5
    )  # methods masks images samples D
    truths = np.ones((6, 5), np.float32)
    save_features(folder, methods=methods, truths=truths, completed=[5, 0, 1, 2], completions=completions)
    return completions


def test_features_come_back_by_image_for_the_methods_asked_for(tmp_path):
    completions = saved(tmp_path)
    found = load_features(tmp_path, ["ddnm"])
    assert (found.completed, found.truths.shape, found.completions.shape) == ((5, 0, 1, 2), (6, 5), (1, 4, 6, 5))
    np.testing.assert_array_equal(found.completions[0, 2, 3], completions[1, 1, 2, 1])  # mask 1, sample 1 of image 2
    both = load_features(tmp_path, ["ddnm", "blended"])
    np.testing.assert_array_equal(both.completions[0], found.completions[0])


def test_the_file_is_the_same_on_every_run(tmp_path):
    saved(tmp_path / "a")
    saved(tmp_path / "b")
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()


def test_features_that_are_not_there_are_told(tmp_path):
    with pytest.raises(InputError, match=r"features\.npz: expected features .* run the score stage again"):
        load_features(tmp_path, ["ddnm"])
    saved(tmp_path)
    with pytest.raises(InputError, match=r"features\.npz has no features of the method copaint"):
        load_features(tmp_path, ["ddnm", "copaint"])
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-40])
    with pytest.raises(InputError, match="cannot be read"):
        load_features(tmp_path, ["ddnm"])
