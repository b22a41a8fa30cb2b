"""Evaluating a network in another number format than its weights'."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class InPrecision(nn.Module):
    """A network evaluated in another number format; float32 goes in and comes out."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Evaluate under autocast."""
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            out: Tensor = self.network(x, time)
        return out.float()
