"""How often the report's intervals cover the truth, with few images: python -m benchmarks.coverage.

Every world draws normal scores of known mean; its images are resampled as the report resamples them.
"""

from __future__ import annotations

import numpy as np

from pipeline.experiment.statistics import bootstrap_weights, interval, tail

WORLDS, RESAMPLES = 3000, 1000
DESIGNS = ([4], [8], [12], [24], [8, 8, 8])  # images of each dataset


def covered(images: list[int]) -> tuple[float, float]:
    """Shares of worlds whose plain interval, and whose widened one, holds the true mean 0."""
    rng, hits = np.random.default_rng(images), np.zeros(2)
    for _ in range(WORLDS):
        means = [bootstrap_weights(n, RESAMPLES, rng) @ rng.normal(size=n) for n in images]
        for k, beyond in enumerate((0.025, tail(images))):
            low, high = interval(np.mean(means, axis=0), beyond)
            hits[k] += low <= 0.0 <= high
    plain, widened = hits / WORLDS
    return plain, widened


def main() -> None:
    """Print the table of docs/metrics.md."""
    shares = [covered(images) for images in DESIGNS]
    heads = [f"{len(images)} datasets of {images[0]}" if len(images) > 1 else str(images[0]) for images in DESIGNS]
    for name, cells in zip(("images", "plain", "these"), (heads, *zip(*shares, strict=True)), strict=True):
        print(f"| {name} | {' | '.join(cell if isinstance(cell, str) else f'{cell:.1%}' for cell in cells)} |")


if __name__ == "__main__":
    main()
