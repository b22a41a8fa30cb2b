"""Damage that any file may have, and damage that any JSON may have."""

import copy
import json
import os
import pickle
import random
from functools import partial
from pathlib import Path

PICKLE_TARGET = "executed"


class Payload:
    """Unpickled, it makes a file named `executed` in the current folder."""

    def __reduce__(self):
        return os.system, (f"touch {PICKLE_TARGET}",)


def flipped(data, rng, count):
    """Other bits in `count` places."""
    content = bytearray(data)
    for _ in range(count):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


BYTES = {
    "empty": lambda data, rng: b"",
    "one-byte": lambda data, rng: data[:1],
    "head-only": lambda data, rng: data[:16],
    "half": lambda data, rng: data[: len(data) // 2],
    "last-byte-gone": lambda data, rng: data[:-1],
    "first-byte-gone": lambda data, rng: data[1:],
    "one-bit": lambda data, rng: flipped(data, rng, 1),
    "many-bits": lambda data, rng: flipped(data, rng, 40),
    "zeros": lambda data, rng: bytes(len(data)),
    "hole": lambda data, rng: data[: len(data) // 3] + bytes(len(data) // 3) + data[2 * (len(data) // 3) :],
    "noise": lambda data, rng: rng.randbytes(max(len(data), 64)),
    "page": lambda data, rng: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "pickle": lambda data, rng: pickle.dumps(Payload()),
    "appended": lambda data, rng: data + rng.randbytes(512),
    "twice": lambda data, rng: data + data,
}
"""Damage of bytes by name: (bytes, generator) -> other bytes."""

TEXTS = {
    "empty": b"",
    "blank": b" \n",
    "cut": b'{"schema": 1, ',
    "list": b"[]",
    "null": b"null",
    "number": b"17",
    "word": b'"sha256"',
    "object-without-anything": b"{}",
    "latin-1": '{"dataset": "caf\u00e9"}'.encode("latin-1"),
    "utf-16-cut": '{"schema": 1'.encode("utf-16"),
    "nested-100000-deep": b"[" * 100_000,
    "objects-100000-deep": b'{"a":' * 100_000,
    "number-of-6000-digits": b'{"schema": ' + b"9" * 6000 + b"}",
    "zero-bytes": bytes(64),
    "pickle": pickle.dumps(Payload()),
}
"""What stands where JSON should."""


def places(value, place=()):
    """Every place in plain values, as a tuple of keys and indices; of lists, the first entry only."""
    if place:
        yield place
    parts = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*place, key))


def changed(value, place, change):
    """A copy with `change` applied to what stands at a place: change(holder, key)."""
    value = copy.deepcopy(value)
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    change(holder, place[-1])
    return value


def gone(holder, key):
    del holder[key]


def put(new):
    """A change that replaces."""

    def change(holder, key):
        holder[key] = new

    return change


ODD = {
    "null": None,
    "word": "x",
    "list": [],
    "object": {},
    "nan": float("nan"),
    "infinite": float("inf"),
    "negative": -7,
    "huge": 10**30,
    "true": True,
    "nested": {"a": [{"b": None}]},
}
"""Values of every kind; most places take none or one of these kinds."""


def json_damages(value):
    """(name, change): each place removed, and given each odd value; `change` works on a whole value like `value`."""
    for place in places(value):
        name = ".".join(map(str, place))
        yield f"{name}-gone", partial(changed, place=place, change=gone)
        for word, odd in ODD.items():
            yield f"{name}-{word}", partial(changed, place=place, change=put(odd))


def json_cases(case, path, like, says=(), ignored=()):
    """Cases of a JSON file at `path` below the root: other texts, and damage in every place of a value `like` it.

    Damage at a place whose name begins with one of `ignored` may be accepted, and a change to another value of the
    right kind always may.
    """
    file = Path(path).name
    for name, text in TEXTS.items():
        yield case(generated=True, name=f"{file}-{name}", spoil=partial(overwrite, path, text), says=(file,))
    for name, change in json_damages(like):

        def spoil(root, change=change):
            value = json.loads((root / path).read_bytes())
            overwrite(path, json.dumps(change(value)).encode(), root)

        sure = name.endswith(("-gone", "-nested")) and not name.startswith(tuple(ignored))
        words, expect = ((file, *says), "refused") if sure else ((), "either")
        yield case(generated=True, name=f"{file}-{name}", spoil=spoil, says=words, expect=expect)


def overwrite(path, content, root):
    """Write `content` to `path` below the root."""
    (root / path).write_bytes(content)


def bytes_cases(case, path, rng, says=None, expect="refused"):
    """Cases of a file at `path` below the root: every damage of bytes."""
    file = Path(path).name
    for name, damage in BYTES.items():
        state = rng.random()

        def spoil(root, damage=damage, state=state):
            overwrite(path, damage((root / path).read_bytes(), random.Random(state)), root)

        words = (file,) if says is None else says
        yield case(generated=True, name=f"{file}-{name}", spoil=spoil, says=words, expect=expect)
