"""The benchmark of the exact judge: what is run, what stays in its record, and what its page says of steered rows."""

import pytest

from benchmarks import posterior, posterior_page
from pipeline.errors import ConfigError, InputError
from pipeline.methods import PRESETS
from pipeline.oracles.worlds import WORLDS

SETTINGS = {"n": 96}


def row(method, preset, ratio, forwards=250.0):
    interval = [ratio - 0.1, ratio + 0.1]
    return {
        "method": method,
        "preset": preset,
        "sliced_w2": ratio,
        "intervals": {"sliced_w2": interval},
        "forwards": forwards,
        "backwards": 0.0,
        "sd_ratio": 1.0,
    }


def scene(world, mask, *rows, floor=1.0):
    return {"world": world, "mask": mask, "floor": {"sliced_w2": {"mean": floor, "sd": 0.01}}, "rows": list(rows)}


def names(found):
    return [f"{one['method']} {one['preset']}" for one in found["rows"]]


def test_steered_rows_come_last_and_name_their_base():
    runs = posterior.every_run()
    assert len(runs) == len(set(runs)) == sum(map(len, PRESETS.values())) + len(posterior.BASES)
    assert runs[-1] == ("steered", "repaint fast")
    assert posterior.base_of("steered", "repaint fast") == posterior.base_of("repaint", "fast")


def test_what_is_asked_for_is_run():
    assert posterior.chosen(None, None) == posterior.every_run()
    assert posterior.chosen(["steered"], None) == [("steered", f"{m} {p}") for m, p in posterior.BASES]
    assert posterior.chosen(["steered", "ddnm"], ["paper", "ddnm paper"]) == [
        ("ddnm", "paper"),
        ("steered", "ddnm paper"),
    ]
    with pytest.raises(ConfigError, match="there is no tea; choose from blended, "):
        posterior.chosen(["tea"], None)


def test_only_worlds_that_are_circuits_are_steered():
    there = {name: posterior.exact_prior(WORLDS[name]()) is not None for name in WORLDS}
    assert there == {"mixture": False, "circuit": True, "axis": True}


def test_what_was_not_measured_again_stays():
    old = {
        "settings": SETTINGS,
        "machine": 1,
        "scenes": [
            scene("mixture", "left", row("ddnm", "paper", 1.0)),
            scene("circuit", "left", row("steered", "ddnm paper", 1.0), row("blended", "paper", 2.0)),
        ],
    }
    new = {
        "settings": SETTINGS,
        "machine": 2,
        "scenes": [
            scene("axis", "left", row("ddnm", "paper", 5.0)),
            scene("circuit", "left", row("ddnm", "paper", 3.0), row("blended", "paper", 4.0), floor=2.0),
        ],
    }
    found = posterior.merged(old, new)
    assert found["machine"] == 2
    assert [one["world"] for one in found["scenes"]] == ["mixture", "circuit", "axis"]
    assert [names(one) for one in found["scenes"]] == [
        ["ddnm paper"],
        ["blended paper", "ddnm paper", "steered ddnm paper"],
        ["ddnm paper"],
    ]
    assert found["scenes"][0] == old["scenes"][0]
    assert [one["sliced_w2"] for one in found["scenes"][1]["rows"]] == [4.0, 3.0, 1.0]
    assert found["scenes"][1]["floor"]["sliced_w2"]["mean"] == 2.0
    with pytest.raises(InputError, match=r"hold rows measured with .*'n': 96.*, but it has .*'n': 48"):
        posterior.merged(old | {"settings": {"n": 48}}, new)


def test_the_page_tells_steered_rows_from_plain_ones():
    rows = row("ddnm", "paper", 3.0, 100.0), row("steered", "ddnm paper", 1.1, 100.0), row("steered", "dps small", 1.4)
    found = list(posterior_page.findings({"scenes": [scene("circuit", "expand1", *rows)]}))
    assert [line.removeprefix("circuit, centre 4x4 known: ") for line in found] == [
        "no method reaches the floor by itself: 1 of 1 are beyond it with their whole interval, confirmed; "
        "the nearest is ddnm paper, at 3.00 x floor",
        "steered ddnm paper within 1.25 x floor: 1.10 with 100 forwards, by itself 3.00 with 100, confirmed",
        "steered dps small within 1.25 x floor: 1.40 with 250 forwards, NOT confirmed",
    ]
