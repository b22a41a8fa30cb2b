"""Training the VQ-GAN: reconstruction, perception, codebook and a patch discriminator.

Esser et al. 2021 (arXiv 2012.09841, section 3.1): the generator minimises L1 + perceptual distance + codebook and
commitment terms (van den Oord et al. 2017, arXiv 1711.00937) + an adversarial term whose weight balances its gradient
at the last layer against the reconstruction's; the discriminator has a hinge loss. Codes that go unused are revived:
they are put on random features of the current batch (as in Dhariwal et al. 2020, arXiv 2005.00341, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.codec.vqgan import VQGAN, quantize, straight_through, usage
from pipeline.training.fit import SeededModule
from pipeline.training.settings import TrainerParams

COMMITMENT = 0.25
"""Weight of the commitment term (van den Oord et al. 2017)."""

Perception = Callable[[Tensor, Tensor], Tensor]
"""Differentiable distances [B] between two batches of images."""


class PatchDiscriminator(nn.Module):
    """Real or made up, judged patch by patch (Isola et al. 2017, arXiv 1611.07004).

    Two halvings, then logits [B, 1, h, w].
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 3, 1, 1),
            nn.GroupNorm(8, 4 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Judge images [B, 3, S, S]."""
        return cast("Tensor", self.layers(x))


class VQGANTraining(SeededModule):
    """Generator and discriminator in turns; the kept weights are the generator's running average."""

    def __init__(
        self,
        vqgan: VQGAN,
        perception: Perception,
        *,
        perceptual_weight: float,
        adversarial_weight: float,
        adversarial_start: int,
        revive_every: int,
        flip: bool,
        params: TrainerParams,
        seed: int,
    ) -> None:
        """Train `vqgan`; the other arguments are those of the `vqgan` section of params.yaml."""
        super().__init__(params, seed)
        self.automatic_optimization = False
        self.vqgan, self.discriminator = vqgan, PatchDiscriminator()
        self.perception = perception
        self.perceptual_weight, self.adversarial_weight = perceptual_weight, adversarial_weight
        self.adversarial_start, self.revive_every, self.flip = adversarial_start, revive_every, flip
        self.register_buffer("counts", torch.zeros(len(vqgan.codebook)))

    def training_step(self, x: Tensor, batch_idx: int) -> None:
        """One step of the generator on images [B, 3, S, S], then one of the discriminator."""
        if self.flip:
            x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x.flip(-1), x)
        step = self.step_number() - 1
        adversarial = self.adversarial_weight > 0 and step >= self.adversarial_start
        generator, discriminator = cast("list[Any]", self.optimizers())
        features = self.vqgan.encode(x)
        tokens, codes = quantize(features, self.vqgan.codebook)
        made = self.vqgan.decode(straight_through(features, codes))
        parts = self.generator_loss(x, made, features, codes, adversarial)
        self.step(generator, parts["loss"], self.vqgan)
        if adversarial:
            real, fake = self.discriminator(x), self.discriminator(made.detach())
            parts["discriminator"] = 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
            self.step(discriminator, parts["discriminator"], self.discriminator)
        for scheduler in cast("list[Any]", self.lr_schedulers()):
            scheduler.step()
        self.revive(tokens, features.detach(), step)
        share, perplexity = usage(tokens, len(self.vqgan.codebook))
        scalars = parts | {"usage": torch.tensor(share), "perplexity": torch.tensor(perplexity)}
        self.metrics = {f"train/{name}": value for name, value in scalars.items()}

    def generator_loss(
        self, x: Tensor, made: Tensor, features: Tensor, codes: Tensor, adversarial: bool
    ) -> dict[str, Tensor]:
        """The generator's loss and its parts."""
        l1 = (x - made).abs().mean()
        perceptual = self.perception(made, x).mean() if self.perceptual_weight else l1.new_zeros(())
        codebook = F.mse_loss(codes, features.detach()) + COMMITMENT * F.mse_loss(features, codes.detach())
        reconstruction = l1 + self.perceptual_weight * perceptual
        parts = {"l1": l1, "perceptual": perceptual, "codebook": codebook}
        total = reconstruction + codebook
        if adversarial:
            parts["adversarial"] = -self.discriminator(made).mean()
            total = (
                total
                + self.adversarial_weight * self.balance(reconstruction, parts["adversarial"]) * parts["adversarial"]
            )
        return {"loss": total, **parts}

    def balance(self, reconstruction: Tensor, adversarial: Tensor) -> Tensor:
        """Ratio of the gradients' norms at the decoder's last layer, at most 10^4 (Esser et al. 2021, eq. 7)."""
        last = self.vqgan.inner.decoder.conv_out.weight
        wanted: Tensor = torch.autograd.grad(reconstruction, last, retain_graph=True)[0].norm()
        given: Tensor = torch.autograd.grad(adversarial, last, retain_graph=True)[0].norm()
        return (wanted / (given + 1e-4)).clamp(0.0, 1e4).detach()

    def step(self, optimizer: Any, loss: Tensor, network: nn.Module) -> None:
        """Descend once, the gradient's norm clipped."""
        optimizer.zero_grad()
        self.manual_backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), self.trainer_params.clip)
        optimizer.step()

    @torch.no_grad()
    def revive(self, tokens: Tensor, features: Tensor, step: int) -> None:
        """Count uses; every `revive_every` steps of the first three quarters, put unused codes on random features."""
        counts = cast("Tensor", self.counts)
        counts += torch.bincount(tokens.flatten(), minlength=len(counts)).to(counts)
        if (step + 1) % self.revive_every:
            return
        dead = torch.nonzero(counts == 0).flatten()
        if len(dead) and step < 0.75 * self.trainer_params.steps:
            flat = features.permute(0, 2, 3, 1).flatten(0, 2)
            chosen = flat[torch.randint(len(flat), (len(dead),), device=flat.device)]
            self.vqgan.codebook[dead] = chosen.to(self.vqgan.codebook.dtype)  # features may be in half precision
        counts.zero_()

    def configure_optimizers(self) -> Any:
        """Adam for both sides, with the betas of Esser et al."""
        rate = self.trainer_params.learning_rate
        sides = [
            torch.optim.Adam(network.parameters(), lr=rate, betas=(0.5, 0.9))
            for network in (self.vqgan, self.discriminator)
        ]
        return sides, [torch.optim.lr_scheduler.LambdaLR(side, self.trainer_params.rate) for side in sides]
