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
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import webdataset

from pipeline.data.census import Census
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
from pipeline.data.tars import Members, content, open_tar
from pipeline.errors import Form, InputError, misfit, reason

MANIFEST = "manifest.json"
SCHEMA = 1
IMAGES_PER_SHARD = 1_000
BYTES_PER_SHARD = 100 * 10**6
SIZE_LIMIT = 4096
"""Sides of pictures in pixels are at most this."""
_SPLIT: Form = {"count": int, "digest": str, "shards": [{"name": str, "count": int, "sha256": str}]}
FORM: Form = {"image_size": int, "seed": int, "source": dict, "splits": dict.fromkeys(SPLITS, _SPLIT)}
"""What a manifest says, as far as it is read."""


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
    if not path.is_file():
        raise InputError(f"{path}: there is no dataset here; run the prepare stage first")
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}); run the prepare stage again") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise InputError(f"{path}: expected a manifest of schema {SCHEMA}; run the prepare stage again")
    if manifest.pop("digest", None) != (digest := _digest(manifest)):
        raise InputError(f"{path}: was changed after it was written; run the prepare stage again")
    if wrong := misfit(manifest, FORM) or _strange(manifest):
        raise InputError(f"{path}: expected a manifest of schema {SCHEMA}, but {wrong}; run the prepare stage again")
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
        store_images(_stored(folder, record, size), stem, shape, advance)
        found = open_images(stem, shape)
    if found is None:
        raise InputError(f"{stem}.npy: cannot be read back after it was written; check the disk, or use another cache")
    return found


def _fill(
    folder: Path,
    splits: Mapping[Split, Iterable[Sample]],
    head: Mapping[str, Any],
    attributes: Mapping[str, int] | None,
    advance: Advance | None,
) -> dict[str, Any]:
    """Write the shards of all splits and their manifest, which begins with `head`."""
    census = Census()
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
    folder: Path, split: Split, samples: Iterable[Sample], *, size: int, census: Census, advance: Advance | None
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


def _stored(folder: Path, record: Mapping[str, Any], size: int) -> Iterator[Sample]:
    """Read back the split of `record` that `_write_split` wrote, and hold it to the split's digest."""
    digest, count = hashlib.sha256(), 0
    for shard in record["shards"]:
        path = folder / shard["name"]
        with open_tar(path) as (archive, samples):
            for key, members in samples.items():
                sample = _sample(archive, key, members, size, f"{path}: sample {key!r}")
                _feed(digest, sample)
                count += 1
                yield sample
    if (count, digest.hexdigest()) != (record["count"], record["digest"]):
        raise InputError(f"{folder}: holds other pictures than {MANIFEST} says; run the prepare stage again")


def _sample(archive: tarfile.TarFile, key: str, members: Members, size: int, name: str) -> Sample:
    if not {"png"} <= members.keys() <= {"png", "json"}:
        raise InputError(
            f"{name} should be a .png and a .json, but is {', '.join(members)}; run the prepare stage again"
        )
    try:
        labels = json.loads(content(archive, members["json"], name)) if "json" in members else None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: its .json cannot be read ({reason(error)}); run the prepare stage again") from error
    image = load_image(content(archive, members["png"], name), size, name)
    return Sample(key=key, image=image, attributes=labels)


def _feed(digest: Any, sample: Sample) -> None:
    head = json.dumps([sample.key, sample.attributes, sample.image.shape], sort_keys=True)
    digest.update(head.encode() + b"\n" + sample.image.tobytes())


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _strange(manifest: Mapping[str, Any]) -> str | None:
    """What a manifest of the right form says that cannot be."""
    if not 1 <= manifest["image_size"] <= SIZE_LIMIT:
        return f"image_size is {manifest['image_size']}"
    for split, record in manifest["splits"].items():
        for shard in record["shards"]:
            if not re.fullmatch(rf"{re.escape(split)}-[0-9]{{6,}}\.tar", shard["name"]):
                return f"splits.{split} names a shard {shard['name']!r}, which is none of that split"
        if record["count"] < 1 or record["count"] != sum(shard["count"] for shard in record["shards"]):
            return f"splits.{split}.count is {record['count']}, which is not what its shards hold"
    return None


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
