"""Latent variable distillation: a teacher tells which state each latent is in, and counting does the rest.

A teacher gives every region of every training image a feature vector; k-means turns vectors into states; parameters are
counted as if the latents had been seen (Liu et al. 2022, arXiv 2210.04398; Liu et al. 2023, arXiv 2302.08086).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.flows import Statistics
from pipeline.circuit.kmeans import kmeans
from pipeline.circuit.regions import RegionGraph


def regions(graph: RegionGraph) -> list[tuple[int, ...]]:
    """The tokens that each latent is told by: those that hang from it, or all below it where none do."""
    own: list[list[int]] = [[] for _ in graph.latents]
    for token, home in enumerate(graph.homes):
        own[home].append(token)
    return [tuple(tokens) or graph.scope(latent) for latent, tokens in enumerate(own)]


def assign(circuit: Circuit, features: list[Tensor], *, seed: int) -> Tensor:
    """States [M, R] int64 of all latents, by k-means of each latent's features.

    Latents whose tokens share an emission table, and whose regions are alike, are clustered together, so that a state
    means the same for all of them: the table is told one story.

    Args:
        circuit: its graph, ties and number of states count.
        features: of each latent, [M, D_r].
        seed: of k-means.
    """
    labels = torch.empty(len(features[0]), len(features), dtype=torch.int64)
    for group in alike(circuit):
        if len({features[r].shape[1] for r in group}) == 1:
            points = torch.cat([features[r] for r in group])[None]
            labels[:, group] = kmeans(points, circuit.states, seed=seed)[0].view(len(group), -1).t()
    return labels


def alike(circuit: Circuit) -> list[list[int]]:
    """Latents grouped by the emission tables of their own tokens; a latent without tokens is a group of its own."""
    tables: dict[tuple[int, ...], list[int]] = {}
    own: list[list[int]] = [[] for _ in circuit.graph.latents]
    for token, home in enumerate(circuit.graph.homes):
        own[home].append(circuit.table[token])
    for latent, found in enumerate(own):
        tables.setdefault(tuple(found) or (-1 - latent,), []).append(latent)
    return list(tables.values())


def count_labels(circuit: Circuit, tokens: Tensor, labels: Tensor) -> Statistics:
    """Counts of parameters' uses if the latents' states were `labels` [M, R] for tokens [M, N]."""
    states, counted = circuit.states, Statistics.empty(circuit)
    kept, parents = circuit.compact[tokens], torch.tensor(circuit.graph.parents[1:])
    counted.root += torch.bincount(labels[:, 0], minlength=states)
    pairs = (torch.arange(len(parents)) * states + labels[:, parents]) * states + labels[:, 1:]
    counted.weights += _histogram(pairs, counted.weights)
    places = circuit.inputs().indices(kept).t() * states + labels[:, circuit.homes]
    counted.emissions += _histogram(places, counted.emissions)
    counted.images = float(len(tokens))
    return counted


def _histogram(places: Tensor, like: Tensor) -> Tensor:
    return torch.bincount(places.flatten(), minlength=like.numel()).view(like.shape).to(like)
