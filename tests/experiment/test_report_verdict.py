"""The verdict follows from the numbers, and says so where they do not decide."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.experiment.report_contents import Results
from pipeline.experiment.report_cost import NETWORK, Cost
from pipeline.experiment.report_table import table_rows
from pipeline.experiment.report_verdict import Verdict, verdict
from pipeline.experiment.statistics import compare
from pipeline.experiment.tables import METRICS

STEADY = np.array([-0.001, 0.0, 0.001, 0.0])
"""Images differ little, and alike for all methods: every difference as printed is clear."""
WILD = np.array([[0.1, -0.1, 0.1, -0.1], [-0.1, 0.1, -0.1, 0.1], [0.1, 0.1, -0.1, -0.1]])
"""One line per method: no difference below 0.1 is clear."""


def judged(datasets: dict[str, list[list[float]]], seconds: list[float], spread: np.ndarray = STEADY) -> Verdict:
    """The verdict on settings x methods of LPIPS, by dataset, whose images vary by `spread`."""
    noise = spread[: len(seconds)] if spread.ndim == 2 else spread
    cubes = {name: np.array(means)[..., None] + noise for name, means in datasets.items()}
    metric, methods = METRICS["lpips"], ("a", "b", "c")[: len(seconds)]
    masks = ("left", "top", "wide", "h_strip", "v_strip")[: len(next(iter(cubes.values())))]
    found = compare(cubes, masks, higher=metric.higher, digits=metric.digits, resamples=200)
    results = Results(
        metrics={"lpips": metric},
        methods=methods,
        masks=masks,
        reference=0,
        ids={name: [f"{index}" for index in range(noise.shape[-1])] for name in cubes},
        cubes={"lpips": cubes},
        found={"lpips": found},
        rows={"lpips": table_rows(found, 0)},
    )
    costs = [
        Cost(method=method, seconds=time, evaluations={}, shares={NETWORK: 1.0}, devices="cpu", batch_sizes="1")
        for method, time in zip(methods, seconds, strict=True)
    ]
    return verdict(results, costs)


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{NARROW NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    ("means", "spread", "said"),
    [
        ([[0.1, 0.2, 0.3]], STEADY, "a has the lowest mean LPIPS over 1 setting, clearly ahead of all others."),
        ([[0.3, 0.2]], STEADY, "b has the lowest mean LPIPS over 1 setting, clearly ahead of a."),
        (
            [[0.1, 0.11, 0.9]],
            WILD,
            "a has the lowest mean LPIPS over 1 setting, clearly ahead of 1 of 2 others, though not of b.",
        ),
        ([[0.12, 0.11]], WILD, "b has the lowest mean LPIPS over 1 setting, but its lead over a may be chance."),
        (
            [[0.12, 0.11, 0.13]],
            WILD,
            "b has the lowest mean LPIPS over 1 setting, but its lead over a and c may be chance.",
        ),
        ([[0.1, 0.1002, 0.3]], STEADY, "a and b share the lowest mean LPIPS over 1 setting."),
        (
            [[0.1, 0.2]],
            np.zeros(1),
            "a has the lowest mean LPIPS over 1 setting; one image per setting does not tell how surely.",
        ),
    ],
)
def test_who_leads_and_how_surely(means, spread, said):
    assert judged({"faces": means}, [1.0, 2.0, 3.0][: len(means[0])], spread).sentences[0] == said


def test_settings_are_counted_with_what_is_shared_and_what_is_clear():
    found = judged({"faces": [[0.1, 0.2], [0.3, 0.1], [0.1, 0.1], [0.1, 0.2]]}, [4.0, 1.0])
    assert found.sentences[1] == (
        "Taken one by one, the 4 settings go to a (3, 1 shared) and b (2, 1 shared); "
        "in 3 of them the lead over every other method is clear."
    )
    shared = judged({"faces": [[0.1, 0.1], [0.1, 0.2]]}, [4.0, 1.0])
    assert "go to a (2, 1 shared) and b (1, shared);" in shared.sentences[1]
    unclear = judged({"faces": [[0.1, 0.12], [0.12, 0.1]]}, [4.0, 1.0], WILD)
    assert unclear.sentences[1].endswith(
        "go to a (1) and b (1); in none of them the lead over every other method is clear."
    )


def test_datasets_that_the_first_does_not_lead_are_named():
    found = judged({"faces": [[0.1, 0.3]], "rooms": [[0.2, 0.15]]}, [1.0, 1.0])
    assert found.sentences[1].endswith("is clear. The average of a dataset is best for b on rooms.")


@pytest.mark.parametrize(
    ("means", "seconds", "spread", "said"),
    [
        ([[0.1, 0.2]], [1.0, 2.0], STEADY, "a takes 1.00 s per image, the least time of all."),
        (
            [[0.1, 0.2]],
            [4.0, 1.0],
            STEADY,
            "a takes 4.00 s per image, 4.0 times as long as b, the fastest, whose mean is 0.100 higher.",
        ),
        (
            [[0.1, 0.12]],
            [4.0, 1.0],
            WILD,
            "a takes 4.00 s per image, 4.0 times as long as b, the fastest, whose mean is 0.020 higher, which may be "
            "chance.",
        ),
    ],
)
def test_the_price_is_said_beside_what_the_fastest_gives_away(means, seconds, spread, said):
    assert plain(judged({"faces": means}, seconds, spread).sentences[2]) == said


def test_one_method_is_judged_alone():
    found = judged({"faces": [[0.1], [0.3]]}, [2.0])
    assert plain(found.sentences[0]) == (
        "a is the only method of this sweep: LPIPS 0.200 on average over 2 settings, at 2.00 s per image."
    )
    assert (found.answers, len(found.ranking)) == ((), 1)


def test_four_questions_are_answered():
    found = judged({"faces": [[0.1, 0.125, 0.4]]}, [4.0, 2.0, 1.0])
    assert [(answer.question, plain(answer.short), plain(answer.long)) for answer in found.answers] == [
        ("Which method?", "a", "0.100; best in 1 of 1 setting"),
        ("How much better?", "−0.025", "20 % lower than b, the next"),
        ("How sure?", "clear over 2 of 2", "−0.025 to −0.025 by the 95 % interval; 4 images per setting"),
        ("How slow?", "4.00 s", "per image; 4.0 × c, the fastest"),
    ]


def test_the_ranking_is_by_the_mean_and_keeps_what_is_open():
    found = judged({"faces": [[0.12, 0.9, 0.11]]}, [3.0, 1.5, 6.0], WILD)
    assert [entry.method for entry in found.ranking] == ["c", "a", "b"]
    assert [entry.open for entry in found.ranking] == [False, True, False]
    assert [entry.slower for entry in found.ranking] == [4.0, 2.0, 1.0]
    a = found.ranking[1]
    assert a.low < 0 < a.behind < a.high
    low, high = found.span
    assert low <= a.low
    assert high >= found.ranking[2].high > 0.7


def test_a_setting_says_whom_its_best_is_clearly_ahead_of():
    found = judged({"faces": [[0.1, 0.12, 0.9], [0.2, 0.2, 0.9]]}, [1.0, 1.0, 1.0], WILD)
    left, top = found.settings["faces", "left"], found.settings["faces", "top"]
    assert (left.best, left.beaten, left.open) == ((0,), 1, ("b",))
    assert (top.best, top.beaten) == ((0, 1), 0)
