"""What a method is given: seen pixels, never hidden ones."""

import dataclasses

import pytest
import torch

from pipeline.errors import InputError
from pipeline.problem import Problem


def picture(seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    x_0 = torch.rand(batch, 3, 4, 4, generator=generator) * 2 - 1
    known = torch.rand(batch, 1, 4, 4, generator=generator) < 0.5
    return x_0, known


def test_observing_shows_known_pixels_and_nothing_else():
    x_0, known = picture()
    problem = Problem.observe(x_0, known)
    seen = known.expand_as(x_0)
    assert torch.equal(problem.y[seen], x_0[seen])
    assert (problem.y[~seen] == 0).all()
    assert torch.equal(problem.known, known)
    assert len(problem) == 2


@pytest.mark.parametrize("garbage", [123.0, float("nan"), float("inf")])
def test_a_problem_does_not_depend_on_hidden_pixels(garbage):
    x_0, known = picture()
    other = torch.where(known, x_0, torch.full_like(x_0, garbage))
    assert torch.equal(Problem.observe(x_0, known).y, Problem.observe(other, known).y)


def test_observing_leaves_the_picture_alone():
    x_0, known = picture()
    before = x_0.clone()
    Problem.observe(x_0, known).y.zero_()
    assert torch.equal(x_0, before)


def test_pasting_puts_seen_pixels_back_bit_by_bit():
    x_0, known = picture()
    x = picture(seed=1)[0]
    pasted, seen = Problem.observe(x_0, known).paste(x), known.expand_as(x)
    assert torch.equal(pasted[seen], x_0[seen])
    assert torch.equal(pasted[~seen], x[~seen])


def test_the_residual_is_what_is_missing_at_seen_pixels():
    x_0, known = picture()
    x = picture(seed=1)[0]
    residual, seen = Problem.observe(x_0, known).residual(x), known.expand_as(x)
    assert torch.equal(residual[seen], (x_0 - x)[seen])
    assert (residual[~seen] == 0).all()
    assert (Problem.observe(x_0, known).residual(x_0) == 0).all()


def test_hidden_garbage_in_an_estimate_does_not_reach_the_residual_or_its_gradient():
    x_0, known = picture()
    x = torch.where(known, x_0 + 1, torch.full_like(x_0, float("nan"))).requires_grad_()
    residual = Problem.observe(x_0, known).residual(x)
    (gradient,) = torch.autograd.grad(residual.square().sum(), x)
    assert torch.isfinite(residual).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("fill", [True, False], ids=["everything known", "nothing known"])
def test_the_two_extremes(fill):
    x_0, known = picture()
    problem = Problem.observe(x_0, torch.full_like(known, fill))
    other = picture(seed=1)[0]
    assert torch.equal(problem.paste(other), x_0 if fill else other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_format_of_the_picture_is_kept(dtype):
    x_0, known = picture()
    problem = Problem.observe(x_0.to(dtype), known)
    assert problem.y.dtype == problem.paste(x_0.to(dtype)).dtype == problem.residual(x_0.to(dtype)).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64])
def test_a_mask_of_numbers_is_refused(dtype):
    """1 could mean seen or hidden; a boolean `known` cannot be misread."""
    x_0, known = picture()
    with pytest.raises(InputError, match=r"known must be boolean \(True = seen\), but is torch\."):
        Problem(y=x_0, known=known.to(dtype))


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 1, 4, 4), (2, 1, 4, 5), (2, 4, 4), (2, 1, 16)])
def test_a_mask_of_another_shape_is_refused(shape):
    x_0, _ = picture()
    with pytest.raises(InputError, match=r"must have shape \(2, 1, 4, 4\)"):
        Problem(y=torch.zeros_like(x_0), known=torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("shape", [(3, 4, 4), (4, 4), (1, 2, 3, 4, 4)])
def test_a_picture_without_batch_or_channels_is_refused(shape):
    with pytest.raises(InputError, match=r"Problem\.y"):
        Problem(y=torch.zeros(shape), known=torch.ones(1, 1, 4, 4, dtype=torch.bool))


@pytest.mark.parametrize("value", [1e-30, -1.0, float("nan")])
def test_values_at_hidden_pixels_are_refused(value):
    known = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    known[0, 0, 1, 1] = False
    y = torch.zeros(1, 3, 4, 4)
    Problem(y=y, known=known)
    y[0, 2, 1, 1] = value
    with pytest.raises(InputError, match=r"Problem\.observe"):
        Problem(y=y, known=known)


def test_a_problem_cannot_be_changed():
    problem = Problem.observe(*picture())
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.y = problem.y
    with pytest.raises(TypeError):
        Problem(problem.y, problem.known)  # by name only, so that the two cannot be swapped
