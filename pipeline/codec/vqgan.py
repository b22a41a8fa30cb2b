"""The VQ-GAN: diffusers' `VQModel`, configured to hold taming-transformers' weights exactly.

Esser et al. 2021 (arXiv 2012.09841). An image becomes 16 x 16 tokens at every size, so the network reduces by H / 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class VQGANParams:
    """Shape of the VQ-GAN.

    Attributes:
        channels: width of each level; each level but the last halves the resolution.
        layers: residual blocks per level.
        codes: size of the codebook.
        code_dim: channels of a code.
        attention: self-attention at 16 x 16: on the coarsest level and in the middle.
    """

    channels: tuple[int, ...] = (128, 128, 256, 256, 512)
    layers: int = 2
    codes: int = 1024
    code_dim: int = 256
    attention: bool = True

    @property
    def factor(self) -> int:
        """How many pixels a side one token covers."""
        factor: int = 2 ** (len(self.channels) - 1)
        return factor


class VQGAN(nn.Module):
    """Encoder, codebook and decoder."""

    def __init__(self, params: VQGANParams) -> None:
        super().__init__()
        from diffusers import VQModel

        finer = len(params.channels) - 1
        attn = "Attn" if params.attention else ""
        self.inner = VQModel(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * finer + (f"{attn}DownEncoderBlock2D",),
            up_block_types=(f"{attn}UpDecoderBlock2D",) + ("UpDecoderBlock2D",) * finer,
            block_out_channels=tuple(params.channels),
            layers_per_block=params.layers,
            latent_channels=params.code_dim,
            num_vq_embeddings=params.codes,
            vq_embed_dim=params.code_dim,
            norm_num_groups=32,
            mid_block_add_attention=params.attention,
            lookup_from_codebook=True,
        )

    @property
    def codebook(self) -> nn.Parameter:
        """The codes, [V, D]."""
        return cast("nn.Parameter", self.inner.quantize.embedding.weight)

    def encode(self, x: Tensor) -> Tensor:
        """Features before quantisation, [B, D, 16, 16], of images [B, 3, S, S] in [-1, 1]."""
        return cast("Tensor", self.inner.quant_conv(self.inner.encoder(x)))

    def decode(self, embeddings: Tensor) -> Tensor:
        """Images [B, 3, S, S] from codebook vectors [B, D, 16, 16]; not clipped."""
        return cast("Tensor", self.inner.decoder(self.inner.post_quant_conv(embeddings)))


def squared_distances(features: Tensor, codebook: Tensor) -> Tensor:
    """Squared distances [M, V] of feature vectors [M, D] to codes [V, D], never below 0."""
    square = (features**2).sum(1, keepdim=True) - 2.0 * features @ codebook.T + (codebook**2).sum(1)
    return square.clamp_min(0.0)


def quantize(features: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest codes of features [B, D, h, w].

    Returns:
        Tokens [B, h, w] (int64), and the codes in the features' place, [B, D, h, w], differentiable in the codebook
        only.
    """
    batch, dim, height, width = features.shape
    flat = features.permute(0, 2, 3, 1).reshape(-1, dim)
    tokens = squared_distances(flat.detach(), codebook.detach()).argmin(1)
    codes = codebook[tokens].view(batch, height, width, dim).permute(0, 3, 1, 2)
    return tokens.view(batch, height, width), codes


def straight_through(features: Tensor, codes: Tensor) -> Tensor:
    """The codes in the forward pass, the features' gradient in the backward pass (van den Oord et al. 2017)."""
    return features + (codes - features).detach()


def usage(tokens: Tensor, codes: int) -> tuple[float, float]:
    """Share of codes in use and perplexity exp(H) of the token frequencies."""
    frequency = torch.bincount(tokens.flatten(), minlength=codes).double()
    p = frequency / frequency.sum()
    entropy = -(p * torch.log(p.clamp_min(1e-300))).sum()
    return float((frequency > 0).double().mean()), float(entropy.exp())
