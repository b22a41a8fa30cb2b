"""Circuits, calibrations, tokens and cells: numbers that do not make what they should be."""

import io
import json
import pickle
import struct
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save

from fuzz.cases import Case
from fuzz.corpus_weights import CONTAINERS, TENSORS, as_device, as_folder, forge, reforge
from fuzz.damage import Payload, bytes_cases, json_cases, overwrite
from fuzz.world import CODES, IMAGES, SIZE, settings
from pipeline.circuit.store import load_circuit
from pipeline.experiment.cells import unpack
from pipeline.experiment.guides import load_guides, load_prior
from pipeline.experiment.layout import Layout
from pipeline.experiment.tokens import read_tokens

CIRCUIT, STEERING, TOKENS = "runs/smoke/circuit/faces", "runs/smoke/steering/faces", "runs/smoke/tokens/faces"
VQGAN, CELL = "runs/smoke/vqgan/faces", "runs/smoke/inpaint/faces/ddnm/left.npz"
CPU = torch.device("cpu")


# --- circuits ---


def described(change, root):
    """Change the circuit's description."""
    path = root / CIRCUIT / "model.json"
    value = json.loads(path.read_bytes())
    path.write_text(json.dumps(change(value) or value))


def at(path, new):
    """Replace what stands at a dotted path; `new` may be a function of what stands there."""

    def change(value):
        *way, last = path.split(".")
        for part in way:
            value = value[part]
        value[last] = new(value[last]) if callable(new) else new

    return change


def entry(index, new):
    """Replace an entry of a list."""

    def change(values):
        values = list(values)
        values[index] = new
        return values

    return change


STRUCTURES = {
    "two-roots": at("graph.parents", entry(5, -1)),
    "no-root": at("graph.parents", entry(0, 1)),
    "cycle": at("graph.parents", lambda parents: [-1, 2, 1, *parents[3:]]),
    "parent-of-itself": at("graph.parents", entry(3, 3)),
    "parent-beyond": at("graph.parents", entry(3, 10**6)),
    "parent-below": at("graph.parents", entry(3, -5)),
    "parent-a-fraction": at("graph.parents", entry(3, 0.0)),
    "parent-a-word": at("graph.parents", entry(3, "0")),
    "parents-none": at("graph.parents", []),
    "homes-none": at("graph.homes", []),
    "home-beyond": at("graph.homes", entry(3, 10**6)),
    "home-below": at("graph.homes", entry(3, -1)),
    "home-a-fraction": at("graph.homes", entry(3, 1.5)),
    "homes-too-few": at("graph.homes", lambda homes: homes[:-1]),
    "homes-too-many": at("graph.homes", lambda homes: [*homes, 84]),
    "latent-without-tokens": at("graph.homes", lambda homes: [homes[0]] * len(homes)),
    "deep-chain": at("graph.parents", lambda parents: list(range(-1, 5000))),
    "states-other": at("states", 3),
    "states-none": at("states", 0),
    "states-negative": at("states", -2),
    "states-10-to-the-9": at("states", 10**9),
    "states-10-to-the-30": at("states", 10**30),
    "states-a-fraction": at("states", 2.5),
    "states-a-word": at("states", "2"),
    "ties-none": at("ties", []),
    "ties-too-few": at("ties", lambda ties: ties[:-1]),
    "ties-with-a-gap": at("ties", entry(0, 99)),
    "ties-10-to-the-12": at("ties", entry(0, 10**12)),
    "ties-negative": at("ties", entry(0, -1)),
    "ties-fractions": at("ties", lambda ties: [float(tie) for tie in ties]),
    "ties-all-one": at("ties", lambda ties: [0] * len(ties)),
    "vocabulary-codes-more": at("vocabulary.compact", lambda compact: [*compact, 0]),
    "vocabulary-codes-fewer": at("vocabulary.compact", lambda compact: compact[:-1]),
    "vocabulary-kept-twice": at("vocabulary.kept", entry(1, 0)),
    "vocabulary-kept-beyond": at("vocabulary.kept", entry(1, 10**6)),
    "vocabulary-kept-negative": at("vocabulary.kept", entry(0, -1)),
    "vocabulary-kept-backwards": at("vocabulary.kept", lambda kept: kept[::-1]),
    "vocabulary-kept-none": at("vocabulary.kept", []),
    "vocabulary-compact-beyond": at("vocabulary.compact", entry(2, 99)),
    "vocabulary-compact-negative": at("vocabulary.compact", entry(2, -1)),
    "vocabulary-compact-swapped": at("vocabulary.compact", lambda compact: compact[::-1]),
    "vocabulary-fractions": at("vocabulary.compact", lambda compact: [0.5] * len(compact)),
    "vocabulary-shares-nan": at("vocabulary.log_share", entry(0, float("nan"))),
    "vocabulary-shares-of-more-than-all": at("vocabulary.log_share", entry(0, 1.0)),
    "vocabulary-shares-that-do-not-add-up": at("vocabulary.log_share", entry(0, -3.0)),
    "vocabulary-shares-too-few": at("vocabulary.log_share", lambda shares: shares[:-1]),
    "vocabulary-shares-words": at("vocabulary.log_share", lambda shares: ["x"] * len(shares)),
    "kind-of-a-vqgan": at("kind", "vqgan"),
}


def scaled(name, factor):
    def change(tensors, first):
        tensors[name] = tensors[name] * factor
        return tensors

    return change


def set_to(name, value):
    def change(tensors, first):
        tensors[name].view(-1)[0] = value
        return tensors

    return change


NUMBERS = {
    f"{name}-{word}": make(name)
    for name in ("root", "weights", "emissions")
    for word, make in {
        "not-normalised": lambda name: scaled(name, 1.5),
        "too-small": lambda name: scaled(name, 0.5),
        "negative": lambda name: scaled(name, -1.0),
        "one-negative": lambda name: set_to(name, -0.1),
        "nan": lambda name: set_to(name, float("nan")),
        "infinite": lambda name: set_to(name, float("inf")),
        "nothing": lambda name: scaled(name, 0.0),
        "logs": lambda name: lambda tensors, first: {**tensors, name: tensors[name].log()},
    }.items()
}


def guides(root):
    params = settings()
    return load_guides(params, Layout(Path(), params.profile), "faces", CPU)


def prior(root):
    params = settings()
    return load_prior(params, Layout(Path(), params.profile), "faces", CPU)


def other_vocabulary(root):
    """A whole circuit over other codes than the codec's."""
    tensors = load_file(root / CIRCUIT / "model.safetensors")
    tensors["emissions"] = torch.full((16, CODES + 1, 2), 1.0 / (CODES + 1))
    described(
        at(
            "vocabulary",
            {"kept": [*range(CODES + 1)], "compact": [*range(CODES + 1)], "log_share": [0.0] * (CODES + 1)},
        ),
        root,
    )
    forge(CIRCUIT, root, save(tensors))


def circuit_cases(rng):
    """Circuits as the store keeps them."""
    case = partial(Case, kind="circuits", parts=(CIRCUIT,), read=lambda root: load_circuit(Path(CIRCUIT)))
    yield from bytes_cases(case, f"{CIRCUIT}/model.safetensors", rng)
    like = {
        "kind": "circuit",
        "states": 2,
        "graph": {"parents": [-1], "homes": [0]},
        "ties": [0],
        "vocabulary": {"kept": [0], "compact": [0], "log_share": [0.0]},
        "sha256": "",
    }
    lists = (
        "graph.parents.0",
        "graph.homes.0",
        "ties.0",
        "vocabulary.kept.0",
        "vocabulary.compact.0",
        "vocabulary.log_share.0",
    )
    yield from json_cases(case, f"{CIRCUIT}/model.json", like, says=(), ignored=lists)
    for name, change in STRUCTURES.items():
        yield case(name=f"structure-{name}", spoil=partial(described, change), says=("model.",))
    for name, change in {**TENSORS, **NUMBERS}.items():
        yield case(name=f"forged-{name}", spoil=partial(reforge, CIRCUIT, change), says=("model.safetensors",))
    for name, content in CONTAINERS.items():
        yield case(name=f"forged-{name}", spoil=partial(forge, CIRCUIT, content=content), says=("model.safetensors",))
    yield case(name="whole", spoil=lambda root: None, expect="accepted")
    yield case(name="zeros-in-it", spoil=partial(reforge, CIRCUIT, with_zeros), expect="accepted")
    yield case(name="gone", spoil=lambda root: (root / CIRCUIT / "model.json").unlink(), says=("model.json",))
    for read in (guides, prior):
        yield Case(
            kind="circuits",
            name=f"other-vocabulary-{read.__name__}",
            parts=(CIRCUIT, VQGAN, STEERING),
            spoil=other_vocabulary,
            read=read,
            says=(CIRCUIT,),
        )


def with_zeros(tensors, first):
    """A circuit that rules states out."""
    tensors["root"] = torch.tensor([1.0, 0.0])
    return tensors


def calibration_cases():
    """How far steering trusts its models."""
    path = f"{STEERING}/calibration.json"
    case = partial(Case, kind="calibrations", parts=(CIRCUIT, VQGAN, STEERING), read=prior)
    level = {name: [0.5] for name in ("code_variance", "diffusion_variance", "circuit_variance", "weight")}
    yield from json_cases(case, path, {"times": [100], "levels": [level]})
    for name, change in {
        "times-falling": at("times", [200, 100]),
        "times-twice": at("times", [100, 100]),
        "time-0": at("times", [0, 100]),
        "times-too-many": at("times", [100, 200, 300]),
        "weight-above-1": lambda value: at("weight", entry(0, 1.5))(value["levels"][0]),
        "weight-huge": lambda value: at("weight", entry(0, 10**400))(value["levels"][0]),
        "variance-0": lambda value: at("code_variance", entry(0, 0.0))(value["levels"][0]),
        "variance-beyond-float32": lambda value: at("code_variance", entry(0, 1e300))(value["levels"][0]),
        "one-too-few": lambda value: at("code_variance", lambda row: row[1:])(value["levels"][0]),
    }.items():
        yield case(name=name, spoil=partial(edited, path, change), says=("calibration.json",))
    yield case(name="gone", spoil=lambda root: (root / path).unlink(), says=("calibration.json",))
    yield case(name="folder", spoil=partial(as_folder, path), says=("calibration.json",))
    yield case(name="whole", spoil=lambda root: None, expect="accepted")


def edited(path, change, root):
    value = json.loads((root / path).read_bytes())
    change(value)
    (root / path).write_text(json.dumps(value))


# --- archives of arrays ---


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def npy(shape, descr="<u2", data=b""):
    """An array that declares a shape, whatever it holds."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + data


def archive(method=zipfile.ZIP_DEFLATED, **members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def lock(content):
    """A zip whose members say that they are encrypted."""
    content = bytearray(content)
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := content.find(mark, start + 1)) >= 0:
            content[start + place] |= 1
    return bytes(content)


def method(content, number):
    """A zip whose members say that they are packed in another way."""
    content = bytearray(content)
    for mark, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        start = -1
        while (start := content.find(mark, start + 1)) >= 0:
            content[start + place : start + place + 2] = struct.pack("<H", number)
    return bytes(content)


def archives(first, whole):
    """Archives that are refused, by what their first array is called; `whole` are the arrays of one that is not."""
    pickled = npy((1,), "|O", pickle.dumps(Payload()))
    return {
        "object-array": npz(**{**whole, first: np.array([Payload()], dtype=object)}),
        "pickle-in-array": archive(**{first: pickled}),
        "pickle-instead": pickle.dumps(Payload()),
        "one-array-only": npy((2,), data=bytes(4)),
        "no-arrays": archive(),
        "other-names": npz(x=np.zeros(3)),
        "giant": archive(**{first: npy((10**9, 16, 16))}),
        "giant-beyond-counting": archive(**{first: npy((2**40, 2**40, 2**40))}),
        "gigabytes-of-zeros": archive(**{first: npy((4 * 10**9,), "|u1", b"")}),
        "negative-shape": archive(**{first: npy((-1, 16, 16))}),
        "header-no-dict": archive(**{first: b"\x93NUMPY\x01\x00" + struct.pack("<H", 8) + b"(1, 2)  "}),
        "header-unfinished": archive(**{first: b"\x93NUMPY\x01\x00" + struct.pack("<H", 8) + b"{'a': ((("[:8]}),
        "header-deep": archive(**{first: b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000}),
        "header-code": archive(
            **{first: b"\x93NUMPY\x01\x00" + struct.pack("<H", 44) + b"__import__('os').system('touch executed')   "}
        ),
        "version-9": archive(**{first: b"\x93NUMPY\x09\x00" + bytes(80)}),
        "dtype-nonsense": archive(**{first: npy((2, 16, 16)).replace(b"<u2", b"<q9")}),
        "member-no-array": archive(**{first: b"hello"}),
        "member-empty": archive(**{first: b""}),
        "encrypted": lock(npz(**whole)),
        "packed-with-nothing-known": method(npz(**whole), 77),
        "packed-with-lzma-it-says": method(npz(**whole), 14),
        "packed-with-bzip2-it-says": method(npz(**whole), 12),
    }


GRID = np.arange(2 * 256, dtype=np.uint16).reshape(2, 16, 16) % CODES
KEYS = np.array(["a", "b"])

TOKEN_ARRAYS = {
    "out-of-range": {"tokens": GRID + CODES, "keys": KEYS},
    "negative": {"tokens": GRID.astype(np.int32) - 1, "keys": KEYS},
    "beyond-int64": {"tokens": GRID.astype(np.uint64) + np.uint64(2**63), "keys": KEYS},
    "fractions": {"tokens": GRID.astype(np.float32), "keys": KEYS},
    "nan": {"tokens": GRID * np.nan, "keys": KEYS},
    "truth-values": {"tokens": GRID > 0, "keys": KEYS},
    "words": {"tokens": GRID.astype(str), "keys": KEYS},
    "complex": {"tokens": GRID.astype(complex), "keys": KEYS},
    "dates": {"tokens": GRID.astype("datetime64[s]"), "keys": KEYS},
    "records": {"tokens": np.zeros((2, 16, 16), [("x", "u2")]), "keys": KEYS},
    "flat": {"tokens": GRID.reshape(2, 256), "keys": KEYS},
    "not-square": {"tokens": GRID[:, :8], "keys": KEYS},
    "no-images": {"tokens": GRID[:0], "keys": KEYS[:0]},
    "one-number": {"tokens": np.uint16(3), "keys": KEYS},
    "keys-too-few": {"tokens": GRID, "keys": KEYS[:1]},
    "keys-numbers": {"tokens": GRID, "keys": np.arange(2)},
    "keys-bytes": {"tokens": GRID, "keys": np.array([b"a", b"b"])},
    "keys-in-a-table": {"tokens": GRID, "keys": KEYS[:, None]},
    "keys-missing": {"tokens": GRID},
    "tokens-missing": {"keys": KEYS},
}


def token_cases(rng):
    """Grids of tokens."""
    path = f"{TOKENS}/train.npz"
    case = partial(Case, kind="tokens", parts=(TOKENS,), read=lambda root: read_tokens(Path(TOKENS), "train"))
    yield from bytes_cases(case, path, rng, expect="either")
    yield from json_cases(case, f"{TOKENS}/tokens.json", {"codes": CODES})
    whole = {"tokens": GRID, "keys": KEYS}
    contents = {name: npz(**arrays) for name, arrays in TOKEN_ARRAYS.items()} | archives("tokens", whole)
    for name, content in contents.items():
        yield case(name=name, spoil=partial(overwrite, path, content), says=("train.npz",))
    for dtype in (np.uint8, np.int64, np.uint64):
        yield case(
            name=f"whole-{np.dtype(dtype)}",
            spoil=partial(overwrite, path, npz(tokens=GRID.astype(dtype), keys=KEYS)),
            expect="accepted",
        )
    yield case(name="gone", spoil=lambda root: (root / path).unlink(), says=("train.npz",))
    yield case(name="folder", spoil=partial(as_folder, path), says=("train.npz",))
    yield case(name="device", spoil=partial(as_device, path), says=("train.npz",))


SAMPLES, KNOWN = np.zeros((IMAGES, 1, SIZE, SIZE, 3), np.uint8), np.zeros((IMAGES, SIZE, SIZE), bool)
RECORD = np.frombuffer(b'{"fingerprint": "x"}', np.uint8)

CELL_ARRAYS = {
    "samples-flat": {"samples": SAMPLES[0], "known": KNOWN, "record": RECORD},
    "samples-fractions": {"samples": SAMPLES.astype(float), "known": KNOWN, "record": RECORD},
    "known-numbers": {"samples": SAMPLES, "known": KNOWN.astype(np.uint8), "record": RECORD},
    "known-of-others": {"samples": SAMPLES, "known": KNOWN[:1], "record": RECORD},
    "record-gone": {"samples": SAMPLES, "known": KNOWN},
    "record-list": {"samples": SAMPLES, "known": KNOWN, "record": np.frombuffer(b"[]", np.uint8)},
    "record-noise": {"samples": SAMPLES, "known": KNOWN, "record": np.frombuffer(b"\xff\xfe{", np.uint8)},
    "record-deep": {"samples": SAMPLES, "known": KNOWN, "record": np.frombuffer(b"[" * 100_000, np.uint8)},
}


def cell_cases(rng):
    """Finished cells."""
    case = partial(Case, kind="cells", parts=(CELL,), read=lambda root: unpack(Path(CELL)))
    yield from bytes_cases(case, CELL, rng, expect="either")
    whole = {"samples": SAMPLES, "known": KNOWN, "record": RECORD}
    contents = {name: npz(**arrays) for name, arrays in CELL_ARRAYS.items()} | archives("samples", whole)
    for name, content in contents.items():
        yield case(name=name, spoil=partial(overwrite, CELL, content), says=("left.npz",))
    yield case(name="whole", spoil=partial(overwrite, CELL, npz(**whole)), expect="accepted")
    yield case(name="gone", spoil=lambda root: (root / CELL).unlink(), says=("left.npz",))
    yield case(name="folder", spoil=partial(as_folder, CELL), says=("left.npz",))
    yield case(name="device", spoil=partial(as_device, CELL), says=("left.npz",))


def cases(rng):
    """All of them."""
    yield from circuit_cases(rng)
    yield from calibration_cases()
    yield from token_cases(rng)
    yield from cell_cases(rng)
