"""What may stand between a denoiser and the step that a sampler takes with its estimate."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pipeline.diffusion.denoiser import Prediction


class Refine(Protocol):
    """Replaces the estimate of x_0 before a step is taken with it, for instance by steering.

    Methods that follow the gradient of an estimate follow the denoiser's own, and refine what they step with.
    """

    def __call__(self, prediction: Prediction, x_t: Tensor, t: int) -> Prediction:
        """Say something better than `prediction` about x_t [B, C, H, W] at time t in 1..T.

        Methods with P particles ask about [B P, C, H, W], the particles of an image one after another.
        """
        ...


def unchanged(prediction: Prediction, x_t: Tensor, t: int) -> Prediction:
    """Believe the denoiser."""
    return prediction
