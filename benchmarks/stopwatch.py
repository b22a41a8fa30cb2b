"""Clocks and a scale around a network: CPU time of forwards and backwards, and the bytes that autograd keeps alive."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.diffusion.denoiser import Denoiser, Prediction


@dataclass
class Clock:
    """CPU time spent within calls of a network, and how many there were, in batches.

    A backward begins when a gradient reaches something the call returned, and ends when it leaves through its input.
    """

    forward: float = 0.0
    backward: float = 0.0
    forwards: int = 0
    backwards: int = 0
    _since: float | None = None

    @property
    def seconds(self) -> float:
        """Forwards and backwards together."""
        return self.forward + self.backward

    def call(self, network: Callable[[Tensor], tuple[Tensor, ...]], x_t: Tensor) -> tuple[Tensor, ...]:
        """Evaluate `network` at `x_t`, on the clock."""
        entrance = x_t.view_as(x_t)  # the gradient passes here once, whatever part of the answer it comes from
        if entrance.requires_grad:
            entrance.register_hook(self._leave)
        begun = time.process_time()
        answer = network(entrance)
        self.forward += time.process_time() - begun
        self.forwards += 1
        for tensor in answer:
            if tensor.requires_grad:
                tensor.register_hook(self._enter)
        return answer

    def _enter(self, _: Tensor) -> None:
        if self._since is None:
            self._since = time.process_time()

    def _leave(self, _: Tensor) -> None:
        self.backwards += 1
        if self._since is not None:
            self.backward += time.process_time() - self._since
            self._since = None


class TimedDenoiser:
    """A denoiser on the clock: all that `denoise` does counts as network."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.clock = inner, Clock()
        self.schedule, self.shape = inner.schedule, inner.shape

    def denoise(self, x_t: Tensor, t: int) -> Prediction:
        """Ask the denoiser within."""

        def ask(x: Tensor) -> tuple[Tensor, ...]:
            found = self.inner.denoise(x, t)
            return (found.x_0, found.eps) if found.v is None else (found.x_0, found.eps, found.v)

        x_0, eps, *v = self.clock.call(ask, x_t)
        return Prediction(x_0=x_0, eps=eps, v=v[0] if v else None)


class TimedNetwork(nn.Module):
    """A network on the clock, for libraries that bring their own formulas around it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.clock = inner, Clock()

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        """Ask the network within."""
        return self.clock.call(lambda x: (self.inner(x, time),), x_t)[0]


class Scale:
    """How many bytes autograd keeps for backwards, now and at most; storages that several nodes share count once."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._holders: dict[int, int] = {}

    def watching(self) -> AbstractContextManager[None]:
        """Weigh what is saved within the block."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept.tensor)

    def _pack(self, tensor: Tensor) -> _Kept:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if not self._holders.get(address):
            self.now += size
            self.peak = max(self.peak, self.now)
        self._holders[address] = self._holders.get(address, 0) + 1
        kept = _Kept(tensor.detach())
        weakref.finalize(kept, self._drop, address, size)
        return kept

    def _drop(self, address: int, size: int) -> None:
        self._holders[address] -= 1
        if not self._holders[address]:
            self.now -= size


class _Kept:
    """A saved tensor; it is freed with the node of the graph that saved it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
