"""Bringing references together, pairs of a dataset's test images or pictures of one's own: `python -m stages.fuse`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.images import ImageSet, to_float, to_uint8
from pipeline.data.shards import read_split
from pipeline.diffusion.denoiser import Denoiser
from pipeline.errors import ConfigError, InputError, at_least
from pipeline.experiment import runtime
from pipeline.experiment.fusion_groups import Group, find, pair, read_group
from pipeline.experiment.fusion_pictures import Section, Strip, write_fusion_sheet
from pipeline.experiment.guides import load_prior
from pipeline.experiment.layout import Layout
from pipeline.experiment.models import load_denoiser
from pipeline.experiment.params import Params
from pipeline.experiment.progress import Bar, progress
from pipeline.experiment.record import write_json
from pipeline.noise import Noise, stream_seed
from pipeline.steering.prior import TokenPrior, given
from pipeline.steering.semantic import Claim, Fusion, Reference, compatibility, distance, read, spread
from pipeline.steering.semantic import fuse as blend

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
PAIRS = 6
"""Pairs of test images shown, if none are named."""
RANKED = 24
"""Test images of which all pairs are ranked."""
SHOWN = 4
"""Pairs shown from each end of the ranking."""


@dataclass(frozen=True, kw_only=True)
class Studio:
    """What fusions of one dataset need."""

    params: Params
    dataset: str
    denoiser: Denoiser
    prior: TokenPrior
    device: torch.device

    def references(self, groups: Sequence[Group]) -> list[Reference]:
        """References of B groups, as many as each has pictures."""
        x = to_float(np.stack([group.images for group in groups])).to(self.device)
        regions = torch.from_numpy(np.stack([group.regions for group in groups])).to(self.device)
        return [Reference(x=x[:, j], region=regions[:, j, None]) for j in range(x.shape[1])]

    def claims(self, groups: Sequence[Group]) -> tuple[Claim, ...]:
        """What the references of B groups say."""
        return read(given(self.prior.codec), self.references(groups), spread(given(self.prior.calibration)))

    def noise(self, groups: Sequence[Group]) -> Noise:
        """A stream per group: the same at every level of coherence."""
        seed, dataset = self.params.seed, self.dataset
        return Noise([stream_seed(seed, "fuse", dataset, *g.names, *g.places, g.sample) for g in groups], self.device)


def fuse(
    params: Params,
    layout: Layout,
    dataset: str,
    *,
    own: Sequence[Sequence[str]] = (),
    pairs: Sequence[Sequence[str]] = (),
    levels: Sequence[float] = LEVELS,
    samples: int = 1,
    out: Path | None = None,
) -> None:
    """Write `fusion.png` and `fusion.json`.

    Args:
        params: of the pipeline.
        layout: where everything lies.
        dataset: whose models are used.
        own: (picture, region) each, as `read_group`: files, brought together as one group.
        pairs: test images by key or number, the left and the right; if neither, the first, best and worst pairs.
        levels: of coherence, each in [0, 1].
        samples: images drawn per group.
        out: folder; `layout.fusion(dataset)` if not given.

    Raises:
        UserError: a picture, region, level or number cannot be used, or models or their calibration are missing.
    """
    at_least(1, samples=samples, levels=len(levels))
    settings = [Fusion(coherence=level) for level in levels]
    runtime.make_deterministic()
    started, (studio, inputs) = runtime.now(), open_studio(params, layout, dataset)
    parts, ranking = assemble(studio, layout, own, pairs)
    groups = [replace(group, sample=k) for part in parts for group in part.groups for k in range(samples)]
    watch, folder = runtime.Stopwatch(studio.device), layout.fusion(dataset) if out is None else out
    with watch.lap():
        rows = draw_all(studio, groups, settings)
    write_fusion_sheet(folder / "fusion.png", sections(parts, rows, samples), levels)
    record = {"schema": 1, "kind": "fusion", "dataset": dataset, "seed": params.seed, "inputs": inputs} | {
        "params": asdict(settings[0]) | {"coherence": list(levels)},
        "rows": [row.record() for row in rows],
        "ranking": ranking,
        "measured": runtime.circumstances(studio.device, started, watch.seconds),
    }
    write_json(folder / "fusion.json", record)


def open_studio(params: Params, layout: Layout, dataset: str) -> tuple[Studio, dict[str, Any]]:
    """Load what fusions need, and the digests of it.

    Raises:
        ConfigError: params.yaml knows no such dataset.
        CheckpointError: a part is missing or damaged, or does not go with the others.
    """
    if dataset not in params.datasets:
        raise ConfigError(f"there is no dataset {dataset!r} in params.yaml, but {', '.join(params.datasets)}.")
    device = runtime.choose_device()
    prior, inputs = load_prior(params, layout, dataset, device)
    denoiser, ddpm = load_denoiser(layout.ddpm(dataset), params.ddpm, params.image_size, device)
    studio = Studio(params=params, dataset=dataset, denoiser=denoiser, prior=prior, device=device)
    return studio, inputs | {"denoiser": ddpm["sha256"]}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of a group.

    Attributes:
        group: the pictures.
        results: uint8 [L, S, S, 3].
        distances: of each to the references, in the encoder's features.
        bits: how well the references go together.
        tokens: that they cover.
    """

    group: Group
    results: NDArray[np.uint8]
    distances: list[float]
    bits: float
    tokens: int

    @property
    def caption(self) -> str:
        """How well the references go together, and what they are."""
        return f"{self.bits:+.1f} bits, {self.bits / self.tokens:+.3f} per token: {' + '.join(self.group.titles)}"

    def record(self) -> dict[str, Any]:
        """All but the pictures."""
        return {
            "references": [
                {"image": name, "region": place}
                for name, place in zip(self.group.names, self.group.places, strict=True)
            ],
            "sample": self.group.sample,
            "bits": round(self.bits, 3),
            "bits_per_token": round(self.bits / self.tokens, 5),
            "covered_tokens": self.tokens,
            "distances": [round(value, 5) for value in self.distances],
        }


def draw_all(studio: Studio, groups: Sequence[Group], settings: Sequence[Fusion]) -> list[Row]:
    """Bring groups together in batches."""
    size = studio.params.sweep.batch
    batches = [groups[k : k + size] for k in range(0, len(groups), size)]
    total = len(batches) * sum(setting.steps for setting in settings)
    with progress(f"fuse {studio.dataset}", total, "steps") as bar:
        return [row for batch in batches for row in draw(studio, batch, settings, bar)]


def draw(studio: Studio, groups: Sequence[Group], settings: Sequence[Fusion], bar: Bar) -> list[Row]:
    """Bring groups together at every level."""
    references, found = studio.references(groups), compatibility(studio.prior.circuit, studio.claims(groups))
    images, far = [], []
    for setting in settings:
        bar.say(f"coherence {setting.coherence:g}")
        noise = studio.noise(groups)
        x = blend(studio.denoiser, studio.prior, references, noise, setting, watch=lambda t, x_0: bar.advance())
        images.append(to_uint8(x.cpu()).numpy())
        far.append(distance(given(studio.prior.codec), x, references).tolist())
    return [
        Row(
            group=group,
            results=np.stack([level[k] for level in images]),
            distances=[level[k] for level in far],
            bits=float(found.bits[k]),
            tokens=int(found.covered[k]),
        )
        for k, group in enumerate(groups)
    ]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Groups under one title."""

    title: str
    groups: Sequence[Group]


def sections(parts: Sequence[Part], rows: Sequence[Row], samples: int) -> list[Section]:
    """Rows, which come in the order of the groups and of the samples of each, under their titles."""
    left, out = iter(rows), []
    for part in parts:
        taken = [next(left) for _ in range(len(part.groups) * samples)]
        strips = [
            Strip(references=r.group.images, regions=r.group.regions, results=r.results, caption=r.caption)
            for r in taken
        ]
        out.append(Section(title=part.title, strips=strips))
    return out


def assemble(
    studio: Studio, layout: Layout, own: Sequence[Sequence[str]], pairs: Sequence[Sequence[str]]
) -> tuple[list[Part], dict[str, Any] | None]:
    """What is brought together; and the ranking of pairs, unless something was named."""
    if own and pairs:
        raise ConfigError("give references of your own or pairs of test images, not both.")
    if own:
        return [Part(title="Pictures of one's own", groups=[read_group(own, studio.params.image_size)])], None
    images = read_split(layout.data(studio.dataset), "test", layout.cache)
    if pairs:
        named = [pair(images, find(images, a), find(images, b)) for a, b in pairs]
        return [Part(title="Pairs of test images", groups=named)], None
    if len(images.keys) < 2:
        raise InputError(f"{studio.dataset} has {len(images.keys)} test image, but references are at least 2.")
    bits = ranks(studio, images, min(RANKED, len(images.keys)))
    (best, worst), same = ends(bits), f"halves of one image: {bits.diagonal().mean():+.1f} bits on average"
    parts = {
        "Pairs of test images": [(2 * k, 2 * k + 1) for k in range(min(PAIRS, len(images.keys) // 2))],
        f"Most compatible of {len(bits)} left and {len(bits)} right halves ({same})": best,
        "Least compatible of them": worst,
    }
    found = [
        Part(title=title, groups=[pair(images, i, j) for i, j in places]) for title, places in parts.items() if places
    ]
    return found, summary(bits, images.keys[: len(bits)])


def ends(bits: NDArray[np.float64]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The most and the least compatible pairs of different images, each from high to low, by bits [M, M]."""
    falling = np.argsort(-bits, axis=None, kind="stable")
    order = [(int(k) // len(bits), int(k) % len(bits)) for k in falling if k % (len(bits) + 1)]
    best = distinct(order)
    return best, distinct([places for places in reversed(order) if places not in best])[::-1]


def distinct(order: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The first pairs that have no picture in common, at most SHOWN."""
    chosen: list[tuple[int, int]] = []
    for places in order:
        if len(chosen) < SHOWN and not any(set(places) & set(others) for others in chosen):
            chosen.append(places)
    return chosen


def ranks(studio: Studio, images: ImageSet, count: int) -> NDArray[np.float64]:
    """Compatibility in bits of the left of image i with the right of image j, [count, count]."""
    left, right = studio.claims([pair(images, k, k) for k in range(count)])
    rows = []
    for k in range(count):
        one = Claim(log_q=left.log_q[k].expand_as(right.log_q), coverage=left.coverage[k].expand_as(right.coverage))
        rows.append(compatibility(studio.prior.circuit, (one, right)).bits.cpu().numpy())
    return np.stack(rows)


def summary(bits: NDArray[np.float64], keys: Sequence[str]) -> dict[str, Any]:
    """The ranking as a record: all numbers, and how often the other half of the same image is the best one."""
    own, others = bits.diagonal(), bits[~np.eye(len(bits), dtype=bool)]
    return {
        "images": list(keys),
        "bits": bits.round(3).tolist(),
        "same_image": {"mean": float(own.mean()), "first": int((bits.argmax(1) == np.arange(len(bits))).sum())},
        "other_image": {"mean": float(others.mean()), "least": float(others.min()), "most": float(others.max())},
    }
