"""The stage train_transformer: tokens of one dataset -> the autoregressive transformer that its circuit is held to."""

from __future__ import annotations

import logging
from dataclasses import asdict

from pipeline.experiment.job import Job, Task, seed_everything
from pipeline.experiment.layout import Layout
from pipeline.experiment.params import Params, TransformerBlock
from pipeline.experiment.provenance import file_digest
from pipeline.experiment.tokens import read_tokens
from pipeline.noise import stream_seed
from pipeline.training.batches import TokenBatches
from pipeline.training.token_network import TokenTransformer, bits_per_token, forward_flops
from pipeline.training.transformer import AutoregressiveTraining
from pipeline.weights import save_weights

log = logging.getLogger(__name__)

MEASURED = 500
"""Training images, the first ones, that `train/bits_per_token` is measured on."""


def train_transformer(params: Params, layout: Layout, dataset: str) -> None:
    """Train the transformer of `dataset` and write it, its curve and its record; an empty folder if steps are 0."""
    block, out, folder = params.transformer, layout.transformer(dataset), layout.tokens(dataset)
    if not block.trainer.steps:
        out.mkdir(parents=True, exist_ok=True)
        log.info("train_transformer %s: left out, because transformer.trainer.steps is 0", dataset)
        return
    splits = {split: read_tokens(folder, split) for split in ("train", "val", "test")}
    task = Task(
        stage="train_transformer",
        name=dataset,
        params={"seed": params.seed, "transformer": _plain(block)},
        inputs={"data": file_digest(folder / "train.npz"), "val": file_digest(folder / "val.npz")},
        code=("pipeline.training.transformer", "pipeline.training.batches"),
    )
    seed = stream_seed(params.seed, "transformer", dataset)
    seed_everything(seed)
    train = splits["train"]
    size = {"codes": train.codes, "length": train.tokens.shape[1]}
    network = TokenTransformer(block.network, **size, causal=True)
    training = AutoregressiveTraining(network, splits["val"].tokens, block.trainer, seed)
    with Job(task, layout, out, steps=block.trainer.steps) as job:
        job.fit(training, TokenBatches(train.tokens), block.trainer, seed)
        network.to(job.device).eval()
        seen = {split: found.tokens[: MEASURED if split == "train" else None] for split, found in splits.items()}
        metrics = {
            f"{split}/bits_per_token": float(bits_per_token(network, tokens).mean()) for split, tokens in seen.items()
        }
        metrics["parameters"] = float(sum(p.numel() for p in network.parameters()))
        metrics["train/gflop"] = training_gflop(
            network, block.trainer.steps * min(block.trainer.batch, len(train.tokens))
        )
        save_weights(out, network, {"kind": "transformer", "fingerprint": job.fingerprint, **size, **_plain(block)})
        job.finish(metrics, [])


def training_gflop(network: TokenTransformer, images: int) -> float:
    """Operations of a training on so many images: three times those of the forward passes, as a rule of thumb."""
    return 3.0 * images * forward_flops(network) / 1e9


def _plain(block: TransformerBlock) -> dict[str, object]:
    """What decides the weights."""
    return {
        "network": asdict(block.network),
        "trainer": {k: v for k, v in asdict(block.trainer).items() if k not in ("log_every", "workers")},
    }
