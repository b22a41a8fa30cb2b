"""Pictures and masks of one's own: what models see of them, and how samples go back into them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy.ndimage import distance_transform_edt

from pipeline.data.images import EXTENSIONS, encode_png, key_of, load_image
from pipeline.data.masks import MASKS, Polarity, load_mask
from pipeline.data.sources import UNREAD_EXTENSIONS
from pipeline.errors import InputError

Pixels = NDArray[np.uint8]
Known = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class OwnImage:
    """A picture and a mask, as models of S pixels a side see them.

    Attributes:
        key: the picture's name without extension, as `key_of` spells it; names its random streams and its samples.
        path: of the picture.
        mask: a name or a path.
        white: what white means in the mask.
        frame: width and height of the upright picture.
        image: its centre square, uint8 [S, S, 3].
        known: bool [S, S], True = seen.
    """

    key: str
    path: Path
    mask: str
    white: Polarity
    frame: tuple[int, int]
    image: Pixels
    known: Known

    @property
    def side(self) -> int:
        """Side N of the centre square in the picture's own pixels."""
        return min(self.frame)

    @property
    def reduction(self) -> str:
        """What was done to the picture."""
        (width, height), side, size = self.frame, self.side, len(self.image)
        cut = f", its centre square of {side}x{side}" if width != height else ""
        return f"{width}x{height}{cut}" + (f", reduced to {size}x{size}" if side != size else "")

    def paste(self, samples: Pixels) -> Pixels:
        """Samples uint8 [K, S, S, 3] with the seen pixels of the picture."""
        return np.where(self.known[..., None], self.image, samples)

    def paste_large(self, samples: Pixels) -> Pixels:
        """Samples [K, S, S, 3] enlarged to the picture's own square, [K, N, N, 3], with its seen pixels."""
        square, shape = load_image(self.path, self.side), (self.side, self.side)
        known, _ = _read_known(self.mask, self.path, self.frame, len(self.image), self.white)
        large = [np.asarray(Image.fromarray(sample).resize(shape, Image.Resampling.BICUBIC)) for sample in samples]
        return np.where(known[..., None], square, np.stack(large))


def read_own_images(given: Sequence[str], size: int, white: Polarity = "known") -> list[OwnImage]:
    """Read pictures with their masks.

    Args:
        given: picture, mask, picture, mask, ...: a picture is a file or a folder of them; a mask is the name of one of
            `MASKS`, a PNG for all these pictures, or a folder with one PNG per picture, of the same name.
        size: side S that models work at.
        white: what white means in PNGs.

    Raises:
        InputError: something cannot be read or used, or two pictures have one name.
    """
    if not given or len(given) % 2:
        raise InputError(f"expected pictures and masks in turns, IMAGE MASK, but got {len(given)} names: {list(given)}")
    pairs = [pair for k in range(0, len(given), 2) for pair in _pairs(Path(given[k]), given[k + 1])]
    [(stem, count)] = Counter(key_of(path.stem) for path, _ in pairs).most_common(1)
    if count > 1:
        raise InputError(
            f"{count} pictures are called {stem!r}, but results go by name; rename them, or call once each"
        )
    return [_read(path, mask, size, white) for path, mask in pairs]


def _pairs(picture: Path, mask: str) -> list[tuple[Path, str]]:
    """Every picture with its mask."""
    pictures = _pictures_in(picture) if picture.is_dir() else [picture]
    one_each = mask not in MASKS and Path(mask).is_dir()
    return [(path, str(Path(mask) / f"{path.stem}.png") if one_each else mask) for path in pictures]


def _pictures_in(folder: Path) -> list[Path]:
    """Picture files directly in a folder; one of a kind that is not read is refused when its turn comes."""
    kinds = EXTENSIONS | UNREAD_EXTENSIONS
    found = sorted(path for path in folder.iterdir() if path.suffix[1:].lower() in kinds and path.name[0] != ".")
    if not found:
        raise InputError(f"{folder}: expected a folder of pictures ({', '.join(sorted(EXTENSIONS))}), found none in it")
    return found


def _read(path: Path, mask: str, size: int, white: Polarity) -> OwnImage:
    image = load_image(path, size)
    frame = _upright(path)
    square_known, known = _read_known(mask, path, frame, size, white)
    if known.all() or not known.any():
        raise InputError(
            f"{mask}: {'hides' if known.all() else 'shows'} nothing of the centre square of {path} at {size}x{size} "
            "pixels, where models work; draw more of it"
        )
    if min(frame) != size:
        image = load_image(encode_png(_filled(load_image(path, min(frame)), square_known)), size)
    return OwnImage(key=key_of(path.stem), path=path, mask=mask, white=white, frame=frame, image=image, known=known)


def _upright(path: Path) -> tuple[int, int]:
    """Width and height of a picture that `load_image` can read, as it is meant to be seen."""
    with Image.open(path) as picture:
        return ImageOps.exif_transpose(picture).size


def _filled(square: Pixels, known: Known) -> Pixels:
    """The square with the nearest seen pixel in place of each hidden one, lest these seep into others when reduced."""
    rows, columns = distance_transform_edt(~known, return_distances=False, return_indices=True)
    filled: Pixels = square[rows, columns]
    return filled


def _read_known(mask: str, picture: Path, frame: tuple[int, int], size: int, white: Polarity) -> tuple[Known, Known]:
    """What is seen of the picture's own centre square, [N, N], and of the square that models see, [S, S]."""
    side = min(frame)
    path = Path(mask)
    found = (size, size) if mask in MASKS else _size(path)
    if found == (size, size):
        known = MASKS[mask](size, size, 0) if mask in MASKS else load_mask(path, size, size, white)
        place = np.arange(side) * size // side
        return known[np.ix_(place, place)], known
    if found != frame:
        raise InputError(
            f"{path}: is {found[0]}x{found[1]}, but a mask must have {frame[0]}x{frame[1]} pixels like {picture}, or "
            f"{size}x{size} like the centre square that models see of it; draw it so"
        )
    left, top = ((length - side) // 2 for length in frame)
    square = load_mask(path, frame[1], frame[0], white)[top : top + side, left : left + side]
    return square, _reduced(square, size)


def _size(path: Path) -> tuple[int, int]:
    """Width and height of a mask file."""
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected a mask, a PNG or one of {', '.join(MASKS)}, but there is none") from error
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: expected a PNG mask, but it cannot be read as an image ({error})") from error


def _reduced(known: Known, size: int) -> Known:
    """A mask [N, N] at [S, S]: a pixel is seen if all that it covers is."""
    side = len(known)
    spans = [slice(k * side // size, -(-(k + 1) * side // size)) for k in range(size)]
    rows = np.stack([known[span].all(0) for span in spans])
    return np.stack([rows[:, span].all(1) for span in spans], axis=1)
