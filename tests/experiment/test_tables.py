"""Scores as cubes, the front of cost and loss, and numbers as they are printed."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.experiment.tables import METRICS, collect, pareto_front

LPIPS = METRICS["lpips"]


def score(mask="left", method="a", image_id="x", sample="0", lpips="0.1"):
    return {"mask": mask, "method": method, "image_id": image_id, "sample": sample, "lpips": lpips}


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
