"""Training transformers over token grids: to say the next token, or the hidden ones.

The first minimises the mean cross-entropy, so what it reports is its code length. The second is a masked language model
(Devlin et al. 2019, arXiv 1810.04805) whose hidden tokens are one rectangle per image: the teacher of latent variable
distillation (Liu et al. 2022, arXiv 2210.04398).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.training.fit import SeededModule
from pipeline.training.settings import TrainerParams
from pipeline.training.token_network import BATCH, BITS, TokenTransformer, bits_per_token, evaluating

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.01
VALIDATION_SEED = 0


class TokenTraining(SeededModule):
    """One network, one dataset of tokens; at each checkpoint the validation set is looked at too.

    The curve has `train/bits_per_token` and, at the steps with a checkpoint, `val/bits_per_token` of the weights as
    they are then (not of their running average).
    """

    def __init__(self, network: TokenTransformer, val: Tensor, params: TrainerParams, seed: int) -> None:
        """Train `network`, and validate it on tokens `val` int64 [N, L]."""
        super().__init__(params, seed)
        self.network, self.val = network, val

    @abstractmethod
    def nats(self, tokens: Tensor) -> Tensor:
        """Mean cross-entropy of what is to be said about tokens [B, L]."""

    @abstractmethod
    def validation_bits(self) -> Tensor:
        """Mean bits per token of the validation set."""

    def training_step(self, tokens: Tensor, batch_idx: int) -> Tensor:
        """Return the loss of tokens [B, L]."""
        loss = self.nats(tokens)
        self.metrics = {"train/bits_per_token": loss / BITS}
        return loss

    def optimizer_step(self, *arguments: Any, **keywords: Any) -> None:
        """Take the step; validate after the last one before a checkpoint, which no random draw depends on."""
        super().optimizer_step(*arguments, **keywords)
        if self.step_number() % self.trainer_params.checkpoint_every == 0:
            self.metrics["val/bits_per_token"] = self.validation_bits()

    def configure_optimizers(self) -> Any:
        """AdamW that decays matrices only; the learning rate follows `TrainerParams.rate`."""
        matrices = [weight for weight in self.network.parameters() if weight.ndim > 1]
        vectors = [weight for weight in self.network.parameters() if weight.ndim == 1]
        groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.trainer_params.learning_rate, betas=BETAS)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.trainer_params.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class AutoregressiveTraining(TokenTraining):
    """Training a causal network to say each token from those before it."""

    def nats(self, tokens: Tensor) -> Tensor:
        """Mean cross-entropy of every token [B, L]."""
        return F.cross_entropy(self.network(tokens).flatten(0, 1), tokens.flatten())

    def validation_bits(self) -> Tensor:
        """Mean of `bits_per_token`."""
        return bits_per_token(self.network, self.val).mean()


class MaskedTraining(TokenTraining):
    """Training a network to fill in a rectangle of each grid; bits per token are those of hidden tokens."""

    def nats(self, tokens: Tensor) -> Tensor:
        """Mean cross-entropy of the tokens of [B, L] that a random rectangle hides."""
        seen, hidden = corrupt(tokens, self.network.codes)
        return F.cross_entropy(self.network(seen)[hidden], tokens[hidden])

    def validation_bits(self) -> Tensor:
        """Mean over hidden tokens, with the same rectangles each time."""
        generator, device = torch.Generator().manual_seed(VALIDATION_SEED), self.network.position.device
        seen, hidden = corrupt(self.val, self.network.codes, generator)
        total = torch.zeros((), dtype=torch.float64)
        with evaluating(self.network):
            for part, given, gone in zip(self.val.split(BATCH), seen.split(BATCH), hidden.split(BATCH), strict=True):
                logits = self.network(given.to(device))[gone.to(device)].float()
                total += F.cross_entropy(logits, part[gone].to(device), reduction="sum").double().cpu()
        return total / hidden.sum() / BITS


def corrupt(tokens: Tensor, codes: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Hide a rectangle of each grid as BERT does: 80 % of its tokens become blank, 10 % any code, 10 % stay.

    Args:
        tokens: int64 [B, L] in [0, codes), square grids row by row.
        codes: size of the codebook; also the number of the blank.
        generator: where draws come from, on the device of `tokens`; None: torch's own.

    Returns:
        What the network sees, int64 [B, L], and the rectangles as bool [B, L].
    """
    hidden = rectangles(len(tokens), math.isqrt(tokens.shape[1]), tokens.device, generator)
    chance = torch.rand(tokens.shape, generator=generator, device=tokens.device)
    other = torch.randint(codes, tokens.shape, generator=generator, device=tokens.device)
    replaced = torch.where(chance < 0.8, codes, torch.where(chance < 0.9, other, tokens))
    return torch.where(hidden, replaced, tokens), hidden


def rectangles(count: int, side: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Draw a rectangle per grid, [count, side * side] bool: sides are powers of two up to `side`, at any offset."""
    powers = torch.randint(side.bit_length(), (count, 2), generator=generator, device=device)
    lengths = 2**powers
    room = side - lengths + 1
    first = (torch.rand(count, 2, generator=generator, device=device) * room).long().minimum(room - 1)
    place = torch.arange(side, device=device)
    inside = (place >= first[..., None]) & (place < (first + lengths)[..., None])  # [count, 2, side]
    return (inside[:, 0, :, None] & inside[:, 1, None, :]).flatten(1)
