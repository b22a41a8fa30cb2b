"""Sheets that stages drew for the report to show: steered walks, and what the circuit says about masked images.

Both stages may be absent from a profile's run; then there is nothing to show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.experiment.record import read_json
from pipeline.experiment.report_inputs import Findings
from pipeline.experiment.report_pictures import sheet

INSIGHTS = {
    "entropy": "How uncertain each hidden token is",
    "completions": "Completions and their probabilities",
    "gain": "What to look at next",
}
"""Sheets of the stage insight, in the order of the page, and what they show."""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A steered walk beside its base's."""

    row: str
    base: str
    warm: float
    """Share of T above which a completion of the circuit is the estimate; 1 = never."""
    picture: str
    """Data URI."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the circuit says about one image under one mask; logarithms to base 2."""

    mask: str
    image: str
    hidden: int
    """Tokens."""
    entropy: float
    """Mean of the hidden tokens, each by itself."""
    apart: float
    """Sum of these."""
    together: float
    """Of all hidden tokens jointly."""
    error: float
    """Standard error of `together`."""
    truth: float
    most_probable: float
    patch: float
    """What the best patch tells of the others."""


@dataclass(frozen=True, kw_only=True)
class Insight:
    """What the circuit of a dataset says about masked test images."""

    pictures: dict[str, str]
    """Data URIs by the names of `INSIGHTS`."""
    draws: int
    questions: tuple[Question, ...]


def strips(findings: Findings) -> dict[str, Strip]:
    """Read the strips by dataset; without datasets that have none.

    Raises:
        InputError: a picture is missing or damaged, or its record does not hold what the stage writes.
    """
    found = {}
    for dataset in findings.datasets:
        folder = findings.root / "strip" / dataset
        if (folder / "strip.json").is_file() and (told := read_json(folder / "strip.json")).get("row") is not None:
            try:
                row, base, warm = str(told["row"]), str(told["base"]), float(told["params"]["warm"])
            except (KeyError, TypeError, ValueError) as error:
                raise _odd(folder / "strip.json", "strip", error) from error
            picture = sheet(folder / "strip.png", exact=True)
            found[dataset] = Strip(row=row, base=base, warm=warm, picture=picture)
    return found


def insights(findings: Findings) -> dict[str, Insight]:
    """Read what the stage insight left, by dataset; without datasets for which it did not run.

    Raises:
        InputError: as `strips`.
    """
    found = {}
    for dataset in findings.datasets:
        folder = findings.root / "insight" / dataset
        if (folder / "insight.json").is_file():
            told = read_json(folder / "insight.json")
            try:
                draws, questions = int(told["draws"]), tuple(map(_question, told["images"]))
            except (IndexError, KeyError, TypeError, ValueError) as error:
                raise _odd(folder / "insight.json", "insight", error) from error
            pictures = {name: sheet(folder / f"{name}.png", exact=True) for name in INSIGHTS}
            found[dataset] = Insight(pictures=pictures, draws=draws, questions=questions)
    return found


def _question(found: Mapping[str, Any]) -> Question:
    entropy, logs = found["entropy"], found["log2_prob"]
    return Question(
        mask=str(found["mask"]),
        image=str(found["image"]),
        hidden=int(found["hidden_tokens"]),
        entropy=float(entropy["mean_hidden"]),
        apart=float(entropy["sum_of_tokens"]),
        together=float(entropy["together"]),
        error=float(entropy["together_error"]),
        truth=float(logs["truth"]),
        most_probable=float(logs["most_probable"]),
        patch=float(found["gain"]["patches"][0]["bits"]),
    )


def _odd(path: Path, stage: str, error: Exception) -> InputError:
    return InputError(
        f"{path}: expected the record of the stage {stage}, but {type(error).__name__}: {error}; run it again."
    )
