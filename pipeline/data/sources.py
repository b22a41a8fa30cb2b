"""Where the pictures of a dataset come from: painted, a folder of files, or WebDataset shards.

A source is a frozen dataclass whose fields are its block of params.yaml; `read` turns it into a lazy stream of samples
for each split. Names are held in memory (some hundred bytes a picture), pictures never. What could spoil a training is
refused by name while reading. That no picture is in two splits is checked by `shards.write`, which sees them all.
"""

from __future__ import annotations

import json
import os
import tarfile
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from glob import glob
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.data import faces, objects, rooms
from pipeline.data.images import EXTENSIONS, SPLITS, Sample, Split, key_of, load_image
from pipeline.data.tars import Members, content, open_tar
from pipeline.errors import ConfigError, InputError, reason


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A painter and what can be said about its pictures."""

    render: Callable[[np.random.Generator, int], tuple[NDArray[np.uint8], dict[str, int]]]
    """(generator, size) -> picture uint8 [size, size, 3] and the class of each attribute."""
    attributes: dict[str, int]
    """Number of classes of each attribute."""


DOMAINS: dict[str, Domain] = {
    "faces": Domain(render=faces.render, attributes=faces.ATTRIBUTES),
    "objects": Domain(render=objects.render, attributes=objects.ATTRIBUTES),
    "rooms": Domain(render=rooms.render, attributes=rooms.ATTRIBUTES),
}

UNREAD_EXTENSIONS = frozenset({"avif", "gif", "heic", "heif", "jfif", "jp2", "jxl", "pgm", "ppm", "tif", "tiff"})
"""Pictures that are not read: refused, lest a folder lose a part of its pictures in silence."""
HELD_OUT = 0.1
"""Share of a flat folder's names that belong to test, and again to val."""
CLASSES_LIMIT = 1000
"""An attribute's class is below this; larger integers in a shard's JSON are sizes or serial numbers."""


@dataclass(frozen=True, kw_only=True)
class Procedural:
    """Painted pictures: number k of a split depends on (seed, domain, split, k) only, so fewer are a prefix of more."""

    source: Literal["procedural"] = "procedural"
    domain: str
    """One of `DOMAINS`."""
    train: int
    val: int
    test: int
    """Pictures of each split."""
    watch: str = ""
    """What DVC looks at to see that the source changed: the painter."""

    def __post_init__(self) -> None:
        _check_counts(self.train, self.val, self.test)
        if self.domain not in DOMAINS:
            nearest = get_close_matches(self.domain, DOMAINS, n=1, cutoff=0.0)[0]
            raise ConfigError(f"domain: {self.domain!r} is none of {', '.join(DOMAINS)}; did you mean {nearest!r}?")


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Picture files in a folder and its subfolders; hidden files and folders and files of other kinds are passed over.

    With subfolders train/, val/ and test/, these are the splits. Otherwise a hash of each file's name relative to the
    folder decides: a tenth belongs to test, a tenth to val, the rest to train, and adding a file never moves another.
    The files of a split come in the order of their hashes, so a limit is a fair selection and fewer a prefix of more.
    """

    source: Literal["folder"] = "folder"
    path: str
    train: int | None = None
    """At most so many pictures; None: all that belong to the split."""
    val: int
    test: int
    watch: str = ""
    """What DVC looks at to see that the source changed: the folder, or an index of it."""

    def __post_init__(self) -> None:
        _check_counts(self.train, self.val, self.test)


@dataclass(frozen=True, kw_only=True)
class ShardSet:
    """WebDataset shards: tar files in which all members with one name up to the first dot make one sample.

    Each sample holds one picture and may hold a .json object; where its values are all integers from 0 to 999, they are
    its attributes. Other members are passed over. Pictures come in the order of the shards' paths, then of the tar.
    """

    source: Literal["shards"] = "shards"
    train: str | tuple[str, ...]
    """Paths of .tar files; `*`, `?`, `[...]` and `**` as in a shell."""
    val: str | tuple[str, ...]
    test: str | tuple[str, ...]
    train_images: int | None = None
    """At most so many pictures; None: all."""
    val_images: int | None = None
    test_images: int | None = None
    watch: str = ""
    """What DVC looks at to see that the source changed: the folder of the shards, or an index of it."""

    def __post_init__(self) -> None:
        _check_counts(self.train_images, self.val_images, self.test_images)


Source = Procedural | Folder | ShardSet


def read(source: Source, *, dataset: str, size: int, seed: int) -> dict[Split, Iterator[Sample]]:
    """Open a source: a lazy stream of samples for each split, to be walked once, in any order.

    Args:
        source: Where the pictures come from.
        dataset: Name of the dataset; begins the keys of painted pictures.
        size: Side of the pictures in pixels; see `load_image` for how files are cut and reduced.
        seed: Of painted pictures; files and shards do not depend on it.

    Raises:
        InputError: Now or while walking: something is missing, damaged, too small, ambiguous or twice there.
    """
    if isinstance(source, Procedural):
        return {split: _paint(source, split, dataset, size, seed) for split in SPLITS}
    if isinstance(source, Folder):
        root = Path(source.path).expanduser()
        names = _assign(root)
        return {split: _load(root, names[split][: getattr(source, split)], size) for split in SPLITS}
    shards = _find_shards(source)
    origin: dict[str, Path] = {}
    return {split: islice(_unpack(shards[split], size, origin), getattr(source, f"{split}_images")) for split in SPLITS}


def attribute_classes(source: Source) -> dict[str, int] | None:
    """Return the number of classes of each attribute where the source declares it, else None."""
    return dict(DOMAINS[source.domain].attributes) if isinstance(source, Procedural) else None


def _check_counts(*counts: int | None) -> None:
    for split, count in zip(SPLITS, counts, strict=True):
        if count is not None and count < 1:
            raise ConfigError(f"{split}: expected at least 1 picture, got {count}; every split is needed")


def _paint(source: Procedural, split: Split, dataset: str, size: int, seed: int) -> Iterator[Sample]:
    for k in range(getattr(source, split)):
        name = f"{seed}/{source.domain}/{split}/{k}"
        rng = np.random.default_rng(int.from_bytes(blake2b(name.encode(), digest_size=16).digest(), "big"))
        image, attributes = DOMAINS[source.domain].render(rng, size)
        yield Sample(key=key_of(f"{dataset}-{split}-{k:06d}"), image=image, attributes=attributes)


def _assign(root: Path) -> dict[Split, list[str]]:
    """Give every picture under `root` to a split, by its name relative to `root`, in the order of the names' hashes."""
    if not root.is_dir():
        raise InputError(f"{root}: expected a folder of pictures, found {'a file' if root.exists() else 'nothing'}")
    arranged = [split for split in SPLITS if (root / split).is_dir()]
    if arranged and len(arranged) < len(SPLITS):
        raise InputError(f"{root}: has {arranged[0]}/ but not all of train/, val/, test/; add them or rename it")
    names: dict[Split, list[str]] = {split: [] for split in SPLITS}
    owner: dict[str, str] = {}
    for place, name in sorted((_place(name), name) for name in _picture_names(root)):
        if (first := owner.setdefault(key_of(name.rpartition(".")[0]), name)) != name:
            raise InputError(f"{root}: {first} and {name} differ in extension only; rename or remove one of them")
        split = next((split for split in SPLITS if name.startswith(f"{split}/")), None) if arranged else split_at(place)
        if split is None:
            raise InputError(f"{root / name}: lies outside train/, val/ and test/; move it into one of them or away")
        names[split].append(name)
    for split in SPLITS:
        if not names[split]:
            raise InputError(f"{root}: found {len(owner)} pictures, none for {split}; add some, or sort into {split}/")
    return names


def _place(name: str) -> float:
    """Hash a relative name to a number in [0, 1), the same on every machine."""
    spelled = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(spelled, digest_size=6).digest(), "big") / 2**48


def split_at(place: float) -> Split:
    """Return the split of a file of a flat folder, given the hash of its name as a number in [0, 1)."""
    return "test" if place < HELD_OUT else "val" if place < 2 * HELD_OUT else "train"


def _picture_names(root: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: the folder cannot be read ({error.strerror}); mend its permissions")

    for folder, subfolders, files in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for path in (Path(folder, name) for name in subfolders):
            if path.is_symlink():
                raise InputError(f"{path}: links to folders are not followed; put the folder itself there")
        for path in (Path(folder, name) for name in files if not name.startswith(".")):
            extension = path.suffix[1:].lower()
            if extension in UNREAD_EXTENSIONS:
                raise InputError(f"{path}: pictures of this kind are not read; convert it to PNG or remove it")
            if extension in EXTENSIONS:
                yield path.relative_to(root).as_posix()


def _load(root: Path, names: list[str], size: int) -> Iterator[Sample]:
    for name in names:
        image = load_image(root / name, size)
        yield Sample(key=key_of(name.rpartition(".")[0]), image=image, attributes=None)


def _find_shards(source: ShardSet) -> dict[Split, list[Path]]:
    """Expand the patterns of each split to files, sorted by path."""
    found: dict[Split, list[Path]] = {split: [] for split in SPLITS}
    owner: dict[Path, str] = {}
    for split in SPLITS:
        patterns = getattr(source, split)
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            place = str(Path(pattern).expanduser())
            matches = [place] if Path(place).is_file() else glob(place, recursive=True)  # noqa: PTH207 absolute too
            if not matches:
                raise InputError(f"{split}: no shard matches {pattern!r} in {Path.cwd()}; check the path")
            found[split].extend(Path(match) for match in matches)
        found[split] = sorted(set(found[split]))
        for path in found[split]:
            if owner.setdefault(path.resolve(), split) != split:
                raise InputError(f"{path}: is in both {owner[path.resolve()]} and {split}; give it to one of them")
    return found


def _unpack(shards: list[Path], size: int, origin: dict[str, Path]) -> Iterator[Sample]:
    """Read shards one by one, in place; `origin` holds the shard of every key met so far, in any split."""
    for shard in shards:
        with open_tar(shard) as (archive, samples):
            for stem in samples:
                if (first := origin.setdefault(stem, shard)) != shard:
                    raise InputError(f"{shard}: the key {stem!r} is also in {first}; rename or remove one of them")
            for stem, members in samples.items():
                yield _sample(archive, f"{shard}: sample {stem!r}", stem, members, size)


def _sample(archive: tarfile.TarFile, name: str, stem: str, members: Members, size: int) -> Sample:
    pictures = [member for extension, member in members.items() if extension.rpartition(".")[2] in EXTENSIONS]
    if len(pictures) != 1:
        names = ", ".join(member.name for member in members.values())
        raise InputError(f"{name} holds {len(pictures)} pictures, expected one (members: {names}); write the shard so")
    image = load_image(content(archive, pictures[0], name), size, f"{name}, {pictures[0].name}")
    attributes = _attributes(content(archive, members["json"], name), name) if "json" in members else None
    return Sample(key=key_of(stem), image=image, attributes=attributes)


def _attributes(data: bytes, name: str) -> dict[str, int] | None:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: its .json member cannot be read ({reason(error)}); mend or remove it") from error
    if not isinstance(record, dict) or not record:
        return None
    return record if all(type(value) is int and 0 <= value < CLASSES_LIMIT for value in record.values()) else None
