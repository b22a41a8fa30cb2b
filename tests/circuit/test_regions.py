"""Region graphs: what is refused and by which name, and how latents are numbered."""

import itertools

import numpy as np
import pytest
import torch

from circuit.worlds import WORLDS, random_tree
from pipeline.circuit.circuit import Circuit
from pipeline.circuit.layers import Ties, fold
from pipeline.circuit.regions import Region, RegionGraph, StructureError, latent_tree
from pipeline.circuit.structures import quadtree, rooted, ties
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.errors import ConfigError

LEAVES = [Region((v,)) for v in range(4)]  # regions 0..3


def as_nested(parents, homes):
    """A tree of latents without its numbering: nested frozensets of tokens and children."""

    def below(k):
        tokens = frozenset(v for v, home in enumerate(homes) if home == k)
        children = sorted((below(child) for child, parent in enumerate(parents) if parent == k), key=repr)
        return tokens, tuple(children)

    return below(list(parents).index(-1))


REFUSED = {
    "shared variable": ([*LEAVES, Region((0, 1), (0, 1)), Region((0, 1, 2, 3), (4, 1, 2, 3))], r"region 5 .*\b1\b"),
    "scope lacks a variable": (
        [*LEAVES, Region((0,), (0, 1)), Region((0, 1, 2, 3), (4, 2, 3))],
        "region 4 is not smooth",
    ),
    "scope adds a variable": (
        [*LEAVES, Region((0, 1, 2), (0, 1)), Region((0, 1, 2, 3), (4, 3))],
        "region 4 is not smooth",
    ),
    "its own part": ([*LEAVES, Region((0, 1), (0, 4)), Region((0, 1, 2, 3), (4, 1, 2, 3))], "region 4 has parts"),
    "cycle": (
        [*LEAVES, Region((0, 1), (0, 5)), Region((0, 1), (4, 1)), Region((0, 1, 2, 3), (5, 2, 3))],
        "region 4 has",
    ),
    "two roots": ([*LEAVES, Region((0, 1), (0, 1)), Region((2, 3), (2, 3))], "region 4 is part of 0 regions"),
    "used twice": (
        [*LEAVES[:2], Region((0, 1), (0, 1)), Region((0, 1), (2,)), Region((0, 1), (2,))],
        "region 2 is part of 2 regions",
    ),
    "two variables at an input": ([Region((0, 1)), Region((0, 1), (0,))], "region 0 has no parts"),
    "no variable at an input": ([Region(()), Region((0,)), Region((0,), (0, 1))], "region 0 has no parts"),
    "negative part": ([*LEAVES, Region((0, 1, 2, 3), (-1, 0, 1, 2))], "region 4 has parts"),
    "a token alone": ([Region((0,))], "the root"),
    "variables from 1": ([Region((1,)), Region((2,)), Region((1, 2), (0, 1))], "0..N-1"),
    "nothing": ([], "at least one region"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_graph_without_exact_queries_is_refused_by_the_name_of_its_region(case):
    regions, message = REFUSED[case]
    with pytest.raises(StructureError, match=message):
        RegionGraph(tuple(regions))


def test_the_same_leaves_make_a_graph_when_nothing_is_wrong():
    graph = RegionGraph((*LEAVES, Region((0, 2), (0, 2)), Region((0, 1, 2, 3), (1, 4, 3))))
    assert (graph.parents, graph.homes, graph.depths) == ((-1, 0), (1, 0, 1, 0), (1, 1))
    assert graph.scope(0) == (0, 1, 2, 3)
    assert graph.scope(1) == (0, 2)


TREES = {
    "no root": ([1, 0], [0, 1], "found 0 roots"),
    "two roots": ([-1, -1], [0, 1], "found 2 roots"),
    "cycle beside the root": ([-1, 2, 1], [0, 1, 2], r"\[1, 2\].*cycle"),
    "own parent": ([-1, 1], [0, 1], r"\[1\].*cycle"),
    "strange parent": ([-1, 7], [0, 1], "1 others"),
    "strange home": ([-1, 0], [0, 2], "1 others"),
    "latent without variables": ([-1, 0, 0], [0, 1], "must have one variable"),
    "no latents": ([], [], "found 0 roots"),
}


@pytest.mark.parametrize("case", TREES)
def test_lists_that_are_no_tree_of_latents_are_refused(case):
    parents, homes, message = TREES[case]
    with pytest.raises(StructureError, match=message):
        latent_tree(parents, homes)


@pytest.mark.parametrize("seed", range(12))
def test_breaking_a_random_tree_in_any_of_four_ways_is_refused(seed):
    """From a sound graph: a part listed twice, left out, exchanged for one from elsewhere, or a scope that lost one."""
    rng = np.random.default_rng(seed)
    regions = list(random_tree(5, 9, seed).regions)
    inner = [k for k, region in enumerate(regions) if region.parts]
    k = int(rng.choice([k for k in inner if len(regions[k].parts) > 1]))
    region = regions[k]
    other = next(v for v in range(9) if (v in region.parts) is False)
    for broken in (
        Region(region.scope, (*region.parts, region.parts[0])),
        Region(region.scope, region.parts[1:]),
        Region(region.scope, (*region.parts[1:], other)),
        Region(region.scope[1:], region.parts),
    ):
        with pytest.raises(StructureError, match=r"region \d+ |the root"):
            RegionGraph(tuple([*regions[:k], broken, *regions[k + 1 :]]))


@pytest.mark.parametrize("seed", range(12))
def test_latents_are_numbered_level_by_level_and_the_tree_stays_the_tree(seed):
    rng = np.random.default_rng(100 + seed)
    latents = 1 + seed
    parents = [-1, *(int(rng.integers(k)) for k in range(1, latents))]
    names = rng.permutation(latents)  # under any names
    renamed = [0] * latents
    for k, parent in enumerate(parents):
        renamed[names[k]] = -1 if parent < 0 else int(names[parent])
    homes = [int(k) for k in [*range(latents), *rng.integers(latents, size=4)]]
    graph = latent_tree(renamed, homes)
    assert as_nested(graph.parents, graph.homes) == as_nested(renamed, homes)
    assert graph.parents[0] == -1
    assert list(graph.parents) == sorted(graph.parents)  # by their parents, so level by level
    depth = [0] * latents
    for k in range(1, latents):
        depth[k] = depth[graph.parents[k]] + 1
    assert graph.depths == tuple(depth.count(d) for d in range(max(depth) + 1))
    assert sum(graph.depths) == latents


@pytest.mark.parametrize("name", WORLDS)
def test_a_graph_survives_json(name):
    graph = WORLDS[name].graph()
    again = RegionGraph.from_json(graph.to_json())
    assert (again.parents, again.homes, again.depths) == (graph.parents, graph.homes, graph.depths)
    assert again == graph


def test_a_graph_made_of_regions_in_another_order_survives_json_by_its_latents():
    graph = RegionGraph((*LEAVES, Region((0, 2), (2, 0)), Region((0, 1, 2, 3), (3, 4, 1))))
    again = RegionGraph.from_json(graph.to_json())
    assert again.to_json() == graph.to_json() == {"parents": [-1, 0], "homes": [1, 0, 1, 0]}


@pytest.mark.parametrize("side", [2, 4, 8, 16])
def test_a_quad_tree_halves_both_axes(side):
    graph = quadtree(side)
    assert graph.depths == tuple(4**d for d in range(side.bit_length() - 1))
    for k in range(len(graph.latents)):
        rows, columns = ({v // side for v in graph.scope(k)}, {v % side for v in graph.scope(k)})
        block = max(rows) - min(rows) + 1
        assert len(rows) == len(columns) == block
        assert graph.scope(k) == tuple(r * side + c for r, c in itertools.product(sorted(rows), sorted(columns)))
        assert min(rows) % block == min(columns) % block == 0


@pytest.mark.parametrize("side", [0, 1, 3, 6])
def test_a_quad_tree_of_another_side_is_refused(side):
    with pytest.raises(ConfigError, match=f"it is {side}"):
        quadtree(side)


@pytest.mark.parametrize("seed", range(10))
def test_rooting_a_tree_at_its_centre_keeps_its_edges_and_has_the_fewest_levels(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 15))
    edges = [(int(rng.integers(k)), k) for k in range(1, count)]

    def depth(parents):
        return max(sum(1 for _ in ancestors(parents, k)) for k in range(count))

    def ancestors(parents, k):
        while parents[k] >= 0:
            k = parents[k]
            yield k

    def hung(root):
        parents, near = {root: -1}, {k: [] for k in range(count)}
        for a, b in edges:
            near[a].append(b)
            near[b].append(a)
        todo = [root]
        for k in todo:
            for other in near[k]:
                if other not in parents:
                    parents[other] = k
                    todo.append(other)
        return parents

    parents = rooted(edges, count)
    assert parents.count(-1) == 1
    assert {frozenset((k, p)) for k, p in enumerate(parents) if p >= 0} == {frozenset(edge) for edge in edges}
    assert depth(parents) == min(depth(hung(root)) for root in range(count))


def test_ties_of_a_grid():
    assert ties("untied", 4) == tuple(range(16))
    assert ties("shared", 4) == (0,) * 16
    blocks = ties("blocks", 8)
    assert sorted(set(blocks)) == [0, 1, 2, 3]
    assert [blocks[8 * row + column] for row, column in ((0, 0), (3, 3), (0, 4), (4, 3), (4, 4))] == [0, 0, 1, 2, 3]
    assert Ties.of(blocks).members[3].tolist() == [8 * row + column for row in range(4, 8) for column in range(4, 8)]
    with pytest.raises(ConfigError, match="it is 6"):
        ties("blocks", 6)


@pytest.mark.parametrize("table", [(), (0, 1, 2), (0, 2, 2, 0), (-1, 0, 1, 2), (0, 0, 0, 0, 0)])
def test_ties_that_do_not_name_a_table_for_each_token_are_refused(table):
    with pytest.raises(ConfigError, match="each of 4 tokens"):
        Circuit(quadtree(2), states=2, vocabulary=Vocabulary.full(3), ties=table)


@pytest.mark.parametrize("name", WORLDS)
def test_layers_hold_every_latent_and_token_once(name):
    graph = WORLDS[name].graph()
    levels = fold(graph)
    assert [k for level in levels for k in range(level.latents.start, level.latents.stop)] == list(
        range(len(graph.parents))
    )
    assert sorted(v for level in levels for v in level.tokens.tolist()) == list(range(graph.variables))
    for level in levels:
        owners = level.inputs.owners + level.latents.start
        assert owners.tolist() == [graph.homes[v] for v in level.tokens.tolist()]
    messages = torch.arange(graph.variables * 2.0).view(graph.variables, 1, 2)
    for level in levels:
        if len(level.tokens):
            summed = level.inputs.gather(level.of_tokens(messages))
            for k in range(level.latents.start, level.latents.stop):
                mine = [v for v, home in enumerate(graph.homes) if home == k]
                assert torch.equal(summed[k - level.latents.start], messages[mine].sum(0))
