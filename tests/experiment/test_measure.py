"""What is measured of a cell: a row per sample, its completions, and what a network sees in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.codec.trunk import Trunk, TrunkConfig
from pipeline.data.images import to_float
from pipeline.errors import InputError
from pipeline.experiment.cells import Cell
from pipeline.experiment.measure import BATCH, Instruments, completions, measure
from pipeline.experiment.metrics import METRICS, perceptual_metrics
from pipeline.experiment.perception import DomainLpips
from pipeline.experiment.tables import METRICS as COLUMNS
from pipeline.experiment.tables import collect

torch.set_num_threads(1)

KEYS = ["c", "a", "b"]


@pytest.fixture(scope="module")
def tools():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = Trunk(TrunkConfig(width=8, heads={"domain": 3})).eval().requires_grad_(False)
    return Instruments(column="lpips_domain", perception=DomainLpips(trunk), device=torch.device("cpu"))


def cell(samples=2, images=3, seed=0):
    rng = np.random.default_rng(seed)
    truth = {key: rng.integers(0, 256, (32, 32, 3), np.uint8) for key in (*KEYS, *map(str, range(images)))}
    ids = KEYS[:images] + [str(index) for index in range(images - len(KEYS))]
    record = {"dataset": "faces", "mask": "left", "method": "ddnm", "fingerprint": "ab12", "image_ids": ids}
    known = rng.random((images, 32, 32)) < 0.5
    return Cell(record, rng.integers(0, 256, (images, samples, 32, 32, 3), np.uint8), known), truth


def test_rows_are_the_metrics_of_each_sample(tools):
    done, truth = cell()
    rows = measure(done, truth, tools)
    assert [(row["image_id"], row["sample"]) for row in rows] == [(key, k) for key in KEYS for k in (0, 1)]
    assert {(row["dataset"], row["mask"], row["method"]) for row in rows} == {("faces", "left", "ddnm")}
    metrics = METRICS | perceptual_metrics(tools.perception, "lpips_domain")
    assert set(metrics) < set(COLUMNS)
    for index, row in enumerate(rows):
        i, k = divmod(index, 2)
        x, x_0 = to_float(done.samples[i, [k]]), to_float(truth[KEYS[i]][None])
        for name, metric in metrics.items():
            expected = metric(x, x_0, torch.from_numpy(done.known[[i]])[:, None]).item()
            assert row[name] == pytest.approx(expected, rel=1e-4), name


def test_batches_change_nothing(tools):
    done, truth = cell(samples=1, images=BATCH + 3)
    rows = measure(done, truth, tools)
    assert len(rows) == BATCH + 3
    last = Cell(done.record | {"image_ids": done.record["image_ids"][-1:]}, done.samples[-1:], done.known[-1:])
    (alone,) = measure(last, truth, tools)
    assert alone["image_id"] == rows[-1]["image_id"]
    for name in METRICS:
        assert alone[name] == pytest.approx(rows[-1][name], rel=1e-4), name


def test_diversity_is_the_distance_between_an_images_completions(tools):
    done, truth = cell(samples=3)
    rows = measure(done, truth, tools)
    pictures = completions(done, truth)
    for i, key in enumerate(KEYS):
        of = [to_float(picture[None]) for picture in pictures[i]]
        pairs = [tools.perception.distance(of[a], of[b]).item() for a, b in ((0, 1), (0, 2), (1, 2))]
        values = [row["lpips_domain_diversity"] for row in rows if row["image_id"] == key]
        assert np.mean(values) == pytest.approx(np.mean(pairs), rel=1e-4)
        assert values[0] == pytest.approx((pairs[0] + pairs[1]) / 2, rel=1e-4)
    text = [{name: str(value) for name, value in row.items()} for row in rows]
    _, cubes = collect(text, ["lpips_domain_diversity"], dataset="faces", masks=["left"], methods=["ddnm"])
    assert cubes["lpips_domain_diversity"][0, 0, 2] == pytest.approx(np.mean(values))


def test_one_sample_has_no_diversity(tools):
    done, truth = cell(samples=1)
    assert not any("diversity" in name for row in measure(done, truth, tools) for name in row)


def test_completions_keep_what_is_known(tools):
    done, truth = cell()
    pictures = completions(done, truth)
    for i, key in enumerate(KEYS):
        for k in range(2):
            np.testing.assert_array_equal(pictures[i, k][done.known[i]], truth[key][done.known[i]])
            np.testing.assert_array_equal(pictures[i, k][~done.known[i]], done.samples[i, k][~done.known[i]])


def test_a_look_keeps_the_axes_before_the_picture(tools):
    done, truth = cell()
    pictures = completions(done, truth)
    seen = tools.look(pictures)
    assert (seen.shape, seen.dtype) == ((3, 2, 32), np.float32)
    np.testing.assert_allclose(tools.look(pictures[1, 1]), seen[1, 1], rtol=1e-4, atol=1e-5)
    assert tools.look(np.repeat(pictures, 30, axis=1)).shape == (3, 60, 32)  # more than a batch


def test_an_image_that_is_no_test_image_is_told(tools):
    done, truth = cell()
    del truth["a"]
    for ask in (lambda: measure(done, truth, tools), lambda: completions(done, truth)):
        with pytest.raises(InputError, match="The cell ab12 completes 'a', which is not among the split's images"):
            ask()
