"""What a sampling loop tells whoever looks on: progress bars, snapshots, clocks."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Watch(Protocol):
    """Called once per step of a method; it may look, but not change anything."""

    def __call__(self, t: int, x_0: Tensor) -> None:
        """See the estimate `x_0` [B, C, H, W] made at time `t`."""
        ...


def ignore(t: int, x_0: Tensor) -> None:
    """Look at nothing."""
