"""What structure, distillation and smoothing are worth: `python -m benchmarks.learning` (see docs/circuit.md).

Every row is a circuit learned from the same tokens, with CPU time counted on one thread; the pass that is best on
validation tokens counts, and nothing is said of test tokens before that. Needs the outputs of the stages prepare,
train_vqgan and encode.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import table, write_block
from pipeline.circuit.em import Prior, Smoothing, em_step, maximise, own_statistics
from pipeline.circuit.flows import Statistics
from pipeline.circuit.lvd import regions
from pipeline.circuit.queries import bits_per_token
from pipeline.circuit.teachers import code_features, context_features, embed
from pipeline.experiment import runtime
from pipeline.experiment.circuit_scores import known_tokens, unigram
from pipeline.experiment.codecs import load_codec
from pipeline.experiment.layout import Layout, find_root
from pipeline.experiment.params import Params, load_params
from pipeline.experiment.record import write_json
from pipeline.experiment.tokens import read_tokens
from pipeline.noise import stream_seed
from pipeline.training.choice import Corpus, Start, begin, empty_circuit, first_counts, structure
from pipeline.training.circuit import mean_conditional_bits
from pipeline.training.settings import CircuitParams, EMParams

RECORD = Path("docs/benchmarks/learning.json")
PAGE = Path("docs/circuit.md")
TEACHERS: dict[str, Callable[..., Any]] = {"context": context_features, "codes": code_features}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to learn a circuit."""

    name: str
    structure: str
    teacher: str | None
    tie: str = "untied"
    spread: float = 0.3
    uniform: bool = False  # a uniform pseudocount of 0.1 in place of backing off
    kind: str = "stochastic"
    states: int | None = None


ROWS = (
    Row(name="quad-tree, random, full EM, uniform 0.1", structure="quadtree", teacher=None, uniform=True, kind="full"),
    Row(name="quad-tree, random", structure="quadtree", teacher=None),
    Row(name="quad-tree, distilled", structure="quadtree", teacher="context"),
    Row(name="tree, random", structure="hclt", teacher=None),
    Row(name="tree, distilled from codes", structure="hclt", teacher="codes"),
    Row(name="tree, distilled", structure="hclt", teacher="context"),
    Row(name="tree, distilled, full EM", structure="hclt", teacher="context", kind="full"),
    Row(name="tree, distilled, Anemone", structure="hclt", teacher="context", kind="anemone"),
    Row(name="tree, distilled, no lending", structure="hclt", teacher="context", spread=0.0),
    Row(name="tree, distilled, tied in blocks", structure="hclt", teacher="context", tie="blocks", spread=0.1),
    Row(name="tree, distilled, one table", structure="hclt", teacher="context", tie="shared", spread=0.0),
)


def start_of(row: Row, corpus: Corpus, model: CircuitParams, seed: int) -> Start:
    """The circuit with its first parameters."""
    graph = structure(row.structure, corpus, model, seed)
    features = TEACHERS[row.teacher](embed(corpus.train, corpus.codebook), regions(graph)) if row.teacher else None
    counts = first_counts(empty_circuit(graph, row.tie, corpus, model), corpus, features, seed)  # type: ignore[arg-type]
    start = begin(graph, row.tie, row.spread, counts, corpus, model)  # type: ignore[arg-type]
    if not row.uniform:
        return start
    circuit = start.circuit
    tables, codes = circuit.emissions.shape[:2]
    even = Prior(
        Smoothing(emissions=0.1, weights=0.1, spread=0.0),
        torch.full((tables, codes), 1.0 / codes),
        torch.zeros(codes, codes),
        torch.full(circuit.weights.shape[:2], 1.0 / circuit.states),
    )
    circuit.randomize(torch.Generator().manual_seed(seed))
    return Start(circuit, own_statistics(circuit, len(corpus.train)), even)


def learn(start: Start, corpus: Corpus, em: EMParams, seed: int, deadline: float) -> tuple[float, int]:
    """Train in place until `em.patience` passes brought nothing or CPU time passes `deadline`; keep the best pass.

    Returns:
        Best validation bits per token, and the number of passes.
    """
    circuit, counted = start.circuit, start.counted
    best, kept, stale, passes = bits_per_token(circuit, corpus.val), circuit.state_dict(), 0, 0
    kept = {name: value.clone() for name, value in kept.items()}
    images = len(corpus.train)
    batches = max(images // em.batch, 1)
    while passes < em.epochs and stale < em.patience and time.process_time() < deadline:
        order = np.random.default_rng((stream_seed(seed, "learning"), passes)).permutation(images)
        if em.kind == "full":
            counted = Statistics.empty(circuit)
            em_step(circuit, counted, corpus.train, images=images, step=1.0, memory="counts", prior=start.prior)
        else:
            for number, rows in enumerate(np.array_split(order, batches)):
                step = em.step((passes * batches + number) / max(em.epochs * batches - 1, 1))
                tokens = corpus.train[torch.from_numpy(rows)]
                em_step(circuit, counted, tokens, images=images, step=step, memory=em.memory, prior=start.prior)
        passes += 1
        bits = bits_per_token(circuit, corpus.val)
        stale = 0 if bits < best else stale + 1
        if bits < best:
            best, kept = bits, {name: value.clone() for name, value in circuit.state_dict().items()}
    circuit.load_state_dict(kept)
    return best, passes


def measure(row: Row, corpus: Corpus, test: torch.Tensor, known: torch.Tensor, params: Params, seconds: float) -> Any:
    """Learn one circuit and judge it."""
    model = params.circuit.model
    model = replace(model, states=row.states or model.states)
    em = replace(params.circuit.em, kind=row.kind, epochs=8)
    if row.teacher is None:
        em = replace(em, epochs=24, first_step=0.5, last_step=0.05)  # from chance there is farther to go
    begun = time.process_time()
    start = start_of(row, corpus, model, params.seed)
    prepared = time.process_time() - begun
    if row.teacher:
        maximise(start.circuit, start.counted, start.prior)
    val, passes = learn(start, corpus, em, params.seed, begun + seconds)
    return {
        "name": row.name,
        "seconds_to_start": round(prepared, 2),
        "seconds": round(time.process_time() - begun, 2),
        "passes": passes,
        "parameters": start.circuit.size(),
        "val_bits": val,
        "test_bits": bits_per_token(start.circuit, test),
        "test_left_bits": mean_conditional_bits(start.circuit, test, known),
    }


def main() -> None:
    """Learn all rows on all datasets, print a table and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--datasets", nargs="*", help="those of params.yaml's sweep if not given")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU time for a circuit, structure included")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/learning.json and docs/circuit.md")
    parser.add_argument("--render", action="store_true", help="only put what was written last into docs/circuit.md")
    given = parser.parse_args()
    if given.render:
        render(json.loads(RECORD.read_text()))
        return
    torch.set_num_threads(1)
    params, layout = load_params(), Layout(find_root(), load_params().profile)
    found: dict[str, Any] = {}
    for dataset in given.datasets or params.sweep.datasets:
        splits = {split: read_tokens(layout.tokens(dataset), split).tokens for split in ("train", "val", "test")}
        codec, _ = load_codec(layout.vqgan(dataset), params.vqgan, torch.device("cpu"))
        corpus, test = Corpus(splits["train"], splits["val"], codec.vqgan.codebook.detach()), splits["test"]
        known = known_tokens(params, layout, "left", codec.side, len(test))
        bits = -unigram(corpus.train, codec.codes).log2()[torch.arange(test.shape[1]), test]
        found[dataset] = {
            "images": len(corpus.train),
            "unigram": {"test_bits": float(bits.mean()), "test_left_bits": float(bits[~known].mean())},
            "rows": [],
        }
        simple = found[dataset]["unigram"]
        print(f"\n{dataset}: unigram: test {simple['test_bits']:.3f}, left {simple['test_left_bits']:.3f}")
        for row in ROWS:
            line = measure(row, corpus, test, known, params, given.seconds)
            found[dataset]["rows"].append(line)
            print(
                f"{line['name']:42s} val {line['val_bits']:.3f}  test {line['test_bits']:.3f}  "
                f"left {line['test_left_bits']:.3f}  {line['passes']:2d} passes  {line['seconds']:5.1f} s",
                flush=True,
            )
    if given.write:
        record = {
            "schema": 1,
            "profile": params.profile,
            "circuit": json.loads(params.circuit.model_dump_json()),
            "processor": runtime.hardware()["processor"],
            "versions": runtime.versions(),
            "datasets": found,
        }
        write_json(RECORD, record)
        render(record)


def render(record: dict[str, Any]) -> None:
    """Put a record into docs/circuit.md: bits per token, bits per hidden token under the mask left, CPU seconds."""
    datasets = record["datasets"]
    rows = [
        ["unigram"]
        + [f"{d['unigram']['test_bits']:.2f} / {d['unigram']['test_left_bits']:.2f}" for d in datasets.values()]
    ]
    for number, first in enumerate(next(iter(datasets.values()))["rows"]):
        lines = [found["rows"][number] for found in datasets.values()]
        cells = [f"{r['test_bits']:.2f} / {r['test_left_bits']:.2f} ({r['seconds']:.0f} s)" for r in lines]
        rows.append([first["name"], *cells])
    write_block("learning", table(["", *datasets], rows), PAGE)


if __name__ == "__main__":
    main()
