"""How good a circuit is: bits per token, bits per hidden token under each mask, and both without structure."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.queries import bits_per_token
from pipeline.experiment.layout import Layout
from pipeline.experiment.masks import mask_of
from pipeline.experiment.params import Params
from pipeline.experiment.tokens import Tokens
from pipeline.training.circuit import mean_conditional_bits

BACKOFF = 5.0
"""Images' worth of the frequencies over all positions in each position's own, in the model without structure."""


def known_tokens(params: Params, layout: Layout, mask: str, side: int, images: int) -> Tensor:
    """Which tokens a mask shows wholly, [images, side^2] bool: a token is known if all pixels of its patch are."""
    pixels = torch.from_numpy(mask_of(params, mask, layout.root, images))
    patch = pixels.shape[-1] // side
    return pixels.view(images, side, patch, side, patch).all(4).all(2).flatten(1)


def unigram(train: Tensor, codes: int) -> Tensor:
    """Code frequencies at each position [N, V], backed off to those over all positions, and those to even ones."""
    places = torch.arange(train.shape[1]) * codes + train
    counts = torch.bincount(places.flatten(), minlength=train.shape[1] * codes).view(-1, codes).double()
    everywhere = counts.sum(0) + 0.5
    smoothed = counts + BACKOFF * everywhere / everywhere.sum()
    return smoothed / smoothed.sum(1, keepdim=True)


def score(
    circuit: Circuit, splits: Mapping[str, Tokens], params: Params, layout: Layout, side: int
) -> dict[str, float]:
    """Scalars of the record: bits of all splits, conditional bits of test tokens, size and cost of the circuit."""
    device, test = circuit.root.device, splits["test"].tokens
    metrics = {
        f"{name}/bits_per_token": bits_per_token(circuit, split.tokens.to(device)) for name, split in splits.items()
    }
    bits = -unigram(splits["train"].tokens, circuit.codes).log2()[torch.arange(test.shape[1]), test]
    metrics["test/unigram_bits"] = float(bits.mean())
    for mask in params.sweep.masks:
        known = known_tokens(params, layout, mask, side, len(test))
        some = ~known.all(1)
        hidden = ~known[some]
        metrics[f"test/conditional_bits/{mask}"] = mean_conditional_bits(circuit, test.to(device), known.to(device))
        metrics[f"test/unigram_conditional_bits/{mask}"] = float(((bits[some] * hidden).sum(1) / hidden.sum(1)).mean())
        metrics[f"test/hidden/{mask}"] = float((~known).double().mean())
    metrics |= {"parameters": float(circuit.size()), "states": float(circuit.states)}
    metrics["codes"] = float(len(circuit.vocabulary))
    metrics["depth"] = float(len(circuit.graph.depths))
    return metrics


def counting_flops(circuit: Circuit) -> float:
    """Floating-point operations to count one image: three matrix products for each sum layer."""
    return 6.0 * (len(circuit.graph.latents) - 1) * circuit.states**2
