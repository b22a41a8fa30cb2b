"""The most probable explanation: the likeliest assignment of all latents and tokens together, given evidence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.evidence import SparseEvidence, check_evidence
from pipeline.circuit.queries import possible, read_evidence


@dataclass(frozen=True)
class Explanation:
    """The maximum of p(latents, z) prod_i w_i(z_i).

    Attributes:
        tokens: [B, N] int64.
        states: of the latents, [B, R] int64.
        log_value: the maximum, [B] float64.
    """

    tokens: Tensor
    states: Tensor
    log_value: Tensor


@torch.no_grad()
def mpe(circuit: Circuit, evidence: Tensor | SparseEvidence) -> Explanation:
    """Maximise over latents and tokens: one pass up with maxima in place of sums, one down to read them off.

    The likeliest tokens with the latents summed out would be another question, and an NP-hard one (de Campos 2011).
    Arguments and errors are those of `queries.log_evidence`; ties go to the lowest index.
    """
    check_evidence(evidence, circuit.tokens, circuit.codes)
    width = circuit.tokens * (2 * circuit.codes + circuit.states) * circuit.states
    parts = [_mpe(circuit, evidence[rows], rows.start) for rows in circuit.turns(len(evidence), width)]
    return Explanation(*(torch.cat([getattr(p, name) for p in parts]) for name in ("tokens", "states", "log_value")))


def _mpe(circuit: Circuit, evidence: Tensor | SparseEvidence, first: int) -> Explanation:
    reading = read_evidence(circuit, evidence, first=first)  # for its checks
    if not circuit.is_safe:
        possible(circuit, reading.inputs, first)
    log_w = (evidence.dense(circuit.codes) if isinstance(evidence, SparseEvidence) else evidence).double()
    levels, log_weights = circuit.sums().levels, circuit.weights.double().log()
    tables = circuit.emissions if circuit.vocabulary.whole else circuit.emissions[:, circuit.compact]
    share = circuit.share.double().log()
    scored = [(tables[t].double().log() + (share + log_w[:, i])[..., None]).max(1) for i, t in enumerate(circuit.table)]
    inputs, choices = torch.stack([s.values for s in scored]), torch.stack([s.indices for s in scored])
    best: list[Tensor] = []
    message: Tensor | None = None
    for level in reversed(levels):
        parts = [level.inputs.gather(level.of_tokens(inputs))] if len(level.tokens) else []
        parts += [level.sums.gather(message)] if message is not None else []
        x = torch.stack(parts).sum(0)
        if level.latents.start:
            above = log_weights[level.latents.start - 1 : level.latents.stop - 1]
            found = (x[:, :, None, :] + above[:, None]).max(-1)
            message, choice = found.values, found.indices
            best.insert(0, choice)  # [latents, B, H]: the best state for each state of the parent
    value, root = (x[0] + circuit.root.double().log()).max(-1)
    states = torch.empty(len(root), len(circuit.graph.latents), dtype=torch.int64, device=root.device)
    states[:, 0] = root
    for level, choice in zip(levels[1:], best, strict=True):
        for k in range(level.latents.start, level.latents.stop):
            above = states[:, circuit.graph.parents[k]]
            states[:, k] = choice[k - level.latents.start].gather(1, above[:, None])[:, 0]
    tokens = choices.transpose(0, 1).gather(2, states[:, circuit.homes][..., None])[..., 0]
    return Explanation(tokens, states, value)
