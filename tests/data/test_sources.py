import io
import json
import os
import tarfile
import unicodedata
from typing import Annotated

import numpy as np
import pytest
from pydantic import Field, TypeAdapter, ValidationError

from pipeline.data.images import SPLITS, encode_png
from pipeline.data.sources import DOMAINS, Folder, Procedural, ShardSet, attribute_classes, read
from pipeline.errors import ConfigError, InputError


def picture(seed, side=16):
    return encode_png(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def walk(source, *, dataset="set", size=16, seed=0):
    """Everything a source holds: split -> list of samples."""
    return {split: list(samples) for split, samples in read(source, dataset=dataset, size=size, seed=seed).items()}


def keys(walked):
    return {split: [sample.key for sample in samples] for split, samples in walked.items()}


def everything(found):
    return {key for split in SPLITS for key in found[split]}


def same(first, second):
    return len(first) == len(second) and all(
        a.key == b.key and np.array_equal(a.image, b.image) and a.attributes == b.attributes
        for a, b in zip(first, second, strict=True)
    )


class TestProcedural:
    @pytest.mark.parametrize("domain", DOMAINS)
    @pytest.mark.parametrize("size", [16, 24])
    def test_every_domain_gives_pictures_of_the_size_with_attributes_in_range(self, domain, size):
        source = Procedural(domain=domain, train=6, val=2, test=1)
        walked = walk(source, size=size)
        classes = attribute_classes(source)
        assert {split: len(samples) for split, samples in walked.items()} == {"train": 6, "val": 2, "test": 1}
        for sample in (sample for samples in walked.values() for sample in samples):
            assert sample.image.shape == (size, size, 3)
            assert sample.image.dtype == np.uint8
            assert sample.attributes.keys() == classes.keys()
            assert all(type(value) is int and 0 <= value < classes[name] for name, value in sample.attributes.items())

    @pytest.mark.parametrize("domain", DOMAINS)
    def test_fewer_are_a_prefix_of_more_and_every_run_is_the_same(self, domain):
        few = walk(Procedural(domain=domain, train=2, val=2, test=2))
        more = walk(Procedural(domain=domain, train=4, val=3, test=2))
        assert all(same(few[split], more[split][: len(few[split])]) for split in SPLITS)

    @pytest.mark.parametrize("domain", DOMAINS)
    def test_other_seeds_splits_and_numbers_give_other_pictures(self, domain):
        source = Procedural(domain=domain, train=3, val=3, test=3)
        walked = [sample for seed in (0, 1) for samples in walk(source, seed=seed).values() for sample in samples]
        assert len({sample.image.tobytes() for sample in walked}) == len(walked)

    def test_keys_name_dataset_split_and_number(self):
        walked = walk(Procedural(domain="faces", train=1, val=1, test=2), dataset="my.faces")
        assert keys(walked)["test"] == ["my~2Efaces-test-000000", "my~2Efaces-test-000001"]

    def test_pictures_do_not_depend_on_the_datasets_name(self):
        source = Procedural(domain="rooms", train=1, val=1, test=1)
        first, second = walk(source, dataset="a")["train"][0], walk(source, dataset="b")["train"][0]
        assert np.array_equal(first.image, second.image)

    def test_an_unknown_domain_and_an_empty_split_are_refused(self):
        with pytest.raises(ConfigError, match=r"'face' is none of .*did you mean 'faces'"):
            Procedural(domain="face", train=1, val=1, test=1)
        with pytest.raises(ConfigError, match="val: expected at least 1"):
            Procedural(domain="faces", train=1, val=0, test=1)


@pytest.fixture
def flat(tmp_path):
    """A folder of 60 pictures in two levels."""
    root = tmp_path / "flat"
    for k in range(60):
        path = root / f"class{k % 3}" / f"{k:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(k))
    return root


@pytest.fixture
def arranged(tmp_path):
    root = tmp_path / "arranged"
    for number, split in enumerate(SPLITS):
        (root / split).mkdir(parents=True)
        for k in range(4):
            (root / split / f"{k}.png").write_bytes(picture(100 * number + k))
    return root


def folder(path, *, train=None, val=1000, test=1000):
    return Folder(path=str(path), train=train, val=val, test=test)


class TestFolder:
    def test_a_flat_folder_is_split_without_loss_or_overlap(self, flat):
        found = keys(walk(folder(flat)))
        assert everything(found) == {f"class{k % 3}~2F{k:03d}" for k in range(60)}
        assert sum(len(names) for names in found.values()) == 60
        assert len(found["train"]) > 30
        assert found["val"]
        assert found["test"]

    def test_the_split_of_a_name_never_changes(self, flat):
        # Written down once: another machine, version or neighbour must not move a picture into another split.
        found = keys(walk(folder(flat)))
        assert found["test"] == ["class2~2F047", "class0~2F015", "class2~2F044"]

    def test_adding_and_removing_files_moves_no_other(self, flat):
        before = keys(walk(folder(flat)))
        for k in range(60, 90):
            (flat / f"{k}.png").write_bytes(picture(k))
        (flat / "class0" / "000.png").unlink()
        after = keys(walk(folder(flat)))
        for split in SPLITS:
            assert [key for key in after[split] if "~2F" in key] == [
                key for key in before[split] if key != "class0~2F000"
            ]

    def test_a_limit_takes_a_prefix_and_leaves_the_other_splits_alone(self, flat):
        whole, limited = keys(walk(folder(flat))), keys(walk(folder(flat, train=5, test=2)))
        assert limited == {"train": whole["train"][:5], "val": whole["val"], "test": whole["test"][:2]}
        assert len({key.split("~")[0] for key in whole["train"][:9]}) == 3  # a fair selection, not the first class

    def test_reading_is_lazy(self, flat):
        streams = read(folder(flat), dataset="set", size=16, seed=0)
        next(streams["train"])
        for path in flat.rglob("*.png"):
            path.unlink()
        with pytest.raises(InputError, match="cannot be opened"):
            next(streams["train"])

    def test_subfolders_named_as_splits_are_the_splits(self, arranged):
        found = keys(walk(folder(arranged)))
        assert {split: sorted(names) for split, names in found.items()} == {
            split: [f"{split}~2F{k}" for k in range(4)] for split in SPLITS
        }

    def test_hidden_files_and_other_kinds_are_passed_over(self, flat):
        before = keys(walk(folder(flat)))
        (flat / "labels.csv").write_text("a,b")
        (flat / ".DS_Store").write_bytes(b"\0")
        (flat / "class0" / "._000.png").write_bytes(b"resource fork")
        (flat / ".thumbnails").mkdir()
        (flat / ".thumbnails" / "0.png").write_bytes(b"no picture")
        (flat / "README").write_text("words")
        assert keys(walk(folder(flat))) == before

    def test_capital_extensions_and_links_to_files_are_read(self, flat, tmp_path):
        (tmp_path / "elsewhere").write_bytes(picture(500))
        (flat / "linked.PNG").symlink_to(tmp_path / "elsewhere")
        assert "linked" in everything(keys(walk(folder(flat))))

    def test_unicode_spellings_of_a_name_agree(self, flat):
        path = flat / unicodedata.normalize("NFC", "café.png")
        path.write_bytes(picture(500))
        composed = keys(walk(folder(flat)))
        path.rename(flat / unicodedata.normalize("NFD", "café.png"))
        assert keys(walk(folder(flat))) == composed

    def test_a_missing_folder_a_file_and_an_empty_folder_are_refused(self, tmp_path):
        (tmp_path / "file").write_text("")
        (tmp_path / "empty").mkdir()
        for name, reason in {"none": "found nothing", "file": "found a file", "empty": "found 0 pictures"}.items():
            with pytest.raises(InputError, match=reason):
                read(folder(tmp_path / name), dataset="set", size=16, seed=0)

    def test_an_incomplete_arrangement_is_refused(self, arranged):
        for path in (arranged / "val").iterdir():
            path.unlink()
        with pytest.raises(InputError, match="found 8 pictures, none for val"):
            walk(folder(arranged))
        (arranged / "val").rmdir()
        with pytest.raises(InputError, match="not all of train/, val/, test/"):
            walk(folder(arranged))

    def test_pictures_outside_the_arrangement_are_refused(self, arranged):
        (arranged / "extra.png").write_bytes(picture(0))
        with pytest.raises(InputError, match=r"extra\.png: lies outside"):
            walk(folder(arranged))

    def test_names_that_would_share_a_key_are_refused(self, flat):
        (flat / "class0" / "000.bmp").write_bytes(picture(0))
        with pytest.raises(InputError, match="extension only"):
            walk(folder(flat))

    def test_pictures_of_unread_kinds_are_refused_not_lost(self, flat):
        (flat / "photo.HEIC").write_bytes(b"data")
        with pytest.raises(InputError, match=r"photo\.HEIC: pictures of this kind"):
            walk(folder(flat))

    def test_links_to_folders_are_refused_not_lost(self, flat, tmp_path):
        (flat / "more").symlink_to(tmp_path)
        with pytest.raises(InputError, match="more: links to folders"):
            walk(folder(flat))

    def test_a_bad_picture_is_refused_by_name(self, flat):
        (flat / "class1" / "004.png").write_bytes(b"")
        with pytest.raises(InputError, match=r"class1/004\.png: the file is empty"):
            walk(folder(flat))

    def test_a_folder_without_permission_is_refused_not_lost(self, flat):
        if os.geteuid() == 0:
            pytest.skip("the superuser reads everything")
        (flat / "class2").chmod(0)
        try:
            with pytest.raises(InputError, match="class2: the folder cannot be read"):
                walk(folder(flat))
        finally:
            (flat / "class2").chmod(0o755)


def shard(path, members):
    """Write a tar of (name, bytes) or TarInfo members."""
    with tarfile.open(path, "w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def members_of(path):
    with tarfile.open(path) as archive:
        return archive.getmembers()


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.fixture
def shards(tmp_path):
    """Two training shards and one of val and test each, four pictures in each shard."""
    for number, name in enumerate(["train-0", "train-1", "val-0", "test-0"]):
        shard(tmp_path / f"{name}.tar", [(f"{name}-{k}.png", picture(10 * number + k)) for k in range(4)])
    return tmp_path


def shard_set(root, train="train-*.tar", **limits):
    return ShardSet(train=str(root / train), val=str(root / "val-*.tar"), test=str(root / "test-*.tar"), **limits)


class TestShardSet:
    def test_shards_are_read_in_order(self, shards):
        found = keys(walk(shard_set(shards)))
        assert found["train"] == [f"train-{n}-{k}" for n in range(2) for k in range(4)]
        assert found["test"] == [f"test-0-{k}" for k in range(4)]

    def test_patterns_and_plain_paths_may_be_listed(self, shards):
        listed = ShardSet(
            train=(str(shards / "train-1.tar"), str(shards / "*-0.tar").replace("*", "train")),
            val=(str(shards / "val-0.tar"),),
            test=str(shards / "**" / "test-?.tar"),
        )
        assert keys(walk(listed)) == keys(walk(shard_set(shards)))

    def test_limits_take_a_prefix(self, shards):
        found = keys(walk(shard_set(shards, train_images=5, val_images=2)))
        assert found["train"] == keys(walk(shard_set(shards)))["train"][:5]
        assert (len(found["val"]), len(found["test"])) == (2, 4)

    def test_integer_attributes_are_kept_and_other_records_are_not(self, shards):
        records = {
            "a": {"glasses": 1, "hair": 3},
            "b": {"caption": "a cat", "width": 5},
            "c": {"serial": 123456},
            "d": {"smile": -1},
            "e": {"smile": True},
            "f": [1, 2],
            "g": {},
        }
        members = [
            member
            for number, (key, record) in enumerate(records.items())
            for member in ((f"{key}.json", json.dumps(record).encode()), (f"{key}.png", picture(number)))
        ]
        shard(shards / "labels.tar", members)
        found = {sample.key: sample.attributes for sample in walk(shard_set(shards, "labels.tar"))["train"]}
        assert found == {"a": {"glasses": 1, "hair": 3}} | dict.fromkeys("bcdefg")

    def test_folders_other_members_and_hidden_files_do_no_harm(self, shards):
        members = [
            special("./cats", tarfile.DIRTYPE),
            ("./cats/1.txt", b"words"),
            ("./cats/._1.png", b"resource fork"),
            ("./cats/1.PNG", picture(1)),
            ("LICENCE", b"words"),
        ]
        shard(shards / "odd.tar", members)
        assert keys(walk(shard_set(shards, "odd.tar")))["train"] == ["cats~2F1"]

    def test_members_of_a_sample_need_not_be_neighbours(self, shards):
        shard(shards / "apart.tar", [("a.png", picture(1)), ("b.png", picture(2)), ("a.json", b'{"x": 2}')])
        found = walk(shard_set(shards, "apart.tar"))["train"]
        assert [(sample.key, sample.attributes) for sample in found] == [("a", {"x": 2}), ("b", None)]

    @pytest.mark.parametrize(
        ("members", "reason"),
        [
            ([special("a.png", tarfile.SYMTYPE, "/etc/passwd")], "'a.png' is a link"),
            ([("b.png", picture(0)), special("a.png", tarfile.LNKTYPE, "b.png")], "'a.png' is a link"),
            ([special("a.png", tarfile.FIFOTYPE)], "'a.png' is a link"),
            ([("/etc/a.png", picture(0))], "'/etc/a.png' is a link or leads outside"),
            ([("../a.png", picture(0))], "'../a.png' is a link or leads outside"),
            ([("b/../../a.png", picture(0))], "leads outside"),
            ([("a.txt", b"words")], "'a' holds 0 pictures"),
            ([("a.png", picture(0)), ("a.jpg", picture(1))], "'a' holds 2 pictures.*a.png, a.jpg"),
            ([("a.image.png", picture(0)), ("a.mask.png", picture(1))], "'a' holds 2 pictures"),
            ([("a.png", picture(0)), ("a.png", picture(1))], "'a.png' is there twice"),
            ([("a.png", b"")], "a.png: the file is empty"),
            ([("a.png", picture(0)[:200])], "a.png: truncated"),
            ([("a.png", picture(0, side=8))], "8x8 is too small"),
            ([("a.png", picture(0)), ("a.json", b"{")], "'a': its .json member cannot be read"),
        ],
    )
    def test_what_cannot_be_trusted_is_refused_by_name(self, shards, members, reason):
        shard(shards / "bad.tar", members)
        with pytest.raises(InputError, match=rf"bad\.tar: .*{reason}"):
            walk(shard_set(shards, "bad.tar"))

    def test_a_shard_cut_anywhere_is_refused(self, shards):
        path = shards / "train-0.tar"
        whole = path.read_bytes()
        end = max(member.offset_data + (member.size + 511) // 512 * 512 for member in members_of(path))
        for length in [0, 100, 512, 700, end // 2, end - 512, end - 1, end, *range(512, end, 512)]:
            path.write_bytes(whole[:length])
            with pytest.raises(InputError, match=r"train-0\.tar: not a whole"):
                walk(shard_set(shards))
        path.write_bytes(whole[: end + 512])  # one end block is enough
        assert len(walk(shard_set(shards))["train"]) == 8

    def test_a_damaged_header_and_joined_tars_are_refused_not_lost(self, shards):
        path = shards / "train-0.tar"
        whole = path.read_bytes()
        second = members_of(path)[1].offset
        path.write_bytes(whole[:second] + b"\7" * 512 + whole[second + 512 :])
        with pytest.raises(InputError, match="not a whole"):
            walk(shard_set(shards))
        path.write_bytes(whole + (shards / "train-1.tar").read_bytes())
        with pytest.raises(InputError, match="joined to another tar"):
            walk(shard_set(shards, "train-0.tar"))

    @pytest.mark.parametrize("mode", ["w:gz", "w:bz2"])
    def test_compressed_tars_are_refused(self, shards, mode):
        with tarfile.open(shards / "train-0.tar", mode) as archive:
            archive.add(shards / "val-0.tar", "a.png")
        with pytest.raises(InputError, match=r"train-0\.tar: not a whole, uncompressed tar"):
            walk(shard_set(shards))

    @pytest.mark.parametrize("other", ["train-2", "val-1"])
    def test_a_key_in_two_shards_is_refused_with_both_named(self, shards, other):
        shard(shards / f"{other}.tar", [("train-0-2.png", picture(77))])
        with pytest.raises(InputError, match=rf"{other}\.tar: the key 'train-0-2' is also in .*train-0\.tar"):
            walk(shard_set(shards))

    def test_a_shard_in_two_splits_and_a_pattern_without_match_are_refused(self, shards):
        with pytest.raises(InputError, match=r"val-0\.tar: is in both train and val"):
            walk(shard_set(shards, "*-0.tar"))
        with pytest.raises(InputError, match=r"train: no shard matches .*nothing"):
            walk(shard_set(shards, "nothing-*.tar"))
        (shards / "train-link.tar").symlink_to(shards / "test-0.tar")
        with pytest.raises(InputError, match="is in both train and test"):
            walk(shard_set(shards))

    def test_nothing_is_written(self, shards):
        before = sorted(path.name for path in shards.iterdir())
        walk(shard_set(shards))
        assert sorted(path.name for path in shards.iterdir()) == before


class TestBlocks:
    """The dataclasses are the blocks of params.yaml, told apart by `source`."""

    ADAPTER = TypeAdapter(Annotated[Procedural | Folder | ShardSet, Field(discriminator="source")])

    @pytest.mark.parametrize(
        ("block", "expected"),
        [
            (
                {"source": "procedural", "domain": "rooms", "train": 3, "val": 2, "test": 1},
                Procedural(domain="rooms", train=3, val=2, test=1),
            ),
            (
                {"source": "folder", "path": "photos", "train": None, "val": 2, "test": 1},
                Folder(path="photos", val=2, test=1),
            ),
            (
                {"source": "shards", "train": ["a.tar", "b-*.tar"], "val": "c.tar", "test": "d.tar", "val_images": 5},
                ShardSet(train=("a.tar", "b-*.tar"), val="c.tar", test="d.tar", val_images=5),
            ),
        ],
    )
    def test_a_block_becomes_its_source(self, block, expected):
        assert self.ADAPTER.validate_python(block) == expected

    def test_an_impossible_block_is_refused_with_our_sentence(self):
        with pytest.raises(ValidationError, match="did you mean 'objects'"):
            self.ADAPTER.validate_python({"source": "procedural", "domain": "object", "train": 3, "val": 2, "test": 1})
