"""Pictures of what a circuit knows: samples, and completions drawn together or token by token."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.queries import posterior
from pipeline.circuit.sampling import inverse_cdf, sample, sample_posterior
from pipeline.codec.codec import Codec
from pipeline.data.images import to_uint8
from pipeline.experiment.circuit_scores import known_tokens
from pipeline.experiment.layout import Layout
from pipeline.experiment.params import Params
from pipeline.experiment.pictures import write_sheet
from pipeline.experiment.tokens import Tokens
from pipeline.noise import Noise, stream_seed

SAMPLES = 32
IMAGES = 2
"""Test images completed under each mask."""
DRAWS = 3


@torch.no_grad()
def draw_samples(circuit: Circuit, codec: Codec, path: Path, seed: int) -> None:
    """Decode draws from the circuit, eight a row."""
    noise = Noise([stream_seed(seed, "circuit samples", k) for k in range(SAMPLES)])
    tokens = sample(circuit, noise, SAMPLES)[:, 0]
    write_sheet(path, to_uint8(codec.decode(tokens).cpu()).numpy(), columns=8)


@torch.no_grad()
def draw_completions(circuit: Circuit, codec: Codec, test: Tokens, params: Params, layout: Layout, path: Path) -> None:
    """Complete test images under the masks that show whole tokens, a row each.

    Columns: what is seen (the rest grey), DRAWS joint draws from the posterior, DRAWS with every token drawn by itself
    from its own posterior, and the image; all decoded from tokens.
    """
    device, rows = circuit.root.device, []
    for mask in params.sweep.masks:
        known = known_tokens(params, layout, mask, codec.side, len(test.tokens))
        for image in range(min(IMAGES, len(test.tokens))):
            if known[image].any():
                rows.append(_row(circuit, codec, test.tokens[image].to(device), known[image].to(device), image, params))
    if not rows:  # only strips: complete from nothing
        known = torch.zeros(circuit.tokens, dtype=torch.bool, device=device)
        rows.append(_row(circuit, codec, test.tokens[0].to(device), known, 0, params))
    write_sheet(path, torch.cat(rows).cpu().numpy(), columns=2 * DRAWS + 2)


def _row(circuit: Circuit, codec: Codec, truth: Tensor, known: Tensor, image: int, params: Params) -> Tensor:
    """Pictures uint8 [2 DRAWS + 2, S, S, 3] of one image with tokens [N], seen where `known` [N]."""
    evidence = hard_evidence(circuit, truth[None], known[None])
    joint = sample_posterior(circuit, evidence, Noise([stream_seed(params.seed, "joint", image)]), DRAWS)[0]
    marginals = posterior(circuit, evidence).marginals.double().log().expand(DRAWS, -1, -1)
    noise = Noise([stream_seed(params.seed, "independent", image)], circuit.root.device)
    independent = inverse_cdf(marginals, noise.uniform((DRAWS, circuit.tokens))[0])
    pictures = codec.decode(torch.cat([truth[None], joint, independent, truth[None]]))
    side, size = codec.side, pictures.shape[-1]
    seen = known.view(1, 1, side, side).repeat_interleave(size // side, 2).repeat_interleave(size // side, 3)
    pictures[:1] = torch.where(seen, pictures[:1], torch.zeros(()).to(pictures))
    return to_uint8(pictures.cpu())


def hard_evidence(circuit: Circuit, tokens: Tensor, known: Tensor) -> Tensor:
    """Log-evidence [B, N, V] that rules out all but the tokens where `known`, and says nothing elsewhere."""
    out = circuit.root.new_zeros(*tokens.shape, circuit.codes)
    out.masked_fill_(known[..., None], float("-inf"))
    return out.scatter_(-1, tokens[..., None], 0.0)
