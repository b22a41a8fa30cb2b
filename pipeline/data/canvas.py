"""A small anti-aliased painter: signed distances in, RGB out.

The embedded image domains (`faces`, `objects`, `rooms`) are painted with it. Everything is expressed in the unit square
(x to the right, y downwards), so the same random draws give the same picture at any size. Randomness reaches this
module only as a NumPy generator handed in by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Field = NDArray[np.float32]


class Canvas:
    """A square RGB picture that shapes are painted on, back to front.

    Attributes:
        x: horizontal coordinate of every sample, [S, S], 0 at the left edge and 1 at the right.
        y: vertical coordinate of every sample, [S, S], 0 at the top edge and 1 at the bottom.
        rgb: the picture so far, [S, S, 3] in [0, 1].
    """

    def __init__(self, size: int, supersample: int = 3) -> None:
        """Open a black canvas of `size` pixels a side, painted at `supersample` samples per pixel and axis."""
        self.size, self.supersample = size, supersample
        samples = size * supersample
        line = (np.arange(samples, dtype=np.float32) + 0.5) / samples
        self.x, self.y = np.meshgrid(line, line)
        self.sample = np.float32(1.0 / samples)
        self.rgb = np.zeros((samples, samples, 3), np.float32)

    def coverage(self, distance: Field, softness: float = 0.0) -> Field:
        """Fraction of each sample inside a shape, from its signed distance [S, S] (negative inside).

        `softness` is the width of the edge in unit coordinates; 0 gives an edge one sample wide.
        """
        width = max(float(self.sample), softness)
        inside: Field = np.clip(0.5 - distance / width, 0.0, 1.0)
        return inside

    def fill(self, distance: Field, color: ArrayLike, opacity: float | Field = 1.0, softness: float = 0.0) -> None:
        """Paint a shape given by its signed distance in `color` ([3] or [S, S, 3], in [0, 1])."""
        self.blend(color, self.coverage(distance, softness) * opacity)

    def blend(self, color: ArrayLike, weight: float | Field) -> None:
        """Mix `color` ([3] or [S, S, 3]) into the picture with a weight in [0, 1] (a number or [S, S])."""
        w = np.asarray(weight, np.float32)[..., None]
        self.rgb += w * (np.asarray(color, np.float32) - self.rgb)

    def shade(self, factor: float | Field) -> None:
        """Multiply the picture by a lighting factor (a number or [S, S])."""
        self.rgb *= np.asarray(factor, np.float32)[..., None]

    def image(self) -> NDArray[np.uint8]:
        """Return the picture as [size, size, 3] bytes, averaged over the samples of each pixel."""
        s, k = self.size, self.supersample
        mean: Field = np.clip(self.rgb, 0.0, 1.0).reshape(s, k, s, k, 3).mean(axis=(1, 3))
        return np.round(mean * 255.0).astype(np.uint8)


def ellipse(x: Field, y: Field, cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> Field:
    """Approximate signed distance to an ellipse with radii (rx, ry) turned by `angle` radians (exact for circles)."""
    u, v = turn(x - cx, y - cy, angle)
    k0 = np.hypot(u / rx, v / ry)
    k1 = np.hypot(u / rx**2, v / ry**2)
    return np.where(k1 > 1e-9, k0 * (k0 - 1.0) / np.maximum(k1, 1e-9), -min(rx, ry)).astype(np.float32)


def box(
    x: Field, y: Field, cx: float, cy: float, hx: float, hy: float, radius: float = 0.0, angle: float = 0.0
) -> Field:
    """Signed distance to a box with half sides (hx, hy), corners rounded by `radius`, turned by `angle` radians."""
    u, v = turn(x - cx, y - cy, angle)
    dx, dy = np.abs(u) - (hx - radius), np.abs(v) - (hy - radius)
    outside = np.hypot(np.maximum(dx, 0.0), np.maximum(dy, 0.0))
    return (outside + np.minimum(np.maximum(dx, dy), 0.0) - radius).astype(np.float32)


def capsule(x: Field, y: Field, x0: float, y0: float, x1: float, y1: float, radius: float) -> Field:
    """Signed distance to the segment (x0, y0)-(x1, y1) thickened by `radius`."""
    px, py, bx, by = x - x0, y - y0, x1 - x0, y1 - y0
    h = np.clip((px * bx + py * by) / max(bx * bx + by * by, 1e-12), 0.0, 1.0)
    return (np.hypot(px - h * bx, py - h * by) - radius).astype(np.float32)


def polygon(x: Field, y: Field, points: Sequence[tuple[float, float]]) -> Field:
    """Signed distance to a simple polygon given by its corners in order (either direction)."""
    inside = np.zeros(x.shape, bool)
    nearest = np.full(x.shape, np.inf, np.float32)
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        nearest = np.minimum(nearest, capsule(x, y, x0, y0, x1, y1, 0.0))
        crosses = (y0 > y) != (y1 > y)
        inside ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0 if y1 != y0 else 1.0) + x0)
    return np.where(inside, -nearest, nearest).astype(np.float32)


def turn(u: Field, v: Field, angle: float) -> tuple[Field, Field]:
    """Express offsets (u, v) in axes turned by `angle` radians."""
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * u + s * v, c * v - s * u


def noise(x: Field, y: Field, rng: np.random.Generator, cells: float, octaves: int = 3) -> Field:
    """Smooth fractal noise in [-1, 1] with `cells` bumps across the unit square at its coarsest octave.

    The lattice is drawn from `rng` before it is sampled, so the draws do not depend on the size of the picture. Octaves
    finer than the sampling grid alias into grain, as texture does in a photograph.
    """
    total, weight = np.zeros(x.shape, np.float32), 0.0
    for octave in range(octaves):
        lattice = rng.uniform(-1.0, 1.0, (32, 32)).astype(np.float32)
        u, v = x * np.float32(cells * 2**octave), y * np.float32(cells * 2**octave)
        iu, iv = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
        fu, fv = u - iu, v - iv
        su, sv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
        a, b = lattice[iv % 32, iu % 32], lattice[iv % 32, (iu + 1) % 32]
        c, d = lattice[(iv + 1) % 32, iu % 32], lattice[(iv + 1) % 32, (iu + 1) % 32]
        total += (a + (b - a) * su + (c - a + (a - b - c + d) * su) * sv) * 0.5**octave
        weight += 0.5**octave
    return total / np.float32(weight)


def mix(a: ArrayLike, b: ArrayLike, t: float | Field) -> NDArray[np.float32]:
    """Interpolate between two colours; with t [S, S] the result is [S, S, 3]."""
    first, second, w = np.asarray(a, np.float32), np.asarray(b, np.float32), np.asarray(t, np.float32)[..., None]
    return first + (second - first) * w
