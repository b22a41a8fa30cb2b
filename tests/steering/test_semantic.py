"""References as evidence against enumeration, their compatibility, and fusion on models small enough to foresee."""

import math

import numpy as np
import pytest
import torch

from circuit.worlds import WORLDS, enumerated, make
from pipeline.circuit.circuit import Circuit
from pipeline.circuit.queries import log_evidence, posterior
from pipeline.circuit.regions import latent_tree
from pipeline.circuit.structures import quadtree
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.codec.codec import Codec
from pipeline.codec.vqgan import VQGAN, VQGANParams
from pipeline.diffusion.analytic import MixtureDenoiser
from pipeline.diffusion.sampling import sample
from pipeline.diffusion.schedule import Schedule
from pipeline.errors import ConfigError, InputError
from pipeline.noise import Noise
from pipeline.steering.calibration import CLASSES, SHARES, Calibration, Level
from pipeline.steering.evidence import distances, features_of
from pipeline.steering.prior import TokenPrior
from pipeline.steering.semantic import (
    Claim,
    Compatibility,
    Fusion,
    Reference,
    ReferenceGuide,
    compatibility,
    distance,
    fuse,
    joined,
    read,
    spread,
)

torch.set_num_threads(1)

SMALL = [name for name in WORLDS if not name.startswith("4x4")]
SIZE, CODES, DIM = 16, 8, 4
SEEDS = [1, 2, 3]


def claims_about(circuit, count, seed, batch=2):
    """Random laws, with coverages of which some are 0 and some 1; every claim says something."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, batch, circuit.tokens)
    log_q = torch.randn(*shape, circuit.codes, generator=generator, dtype=torch.float64).mul(2).log_softmax(-1)
    coverage = (2.0 * torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5).clamp(0.0, 1.0)
    coverage[..., 0] = 0.5
    return [Claim(log_q=q, coverage=c) for q, c in zip(log_q, coverage, strict=True)]


def hard(tokens, codes, covered, certainty=1.0 - 1e-9):
    """A claim that names a code of each covered token."""
    rest = (1.0 - certainty) / (codes - 1)
    law = torch.full((1, len(tokens), codes), rest, dtype=torch.float64)
    law[0, torch.arange(len(tokens)), torch.tensor(tokens)] = certainty
    return Claim(log_q=law.log(), coverage=torch.tensor([covered], dtype=torch.float64))


# --- evidence and compatibility, against enumeration ---


@pytest.mark.parametrize("coherence", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", SMALL)
def test_evidence_is_the_product_over_references(name, coherence):
    circuit, world = make(name), enumerated(name)
    claims = claims_about(circuit, 3, seed=1)
    found = log_evidence(circuit, joined(claims, coherence))
    for image in range(2):
        w = np.ones((circuit.tokens, circuit.codes))
        for i in range(circuit.tokens):
            for claim in claims:
                w[i] *= claim.log_q[image, i].exp().numpy() ** (coherence * float(claim.coverage[image, i]))
        assert float(found[image]) == pytest.approx(math.log((world.p * world.weights(w)).sum()), abs=1e-10)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", SMALL)
def test_compatibility_is_the_enumerated_ratio(name, count):
    circuit, world = make(name), enumerated(name)
    claims = claims_about(circuit, count, seed=2)
    found = compatibility(circuit, claims)
    for image in range(2):
        apart = [world.p @ world.weights(claim.log_w[image].exp().numpy()) for claim in claims]
        together = world.p @ np.prod([world.weights(claim.log_w[image].exp().numpy()) for claim in claims], 0)
        assert float(found.nats[image]) == pytest.approx(math.log(together / np.prod(apart)), abs=1e-10)
    assert found.bits.equal(found.nats / math.log(2.0))
    assert found.covered.equal((torch.stack([c.coverage for c in claims]) > 0).any(0).sum(1))


@pytest.mark.parametrize("name", ["2x2, quad-tree", "2x4, chain"])
def test_factors_on_rows_do_not_matter(name):
    circuit = make(name)
    claims = claims_about(circuit, 2, seed=3)
    moved = [
        Claim(log_q=c.log_q + torch.randn(2, circuit.tokens, 1, dtype=torch.float64), coverage=c.coverage)
        for c in claims
    ]
    assert torch.allclose(compatibility(circuit, claims).nats, compatibility(circuit, moved).nats, atol=1e-10)


def test_apart_references_of_an_independent_circuit_are_neutral():
    circuit = make("2x2, one state")
    first, second = claims_about(circuit, 2, seed=4)
    left = torch.tensor([1.0, 0.7, 0.0, 0.0], dtype=torch.float64).expand(2, 4)
    apart = [Claim(log_q=first.log_q, coverage=left), Claim(log_q=second.log_q, coverage=left.flip(1))]
    assert compatibility(circuit, apart).nats.abs().max() < 1e-12


def test_a_circuit_that_ties_two_regions_tells_what_goes_together():
    """Two tokens that are equal with probability .9: names of codes 0 and 0, or 0 and 1, against the closed form."""
    circuit = Circuit(latent_tree([-1, 0], [0, 1]), states=2, vocabulary=Vocabulary.full(2)).double()
    circuit.weights.copy_(torch.tensor([[[0.9, 0.1], [0.1, 0.9]]]))
    sharp = torch.tensor([[1.0 - 1e-6, 1e-6], [1e-6, 1.0 - 1e-6]], dtype=torch.float64)
    circuit.emissions.copy_(sharp.expand(2, 2, 2))
    first = hard([0, 0], 2, [1.0, 0.0])
    for code, expected in ((0, 0.9), (1, 0.1)):
        found = compatibility(circuit, [first, hard([code, code], 2, [0.0, 1.0])])
        assert float(found.nats) == pytest.approx(math.log(expected / 0.5), abs=1e-4)
    assert Compatibility(torch.tensor([math.log(8.0)]), torch.tensor([2])).bits_per_token == pytest.approx(1.5)


# --- fusion ---


class Toy:
    """Random codec, circuit and denoiser that fit together; an estimate's features have the variance `trust`."""

    def __init__(self, seed=0, trust=1e6):
        torch.manual_seed(seed)
        vqgan = VQGAN(VQGANParams(channels=(32,), layers=1, codes=CODES, code_dim=DIM, attention=False))
        with torch.no_grad():
            vqgan.codebook.normal_()
        self.codec = Codec(vqgan.eval().requires_grad_(False))
        circuit = Circuit(quadtree(16), states=3, vocabulary=Vocabulary.full(CODES))
        self.circuit = circuit.randomize(torch.Generator().manual_seed(seed))
        variance = torch.full((CLASSES,), trust)
        variance[:SHARES] = 1e-5
        level = Level(
            code_variance=variance,
            diffusion_variance=torch.full((CLASSES,), 0.1),
            circuit_variance=torch.full((CLASSES,), 0.4),
            weight=torch.full((CLASSES,), 0.5),
        )
        self.prior = TokenPrior(
            codec=self.codec, circuit=self.circuit, calibration=Calibration(times=(500,), levels=(level,))
        )
        numbers, size = 2, 3 * SIZE * SIZE
        self.denoiser = MixtureDenoiser(
            Schedule.cosine(),
            (3, SIZE, SIZE),
            weights=torch.full((numbers,), 1.0 / numbers),
            means=0.5 * torch.randn(numbers, size),
            basis=torch.zeros(size, 0),
            scales=torch.zeros(0),
            floor=0.3,
            v=0.5,
        )

    def fuse(self, references, rows=slice(None), **settings):
        return fuse(
            self.denoiser, self.prior, references, Noise(SEEDS[rows]), Fusion(**{"steps": 6, "refresh": 0.0} | settings)
        )


@pytest.fixture(scope="module")
def toy():
    return Toy()


def halves(batch=3, seed=5):
    """Two references of each fusion: the left of one image, the right of another."""
    x = torch.rand(2, batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0
    left = torch.zeros(batch, 1, SIZE, SIZE, dtype=torch.bool)
    left[..., : SIZE // 2] = True
    return [Reference(x=x[0], region=left), Reference(x=x[1], region=~left)]


@pytest.mark.parametrize(("picture", "draws"), [("expected", 1), ("joint", 2)])
def test_without_coherence_it_is_plain_sampling_to_the_bit(toy, picture, draws):
    plain = sample(toy.denoiser, Noise(SEEDS), 6)
    assert toy.fuse(halves(), coherence=0.0, picture=picture, draws=draws).equal(plain)
    assert not toy.fuse(halves(), coherence=0.5, picture=picture, draws=draws).equal(plain)


def test_at_full_coherence_and_reach_the_tokens_are_the_references(toy):
    left, right = halves()
    side = torch.arange(256) % 16 < 8
    wanted = toy.codec.decode(torch.where(side, toy.codec.encode(left.x), toy.codec.encode(right.x)))
    found = toy.fuse([left, right], coherence=1.0, reach=1.0, weight=0.0)
    assert torch.allclose(found, wanted, atol=1e-3)
    assert not torch.allclose(toy.fuse([left, right], coherence=1.0, reach=0.5, weight=0.0), wanted, atol=0.1)


def test_estimate_and_references_go_into_one_posterior_and_its_picture_is_mixed():
    toy, (left, right) = Toy(trust=0.3), halves()
    references = [left, Reference(x=right.x, region=left.region)]  # the right is left to the estimate
    x_0 = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(7)) - 0.5
    guide = ReferenceGuide(
        Fusion(coherence=0.4, weight=0.3), toy.prior, references, toy.denoiser.schedule, Noise(SEEDS)
    )
    claims = read(toy.codec, references, 1e-5)
    log_w = -distances(toy.codec, features_of(toy.codec, x_0)) / (2 * 0.3)
    log_w = log_w + 0.4 * (claims[0].log_w + claims[1].log_w)
    codes = posterior(toy.circuit, log_w).marginals @ toy.codec.vqgan.codebook
    picture = toy.codec.decode_embeddings(codes.transpose(1, 2).unflatten(2, (16, 16)))
    precisions = 0.3 / 0.1, 0.7 / 0.4
    wanted = (precisions[0] * x_0 + precisions[1] * picture) / sum(precisions)
    assert torch.allclose(guide.mix(x_0, 900).mean, wanted, atol=1e-4)


def test_tokens_outside_of_all_regions_are_told_nothing(toy):
    left, right = halves()
    part = Reference(x=right.x, region=left.region)
    log_w = joined(read(toy.codec, [left, part], spread(toy.prior.calibration)))
    covered = (torch.arange(256) % 16 < 8).expand(3, -1)
    assert (log_w[~covered] == 0.0).all()
    assert (log_w[covered] != 0.0).any(-1).all()


def test_a_patch_counts_by_its_share_in_the_region():
    codec = Codec(VQGAN(VQGANParams(channels=(32, 32), layers=1, codes=CODES, code_dim=DIM, attention=False)))
    region = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    region[..., :3, :5] = True
    with torch.no_grad():
        claim = Claim.of(codec, Reference(x=torch.zeros(1, 3, 32, 32), region=region), 0.1)
    grid = claim.coverage.view(16, 16)
    assert grid[:2, :3].tolist() == [[1.0, 1.0, 0.5], [0.5, 0.5, 0.25]]
    assert float(grid.sum()) == 3 * 5 / 4
    with torch.no_grad():
        features = codec.vqgan.encode(torch.zeros(1, 3, 32, 32)).flatten(2).transpose(1, 2)[:, :, None]
    density = torch.distributions.Normal(codec.vqgan.codebook.detach(), 0.1**0.5).log_prob(features).sum(-1)
    assert torch.allclose(claim.log_q, density.log_softmax(-1), atol=1e-4)
    assert claim.log_w.equal(claim.coverage[..., None] * claim.log_q)


def test_the_order_of_references_does_not_matter(toy):
    first, second = halves()
    third = Reference(x=halves(seed=6)[0].x, region=first.region)
    one, other = [first, second, third], [third, first, second]
    variance = 0.5
    assert torch.allclose(joined(read(toy.codec, one, variance)), joined(read(toy.codec, other, variance)), atol=1e-4)
    both = [compatibility(toy.circuit, read(toy.codec, order, variance)).nats for order in (one, other)]
    assert torch.allclose(*both, atol=1e-3)
    assert torch.allclose(toy.fuse([first, second]), toy.fuse([second, first]), atol=1e-5)


@pytest.mark.parametrize("picture", ["expected", "joint"])
def test_fusions_do_not_depend_on_their_batch(toy, picture):
    references = halves()
    together = toy.fuse(references, coherence=0.7, picture=picture)
    for k in range(3):
        rows = slice(k, k + 1)
        alone = [Reference(x=r.x[rows], region=r.region[rows]) for r in references]
        assert torch.allclose(toy.fuse(alone, rows, coherence=0.7, picture=picture), together[rows], atol=1e-4)


def test_levels_of_coherence_draw_the_same_numbers(toy):
    after = []
    for coherence in (0.0, 0.5, 1.0):
        noise = Noise(SEEDS)
        settings = Fusion(coherence=coherence, steps=6, picture="joint")
        fuse(toy.denoiser, toy.prior, halves(), noise, settings)
        after.append(noise.normal((4,)))
    assert after[0].equal(after[1])
    assert after[0].equal(after[2])


def test_distance_is_the_mean_over_the_patches_in_the_regions(toy):
    left, right = halves()
    assert distance(toy.codec, left.x, [left]).abs().max() < 1e-12
    h, a, b = (toy.codec.vqgan.encode(x).double() for x in (torch.zeros_like(left.x), left.x, right.x))
    wanted = ((h - a)[..., :8].square().mean((1, 2, 3)) + (h - b)[..., 8:].square().mean((1, 2, 3))) / 2
    assert torch.allclose(distance(toy.codec, torch.zeros_like(left.x), [left, right]), wanted, atol=1e-5)


# --- what is refused ---


def region(*shape, value=True, dtype=torch.bool):
    return torch.full(shape, value, dtype=dtype)


IMAGE = torch.zeros(1, 3, SIZE, SIZE)
PLACE = region(1, 1, SIZE, SIZE)


@pytest.mark.parametrize(
    ("x", "place", "words"),
    [
        (IMAGE[0], PLACE, r"references \[B, C, S, S\]"),
        (IMAGE[..., 1:], PLACE, r"references \[B, C, S, S\]"),
        (IMAGE.to(torch.uint8), PLACE, "uint8"),
        (IMAGE, PLACE[0], "region"),
        (IMAGE, PLACE.float(), "float32"),
        (IMAGE, PLACE[..., 1:], "region"),
        (IMAGE * math.nan, PLACE, "NaN"),
        (IMAGE, ~PLACE, "image 0 is empty"),
        (IMAGE.repeat(2, 1, 1, 1), torch.cat([PLACE, ~PLACE]), "image 1 is empty"),
    ],
)
def test_what_is_no_reference_is_refused(x, place, words):
    with pytest.raises(InputError, match=words):
        Reference(x=x, region=place)


def test_references_that_do_not_go_together_are_refused(toy):
    one = Reference(x=IMAGE, region=PLACE)
    small = Reference(x=torch.zeros(1, 3, 8, 8), region=region(1, 1, 8, 8))
    two = Reference(x=IMAGE.repeat(2, 1, 1, 1), region=PLACE.repeat(2, 1, 1, 1))
    for given, words in (
        ([], "at least 2 references.*got 0"),
        ([one], "at least 2 references.*got 1"),
        ([one, small], "one size"),
        ([one, two], "one size"),
        ([small, small], "16 x 16 tokens"),
    ):
        with pytest.raises(InputError, match=words):
            read(toy.codec, given, 0.1)


@pytest.mark.parametrize(
    "settings", [{"coherence": -0.1}, {"coherence": 1.1}, {"coherence": math.nan}, {"reach": 2.0}, {"steps": 0}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Fusion(**settings)
