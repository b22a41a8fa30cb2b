"""Random streams: one per image, the same alone and in any batch."""

import pytest
import torch

from pipeline.noise import Noise, stream_seed

SHAPES = [(), (1,), (15,), (16,), (3, 8, 8), (2, 3, 5, 5)]


def test_seeds_are_the_same_on_every_machine():
    """Half of what `printf "2401\x1ffaces\x1f000001\x1f0" | b2sum -l 64` prints; another would change every result."""
    assert stream_seed(2401, "faces", "000001", 0) == 4727882837990926477
    assert stream_seed() == 8238016292129134938


def test_seeds_fit_a_generator_and_differ():
    seeds = {stream_seed(seed, name, k) for seed in range(5) for name in ("faces", "rooms") for k in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_borders_between_parts_count():
    assert stream_seed("ab", "c") != stream_seed("a", "bc") != stream_seed("abc")
    assert stream_seed(1, 11) != stream_seed(11, 1)
    assert stream_seed("a", "") != stream_seed("a")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stream_is_the_same_alone_and_in_a_batch(shape):
    together = Noise([5, 6, 7])
    alone = [Noise([seed]) for seed in (5, 6, 7)]
    for _ in range(3):
        assert torch.equal(together.normal(shape), torch.cat([noise.normal(shape) for noise in alone]))


def test_permuting_seeds_permutes_draws():
    assert torch.equal(Noise([1, 2, 3]).normal((3, 4, 4))[[2, 0, 1]], Noise([3, 1, 2]).normal((3, 4, 4)))


def test_the_same_seed_gives_the_same_and_another_gives_another():
    first, again, other = (Noise([seed]).normal((3, 8, 8)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    source = Noise([1])
    assert not torch.equal(source.normal((16,)), source.normal((16,)))


def test_draws_lie_where_they_are_wanted():
    noise = Noise([1, 2], device="meta")
    weights = torch.ones(2, 5)
    found = [noise.normal((3, 4)), noise.uniform((2,)), noise.choice(weights, 3), noise.fork("a").normal((1,))]
    assert {draw.device.type for draw in found} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_device_is_given_the_same_draws():
    here, there = Noise([1, 2]), Noise([1, 2], device="cuda")
    assert torch.equal(there.normal((3, 8, 8)).cpu(), here.normal((3, 8, 8)))
    assert torch.equal(there.uniform((5,)).cpu(), here.uniform((5,)))
    weights = torch.rand(2, 7)
    assert torch.equal(there.choice(weights.cuda(), 4).cpu(), here.choice(weights, 4))


def test_equal_seeds_in_one_batch_draw_alike():
    rows = Noise([9, 9]).normal((3, 4, 4))
    assert torch.equal(rows[0], rows[1])


def test_drawing_neither_reads_nor_moves_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = Noise([4]).normal((8,))
    Noise([4]).choice(torch.ones(1, 5), 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(Noise([4]).normal((8,)), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_are_standard_normal(dtype):
    x = Noise(range(20), dtype=dtype).normal((5000,))
    assert x.dtype == dtype
    assert abs(float(x.mean())) < 0.016  # 5 / sqrt(100000)
    assert abs(float(x.var()) - 1) < 0.023  # 5 sqrt(2 / 100000)
    assert abs(float((x**4).mean()) - 3) < 0.16  # 5 sqrt(96 / 100000)
    correlation = torch.corrcoef(x)
    assert float((correlation - torch.eye(20)).abs().max()) < 0.075  # 5.3 / sqrt(5000), the largest of 190


@pytest.mark.parametrize("shape", SHAPES)
def test_shape_and_length(shape):
    noise = Noise([1, 2, 3])
    assert noise.normal(shape).shape == (3, *shape)
    assert len(noise) == 3


def test_choices_follow_each_image_s_own_weights():
    weights = torch.tensor([[1.0, 3.0, 0.0, 4.0], [0.0, 0.0, 2.0, 0.0]])
    drawn = Noise([1, 2]).choice(weights, 20000)
    assert drawn.shape == (2, 20000)
    assert drawn.dtype == torch.int64
    share = torch.bincount(drawn[0], minlength=4) / 20000
    torch.testing.assert_close(share, weights[0] / 8, rtol=0, atol=0.018)  # 5 sqrt(.25 / 20000)
    assert share[2] == 0
    assert (drawn[1] == 2).all()


def test_choices_are_the_same_alone_and_in_a_batch():
    weights = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    together = Noise([5, 6, 7]).choice(weights, 50)
    alone = [Noise([seed]).choice(row[None], 50) for seed, row in zip((5, 6, 7), weights, strict=True)]
    assert torch.equal(together, torch.cat(alone))


def test_weights_for_another_number_of_images_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        Noise([1, 2]).choice(torch.ones(3, 4), 2)


# --- forks ---


def test_a_fork_opens_other_streams_and_does_not_move_these():
    plain, forked = Noise([1, 2, 3]), Noise([1, 2, 3])
    forked.normal((4,))
    fork = forked.fork("a")
    fork.normal((100,))
    plain.normal((4,))
    assert torch.equal(forked.normal((5,)), plain.normal((5,)))
    assert not torch.equal(Noise([1]).fork("a").normal((8,)), Noise([1]).normal((8,)))


def test_a_fork_depends_on_its_seed_and_name_only():
    used = Noise([1, 2])
    used.uniform((3, 3))
    assert torch.equal(used.fork("a").normal((8,)), Noise([1, 2]).fork("a").normal((8,)))
    assert not torch.equal(used.fork("a").normal((8,)), used.fork("b").normal((8,)))
    together = Noise([5, 6, 7]).fork("a").normal((8,))
    assert torch.equal(together, torch.cat([Noise([seed]).fork("a").normal((8,)) for seed in (5, 6, 7)]))
    assert not torch.equal(together[0], together[1])


def test_forks_can_be_forked_and_keep_their_type():
    first = Noise([1], dtype=torch.float64).fork("a").fork("b").normal((8,))
    assert first.dtype == torch.float64
    assert not torch.equal(first, Noise([1], dtype=torch.float64).fork("b").fork("a").normal((8,)))
