"""The stage insight: what the circuit of a dataset says about masked test images, as pictures and numbers."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.information import BlockGain, block_gain, mutual_information
from pipeline.circuit.insight import Completions, MostProbable, completions, entropy_map, log_reveal, most_probable
from pipeline.circuit.queries import BITS
from pipeline.circuit.store import load_circuit
from pipeline.data.masks import MASKS
from pipeline.errors import ConfigError, InputError
from pipeline.experiment import insight_pictures, runtime
from pipeline.experiment.circuit_pictures import hard_evidence
from pipeline.experiment.circuit_scores import known_tokens
from pipeline.experiment.codecs import load_codec
from pipeline.experiment.layout import Layout
from pipeline.experiment.params import Params
from pipeline.experiment.record import write_json
from pipeline.experiment.tokens import read_tokens
from pipeline.noise import Noise, stream_seed

log = logging.getLogger(__name__)

IMAGES = 2
"""Test images shown at most."""
MASKS_SHOWN = 1
"""Masks of the sweep shown if none is asked for."""
DRAWS = 64
"""Completions drawn of each image."""
SHOWN = 4
"""Completions shown of each image."""
PATCH = 2
"""Side of the patches that might be revealed, in tokens."""
PATCH_DRAWS = 16
"""Draws behind the gain of a patch."""


@dataclass(frozen=True, kw_only=True)
class Insight:
    """What the circuit says about one image under one mask.

    Attributes:
        mask: its name.
        image: key of the image.
        truth: its tokens, [N].
        known: the tokens that the mask shows wholly, [N] bool.
        entropy: of each token, [N] bits.
        log_truth: natural log of p(hidden tokens of the image | known ones).
        most: the most probable completion, a batch of one.
        drawn: the draws, likeliest first.
        shown: those of them that are shown.
        gain: what revealing a token tells about all others, [N] bits.
        patches: the tokens of each patch with something hidden.
        told: what revealing each patch tells.
    """

    mask: str
    image: str
    truth: Tensor
    known: Tensor
    entropy: Tensor
    log_truth: float
    most: MostProbable
    drawn: Completions
    shown: Completions
    gain: Tensor
    patches: list[list[int]]
    told: BlockGain

    @property
    def best(self) -> int:
        """The patch that tells most about all other tokens."""
        return int(self.told.others[0].argmax())


def insight(params: Params, layout: Layout, dataset: str, mask: str | None = None) -> None:
    """Write pictures and numbers for the first test images of `dataset`, under `mask` or the first of the sweep.

    Raises:
        ConfigError: `mask` is unknown.
        InputError: circuit and codec do not fit together, or a mask file cannot be used.
        CheckpointError: circuit or codec are missing or damaged.
    """
    runtime.make_deterministic()
    masks, device, out = chosen_masks(params, mask), runtime.choose_device(), layout.insight(dataset)
    codec, vqgan = load_codec(layout.vqgan(dataset), params.vqgan, device)
    circuit, trained = load_circuit(layout.circuit(dataset))
    circuit, test = circuit.to(device), read_tokens(layout.tokens(dataset), "test")
    if (circuit.tokens, circuit.codes) != (codec.side**2, codec.codes):
        raise InputError(
            f"{layout.circuit(dataset)}: the circuit is over {circuit.tokens} tokens of {circuit.codes} codes, but the "
            f"codec has {codec.side**2} of {codec.codes}; run the stages encode and train_circuit again."
        )
    images = min(params.report.images, IMAGES, len(test.tokens))
    found = []
    for name in masks:
        known = known_tokens(params, layout, name, codec.side, images).to(device)
        for k in range(images):
            seed = stream_seed(params.seed, "insight", dataset, test.keys[k])
            found.append(look(circuit, test.tokens[k].to(device), known[k], name, test.keys[k], seed))
            log.info("insight %s: %s, image %d of %d", dataset, name, k + 1, images)
    insight_pictures.draw_entropy(out / "entropy.png", codec, found)
    insight_pictures.draw_completions(out / "completions.png", codec, found)
    insight_pictures.draw_gain(out / "gain.png", codec, found)
    write_json(
        out / "insight.json",
        {
            "schema": 1,
            "dataset": dataset,
            "inputs": {"circuit": trained["sha256"], "vqgan": vqgan["sha256"]},
            "draws": DRAWS,
            "patch": {"side": PATCH, "draws": PATCH_DRAWS},
            "images": [numbers(each, codec.side) for each in found],
        },
    )


def chosen_masks(params: Params, mask: str | None) -> list[str]:
    """The masks to look at.

    Raises:
        ConfigError: `mask` is neither drawn nor among mask_files.
    """
    if mask is None:
        return list(params.sweep.masks[:MASKS_SHOWN])
    if mask not in MASKS and mask not in params.mask_files:
        there = ", ".join([*MASKS, *params.mask_files])
        raise ConfigError(f"--mask {mask}: there is no such mask; choose one of {there}.")
    return [mask]


def look(circuit: Circuit, truth: Tensor, known: Tensor, mask: str, image: str, seed: int) -> Insight:
    """Ask everything about one image with tokens [N], seen where `known` [N]."""
    evidence = hard_evidence(circuit, truth[None], known[None])
    [drawn] = completions(circuit, evidence, Noise([stream_seed(seed, "completions")]), DRAWS)
    patches = hidden_patches(known, round(circuit.tokens**0.5), PATCH)
    return Insight(
        mask=mask,
        image=image,
        truth=truth,
        known=known,
        entropy=entropy_map(circuit, evidence)[0],
        log_truth=float(log_reveal(circuit, truth[None], known[None], ~known[None])),
        most=most_probable(circuit, evidence),
        drawn=drawn,
        shown=drawn.diverse(SHOWN),
        gain=mutual_information(circuit, evidence).others[0],
        patches=patches,
        told=block_gain(circuit, evidence, patches, Noise([stream_seed(seed, "patches")]), PATCH_DRAWS),
    )


def hidden_patches(known: Tensor, side: int, patch: int) -> list[list[int]]:
    """Tokens of the patches, `patch` a side and at most, that lie side by side and are not wholly `known` [side^2]."""
    out = []
    for row in range(0, side, patch):
        for column in range(0, side, patch):
            rows, columns = range(row, min(row + patch, side)), range(column, min(column + patch, side))
            tokens = [side * r + c for r in rows for c in columns]
            if not known[tokens].all():
                out.append(tokens)
    return out


def numbers(found: Insight, side: int) -> dict[str, Any]:
    """What insight.json says about one image; logarithms to base 2, places as [row, column] of tokens."""
    bits, times = found.drawn.log_prob / BITS, found.drawn.count
    spread = bits.repeat_interleave(times)
    tokens, patches = found.gain.argsort(descending=True, stable=True), found.told.others[0].argsort(descending=True)
    hidden = ~found.known
    return {
        "mask": found.mask,
        "image": found.image,
        "hidden_tokens": int(hidden.sum()),
        "entropy": {
            "mean_hidden": _short(found.entropy[hidden].mean()),
            "sum_of_tokens": _short(found.entropy.sum()),
            "together": _short(-spread.mean()),  # of all tokens jointly, estimated from the draws
            "together_error": _short(spread.std() / len(spread) ** 0.5),
        },
        "log2_prob": {
            "truth": _short(found.log_truth / BITS),
            "draws_below_truth": _short((spread < found.log_truth / BITS).double().mean()),
            "draws": [_short(value) for value in spread],
            "shown": [_short(value / BITS) for value in found.shown.log_prob],
            "most_probable": _short(found.most.log_prob[0] / BITS),
            "most_probable_with_latents": _short(found.most.log_joint[0] / BITS),
        },
        "gain": {
            "tokens": [{"at": list(divmod(k, side)), "bits": _short(found.gain[k])} for k in tokens[:5].tolist()],
            "patches": [
                {
                    "at": list(divmod(found.patches[k][0], side)),
                    "bits": _short(found.told.others[0, k]),
                    "error": _short(found.told.error[0, k]),
                    "own_bits": _short(found.told.own[0, k]),
                }
                for k in patches[:5].tolist()
            ],
        },
    }


def _short(value: Tensor | float) -> float:
    return round(float(value), 4)
