"""Running a Lightning module so that it can be killed at any moment and continues with identical results."""

from __future__ import annotations

import io
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.errors import CheckpointError
from pipeline.files import replacing
from pipeline.noise import stream_seed
from pipeline.training.settings import TrainerParams

Log = Callable[[int, dict[str, float]], None]
"""Receives the step just finished and its metrics."""

DAMAGE = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, UnpicklingError)
"""What zipfile and torch raise on archives with flipped bits, cut archives, and files of other kinds."""


class Resume(pl.Callback):
    """Writes a checkpoint at the end of each epoch, whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write beside the old checkpoint, then take its place."""
        with replacing(self.path) as draft:
            trainer.save_checkpoint(draft)


class Report(pl.Callback):
    """Averages what the module left in `metrics` and passes it on every `every` steps and at the last.

    A metric that only some steps have is averaged over those. It ticks at every step.
    """

    def __init__(self, every: int, last: int, log: Log, tick: Callable[[int], None]) -> None:
        self.every, self.last, self.tell, self.tick = every, last, log, tick
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add up this step's metrics, and report if it is time."""
        step = pl_module.step_number()
        for name, value in pl_module.metrics.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), dtype=torch.float64)) + value.detach().double().cpu()
            self.counts[name] = self.counts.get(name, 0) + 1
        self.tick(step)
        if step % self.every == 0 or step == self.last:
            self.tell(step, {name: float(total / self.counts[name]) for name, total in self.sums.items()})
            self.sums, self.counts = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """What the next report needs of the steps before a checkpoint."""
        return {"sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.sums, self.counts = state_dict["sums"], state_dict["counts"]


class SeededModule(pl.LightningModule):
    """A module whose random draws depend on (seed, step) only.

    So a resumed training draws what it would have drawn without the interruption.

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
) -> None:
    """Train `module` to the end, from the checkpoint in `folder` if there is one.

    Afterwards it holds the averaged weights.

    Args:
        module: the module; its parameters are changed in place.
        batches: `params.checkpoint_every` batches per epoch.
        params: length, optimiser, precision.
        folder: where checkpoints live while training is under way.
        device: where to train.
        log: receives averaged metrics every `params.log_every` steps.
        tick: receives the number of every step done.

    Raises:
        CheckpointError: the checkpoint in `folder` cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / "last.ckpt"
    if last.exists():
        read_checkpoint(last)
    callbacks: list[pl.Callback] = [Report(params.log_every, params.steps, log, tick)]
    if params.ema > 0:
        callbacks.append(EMAWeightAveraging(decay=params.ema))
    callbacks.append(Resume(last))
    with quiet():
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=[device.index or 0] if device.type == "cuda" else 1,
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
        trainer.fit(module, batches, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    module.load_state_dict(read_checkpoint(last)["state_dict"])  # the averages, also if there was nothing left to train


def write_checkpoint(path: Path, values: dict[str, Any]) -> None:
    """Write plain values and tensors, which `read_checkpoint` reads."""
    content = io.BytesIO()  # because torch.save hides what the system says of a file
    torch.save(values, content)
    with replacing(path) as draft:
        draft.write_bytes(content.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a training under way; its checksums are compared here, because torch does not.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():
                raise zipfile.BadZipFile(f"the checksum of {broken} does not fit")
        return cast("dict[str, Any]", torch.load(path, map_location="cpu", weights_only=True))
    except DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: expected a checkpoint, but it cannot be read ({reason}); delete it to train anew."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's hints about loaders and hardware; warnings of torch and of this project stay."""
    names = ("pytorch_lightning", "lightning.pytorch", "pytorch_lightning.utilities.rank_zero")
    before = [logging.getLogger(name).level for name in names]
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", module="lightning")
        # a discriminator may begin later
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        yield
    for name, level in zip(names, before, strict=True):
        logging.getLogger(name).setLevel(level)
