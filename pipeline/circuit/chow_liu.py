"""Learning where the latents hang together: the hidden Chow-Liu tree.

Each token gets a latent of its own, and the latents are joined like the tokens' Chow-Liu tree, the tree that loses the
least mutual information (Chow and Liu 1968, doi 10.1109/TIT.1968.1054142; Liu and Van den Broeck 2021, arXiv
2105.12151).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor

from pipeline.circuit.kmeans import kmeans
from pipeline.circuit.regions import RegionGraph, latent_tree
from pipeline.circuit.structures import rooted

MANY = 2**28
"""Numbers in the largest table of joint counts made at a time."""


def hclt(tokens: Tensor, codebook: Tensor, *, groups: int, seed: int) -> RegionGraph:
    """The hidden Chow-Liu tree of tokens.

    Args:
        tokens: [M, N] int64 in [0, V), training images.
        codebook: vectors of the codes, [V, D].
        groups: codes are put into this many groups of similar ones first: mutual information between 256 codes each
            cannot be estimated from thousands of images, between 16 groups it can.
        seed: of the grouping.

    Returns:
        A tree with a latent for each of the N tokens, rooted at its centre.
    """
    if groups < len(codebook):
        used = torch.bincount(tokens.flatten(), minlength=len(codebook)).double()
        labels = kmeans(codebook[None].double(), groups, seed=seed, weights=used)[0][0]
        tokens, count = labels[tokens], groups
    else:
        count = len(codebook)
    information = mutual_information(tokens, count)
    largest = float(information.max())
    cost = largest + 1e-9 - information.fill_diagonal_(largest + 1e-9).numpy()  # positive off the diagonal
    tree = minimum_spanning_tree(csr_array(np.triu(cost, 1))).tocoo()
    edges = sorted(zip(tree.row.tolist(), tree.col.tolist(), strict=True))
    variables = tokens.shape[1]
    return latent_tree(rooted(edges, variables), range(variables))


def mutual_information(tokens: Tensor, count: int) -> Tensor:
    """Mutual information in nats between every two columns of tokens [M, N] in [0, count), [N, N] float64."""
    images, variables = tokens.shape
    places = torch.arange(variables) * count + tokens  # [M, N]
    marginal = torch.bincount(places.flatten(), minlength=variables * count).view(variables, count).double() / images
    out = torch.empty(variables, variables, dtype=torch.float64)
    hot = torch.zeros(images, variables * count).scatter_(1, places, 1.0)
    step = max(1, MANY // (variables * count * count))
    for start in range(0, variables, step):
        rows = hot[:, start * count : (start + step) * count]
        joint = (rows.t() @ hot).double().div_(images).view(-1, count, variables, count).transpose(1, 2)
        expected = marginal[start : start + step, None, :, None] * marginal[None, :, None, :]
        out[start : start + step] = torch.xlogy(joint, joint / expected.clamp_min(1e-300)).sum((2, 3))
    return out
