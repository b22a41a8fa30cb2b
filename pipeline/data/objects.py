"""Objects: one toy-like thing standing in a landscape or a room, the embedded stand-in for ImageNet.

The object (apple, mug, car, house, tree, mushroom, sailing boat or duck) stands on one of four grounds, each with its
background: grass under hills, sand by the sea, a wooden floor before a wall, snow below mountains. What an inpainter
must infer from the visible part:

- the object from its pieces: a wheel or a handle settles the kind, the silhouette and which way the thing faces;
- the light: one side of the object, the sky and the ground is bright, the cast shadow (the object's own silhouette laid
  down on the ground) falls to the other side;
- the colours: one hue for all painted parts, ground and background as a pair, ambient light tinted by the ground;
- the perspective: large objects stand nearer, that is lower in the picture; ground texture shrinks towards the horizon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.canvas import Canvas, Field, box, capsule, ellipse, mix, noise

Color = NDArray[np.float32]
Array = NDArray[np.floating[Any]]


def _colors(codes: str) -> tuple[Color, ...]:
    return tuple(np.array(list(bytes.fromhex(code)), np.float32) / np.float32(255.0) for code in codes.split())


KINDS = ("apple", "mug", "car", "house", "tree", "mushroom", "boat", "duck")
COLORS = ("red", "yellow", "green", "blue", "purple")
GROUNDS = ("grass", "sand", "wood", "snow")
SIDES = ("left", "right")  # where the light comes from; where the handle, lamp, chimney, beak, bow or leaf is
SIZES = ("small", "large")
CLASSES = {"kind": KINDS, "color": COLORS, "ground": GROUNDS, "light": SIDES, "size": SIZES, "facing": SIDES}
ATTRIBUTES: dict[str, int] = {name: len(classes) for name, classes in CLASSES.items()}

PAINT = _colors("db332b f9c229 4da83d 2e6bd6 9e4db8")  # in the order of COLORS
NEAR = _colors("579433 dbb373 8a522b d1def5")  # of the ground; this and the next five in the order of GROUNDS
FAR = _colors("99c25c f0d9a3 b37545 f5f7ff")
ZENITH = _colors("579ef0 6bc7e6 a8b3a8 7f9cd6")
SKYLINE = _colors("d1ebfa f5f0d6 d6d9c7 e6e2ec")
RIDGE = _colors("6b9e75 248fa8 ebe6d6 94a9d2")
AMBIENT = _colors("708070 857a6b 806e61 7a8299")
WHITE, CREAM, DARK, STEEL, GLASS = _colors("fffaf0 f5ebd1 24242b ccd1d6 a8d6f0")
BARK, BRICK, COFFEE, LEAF, BEAK, LAMP = _colors("6b4529 9e5c47 4d2b1a 579933 f57a1a fff299")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything drawn for a picture before it is painted (lengths in units of the picture's side)."""

    kind: int
    ground: int
    paint: Color  # the object's hue
    light: float  # -1 from the left, +1 from the right
    facing: float  # -1 to the left, +1 to the right
    scale: float  # length of the object's local unit, about its height
    girth: float  # width of the object over its nominal width
    form: float  # proportions of the object, in [-1, 1]
    x: float  # where the object stands
    foot: float
    horizon: float
    phase: float  # place of ridges, ripples and planks, in [0, 1]
    warmth: float  # time of day, in [0, 1]


@dataclass(frozen=True)
class Part:
    """A piece of an object: its signed distance in local units and its look."""

    distance: Array
    color: Color
    bevel: float = 0.06  # how far the rounding of the edge reaches inwards
    gloss: float = 0.0
    relief: Array | None = None  # distance to round instead, where the piece is not rounded along its own edge


def render(rng: np.random.Generator, size: int) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """Draw one picture.

    Args:
        rng: source of all randomness; the draws do not depend on `size`.
        size: side of the picture in pixels.

    Returns:
        The picture, [size, size, 3], and the class of each attribute in `ATTRIBUTES`.
    """
    scene, attributes = sample(rng)
    canvas = Canvas(size)
    paint_background(canvas, scene, rng)
    paint_ground(canvas, scene, rng)
    paint_shadow(canvas, scene)
    paint_object(canvas, scene)
    canvas.shade(_field(1.0 + 0.22 * scene.light * (canvas.x - 0.5)))
    return canvas.image(), attributes


def sample(rng: np.random.Generator) -> tuple[Scene, dict[str, int]]:
    """Draw the attributes, then the continuous parameters of a picture."""
    attributes = {name: int(rng.integers(classes)) for name, classes in ATTRIBUTES.items()}
    scene = Scene(
        kind=attributes["kind"],
        ground=attributes["ground"],
        paint=np.clip(PAINT[attributes["color"]] + rng.uniform(-0.05, 0.05, 3), 0.0, 1.0).astype(np.float32),
        light=2.0 * attributes["light"] - 1.0,
        facing=2.0 * attributes["facing"] - 1.0,
        scale=(0.55, 0.73)[attributes["size"]] + rng.uniform(-0.03, 0.03),
        girth=rng.uniform(0.94, 1.06),
        form=rng.uniform(-1.0, 1.0),
        x=0.5 + rng.uniform(-0.05, 0.05),
        foot=(0.81, 0.89)[attributes["size"]] + rng.uniform(-0.02, 0.02),
        horizon=0.56 + rng.uniform(-0.05, 0.05),
        phase=rng.uniform(),
        warmth=rng.uniform(),
    )
    return scene, attributes


def paint_background(canvas: Canvas, scene: Scene, rng: np.random.Generator) -> None:
    """Paint the sky or wall, bright on the side the light comes from, and what stands on the horizon."""
    x, y, ground, tau = canvas.x, canvas.y, GROUNDS[scene.ground], 2.0 * np.pi
    canvas.blend(mix(ZENITH[scene.ground], SKYLINE[scene.ground], np.clip(y / scene.horizon, 0.0, 1.0)), 1.0)
    if ground == "wood":
        canvas.shade(_field(1.0 + 0.035 * np.tanh(3.0 * np.sin(tau * (x * 4.0 + scene.phase)))))
    else:
        cloud = noise(_field(x * 0.6), _field(y * 1.5 + 0.3), rng, 5.0, 2)
        canvas.blend(1.0, _field(0.8 * np.clip(1.6 * cloud - 0.25, 0.0, 1.0)))
    glow = 0.65 * np.exp(-5.0 * ((x - 0.5 - 0.5 * scene.light) ** 2 + (y - 0.05) ** 2))
    canvas.blend(mix((1.0, 0.98, 0.88), (1.0, 0.88, 0.66), scene.warmth), _field(glow))
    color, top = RIDGE[scene.ground], np.full_like(x, 0.045)  # the skirting board of a room
    if ground == "grass":
        top = 0.06 + 0.035 * np.sin(tau * (1.1 * x + scene.phase)) + 0.015 * np.sin(tau * (2.3 * x - scene.phase))
    elif ground == "sand":
        top = np.full_like(x, 0.09)
        color = mix(color, (0.42, 0.78, 0.80), np.clip(1.0 - (scene.horizon - y) / 0.09, 0.0, 1.0))
    elif ground == "snow":
        first, second = (np.abs((x * rate + scene.phase) % 1.0 - 0.5) for rate in (1.4, 2.3))
        top = np.maximum(0.26 - 0.56 * first, 0.19 - 0.50 * second)
        color = mix(color, FAR[scene.ground], np.clip(30.0 * (scene.horizon - y - 0.12), 0.0, 1.0))
    canvas.fill(_field(scene.horizon - top - y), color)


def paint_ground(canvas: Canvas, scene: Scene, rng: np.random.Generator) -> None:
    """Paint the ground and its texture, seen in perspective."""
    below = np.maximum(canvas.y - scene.horizon, 0.0)
    across, depth = _field((canvas.x - 0.5) / (below + 0.25)), _field(1.0 / (below + 0.12))
    inside = canvas.coverage(_field(scene.horizon - canvas.y))
    canvas.blend(mix(FAR[scene.ground], NEAR[scene.ground], _field(below / (1.0 - scene.horizon))), inside)
    match GROUNDS[scene.ground]:
        case "grass":
            texture = 0.16 * noise(_field(2.0 * across), _field(0.35 * depth), rng, 5.0, 2)
        case "sand":
            bend = 0.5 * noise(across, _field(0.2 * depth), rng, 2.0, 1) + 0.25 * across
            texture = 0.055 * np.sin(2.0 * np.pi * (1.1 * depth + bend + scene.phase))
        case "wood":
            plank = _field(2.2 * across + scene.phase)
            seam = np.clip(1.0 - np.abs(plank - np.round(plank)) / 0.05, 0.0, 1.0)
            grain = noise(plank, _field(0.06 * depth), rng, 6.0, 1)
            texture = 0.09 * np.sin(7.3 * np.floor(plank) + 10.0 * scene.phase) - 0.28 * seam + 0.06 * grain
        case _:
            texture = 0.05 * noise(across, _field(0.3 * depth), rng, 3.0, 2)
    canvas.shade(_field(1.0 + inside * texture))


def paint_shadow(canvas: Canvas, scene: Scene) -> None:
    """Lay the object's silhouette down on the ground, away from the light, and darken where it stands."""
    height = (scene.foot - canvas.y) / 0.24
    u = (canvas.x - scene.x + 0.75 * scene.light * height) / (scene.scale * scene.girth) * scene.facing
    parts = SHAPES[scene.kind](_field(u), _field(-height / scene.scale), scene)
    silhouette = np.minimum.reduce([part.distance for part in parts])
    cast = canvas.coverage(_field(silhouette * scene.scale - 0.02), 0.10)
    x, y, radius = _field(canvas.x - scene.x), _field(canvas.y - scene.foot), 0.36 * scene.scale * scene.girth
    base = ellipse(x, y, 0.0, -0.01, radius, 0.045)
    dark = np.maximum(cast, 0.9 * canvas.coverage(base, 0.06)) * canvas.coverage(_field(scene.horizon - canvas.y))
    canvas.blend(canvas.rgb * AMBIENT[scene.ground] * np.float32(0.75), _field(0.75 * dark))


def paint_object(canvas: Canvas, scene: Scene) -> None:
    """Paint the parts of the object from back to front, each lit as a solid with rounded edges."""
    u = _field((canvas.x - scene.x) / (scene.scale * scene.girth) * scene.facing)
    v = _field((canvas.y - scene.foot) / scene.scale)
    sun = 0.75 * mix((1.0, 0.99, 0.95), (1.08, 0.96, 0.82), scene.warmth)
    for part in SHAPES[scene.kind](u, v, scene):
        relief = part.distance if part.relief is None else part.relief
        down, right = np.gradient(relief)
        steep = np.clip(1.0 + relief / part.bevel, 0.0, 0.98) / np.maximum(np.hypot(down, right), 1e-6)
        nx, ny = right * steep, down * steep
        lit = 0.66 * scene.light * nx - 0.50 * ny + 0.56 * np.sqrt(np.maximum(1.0 - nx**2 - ny**2, 0.0))
        lit = np.clip(lit, 0.0, 1.0)[..., None]
        color = part.color * (AMBIENT[scene.ground] + sun * lit) + part.gloss * np.clip(6.0 * lit - 5.0, 0.0, 1.0) ** 2
        canvas.fill(_field(part.distance * scene.scale), color)


def _field(values: Array) -> Field:
    return values.astype(np.float32, copy=False)


def _convex(u: Field, v: Field, corners: Sequence[tuple[float, float]], radius: float = 0.0) -> Field:
    """Signed distance to a convex polygon (corners clockwise on screen, mitred outside), grown by `radius`."""
    edges = [
        ((u - u0) * (v1 - v0) - (v - v0) * (u1 - u0)) / float(np.hypot(u1 - u0, v1 - v0))
        for (u0, v0), (u1, v1) in zip(corners, [*corners[1:], corners[0]], strict=True)
    ]
    return _field(np.maximum.reduce(edges) - radius)


def _join(a: Array, b: Array, soft: float) -> Field:
    """Union of two shapes with a fillet of width `soft`."""
    h = np.clip(0.5 + 0.5 * (b - a) / soft, 0.0, 1.0)
    return _field(b + (a - b) * h - soft * h * (1.0 - h))


def _apple(u: Field, v: Field, scene: Scene) -> Iterator[Part]:
    wide = 0.30 + 0.02 * scene.form
    body = _join(ellipse(u, v, -0.15, -0.38, wide, 0.38, -0.22), ellipse(u, v, 0.15, -0.38, wide, 0.38, 0.22), 0.16)
    yield Part(body, scene.paint, 0.41, 0.5, ellipse(u, v, 0.0, -0.39, wide + 0.17, 0.41))
    yield Part(capsule(u, v, 0.0, -0.66, 0.05, -0.93, 0.035), BARK)
    yield Part(ellipse(u, v, 0.22, -0.86, 0.18, 0.08, -0.45), LEAF, 0.08)


def _mug(u: Field, v: Field, scene: Scene) -> Iterator[Part]:
    tall, side = 0.40 + 0.03 * scene.form, np.abs(u + 0.10) - 0.36
    body = np.maximum(np.maximum(side, np.abs(v + tall) - tall), ellipse(u, v, -0.10, -tall, 0.52, 0.52))
    yield Part(np.abs(ellipse(u, v, 0.27, -tall, 0.21, 0.23)) - 0.055, scene.paint, 0.055)
    yield Part(body, scene.paint, 0.36, 0.3, side)
    yield Part(ellipse(u, v, -0.10, -2.0 * tall, 0.36, 0.10), 0.6 * scene.paint + 0.4, 0.02)
    yield Part(ellipse(u, v, -0.10, -2.0 * tall + 0.01, 0.29, 0.065), COFFEE, 0.02)


def _car(u: Field, v: Field, scene: Scene) -> Iterator[Part]:
    roof = -0.66 + 0.04 * scene.form
    cabin = _convex(u, v, [(-0.42, -0.34), (-0.32, roof), (0.08, roof), (0.32, -0.34)], 0.04)
    glass = _convex(u, v, [(-0.34, -0.36), (-0.27, roof + 0.06), (0.05, roof + 0.06), (0.22, -0.36)])
    tyres = ellipse(np.abs(u), v, 0.32, -0.15, 0.155, 0.155)
    yield Part(_join(cabin, box(u, v, 0.0, -0.27, 0.57, 0.16, 0.12), 0.05), scene.paint, 0.14, 0.3)
    yield Part(np.maximum(glass, 0.03 - np.abs(u + 0.09)), GLASS, 0.02)
    yield Part(tyres, DARK, 0.05)
    yield Part(tyres + 0.085, STEEL, 0.03)
    yield Part(ellipse(u, v, 0.52, -0.31, 0.05, 0.06), LAMP, 0.05)


def _house(u: Field, v: Field, scene: Scene) -> Iterator[Part]:
    gable = [(-0.56, -0.50), (0.0, -0.96 + 0.04 * scene.form), (0.56, -0.50)]
    across, down = np.abs(u + 0.17) - 0.11, np.abs(v + 0.31) - 0.11
    yield Part(box(u, v, 0.27, -0.80, 0.07, 0.16), BRICK, 0.05)
    yield Part(box(u, v, 0.0, -0.29, 0.40, 0.29), CREAM, 0.08)
    yield Part(_convex(u, v, gable), scene.paint, 0.16)
    yield Part(box(u, v, 0.18, -0.19, 0.10, 0.19), 0.7 * scene.paint, 0.03)
    yield Part(np.maximum(across, down), GLASS, 0.02)
    yield Part(np.maximum(np.maximum(across, down), np.minimum(across, down) + 0.092), CREAM)


def _tree(u: Field, v: Field, scene: Scene) -> Iterator[Part]:
    wide = 0.25 + 0.02 * scene.form
    trunk = _convex(u, v, [(-0.11, 0.0), (-0.06, -0.55), (0.06, -0.55), (0.11, 0.0)])
    low = _join(ellipse(u, v, -0.22, -0.55, wide, 0.19), ellipse(u, v, 0.30, -0.52, 0.22, 0.17), 0.04)
    high = _join(ellipse(u, v, -0.05, -0.78, 0.26, 0.21), ellipse(u, v, 0.16, -0.68, 0.22, 0.20), 0.06)
    yield Part(_join(trunk, capsule(u, v, 0.0, -0.22, 0.26, -0.42, 0.035), 0.06), BARK, 0.08)
    yield Part(low, 0.88 * scene.paint, 0.20)
    yield Part(high, scene.paint, 0.22)


def _mushroom(u: Field, v: Field, scene: Scene) -> Iterator[Part]:
    tall = 0.46 + 0.04 * scene.form
    for size, a, b in ((1.0, _field(u + 0.10), v), (0.42, _field((u - 0.36) / 0.42), _field((v - 0.04) / 0.42))):
        dome = ellipse(a, b, 0.0, -tall, 0.48, 0.48)
        stem = _convex(a, b, [(-0.15, 0.0), (-0.10, -0.5), (0.10, -0.5), (0.15, 0.0)])
        spots = ellipse(np.abs(a), b, 0.25, -tall - 0.14, 0.085, 0.08)
        spots = np.minimum(spots, ellipse(a, b, 0.0, -tall - 0.31, 0.10, 0.08))
        yield Part(size * np.maximum(ellipse(a, b, 0.0, -tall, 0.42, 0.10), -b - tall), 0.8 * CREAM)
        yield Part(size * stem, CREAM, 0.12 * size)
        yield Part(size * np.maximum(dome, b + tall), scene.paint, 0.48, 0.3, dome)
        yield Part(size * spots, WHITE)


def _boat(u: Field, v: Field, scene: Scene) -> Iterator[Part]:
    top = -0.96 + 0.04 * scene.form
    hull = _convex(u, v, [(-0.36, 0.0), (-0.48, -0.24), (0.57, -0.28), (0.34, 0.0)])
    yield Part(capsule(u, v, 0.04, -0.24, 0.04, top, 0.025), BARK)
    yield Part(_convex(u, v, [(-0.46, -0.33), (0.00, top + 0.03), (0.00, -0.33)]), CREAM, 0.16)
    yield Part(_convex(u, v, [(0.09, -0.35), (0.09, top + 0.14), (0.48, -0.35)]), scene.paint, 0.14)
    yield Part(hull, scene.paint, 0.14, 0.2)
    yield Part(np.maximum(hull, np.abs(v + 0.20) - 0.025), CREAM)


def _duck(u: Field, v: Field, scene: Scene) -> Iterator[Part]:
    neck = -0.68 - 0.02 * scene.form
    body = _join(ellipse(u, v, -0.04, -0.25, 0.44, 0.26), ellipse(u, v, -0.40, -0.44, 0.16, 0.09, 0.7), 0.14)
    yield Part(ellipse(u, v, 0.46, neck + 0.05, 0.14, 0.065, 0.1), BEAK)
    yield Part(_join(body, ellipse(u, v, 0.20, neck, 0.23, 0.23), 0.12), scene.paint, 0.26, 0.3)
    yield Part(ellipse(u, v, -0.12, -0.30, 0.21, 0.12, 0.25), 0.85 * scene.paint, 0.12)
    yield Part(ellipse(u, v, 0.27, neck - 0.06, 0.045, 0.055), DARK)


Shape = Callable[[Field, Field, Scene], Iterator[Part]]
SHAPES: tuple[Shape, ...] = (_apple, _mug, _car, _house, _tree, _mushroom, _boat, _duck)  # in the order of KINDS
