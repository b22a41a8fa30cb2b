"""Pictures: from a file of any usual kind to a square uint8 array, many in one array on disk, and to and from [-1, 1].

The reduction is the one CelebA-HQ and ADM-like preprocessing stands for: the centre square, then a high-quality filter
(here Lanczos in one step, antialiased). What cannot be read faithfully is refused by name, never repaired:

* PNG, JPEG, WebP and BMP are read; EXIF orientation is honoured; colour profiles are ignored, as ADM does.
* Grey and palette pictures become RGB; 16-bit channels keep their high byte.
* CMYK is converted by R = 255 (1 - C)(1 - K), as ADM does: ImageNet holds a few such files.
* Transparent pixels have no colour, so a picture that has any is refused; an alpha channel that is opaque is dropped.
* Animations are refused. A JPEG with depth or gain maps appended by a telephone (MPO) is read as its main picture.
* Truncated and unreadable files, files over `BYTES_LIMIT` and pictures over `PIXELS_LIMIT` are refused.
"""

from __future__ import annotations

import io
import json
import re
import stat
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import Form, InputError, UserError, misfit, reason
from pipeline.files import replacing

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Advance = Callable[[int], None]
"""Told how many more pictures are done."""

EXTENSIONS = frozenset({"png", "jpg", "jpeg", "webp", "bmp"})
"""Lower-case names of the files that are read as pictures."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
PIXELS_LIMIT = 80_000_000
"""Larger pictures are taken for decompression bombs; 80 million pixels are 240 MB decoded."""
BYTES_LIMIT = 256 * 2**20
"""Larger files are not opened."""
INDEX: Form = {"keys": [str], "attributes": list | None}
"""What `store_images` writes as JSON."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture of a dataset."""

    key: str
    """Unique over all splits of the dataset; ASCII letters, digits, "-", "_" and "~" only."""
    image: NDArray[np.uint8]
    """[S, S, 3]."""
    attributes: dict[str, int] | None
    """Class of each attribute, or None where the source has none."""


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Many pictures in random access."""

    keys: list[str]
    """N keys."""
    images: NDArray[np.uint8]
    """[N, S, S, 3], mapped from disk, read-only."""
    attributes: list[dict[str, int]] | None
    """Of each picture, or None where the source has none."""


def key_of(stem: str) -> str:
    """Turn a file's name without its extension into a key that WebDataset, which cuts at the first dot, can carry.

    Letters, digits, "-" and "_" stay; every other byte of the UTF-8 name (Unicode form NFC) becomes "~" and two hex
    digits: "cats/no.1" gives "cats~2Fno~2E1". Over 80 characters, the first 60, "~~" and 16 hex digits of the name's
    hash stand for it. Different names thus have different keys.
    """
    name = unicodedata.normalize("NFC", stem).encode("utf-8", "surrogateescape")
    key = re.sub(rb"[^A-Za-z0-9_-]", lambda byte: b"~%02X" % byte[0][0], name).decode("ascii")
    return key if len(key) <= 80 else f"{key[:60]}~~{blake2b(name, digest_size=8).hexdigest()}"


def load_image(source: Path | bytes, size: int, name: str = "", *, allow_enlarge: bool = False) -> NDArray[np.uint8]:
    """Read one picture: upright, RGB, its centre square, reduced to `size` by Lanczos.

    Args:
        source: A file, or the bytes of one.
        size: Side of the result in pixels, >= 1. At this very size the pixels come back untouched.
        name: What errors call the picture; the path if not given.
        allow_enlarge: Whether a picture smaller than `size` may be enlarged.

    Returns:
        uint8 [size, size, 3].

    Raises:
        InputError: The picture cannot be read faithfully, or is too small; the message names it and the reason.
    """
    name = name or (str(source) if isinstance(source, Path) else "picture")
    image = _decode(_read(source, name), 1 if allow_enlarge else size, name)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    if side != size:
        square = square.resize((size, size), Image.Resampling.LANCZOS)
    return np.array(square, dtype=np.uint8)


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Compress uint8 [H, W, 3] without loss; the bytes depend on the pixels and the version of Pillow only."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def to_float(images: NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
    """Bring pictures inside: uint8 [..., H, W, 3] to float32 [..., 3, H, W] in [-1, 1], with 0 -> -1 and 255 -> 1.

    Raises:
        ValueError: The dtype is not uint8, or the last axis does not hold three channels.
    """
    pixels = images if isinstance(images, torch.Tensor) else torch.from_numpy(np.array(images))
    if pixels.dtype != torch.uint8 or pixels.ndim < 3 or pixels.shape[-1] != 3:
        raise ValueError(f"expected pictures uint8 [..., H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    return pixels.to(torch.float32).div(127.5).sub(1.0).movedim(-1, -3).contiguous()


def to_uint8(x: torch.Tensor) -> torch.Tensor:
    """Take pictures out: floats [..., 3, H, W] in [-1, 1] to uint8 [..., H, W, 3], rounded; the inverse of `to_float`.

    Values beyond [-1, 1], which samplers produce, are clipped.

    Raises:
        ValueError: The third axis from the end does not hold three channels.
        InputError: Some values are infinite or not numbers.
    """
    if not x.is_floating_point() or x.ndim < 3 or x.shape[-3] != 3:
        raise ValueError(f"expected pictures float [..., 3, H, W], got {x.dtype} {list(x.shape)}")
    if not torch.isfinite(x).all():
        raise InputError(
            f"{int((~torch.isfinite(x)).sum())} of {x.numel()} pixel values are infinite or not numbers: the model or "
            "method that made them has diverged; lower its step size or check its checkpoint"
        )
    pixels = x.to(torch.float32).add(1.0).mul(127.5).round().clamp(0, 255)
    return pixels.to(torch.uint8).movedim(-3, -1).contiguous()


def store_images(samples: Iterable[Sample], stem: Path, shape: tuple[int, ...], advance: Advance | None) -> None:
    """Write pictures as `stem`.npy, uint8 of `shape` [N, S, S, 3], and their keys and attributes as `stem`.json.

    One picture is in memory at a time. Each file appears whole or not at all, the array first, whoever else writes it.
    """
    keys: list[str] = []
    attributes: list[dict[str, int] | None] = []
    with replacing(stem.with_suffix(".npy")) as draft, draft.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for sample in samples:
            file.write(sample.image.tobytes())
            keys.append(sample.key)
            attributes.append(sample.attributes)
            if advance is not None:
                advance(1)
    with replacing(stem.with_suffix(".json")) as draft:
        draft.write_text(json.dumps({"keys": keys, "attributes": None if None in attributes else attributes}))


def open_images(stem: Path, shape: tuple[int, ...]) -> ImageSet | None:
    """Map what `store_images` wrote; None where it is missing or damaged and must be written again."""
    try:
        index = json.loads(stem.with_suffix(".json").read_bytes())
        images = np.lib.format.open_memmap(stem.with_suffix(".npy"), mode="r")
    except Exception:  # numpy can fail in any way on an arbitrary file
        return None
    if images.shape != shape or images.dtype != np.uint8 or misfit(index, INDEX) or len(index["keys"]) != shape[0]:
        return None
    return ImageSet(keys=index["keys"], images=images, attributes=index["attributes"])


def read_file(path: Path, name: str) -> bytes:
    """The bytes of a plain file; pipes and devices, which need not end, are not read.

    Raises:
        InputError: it cannot be opened, is something else, or is over the limit; the message begins with `name`.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{name}: cannot be opened (it is a folder, a pipe or a device); mend or remove it")
        if found.st_size > BYTES_LIMIT:
            raise InputError(f"{name}: the file is over the limit of {BYTES_LIMIT >> 20} MiB; reduce or remove it")
        return path.read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise InputError(f"{name}: cannot be opened ({reason(error)}); mend or remove it") from error


def _read(source: Path | bytes, name: str) -> bytes:
    data = source if isinstance(source, bytes) else read_file(source, name)
    if not data:
        raise InputError(f"{name}: the file is empty (0 bytes); replace or remove it")
    return data


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Name the picture in whatever the decoder raises: on damaged files that can be nearly any exception."""
    try:
        yield
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: not a PNG, JPEG, WebP or BMP picture, or cut short; replace or remove it") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{name}: over the limit of {PIXELS_LIMIT:,} pixels; reduce or remove it") from error
    except Exception as error:
        raise InputError(f"{name}: truncated or damaged ({reason(error)}); replace or remove it") from error


def _decode(data: bytes, smallest: int, name: str) -> Image.Image:
    """Decode to an upright RGB picture whose shorter side is at least `smallest`."""
    with _decoding(name):
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):  # told below
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > PIXELS_LIMIT:
            raise InputError(
                f"{name}: {width}x{height} is over the limit of {PIXELS_LIMIT:,} pixels; reduce or remove it"
            )
        if min(width, height) < smallest:
            raise InputError(
                f"{name}: {width}x{height} is too small for pictures of {smallest}x{smallest}, and enlarging would "
                "invent detail; remove it or lower the image size"
            )
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":
            raise InputError(f"{name}: an animation of {frames} frames; extract one or remove it")
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image), name)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if _is_transparent(image):
        raise InputError(f"{name}: transparent pixels have no colour; flatten it on a background or remove it")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("P", "PA"):
        return image.convert("RGBA").convert("RGB")
    if image.mode not in ("1", "L", "LA", "RGB", "RGBA", "CMYK"):
        raise InputError(f"{name}: pixels of kind {image.mode!r} are not read; convert it to 8-bit RGB or remove it")
    return image.convert("RGB")


def _is_transparent(image: Image.Image) -> bool:
    """Whether some pixel is not fully opaque; an alpha channel alone does not make it so."""
    if not image.has_transparency_data:
        return False
    if image.mode.startswith("I;16"):  # grey PNG of 16 bits: one grey value may stand for "nothing"
        return bool((np.asarray(image) == image.info["transparency"]).any())
    return bool(np.asarray(image.convert("RGBA"))[..., 3].min() < 255)
