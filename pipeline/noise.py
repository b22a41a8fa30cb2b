"""Randomness, one stream per image, so that a result never depends on the batch an image travels in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


def stream_seed(*parts: object) -> int:
    """Hash names and numbers to a 63-bit seed that is the same on every machine and in every Python process."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class NoiseSource(Protocol):
    """What a method draws from: one independent stream per image of the batch."""

    def fork(self, name: str) -> NoiseSource:
        """Open other streams for the same images, which do not move these."""
        ...

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Draw standard normal values, [B, *shape]."""
        ...

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Draw numbers in [0, 1), [B, *shape] float64."""
        ...

    def choice(self, weights: Tensor, n: int) -> Tensor:
        """Draw `n` indices per image with replacement from unnormalised `weights` [B, K]; returns [B, n] int64."""
        ...


class Noise:
    """Independent random streams, one per image and sample.

    The k-th draw of a stream depends on its seed and on the shapes drawn before, never on the other streams nor on the
    device: torch's CPU generators draw, and what they drew is brought to the device.
    """

    def __init__(
        self, seeds: Sequence[int], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        """Open one stream per seed, whose draws come to lie on `device`."""
        self.device, self.dtype = torch.device(device), dtype
        self._seeds = tuple(seeds)
        self._streams = [torch.Generator().manual_seed(seed) for seed in seeds]

    def fork(self, name: str) -> Noise:
        """Open other streams for the same images, one per `name`, which do not move these."""
        return Noise([stream_seed(seed, name) for seed in self._seeds], self.device, self.dtype)

    def __len__(self) -> int:
        return len(self._streams)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Draw standard normal values, [B, *shape]."""
        out = torch.empty((len(self), *shape), dtype=self.dtype)
        for row, stream in zip(out, self._streams, strict=True):
            row.normal_(generator=stream)
        return out.to(self.device)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Draw numbers in [0, 1), [B, *shape] float64."""
        out = torch.empty((len(self), *shape), dtype=torch.float64)
        for row, stream in zip(out, self._streams, strict=True):
            row.uniform_(generator=stream)
        return out.to(self.device)

    def choice(self, weights: Tensor, n: int) -> Tensor:
        """Draw `n` indices per image with replacement from unnormalised `weights` [B, K]; returns [B, n] int64."""
        draws = [
            torch.multinomial(row, n, replacement=True, generator=stream)
            for row, stream in zip(weights.cpu(), self._streams, strict=True)
        ]
        return torch.stack(draws).to(self.device)
