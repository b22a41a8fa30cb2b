"""Which codes a circuit speaks about, and how the others are written with them.

Codes that hardly ever occur cost parameters and teach nothing. Each is counted as the nearest code that is kept, and
keeps a share of that code's probability, so that the circuit stays a distribution over *all* codes and its bits per
token can be compared with any other model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Vocabulary:
    """A map between V codes and K kept ones.

    Attributes:
        kept: the kept codes, ascending, [K] int64.
        compact: the position in `kept` that stands for each code, [V] int64.
        log_share: log p(code | the kept code that stands for it), [V] float64; 0 where a code stands for itself alone.
    """

    kept: Tensor
    compact: Tensor
    log_share: Tensor

    @classmethod
    def full(cls, codes: int) -> Vocabulary:
        """All codes stand for themselves."""
        everything = torch.arange(codes)
        return cls(everything, everything.clone(), torch.zeros(codes, dtype=torch.float64))

    @classmethod
    def pruned(cls, counts: Tensor, codebook: Tensor, least: int) -> Vocabulary:
        """Keep the codes that occur at least `least` times.

        Args:
            counts: occurrences in the training tokens, [V].
            codebook: vectors of the codes, [V, D]; a code that is not kept is counted as the nearest one that is.
            least: 0 keeps all.

        Raises:
            ConfigError: nothing would be kept.
        """
        kept = torch.nonzero(counts >= least).flatten()
        if not len(kept):
            raise ConfigError(f"no code occurs {least} times; lower circuit.least_uses")
        compact = torch.cdist(codebook.double(), codebook[kept].double()).argmin(1)
        compact[kept] = torch.arange(len(kept))  # also where two codes have the same vector
        counted = counts.double() + 0.5  # Krichevsky-Trofimov: a code that was never seen is possible
        total = torch.zeros(len(kept), dtype=torch.float64).index_add_(0, compact, counted)
        return cls(kept, compact, (counted / total[compact]).log())

    @classmethod
    def from_lists(cls, kept: Sequence[int], compact: Sequence[int], log_share: Sequence[float]) -> Vocabulary:
        """Read what was written as lists.

        Raises:
            ConfigError: kept codes are not ascending codes, a code is not written with one of them, a kept one not with
                itself, or the shares of those written with one kept code do not sum to 1.
        """
        codes = len(compact)
        if not kept or list(kept) != sorted(set(kept)) or not 0 <= kept[0] <= kept[-1] < codes:
            raise ConfigError(f"vocabulary.kept should hold some of the codes 0 to {codes - 1}, ascending")
        if not all(0 <= code < len(kept) for code in compact) or any(compact[c] != k for k, c in enumerate(kept)):
            raise ConfigError(
                f"vocabulary.compact should name one of the {len(kept)} kept codes for each of {codes}, for a kept one "
                "itself"
            )
        share = torch.tensor(log_share, dtype=torch.float64).exp()
        total = torch.zeros(len(kept), dtype=torch.float64)
        if len(share) == codes:
            total.index_add_(0, torch.tensor(compact), share)
        if not torch.allclose(total, torch.ones_like(total), rtol=0.0, atol=1e-6):
            raise ConfigError(
                f"vocabulary.log_share should hold {codes} logs of shares, which sum to 1 for each kept code"
            )
        return cls(torch.tensor(kept), torch.tensor(compact), torch.tensor(log_share, dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def codes(self) -> int:
        """Size V of the whole vocabulary."""
        return len(self.compact)

    @property
    def whole(self) -> bool:
        """Whether every code is kept."""
        return len(self) == self.codes
