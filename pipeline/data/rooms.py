"""Rooms: bedroom interiors in one-point perspective, an embedded stand-in for LSUN bedrooms.

A picture is a small ray-cast scene: a room seen through its open front, a bed with its head against the back wall,
tables with lamps, a window with curtains, a picture, sometimes a rug or a plant. An inpainter must infer the rest from:

* perspective: room edges, planks, tiles and furniture all converge on one vanishing point;
* light: the window's wall, the time of day and the lamps fix the shading of every surface and the patch of sunlight;
* colour: curtains, cushion and rug follow the blanket, and all the furniture shares one wood;
* arrangement: a centred bed has an equal table and lamp on either side, a bed at the side has one on its free side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.data.canvas import Canvas, Field, box, ellipse, mix, noise, polygon

ATTRIBUTES: dict[str, int] = {
    "wall": 4,  # cream, sage, sky blue, rose
    "bed_place": 3,  # left, centre, right
    "blanket": 5,  # crimson, blue, green, mustard, purple
    "window": 3,  # in the back, left or right wall
    "lamp": 2,  # off, on
    "floor": 3,  # planks, carpet, tiles
    "time": 3,  # day, dusk, night
}

Color = NDArray[np.float64]
Vectors = Field  # three fields, [3, S, S]
Point = tuple[float, float, float]  # x right, y down, z away; the picture plane is at z = 0, the eye at z = -1

LEFT, RIGHT, CEILING, FLOOR = -0.05, 1.05, -0.10, 1.0
BED_TOP, TABLE_TOP, HEADBOARD_TOP = 0.82, 0.77, 0.60
WALLS = ((0.95, 0.87, 0.66), (0.63, 0.79, 0.58), (0.52, 0.72, 0.92), (0.92, 0.64, 0.63))
BLANKETS = ((0.76, 0.16, 0.18), (0.17, 0.38, 0.74), (0.16, 0.52, 0.30), (0.92, 0.68, 0.14), (0.58, 0.26, 0.62))
WOODS = ((0.42, 0.25, 0.15), (0.66, 0.44, 0.25), (0.36, 0.38, 0.42))
FLOORS = ((0.66, 0.45, 0.27), (0.72, 0.66, 0.62), (0.84, 0.85, 0.86))
INWARD = ((0, 0, -1), (1, 0, 0), (-1, 0, 0))  # normal of each window's wall
# The light by time of day: ambient, diffuse from the window, its beam, power of the lamps, slope of the beam.
AMBIENT = ((0.75, 0.75, 0.76), (0.60, 0.53, 0.54), (0.41, 0.44, 0.57))
DIFFUSE = ((0.56, 0.57, 0.58), (0.64, 0.38, 0.22), (0.12, 0.16, 0.28))
BEAM = ((0.62, 0.56, 0.40), (0.85, 0.42, 0.12), (0.12, 0.17, 0.28))
LAMP, SLOPE = (0.06, 0.10, 0.15), (1.15, 0.80, 1.00)
ZENITH = ((0.38, 0.66, 0.96), (0.52, 0.30, 0.56), (0.03, 0.05, 0.18))
HORIZON = ((0.86, 0.94, 1.00), (1.00, 0.62, 0.24), (0.12, 0.17, 0.38))
GROUND = ((0.42, 0.66, 0.34), (0.36, 0.20, 0.24), (0.03, 0.05, 0.10))
LINEN, LAMPLIGHT, MOON = (0.96, 0.95, 0.92), (1.0, 0.80, 0.42), (0.98, 0.96, 0.84)


@dataclass(frozen=True, kw_only=True)
class Room:
    """Everything drawn at random about one bedroom."""

    labels: dict[str, int]
    eye: tuple[float, float]
    depth: float
    wall: Color
    blanket: Color
    wood: Color
    floor: Color
    planks: Color  # tone of each floor plank
    bed: tuple[float, float, float]  # centre x, half width, length
    side: float  # where the room is free beside the bed: 1 right, -1 left, 0 on both sides
    tables: tuple[float, ...]  # centre x of each bedside table
    pane: tuple[float, float, float, float]  # centre and half sides of the window, along its wall and in height
    slope: tuple[float, float]  # of the beam through the window, downwards and sideways
    art: tuple[float, float, float]  # half sides of the picture on the wall, variant of its motif
    rug: bool
    plant: bool


def sample(rng: np.random.Generator) -> Room:
    """Draw one bedroom; the number and order of the draws are always the same."""
    labels = {name: int(rng.integers(classes)) for name, classes in ATTRIBUTES.items()}
    u, tint = rng.uniform(-1.0, 1.0, 14), rng.uniform(-0.03, 0.03, (4, 3))
    wood, plant, rug = (int(rng.integers(n)) for n in (3, 2, 2))
    place, window, half = labels["bed_place"], labels["window"], 0.28 + 0.02 * u[3]
    side, center = 1.0 - place, (LEFT + half + 0.03, 0.5 + 0.01 * u[4], RIGHT - half - 0.03)[place]
    pane = (0.36 + 0.03 * u[5], 0.28, 0.21 + 0.02 * u[7], 0.20 + 0.02 * u[6])
    if window == 0:
        pane = ((0.81, 0.5, 0.19)[place], 0.25, (0.14, 0.20, 0.14)[place] + 0.015 * u[5], 0.18 + 0.02 * u[6])
    return Room(
        labels=labels, eye=(0.5 + 0.06 * u[0], 0.28 + 0.03 * u[1]), depth=0.82 + 0.05 * u[2],
        wall=WALLS[labels["wall"]] + tint[0], blanket=BLANKETS[labels["blanket"]] + tint[1], wood=WOODS[wood] + tint[2],
        floor=(FLOORS[labels["floor"]] + tint[3]) * (1.0 + 0.1 * u[8]), planks=rng.uniform(0.86, 1.08, 32),
        bed=(center, half, 0.65 + 0.04 * u[9]), side=side, pane=pane,
        tables=tuple(center + s * (half + 0.125) for s in ((side,) if side else (-1.0, 1.0))),
        slope=(SLOPE[labels["time"]], 0.35 * u[10]),
        art=(0.095 + 0.03 * u[11], 0.07 + 0.02 * u[12], u[13]),
        rug=rug == 1 and labels["floor"] != 1, plant=plant == 1 and side != 0.0,
    )  # fmt: skip


def field(point: ArrayLike) -> Vectors:
    """A point or direction shaped to meet fields [3, S, S]."""
    return np.asarray(point, np.float32).reshape(3, 1, 1)


def slabs(origin: Vectors, ray: Vectors, low: Sequence[float], high: Sequence[float]) -> tuple[Vectors, Vectors]:
    """Where rays enter and leave each axis's slab of the box low-high, in units of `ray`: two arrays [3, S, S]."""
    ray = np.where(np.abs(ray) < 1e-6, np.float32(1e-6), ray)
    a, b = (field(low) - origin) / ray, (field(high) - origin) / ray
    return np.minimum(a, b), np.maximum(a, b)


class View:
    """What every sample of the canvas sees: its colour (on the canvas), depth, surface normal and own glow."""

    def __init__(self, room: Room, size: int) -> None:
        """Look into the empty room."""
        self.canvas = Canvas(size)
        self.eye = field((*room.eye, -1.0))
        self.ray = np.stack([self.canvas.x, self.canvas.y, 0.0 * self.canvas.x]).astype(np.float32) - self.eye
        self.shadows: list[tuple[Sequence[float], Sequence[float]]] = []  # boxes that keep the beam off
        self.glow = np.zeros_like(self.ray[0])
        self.inward = np.array(INWARD[room.labels["window"]], np.float32)
        _, leave = slabs(self.eye, self.ray, (LEFT, CEILING, -2.0), (RIGHT, FLOOR, room.depth))
        self.t = leave.min(axis=0)
        self.normal = -np.sign(self.ray) * (leave == self.t)

    def position(self) -> Vectors:
        """Room coordinates of what is seen, [3, S, S]."""
        return np.asarray(self.eye + self.ray * self.t, np.float32)

    def put(self, t: Field, normal: Vectors, seen: Field, color: ArrayLike, glow: float = 0.0) -> None:
        """Show a surface at ray parameter t where the mask `seen` holds and nothing nearer is in front."""
        seen = seen * (t < self.t)
        self.canvas.blend(color, seen)
        near = seen > 0.5
        self.t, self.normal = np.where(near, t, self.t), np.where(near, normal, self.normal)
        self.glow[near] = glow

    def solid(self, low: Sequence[float], high: Sequence[float], color: ArrayLike, shadow: bool = False) -> None:
        """Place an axis-aligned box."""
        enter, leave = slabs(self.eye, self.ray, low, high)
        t = enter.max(axis=0)
        self.put(t, -np.sign(self.ray) * (enter == t), (t < leave.min(axis=0)).astype(np.float32), color)
        self.shadows += [(low, high)] * shadow

    def ball(self, center: Point, radii: Point, color: ArrayLike) -> None:
        """Place an ellipsoid (pillows, leaves)."""
        r = field(radii)
        o, d = (self.eye - field(center)) / r, self.ray / r
        a, b, c = (d * d).sum(axis=0), (o * d).sum(axis=0), (o * o).sum(axis=0) - 1.0
        root = b * b - a * c
        t = (-b - np.sqrt(np.maximum(root, 0.0))) / a
        normal = (o + d * t) / r
        self.put(t, normal / np.linalg.norm(normal, axis=0), (root > 0.0).astype(np.float32), color)

    def card(self, z: float, points: Sequence[tuple[float, float]], color: ArrayLike, glow: float = 0.0) -> None:
        """Place a flat polygon facing the viewer at depth z."""
        x, y, depth = self.eye + self.ray * np.float32(1.0 + z)
        self.put(depth + 1.0, field((0.0, 0.0, -1.0)), self.canvas.coverage(polygon(x, y, points), 0.004), color, glow)


def paint_shell(view: View, room: Room, grain: Field) -> None:
    """Colour walls, skirting board, ceiling and floor, and lay the rug."""
    x, y, z = view.position()
    view.canvas.blend(mix(room.wall, LINEN, 0.05 + 0.05 * grain), 1.0)
    view.canvas.blend(room.wood, (y > 0.955).astype(np.float32))
    view.canvas.blend(mix((0.97, 0.97, 0.96), room.wall, 0.15), (view.normal[1] > 0.5).astype(np.float32))
    if room.labels["floor"] == 0:
        plank = x / 0.115 + 40.0
        tone = room.planks[np.floor(plank).astype(int) % 32] * (1.0 - 0.22 * (plank % 1.0 < 0.10))
    elif room.labels["floor"] == 1:
        tone = 1.0 + 0.03 * grain
    else:
        tone = 1.0 - 0.34 * ((np.floor(x / 0.22 + 0.5) + np.floor(z / 0.22)) % 2)
    floor = view.normal[1] < -0.5
    view.canvas.blend(room.floor * np.asarray(tone)[..., None], floor.astype(np.float32))
    if room.rug:
        shape = box(x, z, room.bed[0] + 0.52 * room.side, 0.22, 0.20 if room.side else 0.44, 0.24, 0.03)
        rug = np.where(floor, shape, np.float32(1.0))
        view.canvas.fill(rug, mix(room.blanket, LINEN, 0.25), softness=0.01)
        view.canvas.fill(np.abs(rug + 0.05) - np.float32(0.015), LINEN, 0.8, softness=0.01)


def paint_window(view: View, room: Room) -> None:
    """Paint the sky in the window and its frame, and hang the curtains."""
    (ca, cb, ha, hb), time, window = room.pane, room.labels["time"], room.labels["window"]
    _, height, _ = p = view.position()
    along, wall = p[0 if window == 0 else 2], np.tensordot(view.inward, view.normal, 1) > 0.5
    pane = np.where(wall, box(along, height, ca, cb, ha, hb), np.float32(1.0))
    view.canvas.fill(pane - np.float32(0.025), mix(LINEN, room.wood, 0.2))
    view.canvas.fill(pane, mix(ZENITH[time], HORIZON[time], np.clip((height - cb + hb) / (1.6 * hb), 0.0, 1.0)))
    hills = cb + 0.62 * hb + 0.03 * np.sin(along * 14.0 + 9.0 * room.slope[1]) - height
    view.canvas.fill(np.maximum(pane, hills), GROUND[time])
    if time == 2:
        view.canvas.fill(np.maximum(pane, ellipse(along, height, ca + 0.42 * ha, cb - 0.35 * hb, 0.055, 0.055)), MOON)
    view.canvas.fill(np.maximum(pane, np.abs(along - ca) - np.float32(0.011)), mix(LINEN, GROUND[time], 0.25))
    view.glow[pane < 0.0] = 1.0
    for a in (ca - ha - 0.035, ca + ha + 0.035):
        cloth = mix(room.blanket, LINEN, 0.30) * (0.92 + 0.10 * np.cos((along - a) * 150.0))[..., None]
        (x, z), (dx, dz) = ((a, room.depth), (LEFT, a), (RIGHT, a))[window], ((0.06, 0.03), (0.03, 0.06))[window > 0]
        view.solid((x - dx, cb - hb - 0.06, z - dz), (x + dx, cb + hb + 0.12, z + dz), cloth)


def paint_bed(view: View, room: Room) -> None:
    """Place headboard, frame, mattress, blanket with its sheet folded over, pillows and cushion."""
    (c, h, length), back = room.bed, room.depth
    foot, fold = back - length, back - 0.36 * length
    view.solid((c - h, 0.93, foot), (c + h, FLOOR, back), 0.85 * room.wood, shadow=True)
    view.solid((c - h - 0.02, HEADBOARD_TOP, back - 0.05), (c + h + 0.02, FLOOR, back), room.wood, shadow=True)
    view.solid((c - h, BED_TOP, foot), (c + h, 0.93, back), LINEN)
    left, right, top = c - h - 0.012, c + h + 0.012, BED_TOP - 0.015
    view.solid((left, top, foot - 0.012), (right, 0.95, fold - 0.06), room.blanket, shadow=True)
    view.solid((left, top, fold - 0.06), (right, 0.90, fold), mix(room.blanket, LINEN, 0.8))
    for s in (-0.48, 0.48):
        view.ball((c + s * h, BED_TOP - 0.06, back - 0.10), (0.12, 0.08, 0.06), mix(LINEN, room.blanket, 0.06))
    view.ball((c, BED_TOP - 0.04, back - 0.18), (0.09, 0.06, 0.04), mix(room.blanket, LINEN, 0.2))


def paint_furniture(view: View, room: Room) -> None:
    """Place the bedside tables with their lamps, the picture on the wall, and the plant."""
    back, on, y = room.depth, room.labels["lamp"], TABLE_TOP
    for x in room.tables:
        view.solid((x - 0.09, y, back - 0.18), (x + 0.09, FLOOR, back), room.wood)
        view.solid((x - 0.07, y + 0.04, back - 0.183), (x + 0.07, y + 0.11, back), 0.7 * room.wood)
        shade = [(x - 0.055, y - 0.27), (x + 0.055, y - 0.27), (x + 0.095, y - 0.11), (x - 0.095, y - 0.11)]
        view.solid((x - 0.025, y - 0.14, back - 0.115), (x + 0.025, y, back - 0.085), (0.35, 0.30, 0.28))
        view.card(back - 0.12, shade, (1.0, 0.93, 0.62) if on else (0.84, 0.81, 0.76), glow=0.95 * on)
    if room.side or room.labels["window"]:
        (w, h, variant), x, y, z = room.art, room.bed[0], 0.28, back - 0.015
        view.solid((x - w - 0.025, y - h - 0.025, z), (x + w + 0.025, y + h + 0.025, back), room.wood)
        view.solid((x - w, y - h, z - 0.002), (x + w, y + h, back), mix(LINEN, room.wall[::-1], 0.3 + 0.2 * variant))
        peak = [(x - w, y + h), (x + w, y + h), (x + 0.5 * w * variant, y - 0.5 * h)]
        view.card(z - 0.004, peak, mix(room.blanket, LINEN, 0.15))
    if room.plant:
        x, z = (LEFT + 0.12 if room.side < 0 else RIGHT - 0.12), back - 0.16
        view.solid((x - 0.06, 0.85, z - 0.05), (x + 0.06, FLOOR, z + 0.05), (0.78, 0.45, 0.32))
        for i, (s, rise) in enumerate(((-0.05, 0.72), (0.05, 0.74), (0.0, 0.64))):
            view.ball((x + s, rise, z), (0.065, 0.12, 0.05), (0.20 + 0.05 * i, 0.46 + 0.04 * i, 0.24))


def beam(view: View, room: Room, p: Vectors) -> Field:
    """How much of the sun's (or moon's) beam through the window reaches each sample, in [0, 1]."""
    axis, sun = 2 if room.labels["window"] == 0 else 0, -view.inward
    sun[1], sun[2 - axis] = -room.slope[0], room.slope[1]
    reach = ((room.depth, LEFT, RIGHT)[room.labels["window"]] - p[axis]) / sun[axis]
    along, height = p[2 - axis] + reach * sun[2 - axis], p[1] + reach * sun[1]
    pane = np.maximum(box(along, height, *room.pane), np.float32(0.014) - np.abs(along - room.pane[0]))
    facing = np.clip(np.tensordot(sun, view.normal, 1) / np.linalg.norm(sun) * 1.6, 0.0, 1.0)
    lit: Field = view.canvas.coverage(pane, 0.03) * facing
    for low, high in view.shadows:
        enter, leave = slabs(p + np.float32(0.004) * view.normal, field(sun), low, high)
        lit *= (enter.max(axis=0) > leave.min(axis=0)) | (leave.min(axis=0) < 0.0)
    return lit


def paint_light(view: View, room: Room) -> None:
    """Light everything placed so far: ambient light with soft contact shadows, window, beam and lamps."""
    p, n, time, (ca, cb, _, _) = view.position(), view.normal, room.labels["time"], room.pane
    gap = np.ones_like(view.t)  # how open each sample lies
    for axis, end in ((0, LEFT), (0, RIGHT), (1, CEILING), (1, FLOOR), (2, room.depth)):
        gap *= 1.0 - 0.20 * np.exp(-np.abs(p[axis] - end) / 0.09) * (1.0 - np.abs(n[axis]))
    under = box(p[0], p[2], room.bed[0], room.depth - room.bed[2] / 2, room.bed[1], room.bed[2] / 2)
    gap *= 1.0 - 0.45 * (p[1] > FLOOR - 0.01) * np.exp(-np.maximum(under, 0.0) / 0.07)
    light = mix((0.0, 0.0, 0.0), AMBIENT[time], gap * (1.0 - 0.06 * n[1]))
    window = ((ca, cb, room.depth), (LEFT, cb, ca), (RIGHT, cb, ca))[room.labels["window"]]
    bulbs = [(x, TABLE_TOP - 0.2, room.depth - 0.16) for x in room.tables if room.labels["lamp"]]
    sources = [(window, DIFFUSE[time], 0.55, 0.35), *((bulb, LAMPLIGHT, LAMP[time], 0.10) for bulb in bulbs)]
    for at, color, power, spread in sources:
        to = field(at) - p
        far = np.linalg.norm(to, axis=0) + np.float32(1e-4)
        facing = np.clip(0.15 + 0.85 * (to * n).sum(axis=0) / far, 0.0, 1.0)
        if at is window:  # a window shines into the room only
            facing *= np.clip(0.1 - 0.9 * np.tensordot(view.inward, to, 1) / far, 0.0, 1.0)
        light += mix((0.0, 0.0, 0.0), color, power * facing * gap / (far**2 + spread))
    light += mix((0.0, 0.0, 0.0), BEAM[time], beam(view, room, p))
    lit = view.canvas.rgb * (light + (1.0 - light) * view.glow[..., None])
    view.canvas.blend(lit / (1.0 + lit**4) ** 0.25, 1.0)  # a soft shoulder instead of clipping


def render(rng: np.random.Generator, size: int) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """Paint one bedroom.

    Args:
        rng: source of all randomness; the draws do not depend on `size`.
        size: side of the picture in pixels.

    Returns:
        The picture [size, size, 3] and the class of each attribute in `ATTRIBUTES`.
    """
    room = sample(rng)
    view = View(room, size)
    paint_shell(view, room, noise(view.ray[0], view.ray[1], rng, 6.0, 1))
    paint_window(view, room)
    paint_bed(view, room)
    paint_furniture(view, room)
    paint_light(view, room)
    for x in room.tables if room.labels["lamp"] else ():
        u, v = (x - room.eye[0], TABLE_TOP - 0.18 - room.eye[1])
        away = np.hypot(view.ray[0] - u / (0.90 + room.depth), view.ray[1] - v / (0.90 + room.depth))
        view.canvas.blend((1.0, 0.90, 0.60), 0.45 * np.exp(-((away / 0.095) ** 2)))
    return view.canvas.image(), room.labels
