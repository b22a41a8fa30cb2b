"""What a circuit is told about each token, checked at the border."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import ConfigError, InputError


@dataclass(frozen=True)
class SparseEvidence:
    """Evidence that distinguishes only some codes of each token, for large vocabularies.

    All other codes share one weight. Their part of a sum over codes is known without looking at them, because emissions
    sum to 1; so what this says is exact, and only what was merged into `log_rest` is lost.

    Attributes:
        codes: the codes told apart, [B, N, S] int64, distinct within a token.
        log_w: their log-evidence, [B, N, S].
        log_rest: log-evidence of every other code, [B, N]; -inf rules them out.
    """

    codes: Tensor
    log_w: Tensor
    log_rest: Tensor

    @classmethod
    def top(cls, log_w: Tensor, codes: int) -> SparseEvidence:
        """Keep the `codes` likeliest of dense evidence [B, N, V]; the others get the mean of their weights.

        Raises:
            ConfigError: there are not as many codes.
        """
        if not 0 < codes <= log_w.shape[-1]:
            raise ConfigError(f"top-s evidence needs 1 to {log_w.shape[-1]} codes, but s is {codes}")
        values, chosen = log_w.topk(codes, dim=-1)
        others = log_w.scatter(-1, chosen, float("-inf"))
        left = log_w.shape[-1] - codes
        rest = torch.logsumexp(others, -1) - torch.log(torch.tensor(float(max(left, 1))))
        return cls(chosen, values, rest)

    def dense(self, codes: int) -> Tensor:
        """The same as dense evidence [B, N, V]."""
        return self.log_rest[..., None].repeat(1, 1, codes).scatter(-1, self.codes, self.log_w)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: slice) -> SparseEvidence:
        return SparseEvidence(self.codes[rows], self.log_w[rows], self.log_rest[rows])


def check_ties(table: Sequence[int], tokens: int) -> None:
    """Refuse ties that do not name a table for each token.

    Raises:
        ConfigError: another number of tokens, or table numbers that are not 0..T-1.
    """
    names = sorted(set(table))
    if len(table) != tokens or names != [*range(len(names))]:
        raise ConfigError(
            f"ties must name one of the tables 0..T-1 for each of {tokens} tokens, but there are {len(table)} names, "
            f"{len(names)} different ones up to {max(table, default=-1)}"
        )


def check_tokens(tokens: Tensor, count: int, codes: int) -> None:
    """Refuse what is no batch of token grids [B, N] int64 in [0, V).

    Raises:
        InputError: shape, type or range; the message names the first token outside.
    """
    if tokens.ndim != 2 or tokens.shape[1] != count or tokens.dtype != torch.int64:
        raise InputError(f"expected tokens [B, {count}] int64, got {tuple(tokens.shape)} {tokens.dtype}.")
    wrong = torch.nonzero((tokens < 0) | (tokens >= codes))
    if len(wrong):
        value = int(tokens[tuple(wrong[0])])
        raise InputError(f"{_where(wrong)}: expected a code from 0 to {codes - 1}, got {value}.")


def check_known(known: Tensor | None, tokens: Tensor) -> Tensor | None:
    """Bring `known` [B, N] or [N] bool to the shape of `tokens`.

    Raises:
        InputError: another shape or type.
    """
    if known is None:
        return None
    if known.dtype != torch.bool or known.shape not in (tokens.shape, tokens.shape[1:]):
        raise InputError(
            f"expected known [{len(tokens)}, {tokens.shape[1]}] bool (True = known), got {tuple(known.shape)} "
            f"{known.dtype}."
        )
    return known.expand_as(tokens)


def check_evidence(evidence: Tensor | SparseEvidence, count: int, codes: int) -> None:
    """Refuse evidence of another shape than [B, N, V], or not of floating-point numbers.

    Raises:
        InputError: shape or type is another, or sparse codes lie outside the vocabulary.
    """
    dtype = (evidence.log_w if isinstance(evidence, SparseEvidence) else evidence).dtype
    if not dtype.is_floating_point:
        raise InputError(f"expected log-evidence as floating-point numbers, got {dtype}.")
    if isinstance(evidence, SparseEvidence):
        shape, s = tuple(evidence.codes.shape), evidence.codes.shape[-1]
        if (
            len(shape) != 3
            or shape[1] != count
            or evidence.log_w.shape != shape
            or evidence.log_rest.shape != shape[:2]
        ):
            raise InputError(f"expected sparse evidence about {count} tokens, [B, {count}, S], got {shape}.")
        wrong = torch.nonzero((evidence.codes < 0) | (evidence.codes >= codes))
        if len(wrong) or s > codes:
            raise InputError(f"{_where(wrong)}: sparse evidence names a code outside 0..{codes - 1}.")
    elif evidence.ndim != 3 or evidence.shape[1:] != (count, codes):
        raise InputError(f"expected log-evidence [B, {count}, {codes}], got {tuple(evidence.shape)}.")


def check_largest(largest: Tensor, first: int = 0) -> None:
    """Refuse evidence whose largest log-weights [B, N] are not finite; `first` is the number of the first image.

    Raises:
        InputError: NaN, +inf, or every code ruled out; the message names image and tokens.
    """
    if bool(largest.isfinite().all()):
        return
    for wrong, what in (
        (largest.isnan() | largest.isposinf(), "log-evidence is NaN or +inf; weights must be finite and at least 0"),
        (largest.isneginf(), "every code is ruled out; evidence must leave at least one possible"),
    ):
        if bool(wrong.any()):
            raise InputError(f"{_where(torch.nonzero(wrong), first)}: {what}.")


def _where(places: Tensor, first: int = 0) -> str:
    """Image and tokens of the first image in places [n, >=2]."""
    image = int(places[0, 0])
    tokens = sorted({int(place[1]) for place in places if int(place[0]) == image})
    named = ", ".join(map(str, tokens[:8])) + (", ..." if len(tokens) > 8 else "")
    return f"image {first + image}, token{'s' if len(tokens) > 1 else ''} {named}"
