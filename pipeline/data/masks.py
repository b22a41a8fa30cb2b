"""The masks of the inpainting experiments: which pixels are seen. Plain functions, and mask files of one's own.

Six rectangles and one family of free-form masks:

* The rectangles are those of the Tiramisu authors' dataset code, given there in pixels of a 256 x 256 image; the
  rectangle (or strip) is what is *revealed*, all else is hidden. A coordinate c becomes floor(c * S / 256 + 1/2) at
  size S. The strips are *not* centred along their length (72 to 164), as in that code. `expand1` is called "expand"
  there and `expand2` "small_eye"; which of the two the paper calls 1 and which 2 follows their shapes and is not
  verified in the paper's text.
* `wide` follows RePaint (Lugmayr et al., 2022, arXiv 2201.09865), which uses the thick setting for 256 pixels of LaMa
  (Suvorov et al., 2022, arXiv 2109.07161): strokes with probability 1/1.3, else boxes, at most half of it hidden.
  LaMa draws five candidates, drops those that hide too much and picks one of the rest, which is the same in law as
  drawing until one passes. Strokes are capsules (all points within half a width of a segment), not an image library's
  lines.

The i-th `wide` mask is a function of i alone, everywhere and for ever: its numbers come from NumPy's legacy
`RandomState`, whose streams NumPy has frozen (NEP 19), and only from its doubles in [0, 1). They are drawn for
256 x 256, in whole pixels; other sizes show the same shapes sampled at their own pixel centres.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import InputError, reason

Known = NDArray[np.bool_]  # [H, W], True = seen
MaskFunction = Callable[[int, int, int], Known]  # (height, width, index of the image) -> known
Polarity = Literal["known", "hidden"]

FRAME = 256  # all geometry is given in pixels of a FRAME x FRAME image
SMALLEST = 16  # below this height or width a strip or a stroke could vanish
LARGEST_HOLE = 0.4975  # LaMa's limit of 0.5, less what sampling the shapes at another size may add
CHECKED_SIZES = (32, 64, 128, 256)  # where a wide mask is held to it
BYTES_LIMIT = 2**26  # larger files are no masks
WIDE_SEED = 20_240_719  # any number does, as long as it never changes


@dataclass(frozen=True, kw_only=True)
class Stroke:
    """A capsule of hidden pixels: whole pixels of the FRAME, (row, column)."""

    start: tuple[int, int]
    end: tuple[int, int]
    width: int


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle of hidden pixels: whole pixels of the FRAME, the ends excluded."""

    rows: tuple[int, int]
    columns: tuple[int, int]


def rectangle(rows: tuple[int, int], columns: tuple[int, int]) -> MaskFunction:
    """A mask function that reveals one rectangle, given in pixels of the FRAME with the ends excluded."""

    def known(height: int, width: int, index: int) -> Known:
        _check_size(height, width, index)
        seen = np.zeros((height, width), dtype=bool)
        seen[_scaled(rows, height), _scaled(columns, width)] = True
        return seen

    return known


def wide(height: int, width: int, index: int) -> Known:
    """The free-form mask of one image: thick strokes or boxes are hidden.

    At most half of the picture is hidden at 32, 64, 128, 256 and above; at other sizes, a hair more can be.

    Args:
        height: of the mask in pixels, at least 16.
        width: of the mask in pixels, at least 16.
        index: number of the image, from 0; the same index gives the same shapes at every size.

    Returns:
        [H, W], True = seen.

    Raises:
        InputError: too small a size, or a negative index.
    """
    _check_size(height, width, index)
    return ~_hidden(_wide_shapes(index), height, width)


MASKS: dict[str, MaskFunction] = {
    "left": rectangle(rows=(0, 256), columns=(0, 128)),
    "top": rectangle(rows=(0, 128), columns=(0, 256)),
    "expand1": rectangle(rows=(96, 160), columns=(96, 160)),  # "expand" in the authors' code
    "expand2": rectangle(rows=(64, 128), columns=(64, 128)),  # "small_eye"
    "v_strip": rectangle(rows=(72, 164), columns=(120, 136)),  # "single_vert_strip"
    "h_strip": rectangle(rows=(120, 136), columns=(72, 164)),  # "single_horiz_strip"
    "wide": wide,  # RePaint's "thick"
}

PER_IMAGE: frozenset[str] = frozenset({"wide"})  # the masks that differ from image to image


def load_mask(path: Path, height: int, width: int, polarity: Polarity = "known") -> Known:
    """Read a mask file: a black and white PNG of exactly the given size.

    Args:
        path: a PNG in 1 bit, grey or RGB with equal channels; an alpha channel must be opaque. Values 0 and 255 only.
        height: that the mask must have.
        width: that the mask must have.
        polarity: what 255 (white) means. It cannot be guessed from the file: RePaint and this pipeline save
            255 = known, LaMa and most drawing tools 255 = hidden.

    Returns:
        [H, W], True = seen.

    Raises:
        InputError: no such file, not a PNG, other values than 0 and 255, another size, or all pixels alike.
    """
    grey = _read_grey(path, height, width)
    white: Known = np.equal(grey, 255)
    if white.all() or not white.any():
        nothing = "hidden" if white.all() == (polarity == "known") else "known"
        raise InputError(
            f"{path}: all pixels are {grey[0, 0]}, so nothing is {nothing}; a mask needs known and hidden pixels."
        )
    return white if polarity == "known" else ~white


def mask_folder(folder: Path, polarity: Polarity = "known") -> MaskFunction:
    """A mask function over the masks of a folder, sorted by name: the i-th for the i-th image, modulo their number.

    Args:
        folder: holds one PNG per mask, directly; other files are not masks and must not be there (hidden files may).
        polarity: what 255 means in all of them, see `load_mask`.

    Raises:
        InputError: no such folder, no PNG in it, or a file that is no PNG; when called, whatever `load_mask` raises.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of PNG masks, found none; check the path.")
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    strange = [file.name for file in files if file.suffix.lower() != ".png"]
    if strange or not files:
        found = f"also {strange[0]!r}" if strange else "an empty folder"
        raise InputError(f"{folder}: expected PNG masks and nothing else, found {found}; keep one PNG per mask there.")

    def known(height: int, width: int, index: int) -> Known:
        _check_size(height, width, index)
        return load_mask(files[index % len(files)], height, width, polarity)

    return known


def save_mask(path: Path, known: Known) -> None:
    """Write [H, W] as a 1-bit PNG, 255 = known, which `load_mask` reads."""
    Image.fromarray(np.asarray(known, dtype=bool)).save(path, format="PNG")


def _check_size(height: int, width: int, index: int) -> None:
    if min(height, width) < SMALLEST:
        raise InputError(f"expected a mask of at least {SMALLEST} x {SMALLEST} pixels, got {height} x {width}.")
    if index < 0:
        raise InputError(f"expected an image index from 0, got {index}.")


def _scaled(span: tuple[int, int], size: int) -> slice:
    """The span of the FRAME at another size; floor(c * S / 256 + 1/2) in whole numbers."""
    low, high = ((2 * c * size + FRAME) // (2 * FRAME) for c in span)
    return slice(low, high)


def _wide_shapes(index: int) -> list[Stroke] | list[Box]:
    """Draw strokes or boxes until they hide no more than allowed."""
    stream = np.random.RandomState([WIDE_SEED, index])
    while True:
        shapes = _draw_strokes(stream) if stream.random_sample() < 1 / 1.3 else _draw_boxes(stream)
        if all(_hidden(shapes, size, size).mean() <= LARGEST_HOLE for size in CHECKED_SIZES):
            return shapes


def _draw_strokes(stream: np.random.RandomState) -> list[Stroke]:
    """One to six polylines of one to five thick segments, turning one way or the other (LaMa, random_thick_256)."""
    strokes = []
    for line in range(_integer(stream, 1, 6)):
        row, column = _integer(stream, 0, FRAME - 1), _integer(stream, 0, FRAME - 1)
        for _ in range(_integer(stream, 1, 5)):
            angle = (0.01 + _integer(stream, 0, 3)) * (-1 if line % 2 == 0 else 1)
            length, width = _integer(stream, 10, 209), _integer(stream, 5, 104)
            end = _inside(row + length * math.cos(angle)), _inside(column + length * math.sin(angle))
            strokes.append(Stroke(start=(row, column), end=end, width=width))
            row, column = end
    return strokes


def _draw_boxes(stream: np.random.RandomState) -> list[Box]:
    """One to three boxes with sides of 30 to 150 and a margin of 10 (LaMa, random_thick_256)."""

    def span() -> tuple[int, int]:
        side = _integer(stream, 30, 150)
        start = _integer(stream, 10, FRAME - 10 - side)
        return start, start + side

    return [Box(rows=span(), columns=span()) for _ in range(_integer(stream, 1, 3))]


def _integer(stream: np.random.RandomState, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return low + int(stream.random_sample() * (high - low + 1))


def _inside(coordinate: float) -> int:
    return min(max(int(coordinate), 0), FRAME - 1)


def _hidden(shapes: list[Stroke] | list[Box], height: int, width: int) -> NDArray[np.bool_]:
    """[H, W], True where a shape covers the pixel's centre."""
    row = _centers(height)[:, None]
    column = _centers(width)[None, :]
    hidden = np.zeros((height, width), dtype=bool)
    for shape in shapes:
        if isinstance(shape, Stroke):
            thinnest = math.hypot(FRAME / height, FRAME / width) / 2  # reaches a pixel's centre from wherever it is
            hidden |= _capsule(shape, max(shape.width / 2, thinnest), row, column)
        else:
            (top, bottom), (left, right) = shape.rows, shape.columns
            hidden |= (top <= row + 0.5) & (row + 0.5 < bottom) & (left <= column + 0.5) & (column + 0.5 < right)
    return hidden


def _centers(size: int) -> NDArray[np.float64]:
    """Where the centres of `size` pixels lie in the FRAME, whose own pixels have theirs at 0, 1, ..., 255."""
    return (np.arange(size, dtype=np.float64) + 0.5) * (FRAME / size) - 0.5


def _capsule(stroke: Stroke, radius: float, row: NDArray[np.float64], column: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Points within `radius` of the segment; no division, so float64 is exact where the size divides the FRAME."""
    (row_a, column_a), (row_b, column_b) = stroke.start, stroke.end
    d_row, d_column = row_b - row_a, column_b - column_a
    length2 = d_row**2 + d_column**2
    along = (row - row_a) * d_row + (column - column_a) * d_column
    across = (row - row_a) * d_column - (column - column_a) * d_row
    beside = (along >= 0) & (along <= length2) & (across**2 <= radius**2 * length2)
    near_a = (row - row_a) ** 2 + (column - column_a) ** 2 <= radius**2
    near_b = (row - row_b) ** 2 + (column - column_b) ** 2 <= radius**2
    return np.asarray((beside & (length2 > 0)) | near_a | near_b)


def _read_grey(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    """[H, W] with values 0 and 255, or an error that says what is wrong with the file."""
    if not path.is_file() or path.stat().st_size > BYTES_LIMIT:  # a pipe or a device need not end
        raise InputError(
            f"{path}: expected a mask file of at most {BYTES_LIMIT >> 20} MiB, found none; check the path."
        )
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(path.read_bytes())) as image:
            file_format, mode, frames = image.format, image.mode, getattr(image, "n_frames", 1)
            if image.size != (width, height):  # before a picture of any size is decoded
                raise InputError(
                    f"{path}: expected a mask of {height} x {width} pixels (height x width), got {image.height} x "
                    f"{image.width}; masks are never resized, so draw it at the size of the images."
                )
            pixels = np.asarray(image.convert("RGBA"))
    except InputError:
        raise
    except Exception as error:  # on damaged files Pillow can fail in any way
        said = re.sub(r" <.*", "", reason(error))
        raise InputError(f"{path}: expected a PNG mask, got what cannot be read as an image ({said}).") from error
    grey: NDArray[np.uint8] = pixels[..., 0]
    values = np.unique(grey)
    plain = not mode.startswith("I") and (pixels[..., :3] == pixels[..., :1]).all() and (pixels[..., 3] == 255).all()
    if frames > 1:
        raise InputError(f"{path}: expected one mask, got an animation of {frames}; keep one PNG per mask.")
    if file_format == "PNG" and not plain:
        raise InputError(
            f"{path}: expected a black and white PNG, opaque, with 1 or 8 bits a channel; got colours, transparency or "
            f"16 bits (mode {mode}). {_remedy(path)}"
        )
    if file_format != "PNG" or not np.isin(values, (0, 255)).all():
        raise InputError(
            f"{path}: expected a PNG with the values 0 and 255 only, got a {file_format} with {len(values)} grey "
            f"values, so the edge between known and hidden is not defined. {_remedy(path)}"
        )
    return grey


def _remedy(path: Path) -> str:
    target = path.with_name(f"{path.stem}-bw.png").name
    return (
        'To make one, with a threshold of your choice: python -c "from PIL import Image; '
        f"Image.open('{path.name}').convert('L').point(lambda v: 255 * (v > 127)).convert('1').save('{target}')\""
    )
