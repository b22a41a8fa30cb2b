"""Classes of tokens, and numbers kept by time and class: interpolated, stored, refused."""

import copy
import json
import math

import pytest
import torch

from pipeline.errors import CheckpointError
from pipeline.steering.calibration import CLASSES, NAMES, SHARES, Calibration, classify, to_pixels
from steering.worlds import calibration

SEEN, PARTLY, HIDDEN = (SHARES * kind for kind in range(3))


def blank(size, batch=1):
    return torch.zeros(batch, 1, size, size, dtype=torch.bool)


def by_hand(known, side):
    """The same by loops over tokens, pixels and neighbours, in whole numbers."""
    patch, out = known.shape[-1] // side, []
    counts = [
        [int(known[0, 0, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].sum()) for c in range(side)]
        for r in range(side)
    ]
    for r in range(side):
        for c in range(side):
            kind = 0 if counts[r][c] == patch**2 else 1 if counts[r][c] else 2
            near = [
                counts[min(max(r + i, 0), side - 1)][min(max(c + j, 0), side - 1)]
                for i in range(-2, 3)
                for j in range(-2, 3)
            ]
            out.append(SHARES * kind + min(SHARES * sum(near) // (25 * patch**2), SHARES - 1))
    return torch.tensor(out)[None]


# --- classes ---


def test_all_seen_and_nothing_seen_are_the_ends():
    for size in (4, 16, 32):
        assert (classify(~blank(size), 4) == SEEN + SHARES - 1).all()
        assert (classify(blank(size), 4) == HIDDEN).all()


def test_half_seen_by_hand():
    """Of 4 x 4 tokens the left two columns are seen; two patches on each side count, those beyond the edge doubled."""
    known = blank(8)
    known[..., :4] = True
    # columns around token column 0: 0 0 0 1 2 -> 4 of 5 seen; 1: 0 0 1 2 3 -> 3; 2: 0 1 2 3 3 -> 2; 3: 1 2 3 3 3 -> 1
    row = [SEEN + 4, SEEN + 3, HIDDEN + 2, HIDDEN + 1]
    assert classify(known, 4).tolist() == [row * 4]


def test_a_strip_that_is_not_aligned_with_patches_is_seen_in_part():
    """Rows 1 to 4 of 8, with patches of 2: token row 0 and 2 have one row of pixels, row 1 both, row 3 none."""
    known = blank(8)
    known[:, :, 1:5] = True
    kinds = classify(known, 4).view(4, 4) // SHARES
    assert kinds.tolist() == [[1] * 4, [0] * 4, [1] * 4, [2] * 4]
    assert torch.equal(classify(known, 4), by_hand(known, 4))


def test_one_pixel_more_or_less_is_seen_in_part():
    known = blank(32)
    known[0, 0, 9, 9] = True
    kinds = classify(known, 16).view(16, 16) // SHARES
    assert int(kinds[4, 4]) == 1
    assert int((kinds == 2).sum()) == 255
    kinds = classify(~known, 16).view(16, 16) // SHARES
    assert int(kinds[4, 4]) == 1
    assert int((kinds == 0).sum()) == 255


@pytest.mark.parametrize(("side", "size"), [(4, 4), (4, 12), (16, 16), (16, 32), (16, 48), (2, 14)])
def test_rounding_never_decides(side, size):
    """Shares such as 3/5 of 25 patches of 9 pixels are on the border between classes: whole numbers decide there."""
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        known = torch.rand(1, 1, size, size, generator=generator) < (seed + 1) / 9
        known[..., : size // 2] = seed % 2 == 0
        assert torch.equal(classify(known, side), by_hand(known, side))
    for columns in range(size + 1):
        known = blank(size)
        known[..., :columns] = True
        assert torch.equal(classify(known, side), by_hand(known, side))


def test_images_do_not_meet():
    known = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    classes = classify(known, 4)
    assert classes.shape == (5, 16)
    assert classes.dtype == torch.int64
    assert int(classes.min()) >= 0
    assert int(classes.max()) < CLASSES
    assert torch.equal(classes, torch.cat([classify(row, 4) for row in known.split(1)]))


def test_numbers_of_tokens_are_spread_over_their_patches():
    values = torch.arange(8.0).view(2, 4)
    pixels = to_pixels(values, 6)
    assert pixels.shape == (2, 1, 6, 6)
    for token in range(4):
        r, c = 3 * (token // 2), 3 * (token % 2)
        assert (pixels[:, 0, r : r + 3, c : c + 3] == values[:, token, None, None]).all()


# --- times ---


def test_levels_stand_at_their_times():
    trust = calibration(levels=4)
    for t, level in zip(trust.times, trust.levels, strict=True):
        for name in NAMES:
            torch.testing.assert_close(getattr(trust.at(t), name), getattr(level, name), rtol=1e-6, atol=0)


def test_between_levels_logs_of_variances_and_weights_are_interpolated():
    trust = calibration(levels=4)  # at 250, 500, 750, 1000
    found, low, high = trust.at(600), trust.levels[1], trust.levels[2]
    for name in NAMES[:3]:
        expected = getattr(low, name).pow(0.6) * getattr(high, name).pow(0.4)
        torch.testing.assert_close(getattr(found, name), expected)
    torch.testing.assert_close(found.weight, 0.6 * low.weight + 0.4 * high.weight)


@pytest.mark.parametrize(("t", "end"), [(1, 0), (249, 0), (250, 0), (1000, -1), (1001, -1), (5000, -1)])
def test_beyond_the_ends_is_the_end(t, end):
    trust = calibration(levels=4)
    for name in NAMES:
        torch.testing.assert_close(getattr(trust.at(t), name), getattr(trust.levels[end], name), rtol=1e-6, atol=0)


def test_one_level_stands_for_all_times():
    trust = calibration(levels=1)
    assert all(trust.at(t) is trust.levels[0] for t in (1, 999, 1000, 1001))


# --- files ---


def test_what_is_written_is_read_bit_for_bit():
    trust = calibration(seed=7, levels=5)
    again = Calibration.from_json(json.loads(json.dumps(trust.to_json())))
    assert again.times == trust.times
    for first, second in zip(trust.levels, again.levels, strict=True):
        assert all(torch.equal(getattr(first, name), getattr(second, name)) for name in NAMES)
    assert again.to_json() == trust.to_json()
    assert again.to(torch.device("cpu")).to_json() == trust.to_json()


def in_level(name, value):
    return lambda values: values["levels"][1].__setitem__(name, value)


def at_top(name, value):
    return lambda values: values.__setitem__(name, value)


FIFTEEN = [0.5] * CLASSES

DAMAGED = {
    "no times": lambda values: values.pop("times"),
    "no levels": lambda values: values.pop("levels"),
    "nothing": lambda values: values.clear(),
    "times no list": at_top("times", 5),
    "times empty": lambda values: values.update(times=[], levels=[]),
    "times fall": at_top("times", [500, 333, 1000]),
    "times twice": at_top("times", [333, 333, 1000]),
    "times too few": at_top("times", [333, 1000]),
    "times words": at_top("times", ["333", "666", "1000"]),
    "times no whole numbers": at_top("times", [333.5, 666, 1000]),
    "times infinite": at_top("times", [333, 666, math.inf]),
    "times true": at_top("times", [True, 666, 1000]),
    "times below 1": at_top("times", [0, 666, 1000]),
    "levels no list": at_top("levels", {"0": 1}),
    "level null": lambda values: values["levels"].__setitem__(1, None),
    "level a list": lambda values: values["levels"].__setitem__(1, [1, 2]),
    "level lacks": lambda values: values["levels"][1].pop("weight"),
    "level has more": in_level("weights", FIFTEEN),
    "null": in_level("weight", None),
    "nulls": in_level("weight", [None] * CLASSES),
    "words": in_level("code_variance", ["x"] * CLASSES),
    "mapping": in_level("code_variance", {}),
    "too short": in_level("code_variance", FIFTEEN[1:]),
    "nested": in_level("code_variance", [FIFTEEN]),
    "variance 0": in_level("code_variance", [0.0, *FIFTEEN[1:]]),
    "variance negative": in_level("diffusion_variance", [-1.0, *FIFTEEN[1:]]),
    "variance NaN": in_level("circuit_variance", [math.nan, *FIFTEEN[1:]]),
    "variance infinite": in_level("circuit_variance", [math.inf, *FIFTEEN[1:]]),
    "variance below what is stored": in_level("circuit_variance", [1e-60, *FIFTEEN[1:]]),
    "weight above 1": in_level("weight", [1.001, *FIFTEEN[1:]]),
    "weight below 0": in_level("weight", [-1e-6, *FIFTEEN[1:]]),
    "weight NaN": in_level("weight", [math.nan, *FIFTEEN[1:]]),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_calibration_is_refused_in_one_sentence(damage):
    values = copy.deepcopy(calibration().to_json())
    DAMAGED[damage](values)
    with pytest.raises(CheckpointError, match="expected a calibration with rising times") as caught:
        Calibration.from_json(values)
    message = str(caught.value)
    assert message.endswith("run the stage fit_steering again.")
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize("weight", [0.0, 1.0, 0, 1])
def test_the_ends_of_the_range_of_weights_are_allowed(weight):
    values = copy.deepcopy(calibration().to_json())
    values["levels"][0]["weight"] = [weight] * CLASSES
    assert float(Calibration.from_json(values).levels[0].weight[3]) == weight
