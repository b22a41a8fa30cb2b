"""Training the diffusion prior: denoising with a learned variance.

Ho et al. 2020 (arXiv 2006.11239), with the hybrid objective of Nichol & Dhariwal 2021 (arXiv 2102.09672, section 3.1):
mean squared error of the target, plus a small weight on the variational bound with the mean held fixed, which trains
the variance only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.diffusion.denoiser import Target
from pipeline.diffusion.schedule import Schedule
from pipeline.training.fit import SeededModule
from pipeline.training.settings import TrainerParams


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """Per-time tables as tensors [T + 1], for batches whose images stand at different times."""

    signal: Tensor
    noise: Tensor
    low: Tensor
    high: Tensor
    from_x_0: Tensor

    @classmethod
    def of(cls, schedule: Schedule) -> Coefficients:
        """Tabulate the steps (t, t - 1) of a schedule; index 0 is unused."""
        a = schedule.alpha_bar
        b = a[:-1]
        ratio = a[1:] / b
        variances = [(0.0, 0.0)] + [schedule.log_variances(t, t - 1) for t in range(1, schedule.T + 1)]
        tables = {
            "signal": a**0.5,
            "noise": (1 - a) ** 0.5,
            "low": [v[0] for v in variances],
            "high": [v[1] for v in variances],
            "from_x_0": [0.0, *(b**0.5 * (1 - ratio) / (1 - a[1:]))],
        }
        return cls(**{name: torch.tensor(table, dtype=torch.float32) for name, table in tables.items()})

    def at(self, name: str, t: Tensor) -> Tensor:
        """Look a table up at times `t` [B]; returns [B, 1, 1, 1]."""
        table: Tensor = getattr(self, name)
        return table.to(t.device)[t][:, None, None, None]


class DiffusionTraining(SeededModule):
    """One network, one schedule, one dataset."""

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        *,
        target: Target,
        flip: bool,
        vlb_weight: float,
        params: TrainerParams,
        seed: int,
    ) -> None:
        """Train `network` on `target`; `flip` mirrors images at random, `vlb_weight` weighs the variational bound."""
        super().__init__(params, seed)
        self.network, self.schedule, self.target, self.flip, self.vlb_weight = (
            network,
            schedule,
            target,
            flip,
            vlb_weight,
        )
        self.tables = Coefficients.of(schedule)

    def training_step(self, x_0: Tensor, batch_idx: int) -> Tensor:
        """Draw times and noise, return the hybrid loss of the batch [B, 3, S, S]."""
        if self.flip:
            x_0 = torch.where(torch.rand(len(x_0), 1, 1, 1, device=x_0.device) < 0.5, x_0.flip(-1), x_0)
        t = torch.randint(1, self.schedule.T + 1, (len(x_0),), device=x_0.device)
        loss, parts = self.loss(x_0, t, torch.randn_like(x_0))
        self.metrics = {f"train/{name}": value for name, value in parts.items()}
        return loss

    def loss(self, x_0: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Hybrid loss at times `t` [B] with noise `eps` [B, 3, S, S], and its parts."""
        signal, noise = self.tables.at("signal", t), self.tables.at("noise", t)
        x_t = signal * x_0 + noise * eps
        out = self.network(x_t, t - 1).float()
        answer, raw = out[:, :3], out[:, 3:]
        truth = {"eps": eps, "x_0": x_0, "v": signal * eps - noise * x_0}[self.target]
        error = (answer - truth).square().mean()
        if not raw.shape[1]:
            return error, {"loss": error, "error": error}
        estimate = self._x_0(x_t, answer.detach(), signal, noise)
        bound = self.bound(x_0, estimate, (raw + 1.0) / 2.0, t).mean()
        total = error + self.vlb_weight * self.schedule.T * bound
        return total, {"loss": total, "error": error, "bound_bits": bound}

    def bound(self, x_0: Tensor, estimate: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """Term L_{t-1} of the variational bound in bits per dimension, [B].

        Between Gaussians for t > 1; at t = 1 the continuous Gaussian likelihood stands in for the discretised one of
        the paper, with the width of one grey value as its smallest standard deviation.
        """
        a, low = self.tables.at("from_x_0", t), self.tables.at("low", t)
        log_variance = v * self.tables.at("high", t) + (1.0 - v) * low
        gap = (a * (x_0 - estimate.clamp(-1, 1))).square()  # the means differ only through x_0: both are a x_0 + b x_t
        divergence = 0.5 * (log_variance - low - 1.0 + torch.exp(low - log_variance) + gap * torch.exp(-log_variance))
        floor = 2.0 * math.log(2.0 / 255.0)
        width = torch.clamp(log_variance, min=floor)
        likelihood = 0.5 * (width - floor + (x_0 - estimate.clamp(-1, 1)).square() * torch.exp(-width))
        return torch.where(t[:, None, None, None] > 1, divergence, likelihood).flatten(1).mean(1) / math.log(2.0)

    def _x_0(self, x_t: Tensor, answer: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        if self.target == "x_0":
            return answer
        return (x_t - noise * answer) / signal if self.target == "eps" else signal * x_t - noise * answer

    def configure_optimizers(self) -> Any:
        """AdamW without weight decay; the learning rate follows `TrainerParams.rate`."""
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.trainer_params.learning_rate, weight_decay=0.0)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.trainer_params.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
