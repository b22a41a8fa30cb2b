"""The codec as circuits and steering see it: images <-> tokens and log-probabilities of tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.codec.vqgan import VQGAN, quantize, squared_distances


class Codec:
    """A trained VQ-GAN that reads and writes token grids in row-major order.

    Attributes:
        side: tokens per side of the grid; N = side^2.
        codes: size V of the vocabulary.
    """

    side = 16

    def __init__(self, vqgan: VQGAN) -> None:
        self.vqgan = vqgan
        self.codes = vqgan.codebook.shape[0]

    def encode(self, x: Tensor) -> Tensor:
        """Tokens [B, N] (int64) of images `x` [B, 3, S, S] in [-1, 1]."""
        tokens, _ = quantize(self.vqgan.encode(x), self.vqgan.codebook)
        return tokens.flatten(1)

    def log_probs(self, x: Tensor, temperature: float) -> Tensor:
        """Log-probabilities [B, N, V] of each token: softmax of -squared distance / (D temperature) to the codes.

        Divided by the code dimension D, the temperature means the same for every codebook.
        """
        features = self.vqgan.encode(x)
        batch, dim = features.shape[:2]
        flat = features.flatten(2).transpose(1, 2).reshape(-1, dim)
        distances = squared_distances(flat, self.vqgan.codebook) / (dim * temperature)
        return F.log_softmax(-distances, dim=1).view(batch, -1, self.codes)

    def embed(self, tokens: Tensor) -> Tensor:
        """Codebook vectors [B, D, side, side] of tokens [B, N]."""
        return self.vqgan.codebook[tokens].view(len(tokens), self.side, self.side, -1).permute(0, 3, 1, 2)

    def decode(self, tokens: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] of tokens [B, N]."""
        return self.decode_embeddings(self.embed(tokens))

    def decode_embeddings(self, embeddings: Tensor) -> Tensor:
        """Images of arbitrary vectors in the codes' places, [B, D, side, side], such as expected codes."""
        return self.vqgan.decode(embeddings).clamp(-1.0, 1.0)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Encode and decode."""
        return self.decode(self.encode(x))
