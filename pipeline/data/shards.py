"""The stored form of a dataset: WebDataset shards and a manifest, written once, read by every later stage.

    <folder>/{train,val,test}-000000.tar    <key>.png (lossless) and, where there are attributes, <key>.json
    <folder>/manifest.json                  what was asked for, what is there, and hashes of all of it

A split's `digest` covers keys, pixels and attributes: it is the same wherever the same pictures come out, however they
were compressed. A shard's `sha256` and the manifest's `digest` cover files byte for byte; these are the same on every
run and, with the same Pillow, on every machine. Training wants pictures in random order, so `read_split` decodes a
split once into one array on disk and maps it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import webdataset

from pipeline.data.images import (
    SPLITS,
    Advance,
    ImageSet,
    Sample,
    Split,
    encode_png,
    load_image,
    open_images,
    store_images,
)
from pipeline.errors import InputError

MANIFEST = "manifest.json"
SCHEMA = 1
IMAGES_PER_SHARD = 1_000
BYTES_PER_SHARD = 100 * 10**6
LEAKS_SHOWN = 10


def write(
    folder: Path,
    splits: Mapping[Split, Iterable[Sample]],
    *,
    dataset: str,
    image_size: int,
    source: Mapping[str, Any],
    seed: int,
    attributes: Mapping[str, int] | None = None,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """Write splits as shards, return the manifest; `folder` appears, or replaces an older dataset, only when complete.

    Until then all is in a hidden folder beside it, `.<name>.<random>.part`: errors remove it, after a kill you may.

    Args:
        folder: Where the dataset shall be.
        splits: Samples of train, val and test, pictures uint8 [image_size, image_size, 3]; each is walked once.
        dataset: Its name; like `source` and `seed`, what the samples came from, for the manifest only.
        image_size: Side of the pictures.
        source: Block of parameters.
        seed: Of painted pictures.
        attributes: Classes of each attribute; None: one more than the largest value met.
        advance: Called with 1 after every picture.

    Raises:
        InputError: A split is empty, two share a picture, attributes differ, or `folder` holds something else.
    """
    _check_target(folder)
    head = {"schema": SCHEMA, "dataset": dataset, "image_size": image_size, "source": dict(source), "seed": seed}
    part = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.part")
    part.mkdir(parents=True)
    try:
        manifest = _fill(part, splits, head, attributes, advance)
        _put(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a dataset's manifest.

    Returns:
        {"schema": 1, "dataset", "image_size", "source": block, "seed", "attributes": {name: classes} | None, "splits":
        {split: {"count", "digest", "shards": [{"name", "count", "sha256"}]}}, "digest"}.

    Raises:
        InputError: There is none, or it was changed after it was written.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no dataset here; run the prepare stage first") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); run the prepare stage again") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise InputError(f"{path}: expected a manifest of schema {SCHEMA}; run the prepare stage again")
    if manifest.pop("digest", None) != (digest := _digest(manifest)):
        raise InputError(f"{path}: was changed after it was written; run the prepare stage again")
    return {**manifest, "digest": digest}


def verify(folder: Path) -> dict[str, Any]:
    """Hash every shard of a dataset again and return its manifest.

    Raises:
        InputError: A shard is missing, changed, or not in the manifest, or the manifest itself was changed.
    """
    manifest = read_manifest(folder)
    listed = [shard for split in SPLITS for shard in manifest["splits"][split]["shards"]]
    _check_shards(folder, listed)
    strange = {path.name for path in folder.glob("*.tar")} - {shard["name"] for shard in listed}
    if strange:
        raise InputError(f"{folder / min(strange)}: is not in {MANIFEST}; remove it, or run the prepare stage again")
    return manifest


def digest_of(samples: Iterable[Sample]) -> str:
    """Hash keys, attributes and pixels in their order: what the manifest calls the digest of a split."""
    digest = hashlib.sha256()
    for sample in samples:
        _feed(digest, sample)
    return digest.hexdigest()


def read_split(folder: Path, split: Split, cache: Path, advance: Advance | None = None) -> ImageSet:
    """Read a split as one array, decoded at the first call into `cache`/<digest>-<split>.npy (and .json), later mapped.

    Processes may do so at the same time: each writes under a name of its own and renames. The digest is the split's,
    so a decoded test split outlives a change of the training split.

    Args:
        folder: Of the dataset.
        split: Which one.
        cache: Folder for decoded splits; may be deleted at any time.
        advance: Called with 1 after every picture decoded.

    Raises:
        InputError: The dataset is missing, or its files are not the ones that were written.
    """
    manifest = read_manifest(folder)
    record, size = manifest["splits"][split], manifest["image_size"]
    stem = cache / f"{record['digest']}-{split}"
    shape = (record["count"], size, size, 3)
    found = open_images(stem, shape)
    if found is None:
        _check_shards(folder, record["shards"])
        cache.mkdir(parents=True, exist_ok=True)
        store_images(_stored(folder, record["shards"], size), stem, shape, advance)
        found = open_images(stem, shape)
    if found is None:
        raise InputError(f"{stem}.npy: cannot be read back after it was written; check the disk, or use another cache")
    return found


@dataclass(kw_only=True)
class _Census:
    """What the splits have shown so far, to compare the next picture with; test and val must come before train."""

    count: int = 0
    classes: dict[str, int] | None = None
    held_out: dict[bytes, tuple[Split, str]] = field(default_factory=dict)
    """Hash of the pixels of every picture of test and val -> where it is."""
    leaks: list[str] = field(default_factory=list)

    def take(self, split: Split, sample: Sample) -> None:
        pixels = hashlib.blake2b(sample.image.tobytes(), digest_size=16).digest()
        twin = self.held_out.get(pixels, (split, ""))
        if twin[0] != split:
            self.leaks.append(f"{twin[0]} {twin[1]} = {split} {sample.key}")
        if split != "train":
            self.held_out.setdefault(pixels, (split, sample.key))
        if self.count == 0 and sample.attributes is not None:
            self.classes = dict.fromkeys(sample.attributes, 1)
        self._take_attributes(sample)
        self.count += 1

    def _take_attributes(self, sample: Sample) -> None:
        expected, found = sorted(self.classes or {}), sorted(sample.attributes or {})
        if expected != found:
            raise InputError(
                f"{sample.key}: has the attributes {found}, expected {expected} as in the pictures before it; give all "
                "pictures of the dataset the same attributes, or none"
            )
        if self.classes is not None and sample.attributes is not None:
            self.classes = {name: max(n, sample.attributes[name] + 1) for name, n in self.classes.items()}

    def refuse_leaks(self) -> None:
        if self.leaks:
            more = len(self.leaks) - LEAKS_SHOWN
            raise InputError(
                f"two splits share pictures, so held-out results would flatter: {'; '.join(self.leaks[:LEAKS_SHOWN])}"
                f"{f'; and {more} more' if more > 0 else ''}; remove one of each pair from the source"
            )


def _fill(
    folder: Path,
    splits: Mapping[Split, Iterable[Sample]],
    head: Mapping[str, Any],
    attributes: Mapping[str, int] | None,
    advance: Advance | None,
) -> dict[str, Any]:
    """Write the shards of all splits and their manifest, which begins with `head`."""
    census = _Census()
    write_split = partial(_write_split, folder, size=head["image_size"], census=census, advance=advance)
    records = {split: write_split(split, splits[split]) for split in reversed(SPLITS)}
    census.refuse_leaks()
    classes = census.classes if attributes is None else dict(attributes)
    body = {**head, "attributes": classes, "splits": {split: records[split] for split in SPLITS}}
    body = json.loads(json.dumps(body))  # as it will be read: tuples are lists
    manifest = {**body, "digest": _digest(body)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _write_split(
    folder: Path, split: Split, samples: Iterable[Sample], *, size: int, census: _Census, advance: Advance | None
) -> dict[str, Any]:
    """Write the shards of one split and return its record for the manifest."""
    pattern = str(folder.resolve()).replace("%", "%%") + f"/{split}-%06d.tar"
    counts: Counter[str] = Counter()
    digest = hashlib.sha256()
    with webdataset.ShardWriter(
        pattern, maxcount=IMAGES_PER_SHARD, maxsize=BYTES_PER_SHARD, mtime=0, encoder=False, verbose=0
    ) as writer:
        for sample in samples:
            if sample.image.shape != (size, size, 3) or sample.image.dtype != np.uint8:
                raise ValueError(f"{sample.key}: expected uint8 [{size}, {size}, 3], got {sample.image.shape}")
            census.take(split, sample)
            _feed(digest, sample)
            labels = sample.attributes
            record = {} if labels is None else {"json": json.dumps(labels, sort_keys=True).encode()}
            writer.write({"__key__": sample.key, "png": encode_png(sample.image)} | record)
            counts[Path(writer.fname).name] += 1
            if advance is not None:
                advance(1)
    if not counts:
        raise InputError(f"{split}: the source gave no picture for this split; every split needs at least one")
    shards = [{"name": name, "count": n, "sha256": _sha256(folder / name)} for name, n in sorted(counts.items())]
    return {"count": counts.total(), "digest": digest.hexdigest(), "shards": shards}


def _stored(folder: Path, shards: list[dict[str, Any]], size: int) -> Iterator[Sample]:
    """Read back what `_write_split` wrote.

    By parts of the package: its `WebDataset` would deal shards out among workers and heed a cache set by the shell.
    """
    urls = [str((folder / shard["name"]).resolve()) for shard in shards]
    for member in webdataset.DataPipeline(webdataset.SimpleShardList(urls), webdataset.tarfile_to_samples()):
        key = member["__key__"]
        attributes = json.loads(member["json"]) if "json" in member else None
        yield Sample(key=key, image=load_image(member["png"], size, key), attributes=attributes)


def _feed(digest: Any, sample: Sample) -> None:
    head = json.dumps([sample.key, sample.attributes, sample.image.shape], sort_keys=True)
    digest.update(head.encode() + b"\n" + sample.image.tobytes())


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_shards(folder: Path, shards: list[dict[str, Any]]) -> None:
    for shard in shards:
        path = folder / shard["name"]
        if not path.is_file():
            raise InputError(f"{path}: is in {MANIFEST} but not on disk; run the prepare stage again")
        if _sha256(path) != shard["sha256"]:
            raise InputError(f"{path}: is not the file that {MANIFEST} describes; run the prepare stage again")


def _check_target(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and ((folder / MANIFEST).is_file() or not any(folder.iterdir()))):
        raise InputError(f"{folder}: holds something that is no dataset, and is not replaced; move it away")


def _put(part: Path, folder: Path) -> None:
    """Rename `part` to `folder`, whose older contents go only when the new ones are in place."""
    old = part.with_suffix(".old")
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
