"""What only a tractable prior can answer: how uncertain each token is, how likely a reveal was, what else it could be.

Every number is exact under the circuit; nothing is estimated. What revealing a token would tell about the others is in
`pipeline.circuit.information`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.evidence import SparseEvidence, check_known
from pipeline.circuit.mpe import mpe
from pipeline.circuit.queries import log_evidence, log_prob, posterior
from pipeline.circuit.sampling import UniformSource, sample_posterior
from pipeline.errors import ConfigError, InputError

Evidence = Tensor | SparseEvidence


def dense(circuit: Circuit, evidence: Evidence) -> Tensor:
    """Evidence as log w [B, N, V]."""
    return evidence.dense(circuit.codes) if isinstance(evidence, SparseEvidence) else evidence


def entropy_map(circuit: Circuit, evidence: Evidence) -> Tensor:
    """How uncertain each token is given the evidence: the entropy of p(z_i | w) in bits, [B, N], from 0 to log2 V.

    Arguments and errors are those of `queries.log_evidence`.
    """
    return posterior(circuit, dense(circuit, evidence)).entropy()


@torch.no_grad()
def log_posterior(circuit: Circuit, evidence: Evidence, tokens: Tensor) -> Tensor:
    """Say how likely whole grids are given evidence: log p(z | w) = log p(z) + sum_i log w_i(z_i) - log Z(w).

    Args:
        circuit: over N tokens and V codes.
        evidence: log w, [B, N, V], or its top-s form.
        tokens: K grids for each image, [B, K, N] int64 in [0, V).

    Returns:
        Natural logs, [B, K] float64; -inf where evidence or circuit rule a grid out.

    Raises:
        InputError: as in `queries.log_evidence` and `queries.log_prob`; or `tokens` has another shape.
    """
    log_z, log_w = log_evidence(circuit, evidence), dense(circuit, evidence)
    if tokens.ndim != 3 or len(tokens) != len(log_w):
        raise InputError(
            f"expected tokens [{len(log_w)}, K, {circuit.tokens}], K grids for each image of the evidence, got "
            f"{tuple(tokens.shape)}."
        )
    rows = []
    for grids, own, scale in zip(tokens, log_w, log_z, strict=True):  # one by one, so that no image depends on another
        prior = log_prob(circuit, grids)
        rows.append(prior + own.gather(1, grids.t()).sum(0, dtype=torch.float64) - scale)
    return torch.stack(rows) if rows else log_z.new_zeros(tokens.shape[:2])


@torch.no_grad()
def log_reveal(circuit: Circuit, tokens: Tensor, known: Tensor, reveal: Tensor) -> Tensor:
    """Say how likely a reveal was: log p(z_reveal | z_known), all other tokens summed out.

    Args:
        circuit: over N tokens and V codes.
        tokens: [B, N] int64 in [0, V); what stands at places neither known nor revealed does not matter.
        known: the tokens seen before, [B, N] or [N] bool.
        reveal: the tokens shown then, likewise; one that was known already adds nothing.

    Returns:
        Natural logs, [B] float64, at most 0 up to rounding.

    Raises:
        InputError: as in `queries.log_prob`; or the circuit holds the known tokens to be impossible.
    """
    known, reveal = _shown(tokens, known), _shown(tokens, reveal)
    before = _possible(log_prob(circuit, tokens, known))
    return log_prob(circuit, tokens, known | reveal) - before


@torch.no_grad()
def log_reveal_in_turn(circuit: Circuit, tokens: Tensor, known: Tensor, order: Tensor) -> Tensor:
    """Reveal one token after the other: log p(z_o(k) | z_known, z_o(1), ..., z_o(k-1)), the chain rule.

    Costs a pass up the tree for each step. The sum over k is `log_reveal` of all of them.

    Args:
        circuit: over N tokens and V codes.
        tokens: [B, N] int64 in [0, V).
        known: the tokens seen before, [B, N] or [N] bool.
        order: numbers of the tokens in the order in which they are revealed, [M] int64, the same for all images.

    Returns:
        Natural logs, [B, M] float64.

    Raises:
        InputError: as in `log_reveal`; or `order` is not of different tokens 0..N-1.
    """
    known = _shown(tokens, known)
    wrong = order.ndim != 1 or order.dtype != torch.int64 or len(order.unique()) != len(order)
    if wrong or (len(order) and not 0 <= int(order.min()) <= int(order.max()) < circuit.tokens):
        raise InputError(f"expected an order of different tokens 0 to {circuit.tokens - 1}, [M] int64, got {order}.")
    steps = torch.zeros(len(order) + 1, circuit.tokens, dtype=torch.bool, device=tokens.device)
    for k, token in enumerate(order.tolist()):
        steps[k + 1 :, token] = True
    rows = [
        log_prob(circuit, grid.expand(len(steps), -1), own | steps) for grid, own in zip(tokens, known, strict=True)
    ]
    chain = torch.stack(rows) if rows else torch.zeros(0, len(steps), dtype=torch.float64, device=tokens.device)
    _possible(chain[:, 0])
    gone = chain[:, :-1].isneginf()  # once a token was impossible, so is whatever follows
    return (chain[:, 1:] - chain[:, :-1]).masked_fill(gone, float("-inf"))


def _shown(tokens: Tensor, known: Tensor) -> Tensor:
    """`known` as [B, N] bool."""
    checked = check_known(known, tokens)
    assert checked is not None
    return checked


def _possible(log_known: Tensor) -> Tensor:
    """Refuse known tokens of probability 0: nothing can be said given them."""
    wrong = torch.nonzero(log_known.isneginf()).flatten().tolist()
    if wrong:
        raise InputError(f"image {wrong[0]}: the circuit gives its known tokens probability 0; smooth the circuit.")
    return log_known


@dataclass(frozen=True)
class Completions:
    """Different completions of one image, the likeliest first.

    Attributes:
        tokens: [K, N] int64, no two alike.
        log_prob: natural log of p(z | w), [K] float64, falling.
        count: how often each was drawn, [K] int64.
    """

    tokens: Tensor
    log_prob: Tensor
    count: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def diverse(self, number: int) -> Completions:
        """At most `number` completions that differ much, farthest first.

        The likeliest is taken first; then, again and again, the one whose nearest taken one differs from it in the
        most tokens (Gonzalez 1985, doi 10.1016/0304-3975(85)90224-5: at least half as far apart as the best choice);
        of equals the likelier.

        Returns:
            Them, the likeliest first.

        Raises:
            ConfigError: `number` is less than 1.
        """
        if number < 1:
            raise ConfigError(f"diverse completions must be at least 1, but {number} were asked for.")
        taken, nearest = [0], (self.tokens != self.tokens[0]).sum(1)
        while len(taken) < min(number, len(self)):
            taken.append(int((nearest == nearest.max()).to(torch.int8).argmax()))
            nearest = torch.minimum(nearest, (self.tokens != self.tokens[taken[-1]]).sum(1))
        rows = sorted(taken)
        return Completions(self.tokens[rows], self.log_prob[rows], self.count[rows])


def completions(circuit: Circuit, evidence: Evidence, noise: UniformSource, draws: int) -> list[Completions]:
    """Draw whole grids from p(z | w), and rank what was drawn by how likely it is.

    Args:
        circuit: over N tokens and V codes.
        evidence: log w, [B, N, V], or its top-s form.
        noise: one stream per image; the completions of an image depend on its stream and evidence only.
        draws: per image, at least 1.

    Returns:
        The different draws of each image, B of them.

    Raises:
        InputError: as in `sampling.sample_posterior`.
        ConfigError: `draws` is less than 1.
    """
    if draws < 1:
        raise ConfigError(f"completions need at least 1 draw, but {draws} were asked for.")
    found = []
    for k, grids in enumerate(sample_posterior(circuit, evidence, noise, draws)):
        tokens, count = grids.unique(dim=0, return_counts=True)
        log_prob = log_posterior(circuit, evidence[k : k + 1], tokens[None])[0]
        order = log_prob.argsort(descending=True, stable=True)
        found.append(Completions(tokens[order], log_prob[order], count[order]))
    return found


@dataclass(frozen=True)
class MostProbable:
    """The completion that is likeliest together with its latents.

    Attributes:
        tokens: [B, N] int64.
        log_prob: natural log of p(z | w), latents summed out, [B] float64.
        log_joint: natural log of p(latents, z | w), which is what was maximised, [B] float64.
    """

    tokens: Tensor
    log_prob: Tensor
    log_joint: Tensor


def most_probable(circuit: Circuit, evidence: Evidence) -> MostProbable:
    """The most probable explanation and how likely it is; see `mpe.mpe` for why latents are maximised too.

    Arguments and errors are those of `queries.log_evidence`.
    """
    found = mpe(circuit, evidence)
    log_joint = found.log_value - log_evidence(circuit, evidence)
    return MostProbable(found.tokens, log_posterior(circuit, evidence, found.tokens[:, None])[:, 0], log_joint)
