"""The cell store: what comes out is what went in, and damage is found, set aside and computed again."""

import json
import logging
import os
from io import BytesIO

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.experiment.cells import Cell, CellStore, pack, unpack

FINGERPRINT = "0123456789abcdef"


def cell(fingerprint=FINGERPRINT, seed=0):
    generator = np.random.default_rng(seed)
    samples = generator.integers(0, 256, (3, 2, 4, 4, 3), dtype=np.uint8)
    record = {"schema": 1, "fingerprint": fingerprint, "image_ids": ["a", "b", "\u00e9"], "params": {"eta": 0.85}}
    return Cell(record, samples, generator.random((3, 4, 4)) < 0.5)


def same(first, second):
    return (
        first.record == second.record
        and np.array_equal(first.samples, second.samples)
        and np.array_equal(first.known, second.known)
    )


@pytest.fixture
def store(tmp_path):
    return CellStore(tmp_path / "cells")


def stored(store):
    return sorted(path.name for path in store.folder.iterdir()) if store.folder.exists() else []


# --- what comes out is what went in ---


def test_a_cell_makes_the_round_trip(store):
    assert store.find(FINGERPRINT) is None
    store.put(cell())
    found = store.find(FINGERPRINT)
    assert same(found, cell())
    assert (found.samples.dtype, found.known.dtype) == (np.uint8, np.bool_)
    assert stored(store) == [f"{FINGERPRINT}.npz"]


def test_cells_do_not_meet(store):
    store.put(cell("aa", seed=1))
    store.put(cell("bb", seed=2))
    assert same(store.find("aa"), cell("aa", seed=1))
    assert same(store.find("bb"), cell("bb", seed=2))
    assert store.find("cc") is None


def test_putting_again_replaces(store):
    store.put(cell(seed=1))
    store.put(cell(seed=2))
    assert same(store.find(FINGERPRINT), cell(seed=2))


def test_an_interrupted_write_leaves_nothing(store, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    store.put(cell("other"))
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.put(cell())
    assert stored(store) == ["other.npz"]
    assert store.find(FINGERPRINT) is None


# --- damage ---


def damaged(store, content):
    store.folder.mkdir(exist_ok=True)
    store.path(FINGERPRINT).write_bytes(content)
    return store.find(FINGERPRINT)


def test_no_flipped_bit_gives_another_cell(store):
    """Wherever a bit flips, the cell is either found unharmed (a date in the archive, say) or set aside."""
    whole, unharmed = pack(cell()), 0
    for position in range(len(whole)):
        content = bytearray(whole)
        content[position] ^= 1 << position % 8
        found = damaged(store, bytes(content))
        if found is None:
            assert stored(store) == [f"{FINGERPRINT}.damaged"]
        else:
            assert same(found, cell())
            unharmed += 1
    assert unharmed < len(whole) / 2


def test_every_flipped_bit_in_the_data_is_found(store):
    whole = pack(cell())
    start = whole.index(b"samples.npy") + 40  # past the name and its field of sizes
    for position in range(start, start + 100):
        content = bytearray(whole)
        content[position] ^= 4
        assert damaged(store, bytes(content)) is None


def test_a_file_cut_anywhere_is_set_aside(store):
    whole = pack(cell())
    for length in [*range(0, len(whole), 13), len(whole) - 1]:
        assert damaged(store, whole[:length]) is None
        assert (store.folder / f"{FINGERPRINT}.damaged").read_bytes() == whole[:length]


def one_array():
    """The bytes of an .npy file."""
    buffer = BytesIO()
    np.save(buffer, cell().samples)
    return buffer.getvalue()


def packed(**arrays):
    """The bytes of an .npz with some arrays of the cell replaced, or left out (None)."""
    text = np.frombuffer(json.dumps(cell().record).encode(), np.uint8)
    content = {"samples": cell().samples, "known": cell().known, "record": text} | arrays
    buffer = BytesIO()
    np.savez(buffer, **{name: value for name, value in content.items() if value is not None})
    return buffer.getvalue()


FOREIGN = {
    "no samples": packed(samples=None),
    "no record": packed(record=None),
    "flat samples": packed(samples=np.zeros(5, np.uint8)),
    "float samples": packed(samples=cell().samples.astype(float)),
    "other masks": packed(known=np.zeros((2, 4, 4), bool)),
    "masks of numbers": packed(known=cell().known.astype(np.uint8)),
    "record of no JSON": packed(record=np.frombuffer(b"{", np.uint8)),
    "record of a list": packed(record=np.frombuffer(b"[1]", np.uint8)),
    "objects": packed(samples=np.array([{}, None], dtype=object)),
    "text": b"not an archive",
    "nothing": b"",
    "one array": one_array(),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_no_cell_is_set_aside(store, kind):
    assert damaged(store, FOREIGN[kind]) is None
    assert stored(store) == [f"{FINGERPRINT}.damaged"]


@pytest.mark.parametrize("kind", FOREIGN)
def test_reading_what_is_no_cell_names_the_file(tmp_path, kind):
    path = tmp_path / "left.npz"
    path.write_bytes(FOREIGN[kind])
    with pytest.raises(InputError, match=r"left\.npz: "):
        unpack(path)


def test_a_missing_cell_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.npz: expected a finished sweep cell"):
        unpack(tmp_path / "none.npz")


def test_a_cell_under_another_s_name_does_not_count(store, caplog):
    with caplog.at_level(logging.WARNING):
        assert damaged(store, pack(cell("another"))) is None
    assert "another" in caplog.text


def test_setting_aside_is_said_and_the_cell_is_computed_again(store, caplog):
    with caplog.at_level(logging.WARNING):
        assert damaged(store, b"broken") is None
    assert f"{FINGERPRINT}.damaged" in caplog.text
    assert "computed again" in caplog.text
    store.put(cell())
    assert same(store.find(FINGERPRINT), cell())
    assert stored(store) == [f"{FINGERPRINT}.damaged", f"{FINGERPRINT}.npz"]
