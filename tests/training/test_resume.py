"""A training that is interrupted at any step ends with the weights of an undisturbed one, bit for bit."""

import dataclasses

import numpy as np
import pytest
import torch

from pipeline.codec.vqgan import VQGAN, VQGANParams
from pipeline.diffusion.schedule import Schedule
from pipeline.diffusion.unet import UNet, UNetParams
from pipeline.errors import CheckpointError
from pipeline.training.batches import ImageBatches, loader
from pipeline.training.ddpm import DiffusionTraining
from pipeline.training.fit import fit
from pipeline.training.settings import TrainerParams
from pipeline.training.vqgan import VQGANTraining

PARAMS = TrainerParams(
    steps=6, checkpoint_every=2, batch=4, learning_rate=1e-3, warmup=2, decay="cosine", ema=0.5, log_every=1
)
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)


class Killed(Exception):  # noqa: N818 - a kill, not an error
    pass


def diffusion():
    torch.manual_seed(0)
    network = UNet(UNetParams(patch=4, channels=(32,), layers=1, attention=(), head_dim=8, dropout=0.1), 16)
    return DiffusionTraining(
        network, Schedule.cosine(50), target="v", flip=True, vlb_weight=0.001, params=PARAMS, seed=3
    )


def vqgan():
    torch.manual_seed(0)
    network = VQGAN(VQGANParams(channels=(32,), layers=1, codes=8, code_dim=4, attention=False))
    return VQGANTraining(
        network,
        lambda x, y: (x - y).square().flatten(1).mean(1),
        perceptual_weight=0.5,
        adversarial_weight=0.1,
        adversarial_start=1,
        revive_every=2,
        flip=True,
        params=PARAMS,
        seed=3,
    )


def train(module, folder, *, die_at=None, params=PARAMS):
    rows = []

    def tick(step):
        if step == die_at:
            raise Killed

    fit(
        module,
        loader(ImageBatches(IMAGES), batch=PARAMS.batch, steps=PARAMS.checkpoint_every, seed=1),
        params=params,
        folder=folder,
        device=torch.device("cpu"),
        log=lambda step, metrics: rows.append((step, metrics)),
        tick=tick,
    )
    return rows


@pytest.mark.parametrize("make", [diffusion, vqgan])
def test_half_precision_trains(make, tmp_path):
    params = dataclasses.replace(PARAMS, precision="bf16-mixed")
    module = make()
    rows = train(module, tmp_path, params=params)
    assert [step for step, _ in rows] == list(range(1, 7))
    assert all(np.isfinite(value) for _, metrics in rows for value in metrics.values())
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_codes_are_revived_by_features_of_half_precision():
    module, step = vqgan(), 1  # the first of every two
    module.vqgan.codebook.data.zero_()
    features = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1)).bfloat16()
    module.revive(torch.zeros(2, 9, dtype=torch.int64), features, step)
    found = module.vqgan.codebook.detach()
    assert found[0].eq(0).all()  # the one in use
    assert all(
        any(torch.equal(code, f) for f in features.permute(0, 2, 3, 1).flatten(0, 2).float()) for code in found[1:]
    )


@pytest.mark.parametrize("make", [diffusion, vqgan])
@pytest.mark.parametrize("die_at", [3, 4])
def test_interrupted_training_ends_the_same(make, die_at, tmp_path):
    whole = make()
    rows = train(whole, tmp_path / "whole")
    assert [step for step, _ in rows] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(Killed):
        train(make(), tmp_path / "killed", die_at=die_at)
    resumed = make()
    more = train(resumed, tmp_path / "killed")
    assert more == rows[2:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_averages_over_an_interruption_are_those_of_an_undisturbed_training(tmp_path):
    """Reports every three steps, checkpoints every two: killed in the fifth, it goes on in the middle of an average."""
    params = dataclasses.replace(PARAMS, log_every=3)
    rows = train(diffusion(), tmp_path / "whole", params=params)
    assert [step for step, _ in rows] == [3, 6]
    with pytest.raises(Killed):
        train(diffusion(), tmp_path / "killed", die_at=5, params=params)
    assert train(diffusion(), tmp_path / "killed", params=params) == rows[1:]


def test_a_finished_training_gives_its_averages_again(tmp_path):
    first = diffusion()
    train(first, tmp_path)
    again = diffusion()
    assert train(again, tmp_path) == []
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in first.state_dict().items())


def test_the_kept_weights_are_averages(tmp_path):
    module = diffusion()
    train(module, tmp_path)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    raw, kept = checkpoint["current_model_state"], module.state_dict()
    assert any(not torch.equal(raw[name], kept[name]) for name in kept)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    train(diffusion(), tmp_path)
    path = tmp_path / "last.ckpt"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=r"last\.ckpt.*delete it"):
        train(diffusion(), tmp_path)


def test_batches_depend_on_seed_and_epoch_only():
    def batches(epoch, seed):
        data = loader(ImageBatches(IMAGES), batch=4, steps=3, seed=seed)
        data.sampler.set_epoch(epoch)
        return torch.stack(list(data))

    assert torch.equal(batches(2, 1), batches(2, 1))
    assert not torch.equal(batches(2, 1), batches(3, 1))
    assert not torch.equal(batches(2, 1), batches(2, 2))
