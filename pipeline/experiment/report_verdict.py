"""What the first page says before all else: which method, how much better, how surely and how slow.

Every word follows from the numbers: a lead whose interval holds zero is called open, a shared one shared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.experiment.report_contents import Results, duration, listing
from pipeline.experiment.report_cost import Cost
from pipeline.experiment.report_table import ALL, row_places
from pipeline.experiment.statistics import clearly_better, count_wins, difference, places


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method in the ranking over all settings."""

    method: str
    index: int
    mean: float
    behind: float
    """Mean minus that of the first, with the ends of the paired interval."""
    low: float
    high: float
    open: bool
    """Not the first, and the interval does not say that it is worse."""
    wins: int
    """Settings in which no other method has a better mean, as printed."""
    shared: int
    seconds: float
    slower: float
    """Time over that of the fastest."""

    @property
    def count(self) -> str:
        """Wins, and how many of them are shared, in words."""
        shared = "" if self.shared == self.wins else f"{self.shared} "
        return f"{self.wins}, {shared}shared" if self.shared else f"{self.wins}"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Who is best under one mask on one dataset."""

    best: tuple[int, ...]
    """Methods whose mean prints as the lowest loss."""
    mean: float
    beaten: int
    """Methods that the best is clearly ahead of; 0 if several are best."""
    open: tuple[str, ...]
    """Methods it is not clearly ahead of."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One of the four questions, answered."""

    question: str
    short: str
    long: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Everything that is said before the tables."""

    sentences: tuple[str, ...]
    answers: tuple[Answer, ...]
    ranking: tuple[Entry, ...]
    """The best first."""
    settings: dict[tuple[str, str], Setting]
    """By (dataset, mask)."""

    @property
    def span(self) -> tuple[float, float]:
        """Ends of an axis that holds all differences to the first, their intervals and zero."""
        ends = [end for entry in self.ranking for end in (entry.behind, entry.low, entry.high) if np.isfinite(end)]
        low, high = min(ends), max(ends)
        return (low, high) if high > low else (low - 1.0, high + 1.0)


def verdict(results: Results, costs: Sequence[Cost]) -> Verdict:
    """Judge by the main metric; `costs` are in the order of the methods."""
    ranking = _ranking(results, costs)
    settings = _settings(results)
    if len(ranking) == 1:
        return Verdict(sentences=(_alone(results, ranking[0]),), answers=(), ranking=ranking, settings=settings)
    sentences = (_who(results, ranking), _where(results, ranking, settings), _price(results, ranking))
    return Verdict(sentences=sentences, answers=_answers(results, ranking), ranking=ranking, settings=settings)


def _ranking(results: Results, costs: Sequence[Cost]) -> tuple[Entry, ...]:
    found, metric = results.found[results.main.name], results.main
    mean, wins = results.rows[metric.name][-1].mean, count_wins(found)
    order = np.argsort(metric.sign * mean, kind="stable")
    behind = difference(found, int(order[0]))
    worse = behind.high < 0 if metric.higher else behind.low > 0
    fastest = min(cost.seconds for cost in costs)
    return tuple(
        Entry(
            method=results.methods[index],
            index=int(index),
            mean=float(mean[index]),
            behind=float(behind.mean[index]),
            low=float(behind.low[index]),
            high=float(behind.high[index]),
            open=bool(index != order[0] and not worse[index]),
            wins=int(wins.total[index]),
            shared=int(wins.shared[index]),
            seconds=costs[index].seconds,
            slower=costs[index].seconds / fastest,
        )
        for index in order
    )


def _settings(results: Results) -> dict[tuple[str, str], Setting]:
    found = results.found[results.main.name]
    place = places(found.sign * found.mean, found.digits)
    ahead = clearly_better(found)
    settings = {}
    for d, dataset in enumerate(found.datasets):
        for m, mask in enumerate(found.masks):
            best = tuple(int(index) for index in np.flatnonzero(place[d, m] == 1))
            clear = ahead[d, m, best[0]] if len(best) == 1 else np.zeros(len(results.methods), np.bool_)
            settings[dataset, mask] = Setting(
                best=best,
                mean=float(found.mean[d, m, best[0]]),
                beaten=int(clear.sum()),
                open=tuple(name for i, name in enumerate(results.methods) if not clear[i] and i not in best),
            )
    return settings


def _alone(results: Results, entry: Entry) -> str:
    metric = results.main
    return (
        f"{entry.method} is the only method of this sweep: {metric.label} {metric.text(entry.mean)} on average over "
        f"{_count(results)}, at {duration(entry.seconds)} per image."
    )


def _count(results: Results) -> str:
    """The number of settings in words."""
    count = results.found[results.main.name].settings
    return f"{count} setting{'' if count == 1 else 's'}"


def _leaders(results: Results, ranking: Sequence[Entry]) -> list[str]:
    """The first, and all that print equal."""
    place = row_places(results.rows[results.main.name][-1], results.main)
    return [entry.method for entry in ranking if place[entry.index] == 1]


def _who(results: Results, ranking: Sequence[Entry]) -> str:
    """Who has the best average, and how surely."""
    metric, first, others = results.main, ranking[0], ranking[1:]
    over = f"{metric.best} mean {metric.label} over {_count(results)}"
    leaders = _leaders(results, ranking)
    if len(leaders) > 1:
        return f"{listing(leaders)} share the {over}."
    unsure = [entry.method for entry in others if entry.open]
    if not np.isfinite(others[0].low):
        sure = "; one image per setting does not tell how surely"
    elif not unsure:
        sure = f", clearly ahead of {'all others' if len(others) > 1 else others[0].method}"
    elif len(unsure) == len(others):
        sure = f", but its lead over {listing(unsure) if len(unsure) < 3 else 'the others'} may be chance"
    elif len(unsure) < 4:
        sure = (
            f", clearly ahead of {len(others) - len(unsure)} of {len(others)} others, though not of {listing(unsure)}"
        )
    else:
        sure = f", but clearly ahead of only {len(others) - len(unsure)} of {len(others)} others"
    return f"{first.method} has the {over}{sure}."


def _where(results: Results, ranking: Sequence[Entry], settings: Mapping[tuple[str, str], Setting]) -> str:
    """Who is best in how many settings, in how many of them clearly, and which datasets the first does not lead."""
    winners = sorted((entry for entry in ranking if entry.wins), key=lambda entry: -entry.wins)
    counts = [f"{entry.method} ({entry.count})" for entry in winners]
    clear = sum(setting.beaten == len(ranking) - 1 for setting in settings.values())
    said = f"Taken one by one, the {_count(results)} go to {listing(counts)}"
    said += f"; in {clear or 'none'} of them the lead over every other method is clear"
    rows = [row for row in results.rows[results.main.name] if row.is_average and row.dataset != ALL]
    leaders = {row.dataset: np.flatnonzero(row_places(row, results.main) == 1) for row in rows}
    elsewhere = [
        f"{listing([results.methods[index] for index in best])} on {dataset}"
        for dataset, best in leaders.items()
        if ranking[0].index not in best
    ]
    return f"{said}{f'. The average of a dataset is best for {listing(elsewhere)}' if elsewhere else ''}."


def _price(results: Results, ranking: Sequence[Entry]) -> str:
    """What the first costs beside the fastest, and what the fastest gives away."""
    first, fastest, metric = ranking[0], min(ranking, key=lambda entry: entry.seconds), results.main
    said = f"{first.method} takes {duration(first.seconds)} per image"
    if first is fastest:
        return f"{said}, the least time of all."
    behind = f"{metric.text(abs(fastest.behind))} {'lower' if metric.higher else 'higher'}"
    sure = ", which may be chance" if fastest.open else ""
    return f"{said}, {first.slower:.1f} times as long as {fastest.method}, the fastest, whose mean is {behind}{sure}."


def _answers(results: Results, ranking: Sequence[Entry]) -> tuple[Answer, ...]:
    metric, images = results.main, sorted(set(results.found[results.main.name].images))
    first, second, others = ranking[0], ranking[1], ranking[1:]
    fastest = min(ranking, key=lambda entry: entry.seconds)
    share = abs(second.behind / second.mean) if second.mean else 0.0
    ends = f"{metric.text(-second.high, sign=True)} to {metric.text(-second.low, sign=True)} by the 95\u202f% interval"
    told = f"{listing([str(count) for count in images])} image{'' if images == [1] else 's'} per setting"
    wins = f"best in {first.wins} of {_count(results)}{f', {first.shared} shared' if first.shared else ''}"
    return (
        Answer(
            question="Which method?",
            short=listing(_leaders(results, ranking)),
            long=f"{metric.text(first.mean)}; {wins}",
        ),
        Answer(
            question="How much better?",
            short=metric.text(-second.behind, sign=True),
            long=f"{100 * share:.0f}\u202f% {'higher' if metric.higher else 'lower'} than {second.method}, the next",
        ),
        Answer(
            question="How sure?",
            short=f"clear over {sum(not entry.open for entry in others)} of {len(others)}",
            long=f"{ends if np.isfinite(second.low) else 'no interval'}; {told}",
        ),
        Answer(
            question="How slow?",
            short=duration(first.seconds),
            long="per image; "
            + ("the fastest" if first is fastest else f"{first.slower:.1f} × {fastest.method}, the fastest"),
        ),
    )
