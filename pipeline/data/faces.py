"""Painted portraits, framed like CelebA-HQ: one roughly frontal head that fills about 70 % of the picture.

What is structural about the domain, i.e. what an inpainter has to infer from the visible part:

* bilateral symmetry, bent by head turn, tilt and position: one eye, brow, lens or ear tells where and how the other is;
* one skin tone, hair colour and hair style for the whole head: brows and beard follow the hair, ears and neck the skin;
* one light direction: it brightens one side of face, hair, neck, clothes and background alike;
* correlated attributes: skin, hair colour, hair style and beard do not vary independently.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.data.canvas import Canvas, Field, box, capsule, ellipse, mix, noise, polygon, turn

ATTRIBUTES: dict[str, int] = {
    "skin": 3,  # light, medium, dark
    "hair_color": 4,  # black, brown, blond, red
    "hair_style": 4,  # short, long, curly, buzz
    "glasses": 2,
    "smile": 2,
    "beard": 2,
    "background": 4,  # grey, blue, green, rose
}

SHORT, LONG, CURLY, BUZZ = range(4)
EYE = 0.106  # from the middle of the face to the middle of an eye
SKIN = ((0.955, 0.785, 0.685), (0.80, 0.585, 0.43), (0.48, 0.315, 0.22))
HAIR = ((0.10, 0.09, 0.10), (0.34, 0.21, 0.13), (0.82, 0.66, 0.40), (0.54, 0.22, 0.10))
IRIS = ((0.26, 0.16, 0.10), (0.32, 0.44, 0.56), (0.34, 0.42, 0.28))
BACKGROUND = ((0.68, 0.68, 0.69), (0.44, 0.58, 0.74), (0.50, 0.63, 0.49), (0.70, 0.54, 0.58))
CLOTHES = ((0.20, 0.25, 0.38), (0.58, 0.20, 0.20), (0.86, 0.85, 0.82), (0.24, 0.42, 0.38), (0.21, 0.20, 0.21))
HAIR_COLOR_GIVEN_SKIN = ((0.10, 0.26, 0.34, 0.30), (0.30, 0.30, 0.20, 0.20), (0.48, 0.26, 0.14, 0.12))
HAIR_STYLE_GIVEN_SKIN = ((0.30, 0.34, 0.16, 0.20), (0.28, 0.30, 0.19, 0.23), (0.20, 0.20, 0.32, 0.28))
BEARD_GIVEN_STYLE = (0.60, 0.16, 0.46, 0.66)


@dataclass(frozen=True, kw_only=True)
class Face:
    """All that is drawn at random about a portrait but its soft textures; lengths in head units (see `Fields`)."""

    attributes: dict[str, int]
    center: tuple[float, float]  # of the head, in the picture
    scale: float
    tilt: float  # in the picture plane, radians
    yaw: float  # head turn, radians
    light: tuple[float, ...]  # unit vector towards the light: right, down, viewer
    skin: Field  # this and the next four are colours, [3]
    hair: Field
    iris: Field
    background: Field
    clothes: Field
    collar: int  # round, V or shirt
    jaw: float
    eye_open: float
    nose: float
    lips: float  # redness and fullness, 0 to 1
    volume: float  # of hair and beard, 0 to 1
    length: float  # of long hair
    hairline: float  # height of its top: open, or a fringe
    part: float  # slant of the hairline, radians
    frame: float  # of glasses: round at 0, square at 1


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The fields [S, S] that a portrait is painted with."""

    x: Field  # across the picture, 0 to 1
    y: Field  # down the picture, 0 to 1
    u: Field  # across the head: 0 on its axis, scale and tilt undone
    v: Field  # down the head: crown -0.36, brows -0.11, eyes -0.04, mouth 0.18, chin 0.33
    a: Field  # across the face as seen from the front: `u` with the head turn undone on a cylinder
    m: Field  # |a|, in which both halves of the face are the same
    lit: Field  # diffuse light in [0, 1] on a head-sized ellipsoid
    soft: Field  # smooth noise in [-1, 1], a few bumps across the picture
    curl: Field  # smooth noise in [-1, 1], bumps the size of a curl


def render(rng: np.random.Generator, size: int) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """Paint one random portrait.

    Args:
        rng: source of all randomness; what is drawn from it does not depend on `size`.
        size: side of the picture in pixels.

    Returns:
        The picture [size, size, 3] and its attributes (see `ATTRIBUTES`).
    """
    face, canvas = sample(rng), Canvas(size)
    at = fields(canvas, face, rng)
    back = (paint_behind, paint_body, paint_head)
    for paint in (*back, paint_nose, paint_eyes, paint_mouth, paint_beard, paint_hair, paint_glasses):
        paint(canvas, face, at)
    return canvas.image(), face.attributes


def sample(rng: np.random.Generator) -> Face:
    """Draw a portrait: attributes first (skin, then what depends on it), then pose, light, colours and proportions."""
    skin = int(rng.integers(3))
    color = int(rng.choice(4, p=HAIR_COLOR_GIVEN_SKIN[skin]))
    style = int(rng.choice(4, p=HAIR_STYLE_GIVEN_SKIN[skin]))
    glasses, smile, beard = (int(t) for t in rng.random(3) < (0.42, 0.5, BEARD_GIVEN_STYLE[style]))
    background = int(rng.integers(4))
    light = np.array((rng.choice((-1.0, 1.0)) * rng.uniform(0.35, 0.70), -0.40, 0.78))
    iris = rng.choice(3, p=((0.4, 0.4, 0.2), (0.8, 0.1, 0.1), (1.0, 0.0, 0.0))[skin])

    def vary(base: ArrayLike, value: float, hue: float = 0.02) -> Field:
        varied = np.asarray(base) * rng.uniform(1 - value, 1 + value) + rng.uniform(-hue, hue, 3)
        return np.clip(varied, 0.03, 0.97).astype(np.float32)

    return Face(
        attributes=dict(zip(ATTRIBUTES, (skin, color, style, glasses, smile, beard, background), strict=True)),
        center=(0.5 + rng.uniform(-0.03, 0.03), 0.485 + rng.uniform(-0.015, 0.02)), scale=rng.uniform(1.00, 1.09),
        tilt=rng.uniform(-0.12, 0.12), yaw=rng.uniform(-0.25, 0.25),
        light=tuple((light / np.linalg.norm(light)).tolist()), frame=rng.uniform(0.0, 1.0),
        skin=vary(SKIN[skin], 0.09, 0.015), hair=vary(HAIR[color], 0.15),
        iris=vary(IRIS[iris], 0.2, 0.03), background=vary(BACKGROUND[background], 0.16, 0.025),
        clothes=vary(CLOTHES[rng.integers(len(CLOTHES))], 0.12, 0.04), collar=int(rng.integers(3)),
        jaw=rng.uniform(0.178, 0.205) + 0.006 * beard, nose=rng.uniform(0.036, 0.050),
        eye_open=rng.uniform(0.024, 0.030) - 0.003 * smile, lips=rng.uniform(0.0, 1.0) * (0.4 if beard else 1.0),
        volume=rng.uniform(0.0, 1.0), length=rng.uniform(0.34, 0.50), part=rng.uniform(-0.12, 0.12),
        hairline=float(rng.choice((-0.24, -0.155), p=(0.65, 0.35))) + rng.uniform(-0.015, 0.01),
    )  # fmt: skip


def fields(canvas: Canvas, face: Face, rng: np.random.Generator) -> Fields:
    """Lay the head's coordinates, its light and two textures over the canvas."""
    x, y = canvas.x.astype(np.float32), canvas.y.astype(np.float32)
    u, v = turn((x - face.center[0]) / face.scale, (y - face.center[1]) / face.scale, face.tilt)
    a = (0.33 * np.sin(np.arcsin(np.clip(u / 0.33, -1.0, 1.0)) - 0.68 * face.yaw)).astype(np.float32)
    nx, ny = u / 0.30, (v + 0.02) / 0.44
    nz = np.sqrt(np.clip(1.0 - nx**2 - ny**2, 0.0, 1.0))
    toward = (nx * face.light[0] + ny * face.light[1] + nz * face.light[2]) / np.sqrt(nx**2 + ny**2 + nz**2)
    soft, curl = noise(x, y, rng, 3.0, octaves=1), noise(x, y, rng, 13.0, octaves=1)
    return Fields(x=x, y=y, u=u, v=v, a=a, m=np.abs(a), lit=np.maximum(toward, 0.0), soft=soft, curl=curl)


def paint_behind(canvas: Canvas, face: Face, at: Fields) -> None:
    """A softly mottled wall, brighter towards the light and the top; before it the shaded back of long hair."""
    glow = 1.0 + 0.45 * face.light[0] * (at.x - 0.5) - 0.22 * (at.y - 0.4) + 0.05 * at.soft
    canvas.blend(face.background * glow[..., None], 1.0)
    if face.attributes["hair_style"] == LONG:
        fall = box(at.u, at.v, 0.0, 0.5 * face.length - 0.16, 0.26 + 0.03 * face.volume, 0.5 * face.length + 0.2, 0.22)
        canvas.fill(fall, hair_tone(face, at) * 0.6)


def paint_body(canvas: Canvas, face: Face, at: Fields) -> None:
    """Neck under the shadow of the chin, shoulders and a neckline; the body stays upright under a tilted head."""
    cx, top = face.center[0] - 0.25 * face.tilt, face.center[1] + 0.385 * face.scale
    x, y, side = at.x - cx, at.y - top, face.light[0]
    cloth = face.clothes * (np.clip(0.90 + 0.9 * side * x, 0.6, 1.2) - 0.5 * np.maximum(y - 0.04, 0.0))[..., None]
    shoulders = np.minimum(ellipse(x, y, 0.0, 0.20, 0.46, 0.19), box(x, y, 0.0, 0.08, 0.17, 0.09, 0.06))
    neck = np.minimum(box(x, y, 0.0, -0.05, 0.124, 0.16), ellipse(x, y, 0.0, 0.02, 0.15, 0.055))
    skin = mix(face.skin * (0.42, 0.34, 0.32), face.skin * 0.94, np.clip(0.62 + 3.2 * side * x, 0.1, 1.0))
    canvas.fill(shoulders, cloth)
    neckline = ellipse(x, y, 0.0, -0.10, 0.17, 0.145) if face.collar == 0 else np.abs(x) + 0.9 * y - 0.115
    canvas.fill(neck := np.maximum(neck, neckline), skin)
    shadow = canvas.coverage(ellipse(at.u, at.v, -0.06 * side, 0.20, 0.17, 0.20), 0.08)
    canvas.blend(face.skin * (0.34, 0.26, 0.25), 0.6 * shadow * canvas.coverage(neck))
    if face.collar == 2:
        flap = polygon(np.abs(x), y, ((0.105, -0.045), (0.135, -0.02), (0.095, 0.12), (0.012, 0.075)))
        canvas.fill(flap, mix(cloth, (1.0, 1.0, 1.0), 0.15))
        canvas.fill(flap + 0.008, mix(cloth, (1.0, 1.0, 1.0), 0.32))


def paint_head(canvas: Canvas, face: Face, at: Fields) -> None:
    """Ears, then skull and jaw in one skin that is shaded by the light, with warm cheeks and soft eye sockets."""
    shadow = face.skin * np.array((0.54, 0.43, 0.40), np.float32)
    for side in (-1.0, 1.0):
        out = 0.236 - 0.09 * max(side * face.yaw, 0.0)
        ear = ellipse(at.u, at.v, side * out, 0.0, 0.036, 0.068, side * 0.15)
        canvas.fill(ear, face.skin * (0.92, 0.86, 0.84) * (1.0 + 0.27 * side * face.light[0]))
        canvas.fill(ellipse(at.u, at.v, side * out, 0.0, 0.016, 0.04), shadow, 0.45, 0.02)
    inside = canvas.coverage(outline(face, at))
    canvas.blend(mix(shadow, face.skin * 1.06, np.clip(1.20 * at.lit + 0.06, 0.0, 1.0)), inside)
    blush = face.skin * np.array((0.97, 0.68, 0.64), np.float32)
    canvas.blend(blush, 0.32 * inside * canvas.coverage(ellipse(at.m, at.v, 0.125, 0.085, 0.06, 0.05), 0.08))
    canvas.blend(shadow, 0.38 * canvas.coverage(ellipse(at.m, at.v, EYE - 0.01, -0.055, 0.065, 0.04), 0.05))


def outline(face: Face, at: Fields) -> Field:
    """Signed distance to the bare head: a skull and a narrower jaw that moves with the head turn, smoothly joined."""
    skull = ellipse(at.u, at.v, -0.02 * face.yaw, -0.09, 0.228, 0.27)
    jaw = ellipse(at.u, at.v, 0.07 * face.yaw, 0.085, face.jaw, 0.250)
    gap = np.clip(0.5 + 0.5 * (jaw - skull) / 0.05, 0.0, 1.0)
    return np.asarray(jaw + (skull - jaw) * gap - 0.05 * gap * (1.0 - gap), np.float32)


def paint_nose(canvas: Canvas, face: Face, at: Fields) -> None:
    """Ridge and tip catch the light; the far flank, the base and the nostrils lie in shadow."""
    side, w = (1.0 if face.light[0] > 0 else -1.0), face.nose
    x = at.a - 0.10 * face.yaw * np.clip((at.v + 0.08) / 0.18, 0.0, 1.0)
    dark, bright = face.skin * np.array((0.52, 0.38, 0.34), np.float32), np.minimum(face.skin * 1.14 + 0.05, 1.0)
    canvas.fill(capsule(x, at.v, -side * 0.016, -0.06, -side * (w - 0.012), 0.075, 0.014), dark, 0.55, 0.035)
    canvas.fill(ellipse(x, at.v, 0.0, 0.100, w, 0.018), dark, 0.60, 0.022)
    canvas.fill(capsule(x, at.v, side * 0.004, -0.05, side * 0.006, 0.065, 0.010), bright, 0.50, 0.022)
    canvas.fill(ellipse(x, at.v, side * 0.006, 0.072, 0.5 * w, 0.018), bright, 0.40, 0.02)
    canvas.fill(ellipse(np.abs(x), at.v, 0.5 * w, 0.102, 0.011, 0.007), dark * 0.5, 0.75, 0.008)


def paint_eyes(canvas: Canvas, face: Face, at: Fields) -> None:
    """Almond of white, iris with pupil and highlight, looking at the viewer; lashes, and brows that follow the hair."""
    y = at.v + 0.04 - 0.10 * (at.m - EYE) * (0.6 - at.m)
    eye = ellipse(at.m, y, EYE, 0.0, 0.053, face.eye_open)
    white = mix(face.skin, (0.93, 0.92, 0.90), 0.78) * (0.70 + 0.32 * at.lit)[..., None]
    canvas.fill(ellipse(at.m, y, EYE, -0.005, 0.060, face.eye_open + 0.009), face.skin * (0.46, 0.34, 0.31), 0.7, 0.012)
    canvas.fill(eye, white)
    look = at.a - np.sign(at.a) * EYE + 0.02 * face.yaw
    canvas.fill(np.maximum(np.hypot(look, y) - 0.026, eye), face.iris)
    canvas.fill(np.maximum(np.hypot(look, y) - 0.012, eye), (0.04, 0.03, 0.03))
    canvas.fill(np.hypot(look - 0.016 * face.light[0], y + 0.010) - 0.0065, (1.0, 1.0, 1.0), 0.85)
    lash = np.maximum(eye - 0.005, -ellipse(at.m, y, EYE, 0.012, 0.054, face.eye_open))
    canvas.fill(lash, (0.10, 0.07, 0.06), 0.85)
    x = at.m - EYE - 0.004
    thick = 0.0125 + 0.003 * face.attributes["beard"]
    brow = capsule(x, at.v + 0.112 - 4.5 * (x - 0.012) ** 2, -0.050, 0.004, 0.052, 0.0, thick)
    canvas.fill(brow, mix(face.hair * 0.62, face.skin * (0.40, 0.30, 0.26), 0.25), 0.88, 0.012)


def paint_mouth(canvas: Canvas, face: Face, at: Fields) -> None:
    """A closed mouth, or a smile: corners up, teeth between the lips and creases beside the cheeks."""
    x = at.a - 0.05 * face.yaw
    red = np.array((0.72, 0.30, 0.31), np.float32) * (0.40 + 0.60 * face.skin[0])
    lip = mix(face.skin * (0.82, 0.56, 0.53), red, 0.25 + 0.50 * face.lips)
    if face.attributes["smile"]:
        y = at.v - 0.192 + 2.8 * x**2
        creases = capsule(np.abs(x), at.v, 0.075, 0.095, 0.115, 0.165, 0.004)
        canvas.fill(creases, face.skin * (0.62, 0.48, 0.44), 0.45, 0.022)
        canvas.fill(ellipse(x, y, 0.0, 0.0, 0.102, 0.039), lip * 0.85, 1.0, 0.008)
        canvas.fill(inner := ellipse(x, y, 0.0, -0.002, 0.087, 0.026), lip * 0.34)
        teeth = mix(face.skin, (0.97, 0.95, 0.92), 0.88) * (0.86 + 0.16 * at.lit)[..., None]
        canvas.fill(np.maximum(inner, y - 0.008), teeth)
    else:
        y = at.v - 0.182 + 0.7 * x**2
        canvas.fill(np.maximum(ellipse(x, y, 0.0, 0.0, 0.078, 0.020 + 0.006 * face.lips), y), lip * 0.82, 1.0, 0.008)
        canvas.fill(np.maximum(ellipse(x, y, 0.0, 0.0, 0.070, 0.030 + 0.006 * face.lips), -y), lip * 1.05, 1.0, 0.008)
        canvas.fill(capsule(x, y, -0.074, 0.0, 0.074, 0.0, 0.0055), lip * 0.34, 0.9, 0.006)
    canvas.fill(ellipse(x, at.v, 0.0, 0.247, 0.05, 0.010), face.skin * (0.5, 0.38, 0.35), 0.40, 0.03)


def paint_beard(canvas: Canvas, face: Face, at: Fields) -> None:
    """A full beard and moustache in the colour of the hair, leaving the mouth free."""
    if not face.attributes["beard"]:
        return
    edge = np.maximum(0.150 - 9.0 * np.maximum(at.m - 0.07, 0.0) ** 2, -0.02) - at.v
    grown = (0.008 + 0.022 * face.volume) * np.clip(at.v / 0.25, 0.0, 1.0)
    whiskers = np.maximum(outline(face, at) - grown, edge)
    moustache = capsule(at.m, at.v, 0.0, 0.133, 0.085, 0.155, 0.017)
    mouth = ellipse(at.a - 0.05 * face.yaw, at.v, 0.0, 0.183, 0.088 + 0.016 * face.attributes["smile"], 0.034)
    canvas.fill(np.maximum(np.minimum(whiskers, moustache), -mouth), hair_tone(face, at) * 0.86, 0.90, 0.014)


def hair_tone(face: Face, at: Fields) -> Field:
    """Hair colour under the light, with strands that run down from the crown, or curls, and a sheen on top."""
    angle = np.arctan2(at.u, at.v + 0.62)
    strands = np.sin((15.0 + 4.5 * face.volume) * angle + 2.0 * at.soft + 9.0 * face.part)
    texture = 0.24 * at.curl if face.attributes["hair_style"] == CURLY else 0.10 * strands
    sheen = np.exp(-(((at.v + 0.25 + 0.9 * at.u**2) / 0.06) ** 2)) * at.lit
    bright = (0.50 + 0.62 * at.lit) * (1.0 + texture) + 0.25 * sheen
    return np.asarray(face.hair * bright[..., None] + 0.07 * (sheen * at.lit)[..., None], np.float32)


def paint_hair(canvas: Canvas, face: Face, at: Fields) -> None:
    """The hair on top and at the sides, cut open where the face looks out; the hairline may be slanted or a fringe."""
    style, grow, v, head = face.attributes["hair_style"], face.volume, at.v, outline(face, at)
    u, top = at.u + 0.02 * face.yaw, -0.245 if style == BUZZ else face.hairline
    window = box(at.a, v, 0.0, top + 0.45, 0.207 - 0.012 * (style == LONG), 0.45, 0.11, face.part)
    window = np.maximum(window, np.minimum(head, 0.005 + 0.9 * at.m - v))
    if style == SHORT:
        cap = np.maximum(ellipse(u, v, 0.0, -0.125, 0.25 + 0.01 * grow, 0.27 + 0.035 * grow), v + 0.3 * at.m - 0.05)
    elif style == LONG:
        cap = box(u, v, 0.0, 0.5 * face.length - 0.19, 0.268 + 0.03 * grow, 0.5 * face.length + 0.21, 0.24)
    elif style == CURLY:
        bumps = 0.016 * at.curl
        cap = ellipse(u, v, 0.0, -0.135, 0.285 + 0.045 * grow, 0.27 + 0.045 * grow) + bumps
        cap, window = np.maximum(cap, v - 0.05 - 0.06 * grow + bumps), window + 0.8 * bumps
    else:
        cap = np.maximum(head - 0.004, v + 0.035)
    if style != BUZZ:  # the shadow that the hair casts on the forehead
        canvas.fill(np.maximum(np.maximum(cap, -window - 0.02), head), face.skin * (0.45, 0.33, 0.30), 0.45, 0.03)
    canvas.fill(np.maximum(cap, -window), hair_tone(face, at), 0.78 if style == BUZZ else 1.0, 0.011)


def paint_glasses(canvas: Canvas, face: Face, at: Fields) -> None:
    """Two rims, round to square, with a bridge, arms to the ears, and a faint reflection on the lit side."""
    if not face.attributes["glasses"]:
        return
    wide = 0.006 * face.frame
    lens = box(at.m, at.v, EYE + 0.002, -0.036, 0.066 + wide, 0.048 + wide, 0.046 - 0.028 * face.frame)
    rim = (0.80, 0.72, 0.54) if face.attributes["skin"] == 2 else (0.13, 0.10, 0.10)  # metal or dark, to stand out
    canvas.fill(lens, (0.92, 0.96, 1.0), 0.04 + 0.10 * canvas.coverage(at.v + 0.03 - at.a * face.light[0], 0.02))
    canvas.fill(np.abs(lens) - np.float32(0.0085), rim, 0.95)
    canvas.fill(capsule(at.m, at.v, 0.0, -0.048, 0.043, -0.047, 0.007), rim, 0.95)  # bridge
    arms = capsule(at.m, at.v, 0.172, -0.05, 0.240, -0.045, 0.007)
    canvas.fill(np.maximum(arms, outline(face, at) - 0.01), rim, 0.95)
