"""Running a Lightning module so that it can be killed at any moment and continues with identical results."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.errors import CheckpointError
from pipeline.noise import stream_seed
from pipeline.training.settings import TrainerParams

Log = Callable[[int, dict[str, float]], None]
"""Receives the step just finished and its metrics."""


class Resume(pl.Callback):
    """Writes a checkpoint at the end of each epoch, whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write beside the old checkpoint, then take its place."""
        fresh = self.path.with_name(self.path.name + f".tmp{os.getpid()}")
        trainer.save_checkpoint(fresh)
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.replace(self.path)


class Report(pl.Callback):
    """Averages what the module left in `callback_metrics` and passes it on every `every` steps; ticks at every step."""

    def __init__(self, every: int, log: Log, tick: Callable[[int], None]) -> None:
        self.every, self.tell, self.tick = every, log, tick
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add up this step's metrics, and report if it is time."""
        step = pl_module.step_number()
        for name, value in pl_module.metrics.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), dtype=torch.float64)) + value.detach().double().cpu()
        self.count += 1
        self.tick(step)
        if step % self.every == 0:
            self.tell(step, {name: float(total / self.count) for name, total in self.sums.items()})
            self.sums, self.count = {}, 0


class SeededModule(pl.LightningModule):
    """A module whose random draws depend on (seed, step) only, so that a resumed training draws what it would have drawn.

    Attributes:
        metrics: the scalars of the step just done, by name.
    """

    def __init__(self, params: TrainerParams, seed: int) -> None:
        super().__init__()
        self.trainer_params, self.seed = params, seed
        self.metrics: dict[str, Tensor] = {}

    def step_number(self) -> int:
        """Training steps done so far (batches, not optimiser steps: a GAN has two of those per batch)."""
        return self.trainer.current_epoch * self.trainer_params.checkpoint_every + self.trainer.fit_loop.batch_idx + 1

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        """Seed every generator of this process for the step."""
        step = self.trainer.current_epoch * self.trainer_params.checkpoint_every + batch_idx
        torch.manual_seed(stream_seed(self.seed, type(self).__name__, step))


def fit(
    module: SeededModule,
    batches: DataLoader[Tensor],
    *,
    params: TrainerParams,
    folder: Path,
    device: torch.device,
    log: Log,
    tick: Callable[[int], None],
    ema: bool = True,
) -> None:
    """Train `module` to the end, from the checkpoint in `folder` if there is one; afterwards it holds the averaged weights.

    Args:
        module: the module; its parameters are changed in place.
        batches: `params.checkpoint_every` batches per epoch.
        params: length, optimiser, precision.
        folder: where checkpoints live while training is under way.
        device: where to train.
        log: receives averaged metrics every `params.log_every` steps.
        tick: receives the number of every step done.
        ema: average the weights with `params.ema` (modules that average by themselves say no).

    Raises:
        CheckpointError: the checkpoint in `folder` cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / "last.ckpt"
    callbacks: list[pl.Callback] = [Report(params.log_every, log, tick)]
    if ema and params.ema > 0:
        callbacks.append(EMAWeightAveraging(decay=params.ema))
    callbacks.append(Resume(last))
    with quiet():
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            max_epochs=params.epochs,
            precision=params.precision,
            gradient_clip_val=params.clip if module.automatic_optimization else None,
            callbacks=callbacks,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        try:
            trainer.fit(module, batches, ckpt_path=str(last) if last.exists() else None, weights_only=True)
        except (EOFError, OSError, RuntimeError) as error:
            if last.exists() and "checkpoint" in str(error).lower() + type(error).__name__.lower():
                raise CheckpointError(f"{last} cannot be read ({error}); delete it to train from the start.") from error
            raise


@contextmanager
def quiet():  # type: ignore[no-untyped-def]  # a generator context manager
    """Silence Lightning's hints about loaders and hardware; warnings of torch and of this project stay."""
    names = ("pytorch_lightning", "lightning.pytorch", "pytorch_lightning.utilities.rank_zero")
    before = [logging.getLogger(name).level for name in names]
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", module="lightning")
        yield
    for name, level in zip(names, before, strict=True):
        logging.getLogger(name).setLevel(level)
