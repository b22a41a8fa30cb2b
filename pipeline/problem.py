"""What is seen: the pixels an inpainting method is given, and where they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Noise-free inpainting problems, one per image of a batch.

    A problem never holds hidden pixels, so a method cannot look at them.

    Attributes:
        y: the seen pixels, [B, C, H, W] in [-1, 1], exactly 0 where hidden.
        known: which pixels are seen, [B, 1, H, W] bool, True = seen.
    """

    y: Tensor
    known: Tensor

    def __post_init__(self) -> None:
        """Check shapes and polarity once, at the border.

        Raises:
            InputError: shapes or types do not fit, or `y` holds values at hidden pixels.
        """
        if self.known.dtype != torch.bool:
            raise InputError(f"Problem.known must be boolean (True = seen), but is {self.known.dtype}.")
        if self.y.ndim != 4:
            raise InputError(f"Problem.y must have shape [B, C, H, W], but has {tuple(self.y.shape)}.")
        batch, _, height, width = self.y.shape
        if self.known.shape != (batch, 1, height, width):
            raise InputError(
                f"Problem.known must have shape {(batch, 1, height, width)} to go with y of shape "
                f"{tuple(self.y.shape)}, but has {tuple(self.known.shape)}."
            )
        if bool((self.y.masked_fill(self.known, 0.0) != 0).any()):
            raise InputError(
                "Problem.y holds values at hidden pixels; build problems with Problem.observe(x_0, known)."
            )

    @classmethod
    def observe(cls, x_0: Tensor, known: Tensor) -> Problem:
        """Show the pixels of `x_0` [B, C, H, W] where `known` [B, 1, H, W]; the one place where truth meets a mask."""
        return cls(y=torch.where(known, x_0, torch.zeros_like(x_0)), known=known)

    def paste(self, x: Tensor) -> Tensor:
        """Return `x` [B, C, H, W] with the seen pixels put back."""
        return torch.where(self.known, self.y, x)

    def residual(self, x_0: Tensor) -> Tensor:
        """Return y - x_0 at seen pixels and 0 elsewhere, [B, C, H, W]."""
        return torch.where(self.known, self.y - x_0, torch.zeros_like(x_0))

    def __len__(self) -> int:
        return self.y.shape[0]
