import dataclasses
import hashlib
import json
import multiprocessing
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import webdataset

from pipeline.data import shards
from pipeline.data.images import SPLITS, Sample
from pipeline.data.shards import MANIFEST, digest_of, read_manifest, read_split, verify, write
from pipeline.data.sources import Procedural, attribute_classes, read
from pipeline.errors import InputError

SIZE = 8
COUNTS = {"train": 7, "val": 3, "test": 4}


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def samples(split, count, *, attributes=True, first=0):
    start = 1000 * SPLITS.index(split) + first
    return [
        Sample(
            key=f"{split}-{k}", image=picture(start + k), attributes={"b": k % 2, "a": k % 3} if attributes else None
        )
        for k in range(count)
    ]


def splits(**changed):
    return {split: samples(split, COUNTS[split]) for split in SPLITS} | changed


def put(folder, content=None, **changed):
    asked = {"dataset": "toy", "image_size": SIZE, "source": {"source": "folder", "path": "p"}, "seed": 3} | changed
    return write(folder, content or splits(), **asked)


def refused(folder, content, reason):
    with pytest.raises(InputError, match=reason):
        put(folder, content)
    assert list(folder.parent.iterdir()) == []


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 3)


@pytest.mark.parametrize("attributes", [True, False])
@pytest.mark.parametrize("split", SPLITS)
def test_what_was_written_is_read_back(split, attributes, tmp_path, small_shards):
    content = {name: samples(name, COUNTS[name], attributes=attributes) for name in SPLITS}
    put(tmp_path / "toy", content)
    found = read_split(tmp_path / "toy", split, tmp_path / "cache")
    assert found.keys == [sample.key for sample in content[split]]
    assert np.array_equal(found.images, np.stack([sample.image for sample in content[split]]))
    assert found.attributes == ([sample.attributes for sample in content[split]] if attributes else None)
    assert not found.images.flags.writeable


def test_the_manifest_tells_what_is_there(tmp_path, small_shards):
    manifest = put(tmp_path / "toy")
    assert manifest == read_manifest(tmp_path / "toy") == verify(tmp_path / "toy")
    assert {name: manifest[name] for name in ("schema", "dataset", "image_size", "seed", "attributes")} == {
        "schema": 1,
        "dataset": "toy",
        "image_size": SIZE,
        "seed": 3,
        "attributes": {"b": 2, "a": 3},
    }
    assert manifest["source"] == {"source": "folder", "path": "p"}
    train = manifest["splits"]["train"]
    assert [(shard["name"], shard["count"]) for shard in train["shards"]] == [
        ("train-000000.tar", 3),
        ("train-000001.tar", 3),
        ("train-000002.tar", 1),
    ]
    assert {split: record["count"] for split, record in manifest["splits"].items()} == COUNTS
    for shard in train["shards"]:
        assert hashlib.sha256((tmp_path / "toy" / shard["name"]).read_bytes()).hexdigest() == shard["sha256"]
    assert train["digest"] == digest_of(samples("train", 7))


def test_declared_attributes_and_their_absence_reach_the_manifest(tmp_path):
    assert put(tmp_path / "declared", attributes={"a": 9, "b": 8})["attributes"] == {"a": 9, "b": 8}
    bare = {split: samples(split, 2, attributes=False) for split in SPLITS}
    assert put(tmp_path / "bare", bare)["attributes"] is None


def test_other_programs_read_the_shards(tmp_path):
    put(tmp_path / "toy")
    dataset = webdataset.WebDataset(str(tmp_path / "toy" / "test-000000.tar"), shardshuffle=False).decode("rgb8")
    found = [(sample["__key__"], sample["json"], sample["png"]) for sample in dataset]
    for (key, attributes, image), sample in zip(found, samples("test", 4), strict=True):
        assert (key, attributes) == (sample.key, sample.attributes)
        assert np.array_equal(image, sample.image)


def test_every_run_writes_the_same_bytes(tmp_path, small_shards):
    put(tmp_path / "one")
    put(tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    with tarfile.open(tmp_path / "one" / "train-000000.tar") as archive:
        assert {member.mtime for member in archive} == {0}


def test_large_pictures_fill_shards_by_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BYTES_PER_SHARD", 500)  # two pictures of about 250 bytes
    manifest = put(tmp_path / "toy")
    assert [shard["count"] for shard in manifest["splits"]["train"]["shards"]] == [2, 2, 2, 1]
    assert read_split(tmp_path / "toy", "train", tmp_path / "cache").images.shape[0] == 7


def test_painted_pictures_make_the_trip_and_a_larger_training_set_keeps_the_test_digest(tmp_path):
    digests = []
    for train in (2, 4):
        source = Procedural(domain="objects", train=train, val=1, test=2)
        streams = read(source, dataset="toy", size=SIZE, seed=0)
        manifest = put(
            tmp_path / f"{train}", streams, source=dataclasses.asdict(source), attributes=attribute_classes(source)
        )
        assert manifest["attributes"] == attribute_classes(source)
        digests.append({split: manifest["splits"][split]["digest"] for split in SPLITS})
    assert digests[0]["test"] == digests[1]["test"]
    assert digests[0]["train"] != digests[1]["train"]
    few, more = (read_split(tmp_path / name, "train", tmp_path / "cache") for name in "24")
    assert few.keys == more.keys[:2]
    assert np.array_equal(few.images, more.images[:2])


def test_a_digest_sees_keys_pixels_attributes_and_order():
    plain = samples("val", 2)
    other_pixel = plain[0].image.copy()
    other_pixel[0, 0, 0] ^= 1
    variants = [
        plain,
        plain[::-1],
        plain[:1],
        [dataclasses.replace(plain[0], key="x"), plain[1]],
        [dataclasses.replace(plain[0], image=other_pixel), plain[1]],
        [dataclasses.replace(plain[0], attributes={"a": 0, "b": 1}), plain[1]],
        [dataclasses.replace(plain[0], attributes=None), plain[1]],
    ]
    assert len({digest_of(variant) for variant in variants}) == len(variants)
    assert digest_of(plain) == digest_of(samples("val", 2))


def test_progress_counts_every_picture(tmp_path):
    advanced = []
    put(tmp_path / "toy", advance=advanced.append)
    assert sum(advanced) == sum(COUNTS.values())
    read_split(tmp_path / "toy", "val", tmp_path / "cache", advanced.append)
    assert sum(advanced) == sum(COUNTS.values()) + COUNTS["val"]


@pytest.mark.parametrize("name", ["100%d", "a b", "a:b", "{a,b}", "[x]", "ünï"])
def test_folders_may_have_any_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = type(tmp_path)(name)  # relative, too
    put(folder)
    verify(folder)
    assert len(read_split(folder, "val", folder / "cache").keys) == 3


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, InputError])
@pytest.mark.parametrize("split", SPLITS)
def test_an_interrupted_writer_leaves_nothing(split, error, tmp_path, small_shards):
    def interrupted():
        yield from samples(split, 5)
        raise error

    with pytest.raises(error):
        put(tmp_path / "toy", splits(**{split: interrupted()}))
    assert list(tmp_path.iterdir()) == []


def kill_while_writing(folder):
    def killed():
        yield from samples("train", 5)
        os._exit(9)

    put(folder, splits(train=killed()))


def test_a_killed_writer_leaves_nothing_that_looks_finished(tmp_path, small_shards):
    put(tmp_path / "old")
    before = contents(tmp_path / "old")
    for name in ("new", "old"):
        process = multiprocessing.get_context("fork").Process(target=kill_while_writing, args=(tmp_path / name,))
        process.start()
        process.join()
        assert process.exitcode == 9
    assert contents(tmp_path / "old") == before
    visible = [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert visible == ["old"]
    assert all(path.suffix == ".part" and not (path / MANIFEST).exists() for path in tmp_path.glob(".*"))


def test_an_older_dataset_is_replaced_and_anything_else_is_not(tmp_path):
    put(tmp_path / "toy", splits(train=samples("train", 2)))
    put(tmp_path / "toy")
    assert verify(tmp_path / "toy")["splits"]["train"]["count"] == 7
    (tmp_path / "empty").mkdir()
    put(tmp_path / "empty")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.png").write_bytes(b"dear")
    with pytest.raises(InputError, match="no dataset, and is not replaced"):
        put(tmp_path / "photos")
    assert contents(tmp_path / "photos") == {"holiday.png": b"dear"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "photos", "toy"]


@pytest.mark.parametrize("split", SPLITS)
def test_an_empty_split_is_refused(split, tmp_path):
    refused(tmp_path / "toy", splits(**{split: []}), f"{split}: the source gave no picture")


@pytest.mark.parametrize(("one", "other"), [("test", "train"), ("test", "val"), ("val", "train")])
def test_a_picture_in_two_splits_is_refused_with_both_keys(one, other, tmp_path):
    leak = [dataclasses.replace(samples(one, 3)[2], key="copy")]
    content = splits(**{other: samples(other, 2) + leak})
    refused(tmp_path / "toy", content, rf"share pictures.*: {one} {one}-2 = {other} copy; remove one")


def test_all_leaks_are_found_at_once_and_ten_are_named(tmp_path):
    content = {
        split: [Sample(key=f"{split}{k}", image=picture(k), attributes=None) for k in range(13)] for split in SPLITS
    }
    refused(tmp_path / "toy", content, r"test test0 = val val0; .*; test test9 = val val9; and 16 more; remove")


def test_repeats_within_a_split_are_no_leak(tmp_path):
    repeated = [*samples("test", 2), dataclasses.replace(samples("test", 1)[0], key="again")]
    put(tmp_path / "toy", splits(test=repeated))


@pytest.mark.parametrize("attributes", [None, {"a": 1}, {"a": 1, "b": 0, "c": 0}])
def test_attributes_that_only_some_pictures_have_are_refused(attributes, tmp_path):
    odd = dataclasses.replace(samples("train", 1)[0], attributes=attributes)
    refused(tmp_path / "toy", splits(train=[*samples("train", 3, first=10), odd]), r"train-0: has the attributes")


def test_pictures_of_another_size_are_a_mistake_of_the_caller(tmp_path):
    odd = Sample(key="odd", image=np.zeros((SIZE, SIZE + 1, 3), dtype=np.uint8), attributes=None)
    with pytest.raises(ValueError, match="odd: expected uint8"):
        put(tmp_path / "toy", splits(test=[odd]))


def test_a_missing_or_changed_manifest_is_refused(tmp_path):
    with pytest.raises(InputError, match="no dataset here; run the prepare stage"):
        read_manifest(tmp_path / "toy")
    put(tmp_path / "toy")
    path = tmp_path / "toy" / MANIFEST
    manifest = json.loads(path.read_text())
    for text, reason in {
        json.dumps(manifest | {"seed": 4}): "changed after it was written",
        json.dumps(manifest | {"schema": 2}): "expected a manifest of schema 1",
        "[]": "expected a manifest of schema 1",
        path.read_text()[:-20]: "cannot be read",
    }.items():
        path.write_text(text)
        with pytest.raises(InputError, match=reason):
            verify(tmp_path / "toy")


@pytest.mark.parametrize("damage", ["change", "cut", "remove"])
def test_a_changed_shard_is_refused_by_both_readers(damage, tmp_path):
    put(tmp_path / "toy")
    path = tmp_path / "toy" / "val-000000.tar"
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage != "remove":
        data[600] ^= 1
        path.write_bytes(data if damage == "change" else data[:-512])
    with pytest.raises(InputError, match=r"val-000000\.tar: is "):
        verify(tmp_path / "toy")
    with pytest.raises(InputError, match=r"val-000000\.tar: is "):
        read_split(tmp_path / "toy", "val", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    assert len(read_split(tmp_path / "toy", "test", tmp_path / "cache").keys) == 4


def test_a_shard_that_is_not_in_the_manifest_is_refused(tmp_path):
    put(tmp_path / "toy")
    (tmp_path / "toy" / "train-000001.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"train-000001\.tar: is not in manifest"):
        verify(tmp_path / "toy")


def test_a_split_is_decoded_once(tmp_path):
    put(tmp_path / "toy")
    first = read_split(tmp_path / "toy", "test", tmp_path / "cache")
    advanced = []
    second = read_split(tmp_path / "toy", "test", tmp_path / "cache", advanced.append)
    assert advanced == []
    assert np.array_equal(first.images, second.images)
    digest = read_manifest(tmp_path / "toy")["splits"]["test"]["digest"]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [f"{digest}-test.json", f"{digest}-test.npy"]


def test_a_damaged_decoded_split_is_decoded_again(tmp_path):
    put(tmp_path / "toy")
    read_split(tmp_path / "toy", "test", tmp_path / "cache")
    (stored,) = (tmp_path / "cache").glob("*.npy")
    stored.write_bytes(stored.read_bytes()[:-1])
    assert read_split(tmp_path / "toy", "test", tmp_path / "cache").images.shape == (4, SIZE, SIZE, 3)


def test_concurrent_readers_agree_and_leave_nothing_behind(tmp_path, small_shards):
    put(tmp_path / "toy")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: read_split(tmp_path / "toy", "train", tmp_path / "cache"), range(16)))
    expected = np.stack([sample.image for sample in samples("train", 7)])
    assert all(np.array_equal(one.images, expected) for one in found)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_every_rank_and_worker_reads_the_whole_split(tmp_path, monkeypatch, small_shards):
    put(tmp_path / "toy")
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "WORKER": "1", "NUM_WORKERS": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WDS_CACHE", str(tmp_path / "elsewhere"))
    assert len(read_split(tmp_path / "toy", "train", tmp_path / "cache").keys) == 7
