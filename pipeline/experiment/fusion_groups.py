"""Which pictures are brought together: halves of test images, or files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.images import ImageSet, load_image
from pipeline.data.masks import MASKS, load_mask
from pipeline.errors import InputError

OPPOSITE = {"right": "left", "bottom": "top"}
"""Regions that are what a mask hides."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Pictures to bring together.

    Attributes:
        names: of the pictures, J of them.
        places: names of the regions.
        images: uint8 [J, S, S, 3].
        regions: bool [J, S, S].
        sample: number of the draw.
    """

    names: tuple[str, ...]
    places: tuple[str, ...]
    images: NDArray[np.uint8]
    regions: NDArray[np.bool_]
    sample: int = 0

    @property
    def titles(self) -> list[str]:
        """Names with their regions."""
        return [f"{name} {place}" for name, place in zip(self.names, self.places, strict=True)]


def pair(images: ImageSet, first: int, second: int) -> Group:
    """The left of one test image and the right of another."""
    size, places = images.images.shape[1], ("left", "right")
    return Group(
        names=(images.keys[first], images.keys[second]),
        places=places,
        images=np.stack([images.images[first], images.images[second]]),
        regions=np.stack([region(place, size) for place in places]),
    )


def find(images: ImageSet, name: str) -> int:
    """Number of the test image with this key or number.

    Raises:
        InputError: there is none.
    """
    if name in images.keys:
        return images.keys.index(name)
    if name.isdecimal() and int(name) < len(images.keys):
        return int(name)
    raise InputError(
        f"there is no test image {name!r}; give a number from 0 to {len(images.keys) - 1} or a key such as "
        f"{images.keys[0]!r}."
    )


def read_group(own: Sequence[Sequence[str]], size: int) -> Group:
    """Pictures and their regions from files, pictures brought to `size`; a region may also be a name, see `region`.

    Raises:
        InputError: a file cannot be read or used.
    """
    return Group(
        names=tuple(Path(path).name for path, _ in own),
        places=tuple(Path(place).name for _, place in own),
        images=np.stack([load_image(_expanded(path), size) for path, _ in own]),
        regions=np.stack([region(place, size) for _, place in own]),
    )


def region(place: str, size: int) -> NDArray[np.bool_]:
    """The region bool [size, size] of a name, of a mask's or "right" or "bottom", or of a PNG, white = inside.

    Raises:
        InputError: there is no such file, or it cannot be used.
    """
    if place in OPPOSITE:
        return ~MASKS[OPPOSITE[place]](size, size, 0)
    if place in MASKS:
        return MASKS[place](size, size, 0)
    path = _expanded(place)
    if not path.exists():
        names = ", ".join((*MASKS, *OPPOSITE))
        raise InputError(f"{place}: expected a region, the path of a PNG (white = inside) or one of {names}.")
    return load_mask(path, size, size)


def _expanded(path: str) -> Path:
    """A path that may begin with somebody's home, as in `~/pictures`."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: begins with the home folder of somebody who is not on this machine.") from error
