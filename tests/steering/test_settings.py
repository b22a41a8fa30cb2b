"""What steering can be told, and what it refuses to be told."""

import math

import pytest

from pipeline.errors import ConfigError
from pipeline.steering.settings import PRESETS, Steering


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"until": 1.5}, "until"),
        ({"until": math.nan}, "until"),
        ({"refresh": -0.1}, "refresh"),
        ({"low": 1.1}, "low"),
        ({"high": -1.0}, "high"),
        ({"decay": -1.0}, "decay"),
        ({"draws": 0}, "draws"),
        ({"evidence_draws": -1}, "evidence_draws"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"evidence_draws": 2}, "evidence_draws must be 0 for the rule likelihood"),
        ({"draws": 3}, "draws must be 1 for the picture expected"),
        ({"picture": "joint", "query": "flow"}, "query must be exact for the picture joint"),
        ({"formula": "released", "eps": "kept"}, "eps cannot be set for the formula released"),
        ({"formula": "released", "picture": "joint"}, "picture cannot be set for the formula released"),
    ],
)
def test_settings_that_cannot_be_or_conflict_are_named(settings, named):
    with pytest.raises(ConfigError, match=named) as caught:
        Steering(**settings)
    assert "\n" not in str(caught.value)


def test_the_schedule_of_weights_falls_from_low_plus_to_low():
    """The published one: .8 + .2 exp(-2 t / T)."""
    steering = PRESETS["paper"]
    assert steering.scheduled(1000, 1000) == pytest.approx(0.8 + 0.2 * math.exp(-2))
    assert steering.scheduled(0, 1000) == pytest.approx(1.0)
    assert Steering(low=0.2, high=0.6, decay=0.0).scheduled(700, 1000) == pytest.approx(0.6)
