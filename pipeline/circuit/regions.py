"""Region graphs: the structure of a circuit as data, checked when it is made.

A region is a set of variables that a part of the circuit speaks about (Poon and Domingos 2011, arXiv 1202.3732). Here
every inner region carries one latent variable: its product layer multiplies what its parts say about each latent state,
and a sum layer mixes the states for the region above. An input region speaks about one token. So a region graph whose
regions each have one partition is the same thing as a rooted tree of latents with tokens hanging from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from pipeline.errors import ConfigError


class StructureError(ConfigError):
    """A region graph is not smooth, not decomposable or not a tree; the message names the region."""


@dataclass(frozen=True)
class Region:
    """A set of variables and how it is taken apart.

    Attributes:
        scope: the variables, ascending.
        parts: indices of the regions it consists of; none for an input region, which has one variable.
    """

    scope: tuple[int, ...]
    parts: tuple[int, ...] = ()


@dataclass(frozen=True)
class RegionGraph:
    """A tree of regions; the last one is the root and speaks about all variables.

    Attributes:
        regions: parts come before what they are parts of.

    Raises:
        StructureError: see `check`.
    """

    regions: tuple[Region, ...]

    def __post_init__(self) -> None:
        check(self.regions)

    @cached_property
    def variables(self) -> int:
        """Number N of variables."""
        return len(self.regions[-1].scope)

    @cached_property
    def latents(self) -> tuple[int, ...]:
        """The inner regions, level by level from the root and by their parents within a level.

        Their positions in this list are how the rest of the package numbers latents: the root is latent 0, and the
        latents of one depth are neighbours.
        """
        return tuple(region for level in self._levels for region in level)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """How many latents each depth has, from the root."""
        return tuple(len(level) for level in self._levels)

    @cached_property
    def parents(self) -> tuple[int, ...]:
        """The latent above each latent; -1 for the root."""
        number = {region: k for k, region in enumerate(self.latents)}
        above = {part: number[r] for r in self.latents for part in self.regions[r].parts}
        return tuple(above.get(region, -1) for region in self.latents)

    @cached_property
    def homes(self) -> tuple[int, ...]:
        """The latent from which each variable hangs."""
        homes = [0] * self.variables
        for k, region in enumerate(self.latents):
            for part in self.regions[region].parts:
                if not self.regions[part].parts:
                    homes[self.regions[part].scope[0]] = k
        return tuple(homes)

    @cached_property
    def _levels(self) -> list[list[int]]:
        levels = [[len(self.regions) - 1]]
        while below := [p for r in levels[-1] for p in self.regions[r].parts if self.regions[p].parts]:
            levels.append(below)
        return levels

    def scope(self, latent: int) -> tuple[int, ...]:
        """The variables below a latent."""
        return self.regions[self.latents[latent]].scope

    def to_json(self) -> dict[str, Any]:
        """The tree of latents as plain lists, which `from_json` reads."""
        return {"parents": list(self.parents), "homes": list(self.homes)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RegionGraph:
        """Read `to_json`.

        Raises:
            StructureError: the lists are no tree of latents.
        """
        return latent_tree(value["parents"], value["homes"])


def latent_tree(parents: Sequence[int], homes: Sequence[int]) -> RegionGraph:
    """The region graph of any rooted tree of latents.

    Args:
        parents: the latent above each latent, -1 for the one root.
        homes: the latent from which each variable hangs.

    Raises:
        StructureError: not one root, a cycle, a name that is no latent, or a latent with no variable below it.
    """
    roots = [k for k, parent in enumerate(parents) if parent == -1]
    strange = [k for k, parent in enumerate(parents) if not -1 <= parent < len(parents)]
    strange += [v for v, home in enumerate(homes) if not 0 <= home < len(parents)]
    if len(roots) != 1 or strange:
        raise StructureError(
            f"a tree of latents needs one root (parent -1) and parents and homes among its {len(parents)} latents; "
            f"found {len(roots)} roots and {len(strange)} others."
        )
    below: list[list[int]] = [[] for _ in parents]
    for k, parent in enumerate(parents):
        if parent >= 0:
            below[parent].append(k)
    order = roots.copy()
    for k in order:
        order.extend(below[k])
    if len(order) < len(parents):
        lost = sorted(set(range(len(parents))) - set(order))
        raise StructureError(f"latents {lost[:8]} are not below the root: their parents form a cycle.")
    regions = [Region((v,)) for v in range(len(homes))]
    number: dict[int, int] = {}
    for k in reversed(order):
        parts = [v for v, home in enumerate(homes) if home == k] + [number[child] for child in below[k]]
        scope = tuple(sorted(v for part in parts for v in regions[part].scope))
        number[k] = len(regions)
        regions.append(Region(scope, tuple(parts)))
    return RegionGraph(tuple(regions))


def check(regions: Sequence[Region]) -> None:
    """Refuse what would not be a normalised distribution with exact queries.

    Raises:
        StructureError: a product of parts that share a variable (not decomposable), a region whose parts do not cover
            exactly its scope, so that a sum would mix different scopes (not smooth), an input region without exactly
            one variable, a region that is part of none or of several, or variables other than 0..N-1.
    """
    if not regions:
        raise StructureError("a region graph needs at least one region, but has none.")
    uses = [0] * len(regions)
    for k, region in enumerate(regions):
        if not region.parts and len(region.scope) != 1:
            raise StructureError(f"region {k} has no parts, so it must have one variable, but has {region.scope}.")
        if any(not 0 <= part < k for part in region.parts):
            raise StructureError(f"region {k} has parts {region.parts}, but parts must come before it.")
        for part in region.parts:
            uses[part] += 1
        if region.parts:
            _check_partition(k, region, [regions[part].scope for part in region.parts])
    if regions[-1].parts == ():
        raise StructureError("the last region is the root and must have parts, but is an input region.")
    wrong = [k for k, count in enumerate(uses) if count != (k < len(regions) - 1)]
    if wrong:
        raise StructureError(f"region {wrong[0]} is part of {uses[wrong[0]]} regions; in a tree it is part of one.")
    if regions[-1].scope != tuple(range(len(regions[-1].scope))):
        raise StructureError("the root must speak about the variables 0..N-1, each once, in ascending order.")


def _check_partition(k: int, region: Region, scopes: list[tuple[int, ...]]) -> None:
    together = sorted(v for scope in scopes for v in scope)
    shared = sorted({a for a, b in pairwise(together) if a == b})
    if shared:
        raise StructureError(f"region {k} is not decomposable: its parts share the variables {shared[:8]}.")
    if tuple(together) != region.scope:
        odd = sorted(set(together) ^ set(region.scope))
        raise StructureError(f"region {k} is not smooth: its parts and its scope differ in the variables {odd[:8]}.")
