"""Figures: outlines of what is hidden, curves, numbers kept apart, durations."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pipeline.experiment.figures import curve_plot, hidden_path, spread
from pipeline.experiment.report_contents import duration


def test_a_curve_that_ends_early_goes_on_dotted():
    steps, values = np.arange(9.0), np.linspace(2, 1, 9)
    even = curve_plot({"a": (steps, values), "b": (steps, values + 1)}, name="bits")
    short = curve_plot({"a": (steps, values), "b": (steps[:5], values[:5])}, name="bits", over="seconds", unit=" s")
    assert [svg.count("stroke-dasharray") for svg in (even, short)] == [0, 1]
    assert 'aria-label="bits over seconds of training"' in short
    assert ">4 s<" in short


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
