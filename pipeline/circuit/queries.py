"""Exact queries: probabilities, evidence, posteriors.

All are batched over images, taken in turns if memory would not suffice, and computed in the circuit's number type (log
probabilities are added up in float64). Matrix products may be rounded to bfloat16 for posteriors, which moves them by a
few thousandths at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.circuit import exact
from pipeline.circuit.circuit import Circuit
from pipeline.circuit.evidence import SparseEvidence, check_evidence, check_largest
from pipeline.circuit.passes import downward, upward
from pipeline.errors import InputError

BITS = math.log(2.0)


@dataclass(frozen=True)
class Posterior:
    """What a circuit knows about each token, given evidence about all.

    Attributes:
        log_z: log-probability of the evidence, [B] float64.
        marginals: p(z_i = c | w), [B, N, V]; of sparse evidence only at its codes, [B, N, S].
        messages: the derivative of Z by w_i(c) up to a factor for each token, of the same shape; of sparse evidence
            the factor that makes the sum over all codes 1.
        rest: p(z_i is none of its codes | w) of sparse evidence, [B, N]; else None.
    """

    log_z: Tensor
    marginals: Tensor
    messages: Tensor
    rest: Tensor | None = None

    @property
    def cavity(self) -> Tensor:
        """p(z_i = c | w of all tokens but i): the messages, normalised over all codes."""
        return self.messages / self.messages.sum(-1, keepdim=True) if self.rest is None else self.messages

    @property
    def log_marginals(self) -> Tensor:
        """Logarithm of the marginals; -inf where the number is too small to be told from 0."""
        return self.marginals.log()

    def entropy(self) -> Tensor:
        """Entropy of each token's marginal in bits, [B, N].

        Raises:
            InputError: the evidence was sparse, so that only a part of the marginal is there.
        """
        if self.rest is not None:
            raise InputError("the entropy of a token needs its whole marginal; give the evidence as dense.")
        nats: Tensor = torch.special.entr(self.marginals).sum(-1)
        return nats / BITS


def log_prob(circuit: Circuit, tokens: Tensor, known: Tensor | None = None) -> Tensor:
    """Natural log-probability of tokens, the unknown ones summed out.

    Args:
        circuit: over N tokens and V codes.
        tokens: [B, N] int64 in [0, V); what stands at unknown places does not matter, but must be a code.
        known: which tokens count, [B, N] or [N] bool; all if not given.

    Returns:
        [B] float64: 0 where nothing is known, -inf where the circuit rules the tokens out. Differentiable in the
        parameters; the derivative by a parameter that is 0 is given as 0.

    Raises:
        InputError: wrong shape or type, or a token outside the vocabulary.
    """
    kept, known, log_share = circuit.read(tokens, known)
    parts = [log_share.new_zeros(0)]
    for rows in circuit.turns(len(kept), 4 * circuit.tokens * circuit.states):
        inputs = hard_inputs(circuit, kept[rows], None if known is None else known[rows])
        run = upward if circuit.is_safe else exact.log_passes
        parts.append(run(circuit.sums(), inputs).log_z)
    return torch.cat(parts) + log_share


def hard_inputs(circuit: Circuit, kept: Tensor, known: Tensor | None = None) -> Tensor:
    """Log-likelihood [N, B, H] of the states from kept codes [B, N], 0 where not known."""
    rows = circuit.inputs().rows(kept)
    inputs = rows.log() if circuit.is_safe else exact.log_mass(rows.double())
    return inputs if known is None else inputs.masked_fill(~known.t()[..., None], 0.0)


def bits_per_token(circuit: Circuit, tokens: Tensor) -> float:
    """Mean of -log2 p(z) / N over token grids [M, N]; errors are those of `log_prob`."""
    return float(-log_prob(circuit, tokens).mean()) / (BITS * tokens.shape[1])


def conditional_bits(circuit: Circuit, tokens: Tensor, known: Tensor) -> Tensor:
    """-log2 p(hidden tokens | known tokens) / number of hidden tokens, [B]; NaN where nothing is hidden.

    Arguments and errors are those of `log_prob`.
    """
    hidden = tokens.shape[1] - known.expand_as(tokens).sum(1)
    return (log_prob(circuit, tokens, known) - log_prob(circuit, tokens)) / (BITS * hidden.double())


@dataclass(frozen=True)
class Reading:
    """Evidence as the passes read it.

    Attributes:
        weights: evidence of each token up to a factor, [B, N, V]; of sparse evidence [B, N, S].
        rest: of sparse evidence, the weight of all other codes up to the same factor, [B, N]; else None.
        inputs: log-likelihood of the states from each token up to the same factor, [N, B, H].
        states: the same without the log; None if the circuit is not safe.
        log_scale: sum of the logs of the factors, [B] float64.
    """

    weights: Tensor
    rest: Tensor | None
    inputs: Tensor
    states: Tensor | None
    log_scale: Tensor


def read_evidence(
    circuit: Circuit, evidence: Tensor | SparseEvidence, dtype: torch.dtype | None = None, first: int = 0
) -> Reading:
    """Check evidence and bring it to the states; `first` is the number of the first image, for messages."""
    if isinstance(evidence, SparseEvidence):
        if stays_sparse(circuit, evidence):
            return _read_sparse(circuit, evidence, first)
        evidence = evidence.dense(circuit.codes)
    evidence = evidence.to(torch.promote_types(evidence.dtype, circuit.root.dtype))
    largest = evidence.amax(-1)
    check_largest(largest, first)
    if evidence.requires_grad:  # by a constant factor, so that no gradient has to cancel another
        log_factor = largest.detach()
        weights = (evidence - log_factor[..., None]).exp()
    else:  # faster
        weights = evidence.softmax(-1)
        log_factor = largest - weights.amax(-1).log()
    weights, log_scale = weights.to(circuit.root.dtype), log_factor.sum(1, dtype=torch.float64)
    if circuit.is_safe:
        states = circuit.inputs(dtype).to_states(to_kept(circuit, weights))
        return Reading(weights, None, states.log(), states, log_scale)
    log_kept = log_to_kept(circuit, evidence.double() - log_factor[..., None])
    inputs = exact.soft_inputs(log_kept, circuit.emissions, circuit.inputs().ties)
    return Reading(weights, None, inputs, None, log_scale)


def stays_sparse(circuit: Circuit, evidence: SparseEvidence) -> bool:
    """Whether looking at some codes is as exact as looking at all.

    If a code that is told apart weighed less than the rest, its emission would be taken from 1, and digits lost.
    """
    return circuit.is_safe and bool((evidence.log_w >= evidence.log_rest[..., None]).all())


def _read_sparse(circuit: Circuit, evidence: SparseEvidence, first: int) -> Reading:
    """Only the emissions of the codes that are told apart are looked at: all emissions of a state sum to 1."""
    largest = evidence.log_w.amax(-1)
    check_largest(largest, first)
    weights = (evidence.log_w - largest[..., None]).to(circuit.root.dtype).exp()
    rest = (evidence.log_rest - largest).to(circuit.root.dtype).exp()
    above = (weights - rest[..., None]) * circuit.share.to(weights)[evidence.codes]
    rows = circuit.inputs().some_rows(circuit.compact[evidence.codes])
    states = ((above[..., None, :] @ rows)[..., 0, :] + rest[..., None]).transpose(0, 1)
    return Reading(weights, rest, states.log(), states, largest.sum(1, dtype=torch.float64))


def to_kept(circuit: Circuit, weights: Tensor) -> Tensor:
    """Evidence [B, N, V] about codes -> [B, N, K] about the kept ones that stand for them."""
    if circuit.vocabulary.whole:
        return weights
    out = weights.new_zeros(*weights.shape[:2], len(circuit.vocabulary))
    return out.index_add(-1, circuit.compact, weights * circuit.share.to(weights))


def log_to_kept(circuit: Circuit, log_w: Tensor) -> Tensor:
    """The same in logs, without underflow: [B, N, V] -> [B, N, K] float64."""
    if circuit.vocabulary.whole:
        return log_w.double()
    log_w = log_w.double() + circuit.share.double().log()
    index = circuit.compact.expand_as(log_w)
    shape = (*log_w.shape[:2], len(circuit.vocabulary))
    largest = log_w.new_full(shape, float("-inf")).scatter_reduce(-1, index, log_w.detach(), "amax")
    finite = largest.nan_to_num(neginf=0.0)
    sums = torch.zeros_like(finite).scatter_add(-1, index, (log_w - finite.gather(-1, index)).exp())
    return finite + exact.log_mass(sums)


def log_evidence(circuit: Circuit, evidence: Tensor | SparseEvidence, *, dtype: torch.dtype | None = None) -> Tensor:
    """Natural log of Z(w) = sum_z p(z) prod_i w_i(z_i); differentiable in evidence and parameters (0 where one is 0).

    Args:
        circuit: over N tokens and V codes.
        evidence: log w, [B, N, V]; -inf rules a code out, a row of zeros says nothing. Or its top-s form.
        dtype: torch.bfloat16 rounds the factors of matrix products, which moves log Z by some hundredths.

    Returns:
        [B] float64.

    Raises:
        InputError: wrong shape; NaN or +inf; a token with every code ruled out, or evidence that the circuit holds to
            be impossible together; the message names image and tokens.
    """
    check_evidence(evidence, circuit.tokens, circuit.codes)
    parts = [torch.zeros(0, dtype=torch.float64, device=circuit.root.device)]
    for rows in circuit.turns(len(evidence), circuit.tokens * (2 * circuit.codes + 4 * circuit.states)):
        reading = read_evidence(circuit, evidence[rows], dtype, rows.start)
        if circuit.is_safe:
            parts.append(upward(circuit.sums(dtype), reading.inputs).log_z + reading.log_scale)
        else:
            parts.append(possible(circuit, reading.inputs, rows.start).log_z + reading.log_scale)
    return torch.cat(parts)


def possible(circuit: Circuit, inputs: Tensor, first: int) -> exact.LogPasses:
    """Both passes of a circuit with zeros, for log-likelihoods [N, B, H] that it does not hold to be impossible.

    Raises:
        InputError: the message names the image and the smallest set of tokens below a latent that contradict.
    """
    found = exact.log_passes(circuit.sums(), inputs)
    wrong = torch.nonzero(found.log_z.isneginf()).flatten().tolist()
    if wrong:
        latents = exact.conflicts(circuit.sums().levels, found.products)[wrong[0]]
        tokens = circuit.graph.scope(latents[0] if latents else 0)
        named = ", ".join(map(str, tokens[:8])) + (", ..." if len(tokens) > 8 else "")
        raise InputError(
            f"image {first + wrong[0]}, tokens {named}: their evidence contradicts the circuit, which gives everything "
            "that it allows probability 0; soften the evidence, or smooth the circuit."
        )
    return found


@torch.no_grad()
def posterior(circuit: Circuit, evidence: Tensor | SparseEvidence, *, dtype: torch.dtype | None = None) -> Posterior:
    """p(z_i = c | w) of every token, with and without its own evidence.

    Arguments and errors are those of `log_evidence`.
    """
    check_evidence(evidence, circuit.tokens, circuit.codes)
    width = 4 * circuit.codes
    if isinstance(evidence, SparseEvidence) and stays_sparse(circuit, evidence):
        width = evidence.codes.shape[-1] * circuit.states
    turns = circuit.turns(len(evidence), circuit.tokens * (width + 6 * circuit.states))
    parts = [_posterior(circuit, evidence[rows], dtype, rows.start) for rows in turns]
    if len(parts) == 1:
        return parts[0]
    rests = [part.rest for part in parts if part.rest is not None]
    return Posterior(
        torch.cat([part.log_z for part in parts]),
        torch.cat([part.marginals for part in parts]),
        torch.cat([part.messages for part in parts]),
        torch.cat(rests) if rests else None,
    )


def _posterior(circuit: Circuit, evidence: Tensor | SparseEvidence, dtype: torch.dtype | None, first: int) -> Posterior:
    reading = read_evidence(circuit, evidence, dtype, first)
    if reading.states is None:
        return _exact_posterior(circuit, evidence, reading, first)
    sums = circuit.sums(dtype)
    up = upward(sums, reading.inputs)
    latents = torch.cat(downward(sums, up)[0])
    outside, log_z = latents.index_select(0, circuit.homes).div_(reading.states), up.log_z + reading.log_scale
    if isinstance(evidence, SparseEvidence) and reading.rest is not None:
        rows = circuit.inputs().some_rows(circuit.compact[evidence.codes])
        messages = (rows @ outside.transpose(0, 1)[..., None])[..., 0] * circuit.share.to(rows)[evidence.codes]
        total = outside.sum(-1).t()  # of the messages of all codes
        rest = reading.rest * (total - messages.sum(-1)).clamp_min(0.0)
        return Posterior(log_z, reading.weights * messages, messages / total[..., None], rest)
    messages = circuit.inputs(dtype).to_codes(outside)
    if not circuit.vocabulary.whole:
        messages = messages[..., circuit.compact] * circuit.share.to(messages)
    marginals = reading.weights.mul_(messages)
    if dtype is not None:
        marginals /= marginals.sum(-1, keepdim=True)  # exact products sum to 1 by themselves
    return _at_codes(Posterior(log_z, marginals, messages), evidence)


def _at_codes(found: Posterior, evidence: Tensor | SparseEvidence) -> Posterior:
    """What sparse evidence asks of a posterior over all codes; for dense evidence all of it."""
    if isinstance(evidence, Tensor):
        return found
    marginals, cavity = (x.gather(-1, evidence.codes) for x in (found.marginals, found.cavity))
    return Posterior(found.log_z, marginals, cavity, found.marginals.scatter(-1, evidence.codes, 0.0).sum(-1))


def _exact_posterior(circuit: Circuit, evidence: Tensor | SparseEvidence, reading: Reading, first: int) -> Posterior:
    log_w = evidence.dense(circuit.codes) if isinstance(evidence, SparseEvidence) else evidence
    found, ties = possible(circuit, reading.inputs, first), circuit.inputs().ties
    emissions = circuit.emissions[:, circuit.compact].double() * circuit.share.double()[:, None]
    marginals, cavity = (x.to(circuit.root.dtype) for x in exact.soft_marginals(log_w, found, emissions, ties))
    return _at_codes(Posterior(found.log_z + reading.log_scale, marginals, cavity), evidence)
