"""What the report says of the tractable prior: how well circuits, and transformers beside them, predict tokens.

Bits per token are -log2 p(tokens) / number of tokens. Conditional bits are -log2 p(hidden | seen) / number of hidden
tokens, where a token counts as seen if all pixels of its patch are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.experiment.figures import curve_plot
from pipeline.experiment.record import read_json
from pipeline.experiment.report_inputs import Findings, Training
from pipeline.experiment.report_pictures import sheet
from pipeline.experiment.statistics import Array
from pipeline.experiment.tables import Metric

BITS = Metric(name="bits", label="bits per token", higher=False, digits=3)
SPLITS = ("train", "val", "test")
VALIDATION = "val/bits_per_token"
PICTURES = ("samples.png", "completions.png")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model of tokens: its bits per token, and what it took to get them."""

    bits: dict[str, float]
    """By split."""
    parameters: int
    seconds: float
    """Of the whole stage, the choice between candidates included."""
    gflop: float


@dataclass(frozen=True, kw_only=True)
class Conditional:
    """Bits per hidden token under one mask, given the tokens that are wholly seen."""

    hidden: float
    """Share of the tokens that are hidden."""
    circuit: float
    unigram: float
    """Of the same tokens, taken as independent."""

    @property
    def difference(self) -> float:
        """What the circuit saves if negative."""
        return self.circuit - self.unigram


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to build the circuit that was trained a little and tried on the validation images."""

    structure: str
    tie: str
    spread: float
    bits: float
    """Per validation token."""
    seconds: float
    """From the start of the stage to when the candidate was tried."""
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class Prior:
    """The circuit of one dataset, and what it is compared with."""

    circuit: Trained
    structure: str
    tie: str
    spread: float
    states: int
    kept: int
    """Codes with parameters of their own."""
    codes: int
    """Size of the codebook, over which the circuit is a distribution."""
    unigram: float
    """Bits per test token if tokens are independent, each with the distribution of its position."""
    random: float | None
    """Bits per test token of a quad-tree trained from a random start, if there is one."""
    conditionals: dict[str, Conditional]
    """By mask."""
    candidates: tuple[Candidate, ...]
    """In the order of their trials."""
    transformer: Trained | None
    transformer_then: float | None
    """The transformer's last validation bits measured in no more time than the circuit took; None if there are none."""
    plot: str
    """Inline SVG: validation bits against seconds, the best of the trials so far before the training."""
    samples: str
    """Data URI."""
    completions: str
    """Data URI."""

    @property
    def uniform(self) -> float:
        """Bits per token of knowing nothing."""
        return math.log2(self.codes)


def priors(findings: Findings) -> dict[str, Prior]:
    """Collect what is known of each dataset's circuit; empty if none was trained.

    Raises:
        InputError: a record, a description, a curve or a picture lacks what its stage promises; the message names the
            file.
    """
    transformers = findings.trainings.get("transformer", {})
    return {
        dataset: _prior(dataset, circuit, transformers.get(dataset), findings.masks)
        for dataset, circuit in findings.trainings.get("circuit", {}).items()
    }


def numbers(prior: Prior) -> dict[str, Any]:
    """Everything the page says of a circuit in numbers, ready to be written as JSON."""
    told: dict[str, Any] = {
        "chosen": {"structure": prior.structure, "tie": prior.tie, "spread": prior.spread},
        "candidates": [vars(candidate) for candidate in prior.candidates],
        "states": prior.states,
        "codes": {"kept": prior.kept, "all": prior.codes},
        "circuit": vars(prior.circuit),
        "unigram": prior.unigram,
        "uniform": prior.uniform,
        "conditional": {mask: vars(c) | {"difference": c.difference} for mask, c in prior.conditionals.items()},
    }
    if prior.random is not None:
        told["quadtree_random"] = prior.random
    if prior.transformer is not None:
        told["transformer"] = vars(prior.transformer) | {"val_bits_in_circuit_seconds": prior.transformer_then}
    return told


def headline(prior: Prior) -> dict[str, Any]:
    """The numbers that are compared between commits: test bits per token, plain and given what each mask shows."""
    found: dict[str, Any] = {"bits_per_token": round(prior.circuit.bits["test"], 6)}
    found["conditional_bits"] = {mask: round(c.circuit, 6) for mask, c in prior.conditionals.items()}
    return found


def sentence(found: Mapping[str, Prior]) -> str:
    """Say how the circuits stand to independent tokens, and to transformers if all datasets have one."""
    models = {"The circuit takes": [prior.circuit.bits["test"] for prior in found.values()]}
    models[" bits for a token it has not met, where independent tokens take"] = [p.unigram for p in found.values()]
    others = [prior.transformer.bits["test"] for prior in found.values() if prior.transformer]
    models |= {" and a transformer": others} if len(others) == len(found) else {}
    spans = {said: dict.fromkeys(BITS.text(end(values)) for end in (min, max)) for said, values in models.items()}
    return "".join(f"{said} {' to '.join(span)}" for said, span in spans.items()) + "."


def hidden_share(found: Mapping[str, Prior], mask: str) -> str:
    """Print the share of hidden tokens under a mask, as a range where datasets differ."""
    shares = [prior.conditionals[mask].hidden for prior in found.values()]
    low, high = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return f"{low if low == high else f'{low}–{high}'}\N{NARROW NO-BREAK SPACE}%"


def shows_nothing(found: Mapping[str, Prior], mask: str) -> bool:
    """Tell whether a mask leaves no token wholly seen, in any dataset."""
    return all(prior.conditionals[mask].hidden == 1.0 for prior in found.values())


def _prior(dataset: str, circuit: Training, transformer: Training | None, masks: Sequence[str]) -> Prior:
    trained = _trained(circuit)
    other = None if transformer is None else _trained(transformer)
    description = _Description.read(circuit.folder)
    samples, completions = (_picture(circuit, name) for name in PICTURES)
    random = "test/quadtree_random_bits"
    return Prior(
        circuit=trained,
        states=int(_number(circuit, "states")),
        kept=int(_number(circuit, "codes")),
        unigram=_number(circuit, "test/unigram_bits"),
        random=_number(circuit, random) if random in circuit.record["metrics"] else None,
        conditionals={
            mask: Conditional(
                hidden=_number(circuit, f"test/hidden/{mask}"),
                circuit=_number(circuit, f"test/conditional_bits/{mask}"),
                unigram=_number(circuit, f"test/unigram_conditional_bits/{mask}"),
            )
            for mask in masks
        },
        transformer=other,
        transformer_then=None if transformer is None else _value_at(transformer, trained.seconds),
        plot=_plot(dataset, circuit, description.candidates, transformer),
        samples=sheet(samples),
        completions=sheet(completions),
        **vars(description),
    )


@dataclass(frozen=True, kw_only=True)
class _Description:
    """What model.json and candidates.json say of a circuit; fields as in `Prior`."""

    structure: str
    tie: str
    spread: float
    codes: int
    candidates: tuple[Candidate, ...]

    @classmethod
    def read(cls, folder: Path) -> _Description:
        model, trials = (read_json(folder / name) for name in ("model.json", "candidates.json"))
        try:
            chosen = model["chosen"]
            candidates = tuple(_candidate(tried, chosen) for tried in trials["candidates"])
            if any(later.seconds < earlier.seconds for earlier, later in pairwise(candidates)):
                raise ValueError("seconds of candidates do not ascend, though they count from the start of the stage")
            return cls(
                structure=str(chosen["structure"]),
                tie=str(chosen["tie"]),
                spread=float(chosen["spread"]),
                codes=len(model["vocabulary"]["compact"]),
                candidates=candidates,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{folder}: expected vocabulary and chosen in model.json and candidates in candidates.json, but "
                f"{type(error).__name__}: {error}; run the train_circuit stage again."
            ) from error


def _candidate(tried: Mapping[str, Any], chosen: Mapping[str, Any]) -> Candidate:
    values = {key: float(tried[key]) for key in ("spread", "val_bits", "seconds")}
    if odd := [key for key, value in values.items() if not math.isfinite(value)]:
        raise ValueError(f"{odd[0]} of a candidate is not finite")
    return Candidate(
        structure=str(tried["structure"]),
        tie=str(tried["tie"]),
        spread=values["spread"],
        bits=values["val_bits"],
        seconds=values["seconds"],
        chosen=all(tried[key] == chosen[key] for key in ("structure", "tie", "spread")),
    )


def _trained(training: Training) -> Trained:
    return Trained(
        bits={split: _number(training, f"{split}/bits_per_token") for split in SPLITS},
        parameters=int(_number(training, "parameters")),
        seconds=float(training.record["measured"]["seconds"]),
        gflop=_number(training, "train/gflop"),
    )


def _number(training: Training, name: str) -> float:
    value = training.record["metrics"].get(name)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(
            f"{training.folder / 'record.json'}: expected a finite number as metric {name}, found {value!r}; "
            f"run the {training.record['stage']} stage again."
        )
    return float(value)


def _picture(training: Training, name: str) -> Path:
    if name not in (names := [path.name for path in training.pictures]):
        raise InputError(
            f"{training.folder / 'record.json'}: expected {name} among the artifacts, found "
            f"{', '.join(names) or 'none'}; run the {training.record['stage']} stage again."
        )
    return training.folder / name


def _validation(training: Training) -> tuple[Array, Array]:
    """Seconds and validation bits along the training, each [points]."""
    if VALIDATION not in training.curve:
        raise InputError(
            f"{training.folder / 'curve.jsonl'}: expected rows with the metric {VALIDATION}, found none; "
            f"run the {training.record['stage']} stage again."
        )
    return training.seconds[VALIDATION], training.curve[VALIDATION][1]


def _value_at(training: Training, seconds: float) -> float | None:
    """The last validation bits that were measured within `seconds`."""
    at, values = _validation(training)
    return next((float(value) for time, value in zip(at[::-1], values[::-1], strict=True) if time <= seconds), None)


def _plot(dataset: str, circuit: Training, tried: Sequence[Candidate], transformer: Training | None) -> str:
    untrained = bool(tried) and not circuit.curve  # no passes were asked for: the start of the best candidate is kept
    seconds, bits = (np.empty(0), np.empty(0)) if untrained else _validation(circuit)
    best = np.minimum.accumulate([candidate.bits for candidate in tried])
    curves = {"circuit": (np.append([candidate.seconds for candidate in tried], seconds), np.append(best, bits))}
    if transformer is not None:
        curves["transformer"] = _validation(transformer)
    name = f"validation bits per token of {dataset}"
    return curve_plot(curves, name=name, over="seconds", unit="\N{NO-BREAK SPACE}s")
