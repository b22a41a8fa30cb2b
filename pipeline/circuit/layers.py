"""A region graph folded into dense layers: one batched matrix product for all sums of a depth.

Latents of one depth are neighbours, so what a depth computes is one tensor [latents, B, H]. Tokens are in row-major
order; B counts images, H states of a latent, K kept codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.circuit.regions import RegionGraph


@dataclass(frozen=True)
class Children:
    """What flows together at the latents of one depth: which of them each part belongs to.

    Attributes:
        owners: position of the owner among the latents of the depth, for each part, [parts] int64.
        latents: latents at that depth.
        fan: parts per latent, where all have the same number and come in order; else 0.
    """

    owners: Tensor
    latents: int
    fan: int

    @classmethod
    def of(cls, owners: Sequence[int], latents: int) -> Children:
        """Fold a list of owners."""
        fan = len(owners) // latents
        even = list(owners) == [k for k in range(latents) for _ in range(fan)]
        return cls(torch.tensor(owners, dtype=torch.int64), latents, fan if even else 0)

    def gather(self, messages: Tensor) -> Tensor:
        """Add up log-messages [parts, B, H] at their owners, [latents, B, H]: a product layer."""
        if self.fan == 1:
            return messages
        if self.fan:
            return messages.view(self.latents, self.fan, *messages.shape[1:]).sum(1)
        out = messages.new_zeros(self.latents, *messages.shape[1:])
        return out.index_add(0, self.owners, messages)

    def spread(self, values: Tensor) -> Tensor:
        """Hand what belongs to owners [latents, B, H] to their parts, [parts, B, H]."""
        return values if self.fan == 1 else values.index_select(0, self.owners)

    def to(self, device: torch.device) -> Children:
        """The same on a device."""
        return Children(self.owners.to(device), self.latents, self.fan)


@dataclass(frozen=True)
class Level:
    """The latents of one depth.

    Attributes:
        latents: which they are.
        tokens: the variables that hang from them, [m] int64, by owner.
        inputs: which latent each of those hangs from.
        sums: which latent each latent of the next depth is below.
        everything: whether `tokens` are all tokens in order.
    """

    latents: slice
    tokens: Tensor
    inputs: Children
    sums: Children
    everything: bool

    def of_tokens(self, values: Tensor) -> Tensor:
        """Select this level's tokens from values [N, *]."""
        return values if self.everything else values.index_select(0, self.tokens)

    def to(self, device: torch.device) -> Level:
        """The same on a device."""
        return Level(
            self.latents, self.tokens.to(device), self.inputs.to(device), self.sums.to(device), self.everything
        )


def fold(graph: RegionGraph) -> tuple[Level, ...]:
    """Levels from the root down."""
    starts = [sum(graph.depths[:d]) for d in range(len(graph.depths) + 1)]
    levels = []
    for d, count in enumerate(graph.depths):
        first, end = starts[d], starts[d + 1]
        tokens = sorted((v for v, home in enumerate(graph.homes) if first <= home < end), key=lambda v: graph.homes[v])
        below = graph.depths[d + 1] if d + 1 < len(graph.depths) else 0
        levels.append(
            Level(
                slice(first, end),
                torch.tensor(tokens, dtype=torch.int64),
                Children.of([graph.homes[v] - first for v in tokens], count),
                Children.of([graph.parents[end + k] - first for k in range(below)], count),
                tokens == list(range(graph.variables)),
            )
        )
    return tuple(levels)


@dataclass(frozen=True)
class Ties:
    """Which emission table each token reads.

    Attributes:
        table: the table of each token, [N] int64.
        members: the tokens of each table.
        untied: whether every token has its own table, in order.
    """

    table: Tensor
    members: tuple[Tensor, ...]
    untied: bool

    @classmethod
    def of(cls, table: Sequence[int]) -> Ties:
        """Fold a list of tables 0..T-1."""
        members = [[i for i, t in enumerate(table) if t == k] for k in range(max(table) + 1)]
        untied = list(table) == list(range(len(table)))
        return cls(torch.tensor(table), tuple(torch.tensor(m) for m in members), untied)

    def to(self, device: torch.device) -> Ties:
        """The same on a device."""
        return Ties(self.table.to(device), tuple(m.to(device) for m in self.members), self.untied)


def product(a: Tensor, b: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Batched matrix product, its factors rounded to `dtype` if one is given; the result has the type of `a`."""
    if dtype is None:
        return torch.matmul(a, b)
    return torch.matmul(a.to(dtype), b.to(dtype)).to(a.dtype)


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """table[index] for a table [*, H]: whole rows, copied several times faster than by general indexing."""
    return table.index_select(0, index.flatten()).view(*index.shape, table.shape[1])


class Inputs:
    """The input layer: categorical emissions [T, K, H], read by tokens through their ties."""

    def __init__(self, emissions: Tensor, ties: Ties, dtype: torch.dtype | None = None) -> None:
        """Look at `emissions`; factors of matrix products are rounded to `dtype` if one is given."""
        self.emissions, self.ties, self.dtype = emissions, ties, dtype

    def rows(self, tokens: Tensor) -> Tensor:
        """p(token | state) [N, B, H] of compact tokens [B, N]."""
        return _rows(self.emissions.flatten(0, 1), self.indices(tokens))

    def some_rows(self, codes: Tensor) -> Tensor:
        """p(code | state) [B, N, S, H] of kept codes [B, N, S]."""
        first = self.ties.table[:, None] * self.emissions.shape[1]
        return _rows(self.emissions.flatten(0, 1), codes + first)

    def indices(self, tokens: Tensor) -> Tensor:
        """Rows [N, B] of the stacked tables that compact tokens [B, N] read."""
        return tokens.t() + self.ties.table[:, None] * self.emissions.shape[1]

    def to_states(self, w: Tensor) -> Tensor:
        """Sum over codes, w [B, N, K] -> [N, B, H]."""
        if self.ties.untied:
            return product(w.transpose(0, 1), self.emissions, self.dtype)
        parts = [product(w[:, m].flatten(0, 1), self.emissions[t], self.dtype) for t, m in enumerate(self.ties.members)]
        return self._joined(
            [part.view(len(w), len(m), part.shape[1]) for part, m in zip(parts, self.ties.members, strict=True)]
        ).transpose(0, 1)

    def to_codes(self, u: Tensor) -> Tensor:
        """Sum over states, u [N, B, H] -> [B, N, K]."""
        if self.ties.untied:
            return product(u, self.emissions.transpose(1, 2), self.dtype).transpose(0, 1)
        batch = u.shape[1]
        parts = [
            product(u[m].transpose(0, 1).flatten(0, 1), self.emissions[t].t(), self.dtype)
            for t, m in enumerate(self.ties.members)
        ]
        return self._joined(
            [part.view(batch, len(m), part.shape[1]) for part, m in zip(parts, self.ties.members, strict=True)]
        )

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """Put what the tables gave, [B, members, *] each, into the order of tokens."""
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts, 1)[:, torch.cat(self.ties.members).argsort()]
