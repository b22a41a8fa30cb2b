"""What revealing a token would tell about the others, before it is revealed.

Two tokens speak to each other only through the path between them, along which the latents are a Markov chain, also
given evidence. So p(z_i, z_j | w) is a product of matrices: every p(z_i = c, state of a latent | w) follows from its
neighbour's by one of them, up the tree from z_i and down from there. That is one pass down per token i, its codes side
by side, where asking `queries.posterior` anew for each of its codes would be a pass up and a pass down per code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.circuit import exact
from pipeline.circuit.circuit import Circuit
from pipeline.circuit.insight import Evidence, dense
from pipeline.circuit.passes import upward
from pipeline.circuit.queries import BITS, log_to_kept, possible, posterior, read_evidence
from pipeline.circuit.sampling import UniformSource, sample_posterior
from pipeline.errors import ConfigError, InputError

TARGETS = 16
"""Tokens whose joint with another is looked at together: a few megabytes."""


@dataclass(frozen=True)
class Information:
    """What tokens tell about tokens, given evidence.

    Attributes:
        bits: I(z_i; z_j | w) of source i and token j, [B, S, N], 0 up to rounding or more; of a token about itself its
            entropy.
        sources: the tokens i, S of them.
    """

    bits: Tensor
    sources: tuple[int, ...]

    @property
    def own(self) -> Tensor:
        """Entropy of each source, [B, S]."""
        return self.bits[:, list(range(len(self.sources))), list(self.sources)]

    @property
    def others(self) -> Tensor:
        """Expected drop of the summed entropies of all other tokens when a source is revealed, [B, S].

        That is sum_{j != i} I(z_i; z_j | w), exactly. It is not I(z_i; all others | w): what the others share is
        counted for each of them.
        """
        return self.bits.sum(-1) - self.own


@torch.no_grad()
def mutual_information(circuit: Circuit, evidence: Evidence, sources: Sequence[int] | None = None) -> Information:
    """I(z_i; z_j | w) between tokens in bits, exactly: every code of either is summed over.

    Codes that the vocabulary counts as one tell the same about other tokens, so kept codes suffice. Per image it takes
    about 40 bytes for each parameter of the sum layers, and R K H numbers for a token's pass; the time grows with the
    square of the number of uncertain tokens.

    Args:
        circuit: over N tokens and V codes.
        evidence: log w, [B, N, V], or its top-s form.
        sources: the tokens i; all if not given, which costs half as much as asking for each of them.

    Raises:
        InputError: as in `queries.log_evidence`; or `sources` are not different tokens 0..N-1, at least one.
    """
    sources = tuple(range(circuit.tokens)) if sources is None else tuple(sources)
    check_places(sources, circuit.tokens)
    log_w = dense(circuit, evidence)
    entropy = posterior(circuit, log_w).entropy()
    bits = entropy.new_zeros(len(log_w), circuit.tokens, circuit.tokens)
    for image, own in enumerate(entropy):
        chain = _chain(circuit, log_w[image : image + 1], image)
        _fill(circuit, chain, bits[image], sources)
        bits[image].diagonal().copy_(own)
    return Information(bits[:, list(sources)], sources)


def check_places(tokens: Sequence[int], count: int) -> None:
    """Refuse numbers that are not different tokens 0..count-1, at least one.

    Raises:
        InputError: there is none, or one is there twice or outside.
    """
    if not tokens or len(set(tokens)) != len(tokens) or not set(tokens) <= set(range(count)):
        named = ", ".join(map(str, tokens)) or "none"
        raise InputError(f"expected one or several different tokens from 0 to {count - 1}, got {named}.")


@dataclass(frozen=True)
class _Chain:
    """The circuit given evidence about one image: again a tree of latents with tokens.

    Attributes:
        latents: p(state | w), [R, H].
        down: p(state | state of the parent, w) of latents 1..R-1, [R - 1, H, H].
        up: p(state of the parent | state, w) of the same, [R - 1, H, H].
        emitted: p(kept code | state of the token's latent, w), [N, H, K].
    """

    latents: Tensor
    down: Tensor
    up: Tensor
    emitted: Tensor


def _chain(circuit: Circuit, log_w: Tensor, image: int) -> _Chain:
    """Condition the circuit on evidence [1, N, V] about image number `image`."""
    reading, dtype = read_evidence(circuit, log_w, first=image), circuit.root.dtype
    if circuit.is_safe:
        below = torch.cat(upward(circuit.sums(), reading.inputs).products)[:, 0].double().log()
    else:
        below = torch.cat(possible(circuit, reading.inputs, image).products)[:, 0]
    down = _normal(circuit.weights.double().log() + below[1:, None])
    latents = _normal(circuit.root.double().log() + below[0])[None].repeat(len(below), 1)
    for latent, parent in list(enumerate(circuit.graph.parents))[1:]:
        latents[latent] = latents[parent] @ down[latent - 1]
    parents = torch.tensor(circuit.graph.parents[1:], device=log_w.device, dtype=torch.int64)
    joint = latents[parents][:, :, None] * down
    up = (joint / latents[1:, None]).nan_to_num(nan=0.0, posinf=0.0).transpose(1, 2)
    log_kept, tables = log_to_kept(circuit, log_w)[0], exact.log_mass(circuit.emissions.double())
    emitted = torch.stack(
        [_normal((tables[t] + log_kept[i, :, None]).t()).to(dtype) for i, t in enumerate(circuit.table)]
    )
    return _Chain(latents.to(dtype), down.to(dtype), up.to(dtype).contiguous(), emitted)


def _normal(logs: Tensor) -> Tensor:
    """Distributions along the last axis from their unnormalised logs; all 0 where all are impossible."""
    return logs.softmax(-1).nan_to_num(nan=0.0)


def _fill(circuit: Circuit, chain: _Chain, bits: Tensor, sources: Sequence[int]) -> None:
    """Write I(z_i; z_j | w) of all pairs with a source among them into `bits` [N, N], both ways.

    Sources go from the leaves to the root, each beside the tokens that are left: those then tend to be near the root,
    and the pass down can spare what is below them.
    """
    homes = circuit.graph.homes
    possible_codes = (chain.latents[circuit.homes][:, None] @ chain.emitted > 0)[:, 0].sum(-1)
    left = {token for token, codes in enumerate(possible_codes.tolist()) if codes > 1}  # what is certain tells nothing
    for source in sorted(left.intersection(sources), key=lambda token: -homes[token]):
        left.discard(source)
        targets = sorted(left, key=lambda token: homes[token])
        joint = _reach(circuit, chain, source, {homes[token] for token in targets})
        for start in range(0, len(targets), TARGETS):
            some = torch.tensor(targets[start : start + TARGETS], device=bits.device)
            found = _information(torch.bmm(joint[circuit.homes[some]], chain.emitted[some]))
            bits[source, some] = bits[some, source] = found


def _reach(circuit: Circuit, chain: _Chain, source: int, latents: set[int]) -> Tensor:
    """p(z_source = c, state of a latent | w) for some latents, [R, codes with mass, H]; other rows hold anything."""
    latent, parents = circuit.graph.homes[source], circuit.graph.parents
    start = (chain.latents[latent][:, None] * chain.emitted[source]).t()
    path = {latent: start[start.sum(1) > 0]}
    while parents[latent] >= 0:
        path[parents[latent]] = path[latent] @ chain.up[latent - 1]
        latent = parents[latent]
    out = start.new_empty(len(parents), *path[0].shape)
    for latent, known in path.items():
        out[latent] = known
    wanted: set[int] = set()
    for latent in latents:
        while latent not in path and latent not in wanted:
            wanted.add(latent)
            latent = parents[latent]
    for level in circuit.sums().levels:
        below = [latent for latent in range(level.latents.start, level.latents.stop) if latent in wanted]
        if below:
            rows = torch.tensor(below, device=out.device)
            out[rows] = torch.bmm(out[[parents[latent] for latent in below]], chain.down[rows - 1])
    return out


def _information(joint: Tensor) -> Tensor:
    """Mutual information in bits of joint distributions [T, C, K]; [T]."""
    nats = _negentropy(joint.flatten(1)) - _negentropy(joint.sum(1)) - _negentropy(joint.sum(2))
    return nats.clamp_min(0.0) / BITS


def _negentropy(p: Tensor) -> Tensor:
    """Sum of p log p over the last axis; numbers below the smallest normal one count as it."""
    p = p.clamp_min(torch.finfo(p.dtype).tiny)
    return (p * p.log()).sum(-1)


@dataclass(frozen=True)
class BlockGain:
    """What revealing blocks of tokens would tell; see `block_gain`.

    Attributes:
        own: sum of the entropies of a block's tokens, which revealing them brings to 0, [B, K] bits.
        others: expected drop of the summed entropies of all other tokens, [B, K] bits, estimated.
        error: standard error of `others`, [B, K] bits.
        draws: behind each estimate.
    """

    own: Tensor
    others: Tensor
    error: Tensor
    draws: int


@torch.no_grad()
def block_gain(
    circuit: Circuit, evidence: Evidence, blocks: Sequence[Sequence[int]], noise: UniformSource, draws: int
) -> BlockGain:
    """Expected drop of the summed token entropies when a block of tokens is revealed.

    The tokens of a block together have too many values to sum over, so their values are drawn from p(z | w), the same
    draws for all blocks. The entropies given each draw are exact. The largest of many estimates tends to be too large;
    who needs its value asks for that block again, with other noise.

    Args:
        circuit: over N tokens and V codes.
        evidence: log w, [B, N, V], or its top-s form.
        blocks: the tokens of each of K blocks.
        noise: one stream per image.
        draws: per image, at least 2; each costs one query per block.

    Raises:
        InputError: as in `sampling.sample_posterior`; or a block is not of different tokens 0..N-1, at least one.
        ConfigError: `draws` is less than 2, or there is no block.
    """
    if draws < 2 or not blocks:
        raise ConfigError(
            f"a gain with its standard error needs 1 block and 2 draws at least, but {len(blocks)} blocks and {draws} "
            "draws were asked for."
        )
    for block in blocks:
        check_places(block, circuit.tokens)
    log_w = dense(circuit, evidence)
    before, grids = posterior(circuit, log_w).entropy(), sample_posterior(circuit, log_w, noise, draws)
    own = torch.stack([before[:, list(block)].double().sum(1) for block in blocks], 1)
    drops = torch.stack(
        [
            torch.stack([_drops(circuit, log_w[image], before[image], list(block), grids[image]) for block in blocks])
            for image in range(len(log_w))
        ]
    )  # [B, K, draws]
    return BlockGain(own, drops.mean(-1), drops.std(-1) / draws**0.5, draws)


def _drops(circuit: Circuit, log_w: Tensor, before: Tensor, block: list[int], grids: Tensor) -> Tensor:
    """By how much the entropies of all tokens outside a block fall if it turns out as drawn, [draws]."""
    told = log_w.expand(len(grids), -1, -1).clone()
    told[:, block] = float("-inf")
    seen = grids[:, block]
    told[torch.arange(len(grids), device=grids.device)[:, None], block, seen] = log_w[block, seen]
    drop = (before - posterior(circuit, told).entropy()).double()
    drop[:, block] = 0.0
    return drop.sum(1)
