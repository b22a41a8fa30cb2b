"""The patch model against loops over pixels, numerical integration, and the enumeration of all token grids."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from circuit.worlds import enumerated, make
from pipeline.circuit.queries import posterior
from pipeline.codec.grid import cut, put
from pipeline.diffusion.schedule import Schedule
from pipeline.errors import ConfigError, InputError
from pipeline.problem import Problem
from pipeline.steering.fusion import LEAST_VARIANCE
from pipeline.steering.patches import SHARED, PatchModel

torch.set_num_threads(1)

SCHEDULE, CHANNELS, PATCH = Schedule.linear(), 2, 2
TIMES = [1, 50, 300, 700, 1000]
KINDS = ["shared", "per token"]
WORLDS = ["2x2, quad-tree", "2x2, chain", "2x2, quad-tree, pruned, zeros", "2x2, star, shared, zeros"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model(kind, codes=5, side=2):
    """Means and variances that differ from code to code and pixel to pixel."""
    shape = (codes, CHANNELS * PATCH**2) if kind == "shared" else (side**2, codes, CHANNELS * PATCH**2)
    return PatchModel(
        mean=0.4 * draw(*shape, seed=1), variance=0.1 * draw(*shape, seed=2).exp(), side=side, channels=CHANNELS
    )


def problems(size=4):
    """Nothing, a pixel, half of the patches, all but a pixel, and everything is seen."""
    known = torch.zeros(5, 1, size, size, dtype=torch.bool)
    known[1, 0, 1, 2] = True
    known[2, 0, :, :3] = True
    known[3:] = True
    known[3, 0, 0, 0] = False
    return Problem.observe(0.4 * draw(5, CHANNELS, size, size, seed=3), known)


def table(patches, values, i):
    """Numbers [V, D] of token i."""
    return (values if values.ndim == 2 else values[i]).numpy()


def log_normal(x, mean, variance):
    return -0.5 * (x - mean) ** 2 / variance - 0.5 * np.log(2 * math.pi * variance)


def pixels(x, i):
    """Pixels of token i of one image [C, 4, 4], channel by channel."""
    row, column = PATCH * (i // 2), PATCH * (i % 2)
    return x[:, row : row + PATCH, column : column + PATCH].reshape(-1).numpy()


def brute_force(patches, x_t, a, y, known):
    """log w [N, V] of one image, pixel by pixel."""
    out = np.zeros((4, patches.codes))
    for i in range(4):
        mean, variance = table(patches, patches.mean, i), table(patches, patches.variance, i)
        noisy, seen, there = pixels(x_t, i), pixels(y, i), pixels(known.expand_as(y), i)
        for c in range(patches.codes):
            for d in range(len(noisy)):
                if there[d]:
                    out[i, c] += log_normal(seen[d], mean[c, d], variance[c, d])
                else:
                    out[i, c] += log_normal(noisy[d], math.sqrt(a) * mean[c, d], a * variance[c, d] + 1 - a)
    return out


def test_cutting_and_putting_together_are_inverse():
    x = draw(3, CHANNELS, 8, 8)
    patches = cut(x, 4)
    assert patches.shape == (3, 16, 8)
    assert torch.equal(patches[1, 6], x[1, :, 2:4, 4:6].flatten())  # token 6 is at row 1, column 2
    assert torch.equal(put(patches, CHANNELS), x)


@pytest.mark.parametrize("t", TIMES)
@every_kind
def test_evidence_is_the_sum_over_pixels(kind, t):
    patches, problem, x_t, a = model(kind), problems(), draw(5, CHANNELS, 4, 4, seed=4), float(SCHEDULE.alpha_bar[t])
    found = patches.log_evidence(x_t, a, problem)
    for k in range(5):
        exact = brute_force(patches, x_t[k], a, problem.y[k], problem.known[k])
        np.testing.assert_allclose(found[k].numpy(), exact, rtol=1e-11, atol=1e-11)


@every_kind
def test_noise_at_seen_pixels_says_nothing(kind):
    patches, problem, x_t = model(kind), problems(), draw(5, CHANNELS, 4, 4, seed=4)
    other = torch.where(problem.known, 7.0, x_t)
    assert torch.equal(patches.log_evidence(x_t, 0.5, problem), patches.log_evidence(other, 0.5, problem))


@pytest.mark.parametrize("t", TIMES)
def test_a_pixel_is_as_numerical_integration_has_it(t):
    """One pixel that is one token: p(x_0 | x_t) ∝ sum_c p(c) N(x_0; mean, variance) N(x_t; sqrt(a) x_0, 1 - a)."""
    mean, variance = torch.tensor([[-0.7], [0.1], [0.6]]).double(), torch.tensor([[0.01], [0.2], [0.05]]).double()
    prior, a = np.array([0.5, 0.2, 0.3]), float(SCHEDULE.alpha_bar[t])
    patches = PatchModel(mean=mean, variance=variance, side=1, channels=1)
    x_t = torch.tensor([-1.5, 0.2, 0.9], dtype=torch.float64).view(3, 1, 1, 1)
    problem = Problem(y=torch.zeros_like(x_t), known=torch.zeros(3, 1, 1, 1, dtype=torch.bool))
    weights = np.exp(patches.log_evidence(x_t, a, problem)[:, 0].numpy()) * prior
    marginals = torch.from_numpy(weights / weights.sum(1, keepdims=True))[:, None]
    found = patches.estimate(x_t, a, marginals, problem)
    grid = np.linspace(-6, 6, 240_001)
    for k in range(3):
        log_noise = log_normal(float(x_t[k]), math.sqrt(a) * grid, 1 - a)
        density = sum(
            p * np.exp(log_normal(grid, float(m), float(v)) + log_noise)
            for p, m, v in zip(prior, mean, variance, strict=True)
        )
        density /= density.sum()
        first = density @ grid
        assert float(found.mean[k]) == pytest.approx(first, abs=1e-8)
        assert float(found.variance[k]) == pytest.approx(density @ (grid - first) ** 2, rel=1e-5)


@pytest.mark.parametrize("t", [1, 300, 1000])
@pytest.mark.parametrize("name", WORLDS)
@every_kind
def test_with_a_circuit_it_is_the_enumeration(kind, name, t):
    """Mean and variance of every pixel from all grids, each a product of normals, behind every mask."""
    circuit, found = make(name), enumerated(name)
    patches, problem, a = model(kind, circuit.codes), problems(), float(SCHEDULE.alpha_bar[t])
    x_t = draw(5, CHANNELS, 4, 4, seed=4)
    log_w = patches.log_evidence(x_t, a, problem)
    estimate = patches.estimate(x_t, a, posterior(circuit, log_w).marginals, problem)
    for k in range(5):
        brute = brute_force(patches, x_t[k], a, problem.y[k], problem.known[k])
        weights = found.p * found.weights(np.exp(brute - brute.max(1, keepdims=True)))
        weights /= weights.sum()
        for i in range(4):
            mean, variance = (
                table(patches, values, i)[found.tokens[:, i]] for values in (patches.mean, patches.variance)
            )
            precision = 1 / variance + a / (1 - a)
            centre = (mean / variance + math.sqrt(a) * pixels(x_t[k], i) / (1 - a)) / precision
            first = weights @ centre
            second = weights @ (1 / precision + (centre - first) ** 2)
            seen = pixels(problem.known[k].expand_as(x_t[k]), i)
            ours = pixels(estimate.mean[k], i), pixels(estimate.variance[k], i)
            np.testing.assert_allclose(ours[0], np.where(seen, pixels(problem.y[k], i), first), rtol=0, atol=1e-11)
            np.testing.assert_allclose(ours[1], np.where(seen, LEAST_VARIANCE, second), rtol=1e-9, atol=1e-13)


@every_kind
def test_formats_are_passed_through(kind):
    """float32 in gives float32 out, near the float64 result even at the last time, where both variances are small."""
    patches, problem, x_t = model(kind), problems(), 0.4 * draw(5, CHANNELS, 4, 4, seed=4)
    marginals = torch.softmax(draw(5, 4, 5, seed=5), -1)
    single = PatchModel(
        mean=patches.mean.float(), variance=patches.variance.float(), side=2, channels=CHANNELS
    ).estimate(x_t.float(), 0.999, marginals.float(), Problem(y=problem.y.float(), known=problem.known))
    double = patches.estimate(x_t, 0.999, marginals, problem)
    assert single.mean.dtype == single.variance.dtype == torch.float32
    torch.testing.assert_close(single.mean.double(), double.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(single.variance.double(), double.variance, rtol=1e-3, atol=1e-6)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that was made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@every_kind
def test_nothing_as_large_as_images_times_codes_times_pixels_is_made(kind):
    side, codes, size = 4, 12, CHANNELS * PATCH**2
    patches, problem, x_t = model(kind, codes, side), problems(8), draw(5, CHANNELS, 8, 8)
    with Largest() as largest:
        log_w = patches.log_evidence(x_t, 0.5, problem)
        patches.estimate(x_t, 0.5, log_w.softmax(-1), problem)
    allowed = max(len(x_t) * side**2 * codes, patches.mean.numel())
    assert 0 < largest.numbers <= allowed < len(x_t) * side**2 * codes * size


def test_the_fit_is_what_numpy_counts():
    """Codes that are used often, once and never; means are their own, variances share in the pooled one."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 3, (40, 4), generator=generator)
    tokens[0, 0] = 3
    x_0 = 0.3 * draw(40, CHANNELS, 4, 4, seed=1) + tokens.view(40, 1, 2, 2).repeat_interleave(2, 2).repeat_interleave(
        2, 3
    )
    found = PatchModel.fit(x_0, tokens, codes=5)
    flat, used = cut(x_0, 2).flatten(0, 1).numpy(), tokens.flatten().numpy()
    groups = [flat[used == c] for c in range(4)]
    pooled = sum(((g - g.mean(0)) ** 2).sum(0) for g in groups) / sum(len(g) - 1 for g in groups)
    for c, group in enumerate(groups):
        free, square = len(group) - 1, ((group - group.mean(0)) ** 2).sum(0)
        np.testing.assert_allclose(found.mean[c].numpy(), group.mean(0), rtol=1e-12)
        expected = (square + SHARED * pooled) / (free + SHARED)
        np.testing.assert_allclose(found.variance[c].numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(found.variance[3].numpy(), pooled, rtol=1e-10)
    np.testing.assert_allclose(found.mean[4].numpy(), flat.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.variance[4].numpy(), pooled, rtol=1e-10)
    assert (found.side, found.shape) == (2, (CHANNELS, 4, 4))


def test_a_fit_finds_the_law_that_images_were_drawn_from():
    """Within five standard errors of about 1300 patches for each code."""
    law, side = model("shared", codes=3, side=4), 4
    tokens = torch.randint(0, 3, (250, side**2), generator=torch.Generator().manual_seed(1))
    patches = law.mean[tokens] + law.variance.sqrt()[tokens] * draw(250, side**2, CHANNELS * PATCH**2, seed=6)
    found = PatchModel.fit(put(patches, CHANNELS), tokens, codes=3)
    count = torch.bincount(tokens.flatten()).double()[:, None]
    assert bool(((found.mean - law.mean).abs() < 5 * (law.variance / count).sqrt()).all())
    shared = SHARED / (count + SHARED)  # moves a variance that far towards the others
    slack = law.variance * 5 * (2 / count).sqrt() + shared * law.variance.max()
    assert bool(((found.variance - law.variance).abs() < slack).all())


def test_equal_patches_have_the_least_variance():
    found = PatchModel.fit(torch.full((3, 1, 4, 4), 0.5), torch.zeros(3, 4, dtype=torch.long), codes=2)
    assert torch.equal(found.variance, torch.full_like(found.variance, LEAST_VARIANCE))


def test_what_does_not_fit_is_refused():
    ones = torch.ones(3, 8)
    for arguments, said in (
        ({"mean": torch.ones(8)}, r"expected floating-point means \[V, D\] or \[4, V, D\], got torch.float32 \(8,\)"),
        ({"mean": torch.ones(5, 3, 8)}, r"\[4, V, D\], got torch.float32 \(5, 3, 8\)"),
        ({"mean": ones.long()}, r"floating-point means .* got torch.int64"),
        ({"variance": torch.ones(3, 1)}, r"expected variances like the means, .* got torch.float32 \(3, 1\)"),
        ({"variance": ones.double()}, r"expected variances like the means, .* got torch.float64"),
        ({"variance": 0 * ones}, r"must be above 0, but the least is 0\.0"),
        ({"channels": 3}, r"8 numbers are no square patch of 3 channels"),
    ):
        with pytest.raises(ConfigError, match=said):
            PatchModel(**({"mean": ones, "variance": ones, "side": 2, "channels": 2} | arguments))
    small = Problem(y=torch.zeros(1, 2, 6, 6), known=torch.ones(1, 1, 6, 6, dtype=torch.bool))
    with pytest.raises(InputError, match=r"expected images \(2, 4, 4\) as the patch model's, got \(2, 6, 6\)"):
        model("shared").log_evidence(small.y, 0.5, small)
