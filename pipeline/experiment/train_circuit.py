"""The stage train_circuit: tokens of one dataset -> a circuit over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.em import own_statistics
from pipeline.circuit.grow import split_states
from pipeline.circuit.store import save_circuit
from pipeline.circuit.teachers import code_features, context_features, embed
from pipeline.experiment.circuit_pictures import draw_completions, draw_samples
from pipeline.experiment.circuit_scores import counting_flops, known_tokens, score
from pipeline.experiment.codecs import load_codec
from pipeline.experiment.job import Job, Task, seed_everything
from pipeline.experiment.layout import Layout
from pipeline.experiment.params import CircuitBlock, Params
from pipeline.experiment.provenance import file_digest
from pipeline.experiment.record import write_json
from pipeline.experiment.tokens import read_tokens
from pipeline.noise import stream_seed
from pipeline.training.batches import TokenBatches
from pipeline.training.choice import Candidate, Corpus, Start, Teacher, choose, learned_prior, restore, snapshot
from pipeline.training.circuit import CircuitTraining, passes, trainer_params
from pipeline.training.fit import read_checkpoint, write_checkpoint
from pipeline.training.token_network import TokenTransformer, region_features
from pipeline.training.transformer import MaskedTraining

JITTER = 0.1
"""How differently the two copies of a split state start, as a standard deviation of logs."""

CODE = (
    "pipeline.training.circuit",
    "pipeline.training.choice",
    "pipeline.training.transformer",
    "pipeline.circuit.teachers",
    "pipeline.circuit.store",
    "pipeline.circuit.grow",
)


def train_circuit(params: Params, layout: Layout, dataset: str) -> None:
    """Choose, train and judge the circuit of `dataset`; write it, its curve, its pictures and its record."""
    block, out, folder = params.circuit, layout.circuit(dataset), layout.tokens(dataset)
    seed = stream_seed(params.seed, "circuit", dataset)
    seed_everything(seed)
    splits = {split: read_tokens(folder, split) for split in ("train", "val", "test")}
    codec, vqgan = load_codec(layout.vqgan(dataset), params.vqgan, torch.device("cpu"))
    train_tokens, mirrored = splits["train"].tokens, {}
    if block.mirror:
        train_tokens = torch.cat([train_tokens, read_tokens(folder, "mirrored").tokens])
        mirrored["mirrored"] = file_digest(folder / "mirrored.npz")
    task = Task(
        stage="train_circuit",
        name=dataset,
        params={"seed": params.seed, "image_size": params.image_size, "circuit": plain(block)},
        inputs={
            "vqgan": vqgan["sha256"],
            "data": file_digest(folder / "train.npz"),
            "val": file_digest(folder / "val.npz"),
            **mirrored,
        },
        code=CODE,
    )
    corpus = Corpus(train_tokens, splits["val"].tokens, codec.vqgan.codebook.detach())
    with Job(task, layout, out, steps=block.em.epochs * batches(corpus, block) * (block.model.doublings + 1)) as job:
        candidate, tried, start = chosen(job, corpus, block, seed)
        known = {name: known_tokens(params, layout, name, codec.side, len(corpus.val)) for name in params.sweep.masks}
        circuit = train(job, start, corpus, known, block, seed)
        for doubling in range(1, block.model.doublings + 1):
            start = grown(circuit, candidate, corpus, block, seed)
            circuit = train(job, start, corpus, known, block, seed, doubling)
        metrics = score(circuit, splits, params, layout, codec.side)
        metrics["train/gflop"] = training_gflop(job, circuit, block, len(corpus.train))
        codec.vqgan.to(job.device)
        draw_samples(circuit, codec, out / "samples.png", params.seed)
        draw_completions(circuit, codec, splits["test"], params, layout, out / "completions.png")
        save_circuit(
            out,
            circuit,
            {"fingerprint": job.fingerprint, "dataset": dataset, "chosen": asdict(candidate), **plain(block)},
        )
        write_json(out / "candidates.json", {"schema": 1, "chosen": asdict(candidate), "candidates": tried})
        job.finish(metrics, ["samples.png", "completions.png"])


def batches(corpus: Corpus, block: CircuitBlock) -> int:
    """Batches in a pass."""
    return max(len(corpus.train) // block.em.batch, 1)


def train(
    job: Job,
    start: Start,
    corpus: Corpus,
    known: dict[str, Tensor],
    block: CircuitBlock,
    seed: int,
    doubling: int = 0,
) -> Circuit:
    """Train from `start` and return the circuit that was best on validation tokens, on the job's device."""
    steps = trainer_params(block.em, batches(corpus, block))
    training = CircuitTraining(
        start.circuit,
        start.counted,
        start.prior,
        corpus.val,
        known=known,
        images=len(corpus.train),
        em=block.em,
        params=steps,
        seed=seed,
    )
    if steps.steps:
        pages = passes(corpus.train, block.em, seed)
        job.run(training, pages, steps, part=f"doubling{doubling}", before=doubling * steps.steps)
    return training.best().to(job.device)


def training_gflop(job: Job, circuit: Circuit, block: CircuitBlock, images: int) -> float:
    """Operations of the passes that trained the circuit, its own probe included, other candidates and teacher not."""
    rows, steps = job.curve.rows(), block.em.epochs * max(images // block.em.batch, 1)
    total = block.model.probe * counting_flops(circuit) / 4.0**block.model.doublings
    for row in rows:  # one for each pass; half the states cost a quarter
        doubling = (row["step"] - 1) // steps
        total += counting_flops(circuit) / 4.0 ** (block.model.doublings - doubling)
    return total * images / 1e9


def grown(circuit: Circuit, candidate: Candidate, corpus: Corpus, block: CircuitBlock, seed: int) -> Start:
    """A start with twice the states of a trained circuit."""
    twice = split_states(circuit, noise=JITTER, seed=seed)
    counted = own_statistics(twice, len(corpus.train))
    return Start(twice, counted, learned_prior(twice, candidate.spread, corpus, block.model))


def plain(block: CircuitBlock) -> dict[str, Any]:
    """What decides the parameters."""
    values: dict[str, Any] = {"mirror": block.mirror, "model": asdict(block.model), "em": asdict(block.em)}
    if block.model.teacher == "transformer":
        trainer = {k: v for k, v in asdict(block.teacher.trainer).items() if k not in ("log_every", "workers")}
        values["teacher"] = {"network": asdict(block.teacher.network), "trainer": trainer}
    return values


def chosen(
    job: Job, corpus: Corpus, block: CircuitBlock, seed: int
) -> tuple[Candidate, list[dict[str, object]], Start]:
    """The candidate to train, all that were tried, and where training starts; made once, then read from the job."""
    path = job.folder / "start.ckpt"
    if not path.exists():
        tried: list[dict[str, object]] = []

        def tell(candidate: Candidate, bits: float) -> None:
            tried.append({**asdict(candidate), "val_bits": bits, "seconds": round(job.seconds(), 3)})

        teacher = teacher_of(job, corpus, block, seed)
        candidate, start = choose(corpus, teacher, block.model, block.em, seed=seed, device=job.device, tell=tell)
        write_checkpoint(path, {"candidate": asdict(candidate), "tried": tried, **snapshot(start)})
    kept = read_checkpoint(path)
    candidate = Candidate(**kept["candidate"])
    return candidate, kept["tried"], restore(kept, candidate, corpus, block.model)


def teacher_of(job: Job, corpus: Corpus, block: CircuitBlock, seed: int) -> Teacher | None:
    """What describes regions of the training images."""
    if block.model.teacher == "none":
        return None
    if block.model.teacher == "transformer":
        return _masked_transformer(job, corpus, block, seed)
    describe: Callable[..., Any] = context_features if block.model.teacher == "context" else code_features
    return partial(describe, embed(corpus.train, corpus.codebook))


def _masked_transformer(job: Job, corpus: Corpus, block: CircuitBlock, seed: int) -> Teacher:
    """Train the masked transformer first; its checkpoints lie beside the circuit's."""
    codes, length = len(corpus.codebook), corpus.train.shape[1]
    network = TokenTransformer(block.teacher.network, codes=codes, length=length, causal=False)
    training = MaskedTraining(network, corpus.val, block.teacher.trainer, seed)
    job.fit_aside(training, TokenBatches(corpus.train), block.teacher.trainer, seed, part="teacher")
    network.to(job.device).eval()
    return lambda regions: list(region_features(network, corpus.train, regions).unbind(1))
