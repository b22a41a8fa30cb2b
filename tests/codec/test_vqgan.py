"""The VQ-GAN and the codec: tokens, their probabilities, and pictures."""

import math

import pytest
import torch

from pipeline.codec.codec import Codec
from pipeline.codec.vqgan import VQGAN, VQGANParams, quantize, squared_distances, straight_through, usage

torch.set_num_threads(1)

PARAMS = {
    32: VQGANParams(channels=(32, 32), layers=1, codes=24, code_dim=8, attention=True),
    64: VQGANParams(channels=(32, 32, 32), layers=1, codes=24, code_dim=8, attention=False),
}


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(scope="module", params=[32, 64])
def size(request):
    return request.param


@pytest.fixture(scope="module")
def codec(size):
    torch.manual_seed(0)
    vqgan = VQGAN(PARAMS[size]).eval().requires_grad_(False)
    with torch.no_grad():  # codes among the features, so that many are used
        features = vqgan.encode(pictures(size))
        vqgan.codebook.copy_(features.permute(0, 2, 3, 1).reshape(-1, 8)[:: len(features) * 256 // 24][:24])
    return Codec(vqgan)


def pictures(size, count=3):
    return draw(count, 3, size, size, dtype=torch.float32).clamp(-1, 1)


# --- quantisation ---


def test_squared_distances_are_those_of_brute_force():
    features, codebook = draw(50, 5), draw(7, 5, seed=1)
    expected = torch.stack([((features - code) ** 2).sum(1) for code in codebook], dim=1)
    torch.testing.assert_close(squared_distances(features, codebook), expected, rtol=0, atol=1e-12)


def test_squared_distances_are_never_negative():
    features = draw(200, 16, dtype=torch.float32) * 100  # rounding makes many of |f|^2 - 2 f f + |f|^2 negative
    square = (features**2).sum(1)
    assert ((square - 2 * (features @ features.T).diagonal() + square) < 0).any()
    assert (squared_distances(features, features) >= 0).all()


def test_the_nearest_code_is_that_of_brute_force():
    features, codebook = draw(2, 5, 4, 3), draw(7, 5, seed=1)
    tokens, codes = quantize(features, codebook)
    assert tokens.shape == (2, 4, 3)
    assert tokens.dtype == torch.int64
    for b in range(2):
        for h in range(4):
            for w in range(3):
                distances = [float(((features[b, :, h, w] - code) ** 2).sum()) for code in codebook]
                nearest = distances.index(min(distances))
                assert tokens[b, h, w] == nearest
                assert torch.equal(codes[b, :, h, w], codebook[nearest])


def test_a_code_is_its_own_nearest():
    codebook = draw(7, 5)
    tokens, codes = quantize(codebook.T.view(1, 5, 7, 1), codebook)
    assert tokens.flatten().tolist() == list(range(7))
    assert torch.equal(codes[0, :, :, 0].T, codebook)


def test_quantising_is_differentiable_in_the_codebook_only():
    features, codebook = draw(2, 5, 4, 3).requires_grad_(), draw(7, 5, seed=1).requires_grad_()
    tokens, codes = quantize(features, codebook)
    codes.sum().backward()
    assert features.grad is None
    counts = torch.bincount(tokens.flatten(), minlength=7).double()
    torch.testing.assert_close(codebook.grad, counts[:, None].expand(7, 5))


def test_straight_through_shows_codes_and_passes_gradients_to_features():
    features, codes, weight = draw(2, 3).requires_grad_(), draw(2, 3, seed=1).requires_grad_(), draw(2, 3, seed=2)
    out = straight_through(features, codes)
    torch.testing.assert_close(out, codes, rtol=0, atol=1e-14)
    (out * weight).sum().backward()
    assert torch.equal(features.grad, weight)
    assert codes.grad is None


@pytest.mark.parametrize(
    ("tokens", "share", "perplexity"),
    [
        ([0, 0, 1, 1], 0.5, 2.0),
        ([3, 3, 3], 0.25, 1.0),
        ([0, 1, 2, 3], 1.0, 4.0),
        ([0, 0, 0, 1], 0.5, math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))),
    ],
)
def test_usage_and_perplexity_by_hand(tokens, share, perplexity):
    assert usage(torch.tensor(tokens).view(1, -1), 4) == pytest.approx((share, perplexity), abs=1e-12)


# --- networks ---


@pytest.mark.parametrize(("levels", "factor"), [(1, 1), (2, 2), (3, 4), (5, 16)])
def test_each_level_but_the_last_halves_the_resolution(levels, factor):
    assert VQGANParams(channels=(32,) * levels).factor == factor


def test_features_have_16_by_16_places_at_every_size(codec, size):
    assert PARAMS[size].factor * 16 == size
    assert codec.vqgan.codebook.shape == (24, 8)
    features = codec.vqgan.encode(pictures(size))
    assert features.shape == (3, 8, 16, 16)
    assert codec.vqgan.decode(features).shape == (3, 3, size, size)


def test_pictures_and_codes_do_not_depend_on_their_batch(codec, size):
    x = pictures(size)
    features = codec.vqgan.encode(x)
    alone = torch.cat([codec.vqgan.encode(row) for row in x.split(1)])
    torch.testing.assert_close(features, alone, rtol=0, atol=2e-5)  # float32, sums over some hundred numbers
    made = codec.vqgan.decode(features)
    alone = torch.cat([codec.vqgan.decode(row) for row in features.split(1)])
    torch.testing.assert_close(made, alone, rtol=0, atol=2e-5)


# --- the codec ---


def test_tokens_are_the_grid_of_nearest_codes_row_by_row(codec, size):
    x = pictures(size)
    tokens = codec.encode(x)
    grid, _ = quantize(codec.vqgan.encode(x), codec.vqgan.codebook)
    assert tokens.shape == (3, 256)
    assert tokens.dtype == torch.int64
    assert codec.codes == 24
    assert torch.equal(tokens.view(3, 16, 16), grid)
    assert usage(tokens, codec.codes)[0] > 0.5  # or the tests below would compare constants


def test_embedded_tokens_are_their_codes_in_place(codec):
    tokens = torch.arange(2 * 256).view(2, 256) % 24
    embeddings = codec.embed(tokens)
    assert embeddings.shape == (2, 8, 16, 16)
    for row, column in [(0, 0), (0, 5), (7, 3), (15, 15)]:
        assert torch.equal(embeddings[1, :, row, column], codec.vqgan.codebook[tokens[1, 16 * row + column]])


def test_decoding_gives_pictures(codec, size):
    x = codec.decode(codec.encode(pictures(size)))
    assert x.shape == (3, 3, size, size)
    assert torch.isfinite(x).all()
    assert float(x.abs().max()) <= 1.0
    assert torch.equal(x, codec.decode_embeddings(codec.embed(codec.encode(pictures(size)))))
    loud = codec.decode_embeddings(1e4 * draw(1, 8, 16, 16, dtype=torch.float32))
    assert float(loud.abs().max()) <= 1.0


def test_reconstructing_is_encoding_and_decoding_without_gradients(codec, size):
    x = pictures(size).requires_grad_()
    made = codec.reconstruct(x)
    assert not made.requires_grad
    assert torch.equal(made, codec.decode(codec.encode(x.detach())))


@pytest.mark.parametrize("temperature", [0.01, 1.0, 30.0])
def test_log_probabilities_are_normalised_and_highest_at_the_token(codec, size, temperature):
    x = pictures(size)
    log_probs = codec.log_probs(x, temperature)
    assert log_probs.shape == (3, 256, 24)
    assert torch.isfinite(log_probs).all()
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3, 256), rtol=0, atol=1e-5)
    assert torch.equal(log_probs.argmax(-1), codec.encode(x))


def test_log_probabilities_fall_with_the_squared_distance_per_dimension(codec, size):
    x, temperature = pictures(size), 0.7
    log_probs = codec.log_probs(x, temperature)
    features = codec.vqgan.encode(x)
    place, code = (1, 5 * 16 + 3), codec.vqgan.codebook
    distances = ((features[1, :, 5, 3] - code) ** 2).sum(1)
    expected = -(distances - distances[0]) / (8 * temperature)
    torch.testing.assert_close(log_probs[place] - log_probs[place][0], expected, rtol=1e-4, atol=1e-4)


def test_log_probabilities_are_differentiable_in_the_picture(codec, size):
    x = pictures(size, count=1).requires_grad_()
    (gradient,) = torch.autograd.grad(codec.log_probs(x, 1.0)[0, 100, 3], x)
    assert torch.isfinite(gradient).all()
    assert float(gradient.abs().max()) > 0
