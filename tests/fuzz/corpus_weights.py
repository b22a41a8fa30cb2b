"""Weights: of the pipeline's own networks, of the trunk, of LPIPS, and checkpoints that others published."""

import hashlib
import io
import json
import pickle
import struct
import zipfile
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from fuzz.cases import Case
from fuzz.damage import BYTES, Payload, bytes_cases, json_cases, overwrite
from fuzz.world import SIZE, settings
from pipeline.codec.trunk import load_trunk
from pipeline.experiment.codecs import load_codec
from pipeline.experiment.import_weights import import_weights
from pipeline.experiment.lpips_trunk import SHAPES, load_lpips, resolve
from pipeline.experiment.models import load_denoiser
from pipeline.weights import in_eight_bits

VQGAN, DDPM, TRUNK, LPIPS = "runs/smoke/vqgan/faces", "runs/smoke/ddpm/faces", "runs/smoke/trunk", "runs/smoke/lpips"
CPU = torch.device("cpu")


def read_vqgan(root):
    return load_codec(Path(VQGAN), settings().vqgan, CPU)


def read_ddpm(root):
    return load_denoiser(Path(DDPM), settings().ddpm, SIZE, CPU)


def container(header, data=b"", length=None):
    """A safetensors file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape, first, last, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


CONTAINERS = {
    "length-of-an-exbibyte": container({}, length=2**60),
    "length-negative": container({}, length=2**64 - 1),
    "length-a-little-more": container({"a": entry([1], 0, 4)}, b"\0" * 4, length=90),
    "header-is-a-list": container([]),
    "header-is-noise": container(b"\xff" * 40),
    "header-is-deep": container(b"[" * 100_000),
    "tensors-none": container({}),
    "beyond-the-file": container({"a": entry([10**6], 0, 4 * 10**6)}, b"\0" * 8),
    "overlapping": container({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"\0" * 4),
    "gap": container({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"\0" * 12),
    "backwards": container({"a": entry([1], 4, 0)}, b"\0" * 4),
    "negative-shape": container({"a": entry([-1], 0, 4)}, b"\0" * 4),
    "shape-of-2-to-the-80": container({"a": entry([2**40, 2**40], 0, 4)}, b"\0" * 4),
    "shape-unlike-the-data": container({"a": entry([7], 0, 4)}, b"\0" * 4),
    "unknown-dtype": container({"a": entry([1], 0, 4, "F33")}, b"\0" * 4),
    "same-name-twice": container(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"\0" * 4,
    ),
    "a-pickle": pickle.dumps(Payload()),
    "a-zip": b"PK\x03\x04" + bytes(64),
}
"""Files that are no safetensors, or of nothing that is wanted."""


def forge(folder, root, content, weights="model.safetensors", description="model.json", **fields):
    """Write weights and make the hash in the description fit, as somebody with a purpose would."""
    overwrite(f"{folder}/{weights}", content, root)
    path = root / folder / description
    path.write_text(
        json.dumps({**json.loads(path.read_bytes()), **fields, "sha256": hashlib.sha256(content).hexdigest()})
    )


def reforge(folder, change, root, weights="model.safetensors", description="model.json"):
    """The same with the tensors there were, changed."""
    tensors = load_file(root / folder / weights)
    first = next(name for name, value in tensors.items() if value.ndim > 1)
    forge(folder, root, save({k: v.contiguous() for k, v in change(tensors, first).items()}), weights, description)


def with_value(value):
    def change(tensors, first):
        tensors[first].view(-1)[0] = value
        return tensors

    return change


def with_tensor(make):
    return lambda tensors, first: {**tensors, first: make(tensors[first])}


def eighth(change):
    """Weights in eight bits, of which something is not as it should be."""

    def forged(tensors, first):
        parts = in_eight_bits(first, tensors.pop(first))
        return {**tensors, **change(parts, first)}

    return forged


TENSORS = {
    "nan": with_value(float("nan")),
    "infinite": with_value(float("-inf")),
    "one-gone": lambda tensors, first: {k: v for k, v in tensors.items() if k != first},
    "one-more": lambda tensors, first: {**tensors, "extra.weight": torch.zeros(3)},
    "renamed": lambda tensors, first: {f"x.{k}": v for k, v in tensors.items()},
    "transposed": with_tensor(lambda value: value.transpose(0, 1) if value.shape[0] != value.shape[1] else value[:-1]),
    "flat": with_tensor(lambda value: value.flatten()),
    "one-row-less": with_tensor(lambda value: value[1:]),
    "no-rows": with_tensor(lambda value: value[:0]),
    "whole-numbers": with_tensor(lambda value: value.long()),
    "truth-values": with_tensor(lambda value: value > 0),
    "complex": with_tensor(lambda value: value.to(torch.complex64)),
    "bytes": with_tensor(lambda value: value.to(torch.uint8)),
    "all-float64-nan": lambda tensors, first: {
        k: (v.double() * float("nan")) if v.is_floating_point() else v for k, v in tensors.items()
    },
    "steps-too-few": eighth(lambda parts, first: {first: parts[first], f"{first}@step": parts[f"{first}@step"][:-1]}),
    "steps-one-number": eighth(lambda parts, first: {first: parts[first], f"{first}@step": parts[f"{first}@step"][0]}),
    "steps-nan": eighth(
        lambda parts, first: {first: parts[first], f"{first}@step": parts[f"{first}@step"] * float("nan")}
    ),
    "steps-whole-numbers": eighth(
        lambda parts, first: {first: parts[first], f"{first}@step": parts[f"{first}@step"].long()}
    ),
    "steps-of-nothing": eighth(lambda parts, first: {f"{first}@step": parts[f"{first}@step"]}),
    "steps-gone": eighth(lambda parts, first: {first: parts[first]}),
}

WHOLE_TENSORS = {
    "as-they-were": lambda tensors, first: tensors,
    "half": lambda tensors, first: {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()},
    "double": lambda tensors, first: {k: v.double() if v.is_floating_point() else v for k, v in tensors.items()},
    "eight-bits": eighth(lambda parts, first: parts),
}


def own_cases(rng):
    """Weights as the stages left them."""
    for kind, folder, read in (("vqgan", VQGAN, read_vqgan), ("ddpm", DDPM, read_ddpm)):
        case = partial(Case, kind=f"weights of {kind}", parts=(folder,), read=read)
        yield from bytes_cases(case, f"{folder}/model.safetensors", rng)
        yield from json_cases(case, f"{folder}/model.json", {"sha256": "", "kind": kind}, ignored=("kind",))
        for name, change in TENSORS.items():
            yield case(name=f"forged-{name}", spoil=partial(reforge, folder, change), says=("model.safetensors",))
        for name, change in WHOLE_TENSORS.items():
            yield case(name=f"forged-{name}", spoil=partial(reforge, folder, change), expect="accepted")
        for name, content in CONTAINERS.items():
            yield case(
                name=f"forged-{name}", spoil=partial(forge, folder, content=content), says=("model.safetensors",)
            )
        for name in ("model.safetensors", "model.json"):
            yield case(
                name=f"gone-{name}", spoil=lambda root, path=f"{folder}/{name}": (root / path).unlink(), says=(name,)
            )
            yield case(name=f"folder-{name}", spoil=partial(as_folder, f"{folder}/{name}"), says=(name,))
            yield case(name=f"device-{name}", spoil=partial(as_device, f"{folder}/{name}"), says=(name,))
    case = partial(Case, kind="weights of vqgan", parts=(VQGAN, DDPM), read=read_vqgan)
    yield case(name="of-the-other-network", spoil=exchange, says=("model.safetensors",))


def exchange(root):
    for name in ("model.safetensors", "model.json"):
        overwrite(f"{VQGAN}/{name}", (root / DDPM / name).read_bytes(), root)


def as_folder(path, root):
    (root / path).unlink()
    (root / path).mkdir()


def as_device(path, root):
    (root / path).unlink()
    (root / path).symlink_to("/dev/zero")


def trunk_cases(rng):
    """The perceptual trunk, and which trunk LPIPS uses."""
    case = partial(Case, kind="trunk", parts=(TRUNK,), read=lambda root: load_trunk(Path(TRUNK)))
    yield from bytes_cases(case, f"{TRUNK}/trunk.safetensors", rng)
    like = {"sha256": "", "config": {"width": 8, "heads": {"domain": 3}}}
    yield from json_cases(case, f"{TRUNK}/trunk.json", like)
    for name, change in TENSORS.items():
        if "steps" not in name:
            yield case(
                name=f"forged-{name}",
                spoil=partial(reforge, TRUNK, change, weights="trunk.safetensors", description="trunk.json"),
                says=("trunk.safetensors",),
            )
    for name, content in CONTAINERS.items():
        yield case(
            name=f"forged-{name}",
            spoil=partial(forge, TRUNK, content=content, weights="trunk.safetensors", description="trunk.json"),
            says=("trunk.safetensors",),
        )
    for width in (10**9, 7, 0, -2, 10**30):
        yield case(
            name=f"width-{width}", spoil=partial(set_config, {"width": width, "heads": {"domain": 3}}), says=("trunk",)
        )
    for heads in ({"domain": 0}, {"domain": -3}, {"domain": 10**12}, {}, {"domain": 3, "x": 10**12}):
        yield case(
            name=f"heads-{json.dumps(heads)}", spoil=partial(set_config, {"width": 8, "heads": heads}), says=("trunk",)
        )
    record = {"column": "", "source": "own", "trunk_sha256": None, "verified": None, "reason": "x"}
    case = partial(Case, kind="lpips", parts=(TRUNK, LPIPS), read=lambda root: load_lpips(Path(LPIPS), Path(TRUNK)))
    yield from json_cases(case, f"{LPIPS}/lpips.json", record)
    for name, value in (("column", "psnr"), ("column", "lpips"), ("source", "nowhere"), ("trunk_sha256", 3)):
        yield case(
            name=f"{name}-{value}",
            spoil=partial(set_record, name, value),
            says=("lpips.json" if value != "lpips" else "alexnet",),
        )


def set_config(config, root):
    path = root / TRUNK / "trunk.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "config": config}))


def set_record(name, value, root):
    path = root / LPIPS / "lpips.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), name: value}))


def torch_file(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def repacked(content, change):
    """A zip of torch.save with members changed: change(name, data) -> data or None."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            data = change(info.filename, old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    return buffer.getvalue()


ALEXNET = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
SAVED = torch_file(ALEXNET)

FOREIGN = {
    "payload": pickle.dumps(Payload()),
    "payload-protocol-0": pickle.dumps(Payload(), protocol=0),
    "payload-in-zip": torch_file({"state_dict": Payload()}),
    "payload-among-tensors": torch_file({**ALEXNET, "x": Payload()}),
    "payload-in-old-format": torch_file({"x": Payload()}, _use_new_zipfile_serialization=False),
    "payload-instead": repacked(
        SAVED, lambda name, data: pickle.dumps(Payload()) if name.endswith("data.pkl") else data
    ),
    "eval": b'\x80\x04c__builtin__\neval\n(S\'open("executed","w")\'\ntR.',
    "module": torch_file(torch.nn.Linear(2, 2)),
    "a-tensor": torch_file(torch.zeros(3)),
    "a-list": torch_file([torch.zeros(3)]),
    "a-number": torch_file(7),
    "nothing": torch_file(None),
    "no-tensors": torch_file({}),
    "epoch-beside": torch_file({**ALEXNET, "epoch": 3}),
    "names-are-numbers": torch_file({3: torch.zeros(3)}),
    "empty-state": torch_file({"state_dict": {}}),
    "state-in-itself": torch_file({"state_dict": {"state_dict": ALEXNET}}),
    "sparse": torch_file({**ALEXNET, "features.0.bias": torch.zeros(64).to_sparse()}),
    "nan": torch_file({**ALEXNET, "features.0.bias": torch.full((64,), float("nan"))}),
    "whole-numbers": torch_file({**ALEXNET, "features.0.bias": torch.zeros(64, dtype=torch.long)}),
    "complex": torch_file({**ALEXNET, "features.0.bias": torch.zeros(64, dtype=torch.complex64)}),
    "meta": torch_file({**ALEXNET, "features.0.bias": torch.zeros(64, device="meta")}),
    "stretched": torch_file({**ALEXNET, "features.0.bias": torch.zeros(1).expand(10**12)}),
    "other-shape": torch_file({**ALEXNET, "features.0.bias": torch.zeros(65)}),
    "one-gone": torch_file({name: value for name, value in ALEXNET.items() if name != "features.8.bias"}),
    "storage-gone": repacked(SAVED, lambda name, data: None if name.endswith("/data/0") else data),
    "storage-short": repacked(SAVED, lambda name, data: data[:8] if name.endswith("/data/0") else data),
    "index-gone": repacked(SAVED, lambda name, data: None if name.endswith("data.pkl") else data),
    "index-cut": repacked(SAVED, lambda name, data: data[:40] if name.endswith("data.pkl") else data),
    "index-deep": repacked(
        SAVED, lambda name, data: b"\x80\x02" + b"(" * 50_000 if name.endswith("data.pkl") else data
    ),
    "memo-nonsense": b"\x80\x02h\x05.",
    "stack-empty": b"\x80\x020.",
    "opcode-unknown": b"\x80\x02\xfe\xff.",
    "recursive-lists": b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",
}
"""Files ending in .pt that are not what is wanted."""


def put_file(name, content, root):
    (root / name).write_bytes(content)


def import_case(case, kind, file):
    """Cases of import_weights."""

    def read(root):
        import_weights(kind, Path(file), Path("imported"), settings())

    return partial(case, parts=(), read=read)


def foreign_cases(rng):
    """Published checkpoints, for import_weights and as LPIPS's trunk."""
    for kind in ("unet", "vqgan"):
        label = f"published {kind}"
        made = import_case(partial(Case, kind=label), kind, "x.pt")
        safe = import_case(partial(Case, kind=label), kind, "x.safetensors")
        for name, content in FOREIGN.items():
            yield made(name=name, spoil=partial(put_file, "x.pt", content), says=() if kind == "unet" else ("x.pt",))
        for name, content in CONTAINERS.items():
            yield safe(
                name=name,
                spoil=partial(put_file, "x.safetensors", content),
                says=() if kind == "unet" else ("x.safetensors",),
            )
        yield made(name="missing", spoil=lambda root: None)
        yield made(name="folder", spoil=lambda root: (root / "x.pt").mkdir())
        yield made(name="device", spoil=lambda root: (root / "x.pt").symlink_to("/dev/zero"))
    case = partial(Case, kind="lpips path")
    made = partial(case, parts=(), read=lambda root: resolve(Path("x.pt"), False, Path("out")))
    safe = partial(case, parts=(), read=lambda root: resolve(Path("x.safetensors"), False, Path("out")))
    for name, content in FOREIGN.items():
        yield made(name=name, spoil=partial(put_file, "x.pt", content), says=("x.pt",))
    for name, content in CONTAINERS.items():
        yield safe(name=name, spoil=partial(put_file, "x.safetensors", content), says=("x.safetensors",))
    for name, damage in BYTES.items():
        yield made(
            name=f"bytes-{name}",
            spoil=partial(put_file, "x.pt", damage(torch_file({"features.0.bias": torch.zeros(64)}), rng)),
            says=("x.pt",),
        )
    yield made(name="missing", spoil=lambda root: None, says=("x.pt",))
    yield made(name="folder", spoil=lambda root: (root / "x.pt").mkdir(), says=("x.pt",))
    yield made(name="whole", spoil=partial(put_file, "x.pt", SAVED), expect="accepted")
    yield safe(name="whole-safetensors", spoil=partial(put_file, "x.safetensors", save(ALEXNET)), expect="accepted")


def cases(rng):
    """All of them."""
    yield from own_cases(rng)
    yield from trunk_cases(rng)
    yield from foreign_cases(rng)
