"""The circuit: a distribution p(z) over grids of tokens whose posteriors under independent evidence are exact.

With evidence w_i(c) about each token, Z(w) = sum_z p(z) prod_i w_i(z_i). One pass up the tree gives log Z, one pass
down gives every p(z_i = c | w) = w_i(c) dZ/dw_i(c) / Z. The derivative dZ/dw_i(c) is the cavity message: it does not
depend on w_i (Darwiche 2003, doi 10.1145/765568.765570; Liu et al. 2024, arXiv 2401.03349, equations 5 to 8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from pipeline.circuit.evidence import check_known, check_ties, check_tokens
from pipeline.circuit.layers import Inputs, Ties, fold
from pipeline.circuit.passes import SMALLEST, Sums
from pipeline.circuit.regions import RegionGraph
from pipeline.circuit.vocabulary import Vocabulary

MEMORY = 2**28
"""Bytes of temporaries that a query may use at a time; batches that would need more are taken in turns."""


class Circuit(nn.Module):
    """A tree of latents with H states each, and a categorical emission for every token.

    Parameters are probabilities, not logits, held as buffers: they are counted, not descended. The queries are
    functions of the circuit, in `pipeline.circuit.queries`.

    Attributes:
        graph: the tree of latents.
        vocabulary: which codes are told apart.
        table: the emission table of each token.
        root: p(state of the root), [H].
        weights: p(state | state of the parent) of latents 1..R-1, [R - 1, H, H]; rows sum to 1.
        emissions: p(kept code | state), [T, K, H]; columns sum to 1.
        share: p(code | the kept code that stands for it), [V] float64.
        compact: the kept code that stands for each code, [V].
        memory: bytes of temporaries that a query may use.
    """

    root: Tensor
    weights: Tensor
    emissions: Tensor
    share: Tensor
    compact: Tensor
    homes: Tensor

    def __init__(
        self, graph: RegionGraph, *, states: int, vocabulary: Vocabulary, ties: Sequence[int] | None = None
    ) -> None:
        """Make a uniform circuit; `ties` names the emission table of each token (its own if not given).

        Raises:
            ConfigError: `ties` does not name a table for each variable.
        """
        super().__init__()
        self.graph, self.states, self.vocabulary, self.memory = graph, states, vocabulary, MEMORY
        self.table = tuple(range(graph.variables)) if ties is None else tuple(ties)
        check_ties(self.table, graph.variables)
        latents, kept, tables = len(graph.latents), len(vocabulary), max(self.table) + 1
        self.register_buffer("root", torch.full((states,), 1.0 / states))
        self.register_buffer("weights", torch.full((latents - 1, states, states), 1.0 / states))
        self.register_buffer("emissions", torch.full((tables, kept, states), 1.0 / kept))
        self.register_buffer("share", vocabulary.log_share.exp(), persistent=False)
        self.register_buffer("compact", vocabulary.compact, persistent=False)
        self.register_buffer("homes", torch.tensor(graph.homes), persistent=False)
        self._levels, self._ties = fold(graph), Ties.of(self.table)
        self._safe: tuple[tuple[int, ...], bool] = ((), True)

    @property
    def tokens(self) -> int:
        """Number N of tokens."""
        return self.graph.variables

    @property
    def codes(self) -> int:
        """Size V of the vocabulary, codes that are not kept included."""
        return self.vocabulary.codes

    def size(self) -> int:
        """Number of parameters."""
        return self.root.numel() + self.weights.numel() + self.emissions.numel()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Circuit:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.share = self.vocabulary.log_share.exp().to(self.root.device)  # float64, whatever `fn` made of it
        self._levels = tuple(level.to(self.root.device) for level in self._levels)
        self._ties = self._ties.to(self.root.device)
        return self

    def sums(self, dtype: torch.dtype | None = None) -> Sums:
        """The sum layers, factors of matrix products rounded to `dtype`."""
        return Sums(self._levels, self.root, self.weights, dtype)

    def inputs(self, dtype: torch.dtype | None = None) -> Inputs:
        """The input layer, factors of matrix products rounded to `dtype`."""
        return Inputs(self.emissions, self._ties, dtype)

    @property
    def is_safe(self) -> bool:
        """Whether linear arithmetic loses nothing: no parameter is 0 or nearly so."""
        buffers = (self.root, self.weights, self.emissions)
        frozen = any(b.is_inference() for b in buffers)  # such tensors do not tell when they change
        key = () if frozen else tuple(number for b in buffers for number in (b.data_ptr(), b._version))
        if frozen or key != self._safe[0]:
            least = min(float(b.detach().min()) for b in buffers if b.numel())
            self._safe = (key, least >= SMALLEST[self.root.dtype])
        return self._safe[1]

    @torch.no_grad()
    def randomize(self, generator: torch.Generator, concentration: float = 1.0) -> Circuit:
        """Draw all parameters from symmetric Dirichlet laws."""
        for values, axis in ((self.root, 0), (self.weights, 2), (self.emissions, 1)):
            alpha = torch.full(values.shape, concentration, dtype=torch.float64)
            drawn = torch._standard_gamma(alpha, generator=generator).clamp_min_(1e-12)
            values.copy_(drawn / drawn.sum(axis, keepdim=True))
        return self

    def read(self, tokens: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor]:
        """Check tokens and write them with kept codes.

        Returns:
            Kept codes [B, N], known tokens [B, N] or None for all, and the log-probability [B] float64 of the codes
            given the kept ones that stand for them.

        Raises:
            InputError: see `queries.log_prob`.
        """
        check_tokens(tokens, self.tokens, self.codes)
        known = check_known(known, tokens)
        if self.vocabulary.whole:
            return tokens, known, tokens.new_zeros(len(tokens), dtype=torch.float64)
        log_share = self.share.double().log()[tokens]
        if known is not None:
            log_share = log_share.masked_fill(~known, 0.0)
        return self.compact[tokens], known, log_share.sum(1)

    def turns(self, images: int, numbers: int) -> Iterator[slice]:
        """Stretches of images that stay within `memory`, at `numbers` numbers of temporaries each."""
        numbers *= 1 if self.is_safe else 2 * self.states  # the passes in logs hold pairs of states, in float64
        step = max(1, self.memory // (numbers * self.root.element_size()))
        yield from (slice(k, min(k + step, images)) for k in range(0, max(images, 1), step))
