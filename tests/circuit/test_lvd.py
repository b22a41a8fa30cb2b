"""Latent variable distillation: clustering, structure learning, teachers, counting."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import mutual_info_score

from pipeline.circuit.chow_liu import hclt, mutual_information
from pipeline.circuit.circuit import Circuit
from pipeline.circuit.em import Smoothing, maximise, own_statistics, prior
from pipeline.circuit.kmeans import kmeans
from pipeline.circuit.lvd import alike, assign, count_labels, regions
from pipeline.circuit.queries import bits_per_token
from pipeline.circuit.regions import latent_tree
from pipeline.circuit.sampling import sample
from pipeline.circuit.structures import quadtree, rooted, ties
from pipeline.circuit.teachers import code_features, context_features, embed
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.noise import Noise


def blobs(sets=3, count=120, clusters=4, dim=2):
    generator = torch.Generator().manual_seed(0)
    centres = 10.0 * torch.randn(sets, clusters, dim, generator=generator)
    labels = torch.randint(clusters, (sets, count), generator=generator)
    points = centres.gather(1, labels[..., None].expand(-1, -1, dim))
    return points + 0.1 * torch.randn(sets, count, dim, generator=generator), labels


def test_kmeans_finds_what_is_apart():
    points, truth = blobs()
    labels, centres = kmeans(points, 4, seed=1)
    assert centres.shape == (3, 4, 2)
    for found, true in zip(labels, truth, strict=True):
        assert mutual_info_score(found, true) == pytest.approx(mutual_info_score(true, true), abs=1e-9)


def test_kmeans_is_about_as_good_as_the_reference():
    points = torch.randn(1, 500, 5, generator=torch.Generator().manual_seed(3))
    labels, centres = kmeans(points, 10, seed=0)
    own = float((points[0] - centres[0][labels[0]]).square().sum())
    reference = KMeans(10, n_init=1, random_state=0).fit(points[0].numpy()).inertia_
    assert own < 1.05 * reference


def test_a_set_is_clustered_the_same_whatever_its_neighbours(monkeypatch):
    points, _ = blobs(sets=5)
    together = kmeans(points, 3, seed=2)
    monkeypatch.setattr("pipeline.circuit.kmeans.MANY", 1)
    alone = kmeans(points, 3, seed=2)
    assert torch.equal(together[0], alone[0])
    assert torch.allclose(together[1], alone[1])


def test_of_many_points_some_make_the_centres_and_all_are_labelled(monkeypatch):
    points, truth = blobs()
    monkeypatch.setattr("pipeline.circuit.kmeans.ENOUGH", points.shape[1] // 3)
    labels, centres = kmeans(points, 4, seed=1)
    for found, true in zip(labels, truth, strict=True):
        assert mutual_info_score(found, true) == pytest.approx(mutual_info_score(true, true), abs=1e-9)
    assert torch.equal(labels, torch.cdist(points, centres).argmin(-1))


def test_more_clusters_than_points_is_no_trouble():
    points = torch.tensor([[[0.0], [0.0], [1.0]]])
    labels, centres = kmeans(points, 5, seed=0)
    assert torch.isfinite(centres).all()
    assert labels[0, 0] == labels[0, 1] != labels[0, 2]


def test_mutual_information_is_the_textbook_one():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, (300, 6))
    tokens[:, 1] = (tokens[:, 0] + rng.integers(0, 2, 300)) % 4
    information = mutual_information(torch.from_numpy(tokens), 4)
    for a, b in itertools.combinations(range(6), 2):
        assert information[a, b] == pytest.approx(mutual_info_score(tokens[:, a], tokens[:, b]), abs=1e-6)


@pytest.mark.parametrize("groups", [4, 16])
def test_the_tree_that_made_the_tokens_is_found(groups):
    parents = [-1, 0, 0, 1, 1, 2, 2, 3, 3]
    codes = 6
    generator = torch.Generator().manual_seed(1)
    tokens = torch.empty(4000, 9, dtype=torch.int64)
    for v, parent in enumerate(parents):
        fresh = torch.randint(codes, (4000,), generator=generator)
        keep = torch.rand(4000, generator=generator) < 0.8
        tokens[:, v] = fresh if parent < 0 else torch.where(keep, tokens[:, parent], fresh)
    graph = hclt(tokens, torch.eye(codes), groups=groups, seed=0)
    token_of = {home: v for v, home in enumerate(graph.homes)}
    found = {frozenset((token_of[k], token_of[p])) for k, p in enumerate(graph.parents) if p >= 0}
    assert found == {frozenset((v, p)) for v, p in enumerate(parents) if p >= 0}


def test_a_tree_is_rooted_at_its_centre():
    path = [(k, k + 1) for k in range(8)]
    parents = rooted(path, 9)
    assert parents.index(-1) == 4
    assert sorted(frozenset((k, p)) for k, p in enumerate(parents) if p >= 0) == sorted(map(frozenset, path))


def test_embedded_codes_have_unit_mean_square():
    tokens = torch.randint(20, (50, 16), generator=torch.Generator().manual_seed(0))
    vectors = embed(tokens, 5.0 + 3.0 * torch.randn(20, 24, generator=torch.Generator().manual_seed(1)))
    assert vectors.shape == (50, 16, 8)
    assert vectors.square().mean() == pytest.approx(1.0, abs=1e-4)
    assert vectors.mean((0, 1)).abs().max() < 1e-4


def test_code_features_are_means_over_quarters():
    embedded = torch.randn(3, 64, 2, generator=torch.Generator().manual_seed(0))
    pair, block, single = (0, 1), (0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27), (5,)
    found = code_features(embedded, [pair, block, single])
    assert torch.equal(found[0], embedded[:, :2].flatten(1))
    assert torch.allclose(found[1][:, :2], embedded[:, [0, 1, 8, 9]].mean(1))
    assert found[1].shape == (3, 8)
    assert torch.equal(found[2], embedded[:, 5])


def test_context_features_know_what_the_surroundings_tell_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn(600, 64, 2, generator=generator)
    embedded[:, 1] = embedded[:, 0] + 0.1 * torch.randn(600, 2, generator=generator)
    told, untold = context_features(embedded, [(1,), (63,)])
    assert ((told - embedded[:, 1]).square().mean() / embedded[:, 1].square().mean()) < 0.1
    assert ((untold - embedded[:, 63]).square().mean() / embedded[:, 63].square().mean()) > 0.7


def test_context_features_do_not_look_at_the_region():
    """Changing one image's own tokens must not change what is expected there, but for the regression's own fit."""
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn(3000, 64, 2, generator=generator)
    region = (9, 10, 17, 18)
    other = embedded.clone()
    other[0, list(region)] = 100.0 * torch.randn(4, 2, generator=generator)
    first, second = context_features(embedded, [region])[0], context_features(other, [region])[0]
    # the fit sees image 0 as one of 3000; its own expectation moves no more than that of the others
    moved = (first - second).norm(dim=1)
    assert moved[0] < 5.0 * moved[1:].max()
    assert moved[0] < 0.1 * (other[0] - embedded[0])[list(region)].norm()


@pytest.mark.parametrize("tie", ["untied", "blocks", "shared"])
@pytest.mark.parametrize("graph", [quadtree(8), latent_tree([-1, *range(63)], range(64))], ids=["quad-tree", "chain"])
def test_labels_are_counted_exactly(graph, tie):
    made = Circuit(graph, states=3, vocabulary=Vocabulary.full(5), ties=ties(tie, 8))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, (20, 64), generator=generator)
    labels = torch.randint(3, (20, len(graph.latents)), generator=generator)
    counted = count_labels(made, tokens, labels)
    weights, emissions = torch.zeros_like(made.weights), torch.zeros_like(made.emissions)
    for image in range(20):
        for latent in range(1, len(graph.latents)):
            weights[latent - 1, labels[image, graph.parents[latent]], labels[image, latent]] += 1
        for token in range(64):
            emissions[made.table[token], tokens[image, token], labels[image, graph.homes[token]]] += 1
    assert torch.equal(counted.weights, weights)
    assert torch.equal(counted.emissions, emissions)
    assert counted.root.tolist() == torch.bincount(labels[:, 0], minlength=3).tolist()


def test_latents_of_one_table_share_their_clusters():
    graph = latent_tree([-1, 0, 1, 2], range(4))
    made = Circuit(graph, states=4, vocabulary=Vocabulary.full(4), ties=(0, 0, 0, 1))
    assert sorted(map(sorted, alike(made))) == [[0, 1, 2], [3]]
    points, _ = blobs(sets=1, count=200)
    features = [points[0][50 * k : 50 * (k + 1)] for k in range(4)]
    labels = assign(made, features, seed=0)
    flat = torch.cat([labels[:, 0], labels[:, 1], labels[:, 2]])
    near = torch.cdist(points[0][:150], points[0][:150]) < 2.0
    assert torch.equal(near, flat[:, None] == flat[None])


def test_regions_of_a_quad_tree_are_its_blocks():
    found = regions(quadtree(4))
    assert found[0] == tuple(range(16))
    assert found[1] == (0, 1, 4, 5)


def test_distillation_starts_better_than_chance():
    """Tokens of a known circuit; counted labels of clustered contexts beat a random start by half a bit."""
    truth = Circuit(quadtree(8), states=4, vocabulary=Vocabulary.full(8))
    truth.randomize(torch.Generator().manual_seed(2), 0.15)
    tokens = sample(truth, Noise(range(600)), 600)[:, 0]
    codebook = torch.eye(8)
    made = Circuit(quadtree(8), states=4, vocabulary=Vocabulary.full(8))
    rule = prior(made, tokens[:500], codebook, Smoothing())
    features = code_features(embed(tokens[:500], codebook), regions(made.graph))
    maximise(made, count_labels(made, tokens[:500], assign(made, features, seed=0)), rule)
    distilled = bits_per_token(made, tokens[500:])
    made.randomize(torch.Generator().manual_seed(0))
    maximise(made, own_statistics(made, 500), rule)
    assert distilled < bits_per_token(made, tokens[500:]) - 0.3
    assert distilled < math.log2(8)
