"""Batches of examples by random access, in an order that only depends on the seed and the epoch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


class Batches(Dataset[Tensor]):
    """Examples, of which batches are looked up by arrays of row numbers."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abstractmethod
    def __getitem__(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the examples at `rows` [B]."""


class ImageBatches(Batches):
    """Batches of float images [B, 3, S, S] in [-1, 1], looked up by arrays of indices in uint8 images [N, S, S, 3]."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the images at `rows` [B]."""
        batch = torch.from_numpy(np.ascontiguousarray(self.images[np.sort(rows)]))
        return batch.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1.0


class TokenBatches(Batches):
    """Batches of tokens int64 [B, L], looked up by arrays of indices in uint16 or int64 tokens [N, L]."""

    def __init__(self, tokens: NDArray[np.uint16] | NDArray[np.int64] | Tensor) -> None:
        self.tokens = np.asarray(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the tokens at `rows` [B]."""
        return torch.from_numpy(self.tokens[rows].astype(np.int64))


class EpochSampler(Sampler[NDArray[np.int64]]):
    """`steps` batches of `batch` row numbers per epoch, drawn from (seed, epoch, step).

    Inside a batch rows are drawn without replacement. An epoch is a stretch between two checkpoints, not a pass over
    the data, so that training resumes exactly where it stopped.
    """

    def __init__(self, rows: int, *, batch: int, steps: int, seed: int) -> None:
        self.rows, self.batch, self.steps, self.seed, self.epoch = rows, min(batch, rows), steps, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this at the start of each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        for step in range(self.steps):
            rng = np.random.default_rng((self.seed, self.epoch, step))
            yield rng.choice(self.rows, self.batch, replace=False)


def loader(examples: Batches, *, batch: int, steps: int, seed: int, workers: int = 0) -> DataLoader[Tensor]:
    """A loader of `steps` training batches per epoch; `workers` processes change the speed, never the batches."""
    sampler = EpochSampler(len(examples), batch=batch, steps=steps, seed=seed)
    return DataLoader(examples, sampler=sampler, batch_size=None, num_workers=workers)
