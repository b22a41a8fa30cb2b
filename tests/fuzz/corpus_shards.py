"""Shards: tars from strangers, whatever their members are, and datasets whose files and manifest do not agree."""

import gzip
import hashlib
import io
import json
import struct
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from fuzz.cases import Case
from fuzz.damage import bytes_cases, json_cases, overwrite
from fuzz.world import SIZE, settings
from pipeline.data.shards import read_split, verify
from pipeline.data.sources import ShardSet
from pipeline.experiment.layout import Layout
from pipeline.experiment.prepare import prepare


def png(k=0):
    buffer = io.BytesIO()
    Image.fromarray(np.full((SIZE, SIZE, 3), k, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def member(name, data=b"", kind=tarfile.REGTYPE, **fields):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar(*members, form=tarfile.PAX_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def header(name, size, kind=b"0"):
    """A member's header with any size, negative ones in base 256."""
    number = (
        size.to_bytes(12, "big", signed=True)
        if size < 0
        else b"%011o\0" % size
        if size < 8**11
        else b"\x80" + size.to_bytes(11, "big")
    )
    fields = [
        name.ljust(100, b"\0"),
        b"0000644\0",
        b"0000000\0",
        b"0000000\0",
        number,
        b"00000000000\0",
        b" " * 8,
        kind,
    ]
    block = b"".join(fields).ljust(257, b"\0") + b"ustar\x0000"
    block = block.ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


END = bytes(1024)
GOOD = tar(member("a.png", png(1)), member("a.json", b'{"width": 4000}'), member("b.png", png(2)))

TARS = {
    "outside": tar(member("../a.png", png(1))),
    "outside-deep": tar(member("x/../../a.png", png(1))),
    "absolute": tar(member("/tmp/a.png", png(1))),
    "link": tar(member("a.png", kind=tarfile.SYMTYPE, linkname="/etc/passwd")),
    "hard-link": tar(member("a.png", png(1)), member("b.png", kind=tarfile.LNKTYPE, linkname="a.png")),
    "device": tar(member("a.png", kind=tarfile.CHRTYPE, devmajor=1, devminor=5)),
    "block-device": tar(member("a.png", kind=tarfile.BLKTYPE)),
    "pipe": tar(member("a.png", kind=tarfile.FIFOTYPE)),
    "same-member-twice": tar(member("a.png", png(1)), member("a.png", png(2))),
    "two-pictures": tar(member("a.png", png(1)), member("a.jpg", png(2))),
    "no-picture": tar(member("a.json", b"{}")),
    "no-partner": tar(member("a.png", png(1)), member("b.txt", b"x")),
    "nothing-inside": tar(),
    "folders-only": tar(member("x", kind=tarfile.DIRTYPE)),
    "broken-json": tar(member("a.png", png(1)), member("a.json", b'{"x": ')),
    "deep-json": tar(member("a.png", png(1)), member("a.json", b"[" * 100_000)),
    "long-number": tar(member("a.png", png(1)), member("a.json", b'{"x": ' + b"9" * 6000 + b"}")),
    "no-json": tar(member("a.png", png(1)), member("a.json", b"\xff\xfe")),
    "broken-picture": tar(member("a.png", png(1)[:40])),
    "empty-picture": tar(member("a.png", b"")),
    "other-attributes": tar(
        member("a.png", png(1)), member("a.json", b'{"x": 1}'), member("b.png", png(2)), member("b.json", b'{"y": 1}')
    ),
    "key-in-two-shards": GOOD,
    "gzip": gzip.compress(GOOD),
    "gzip-bomb": gzip.compress(bytes(50_000_000)),
    "no-end": GOOD[:700],
    "two-tars": GOOD + GOOD,
    "size-beyond-the-file": header(b"a.png", 10**9) + png(1).ljust(512, b"\0") + END,
    "size-of-a-tebibyte": header(b"a.png", 2**40) + END,
    "negative-size": header(b"a.png", -512) + END,
    "negative-size-later": header(b"a.png", 512) + bytes(512) + header(b"b.png", -512) + END,
    "long-name-of-a-tebibyte": header(b"././@LongLink", 2**40, b"L") + END,
    "long-name-of-4-gib": header(b"././@LongLink", 2**32, b"L") + END,
    "extended-of-a-tebibyte": header(b"pax", 2**40, b"x") + END,
    "extended-no-number": header(b"pax", 20, b"x") + b"12 size=none\n".ljust(512, b"\0") + GOOD,
    "extended-negative": header(b"pax", 13, b"x") + b"13 size=-512\n".ljust(512, b"\0") + GOOD,
    "long-names-20000": (header(b"././@LongLink", 2, b"L") + b"a\0".ljust(512, b"\0")) * 20_000 + GOOD,
    "sparse-map-nonsense": tar(
        member(
            "a.png",
            png(1),
            pax_headers={
                "GNU.sparse.major": "1",
                "GNU.sparse.minor": "0",
                "GNU.sparse.name": "a.png",
                "GNU.sparse.realsize": "x",
            },
        )
    ),
    "sparse-map-wrong": tar(member("a.png", png(1), pax_headers={"GNU.sparse.map": "1,2,x", "GNU.sparse.size": "9"})),
    "sparse-giant": header(b"a.png", 0, b"S")[:386] + b"00000000000\0" * 2 + header(b"", 0)[410:] + END,
    "unknown-kind": header(b"a.png", 0, b"Z") + END,
    "name-not-utf-8": header(b"\xff\xfe.png", 4) + b"abcd".ljust(512, b"\0") + END,
    "name-with-newline": tar(member("a\nb.png", b"x")),
    "name-with-bell": tar(member("\x07\x1b[31m.png", b"x")),
    "checksum": GOOD[:148] + b"0000000\0" + GOOD[156:],
    "page": b"<html>404</html>",
    "zip": b"PK\x03\x04" + bytes(600),
    "empty": b"",
    "zeros": bytes(10_240),
}
"""Shards that are refused."""

GOOD_TARS = {
    "plain": GOOD,
    "gnu": tar(member("a.png", png(1)), member("x" * 150 + ".png", png(2)), form=tarfile.GNU_FORMAT),
    "long-name": tar(member("x" * 300 + ".png", png(1))),
    "odd-name": tar(member("caf\u00e9 1.png", png(1))),
    "in-folders": tar(member("x", kind=tarfile.DIRTYPE), member("x/a.png", png(1)), member("y/a.png", png(2))),
    "others-beside": tar(member("a.png", png(1)), member("a.txt", b"a cat"), member("README", b"x")),
    "attributes-that-are-none": tar(member("a.png", png(1)), member("a.json", b'{"width": 4000, "name": "x"}')),
    "contiguous-file": tar(member("a.png", png(1), kind=tarfile.CONTTYPE)),
}


def stage(root):
    """The stage prepare on shards of one's own."""
    params = settings()
    source = ShardSet(train="train*.tar", val="val.tar", test="test.tar")
    prepare(params.model_copy(update={"datasets": {"own": source}}), Layout(root, "smoke"), "own")


def lay_out(content, root, place="train.tar"):
    """The shard in the place of the training set; val and test are whole."""
    for k, name in enumerate(("train.tar", "val.tar", "test.tar")):
        (root / name).write_bytes(tar(member(f"{name}-{k}.png".replace(".tar", ""), png(100 + k))))
    (root / place).write_bytes(content)


def foreign_cases():
    """Tars of strangers."""
    case = partial(Case, kind="shards", parts=(), read=stage)
    for name, content in TARS.items():
        place = "train-2.tar" if name == "key-in-two-shards" else "train.tar"

        def spoil(root, content=content, place=place):
            lay_out(content, root, place)
            if place != "train.tar":
                (root / "train.tar").write_bytes(content)

        words = ("train",) if name in ("nothing-inside", "folders-only", "zeros", "other-attributes") else (place,)
        yield case(name=name, spoil=spoil, says=() if name == "other-attributes" else words)
    for name, content in GOOD_TARS.items():
        yield case(name=name, spoil=partial(lay_out, content), expect="accepted")

    def lost(root):
        lay_out(GOOD, root)
        (root / "val.tar").unlink()

    def shared(root):
        lay_out(GOOD, root)
        (root / "val.tar").unlink()
        (root / "val.tar").symlink_to("train.tar")

    def folder(root):
        lost(root)
        (root / "val.tar").mkdir()

    def device(root):
        lost(root)
        (root / "val.tar").symlink_to("/dev/zero")

    for spoil in (lost, shared, folder, device):
        yield case(name=f"val-{spoil.__name__}", spoil=spoil, says=("val",))


DATA = "runs/smoke/data/faces"


def edit(root, change, shard=None):
    """Change the manifest, or a shard of the test split, and make every digest of files fit again."""
    path = root / DATA / "manifest.json"
    manifest = json.loads(path.read_bytes())
    if shard is not None:
        record = manifest["splits"]["test"]["shards"][0]
        (root / DATA / record["name"]).write_bytes(shard)
        record["sha256"] = hashlib.sha256(shard).hexdigest()
    manifest = change(manifest) or manifest
    if isinstance(manifest, dict):
        manifest.pop("digest", None)
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
        manifest["digest"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(manifest))


MANIFEST = {
    "schema": 1,
    "dataset": "faces",
    "image_size": SIZE,
    "source": {},
    "seed": 1,
    "attributes": {},
    "splits": {"test": {"count": 2, "digest": "", "shards": [{"name": "", "count": 2, "sha256": ""}]}},
}


def shard_named(name):
    def change(manifest):
        manifest["splits"]["test"]["shards"][0]["name"] = name

    return change


def counted(count):
    def change(manifest):
        manifest["splits"]["test"]["count"] = count

    return change


def stored_cases(rng):
    """Datasets as the stage prepare left them, honestly damaged, and forged so that all digests of files fit."""
    from fuzz.damage import json_damages

    case = partial(
        Case, kind="datasets", parts=(DATA,), read=lambda root: read_split(Path(DATA), "test", Path("cache"))
    )
    yield from json_cases(case, f"{DATA}/manifest.json", MANIFEST)
    yield from bytes_cases(case, f"{DATA}/test-000000.tar", rng)
    for name, change in json_damages(MANIFEST):
        sure = name.endswith(("-gone", "-nested")) and name.startswith(("schema", "image_size", "splits"))
        yield case(
            name=f"forged-manifest-{name}",
            spoil=partial(edit, change=change),
            says=("manifest.json",) if sure else (),
            expect="refused" if sure else "either",
        )
    for name, content in TARS.items():
        if name not in ("key-in-two-shards",):
            yield case(
                name=f"forged-{name}", spoil=partial(edit, change=lambda manifest: None, shard=content), says=(DATA,)
            )
    for name in (
        "../../../mine/0.png",
        "/etc/passwd",
        "pipe:touch executed",
        "http://x/y.tar",
        "test-000000.tar.gz",
        "",
        "a\0b",
    ):
        yield case(
            name=f"forged-name-{name.encode('unicode_escape').decode()}",
            spoil=partial(edit, change=shard_named(name)),
            says=("manifest.json",),
        )
    for count in (1, 3, 10**15):
        yield case(name=f"forged-count-{count}", spoil=partial(edit, change=counted(count)), says=(DATA,))
    yield case(name="whole", spoil=lambda root: None, expect="accepted")
    for name, spoil in (
        ("shard-gone", lambda root: (root / DATA / "test-000000.tar").unlink()),
        ("manifest-gone", lambda root: (root / DATA / "manifest.json").unlink()),
        (
            "shard-is-a-folder",
            lambda root: ((root / DATA / "test-000000.tar").unlink(), (root / DATA / "test-000000.tar").mkdir()),
        ),
        (
            "manifest-is-a-folder",
            lambda root: ((root / DATA / "manifest.json").unlink(), (root / DATA / "manifest.json").mkdir()),
        ),
    ):
        yield case(
            name=name,
            spoil=spoil,
            says=(name.partition("-")[0].replace("shard", "test-000000.tar").replace("manifest", "manifest.json"),),
        )

    def stranger(root):
        overwrite(f"{DATA}/x.tar", GOOD, root)

    yield Case(
        kind="datasets",
        name="verify-stranger",
        parts=(DATA,),
        spoil=stranger,
        read=lambda root: verify(Path(DATA)),
        says=("x.tar",),
    )
    yield from cache_cases(rng)


def cache_cases(rng):
    """The cache of decoded pictures is written again where it is damaged."""

    def spoil(root, name, damage):
        read_split(root / DATA, "test", root / "cache")
        [path] = (root / "cache").glob(f"*.{name}")
        path.write_bytes(damage(path.read_bytes(), rng))

    from fuzz.damage import BYTES, TEXTS

    read = lambda root: read_split(Path(DATA), "test", Path("cache")).keys[0].upper()  # noqa: E731
    for name, damage in BYTES.items():
        if name in ("many-bits", "one-bit", "hole", "twice", "appended"):
            continue  # what still has the right form is not decoded again
        for kind in ("npy", "json"):
            yield Case(
                kind="cache",
                name=f"{kind}-{name}",
                parts=(DATA,),
                spoil=partial(spoil, name=kind, damage=damage),
                read=read,
                expect="accepted",
            )
    for name, text in TEXTS.items():
        yield Case(
            kind="cache",
            name=f"json-text-{name}",
            parts=(DATA,),
            spoil=partial(spoil, name="json", damage=lambda data, rng, text=text: text),
            read=read,
            expect="accepted",
        )
    whole = io.BytesIO()
    np.savez(whole, x=np.zeros(3))
    for name, content in (
        ("npz", whole.getvalue()),
        ("header", b"\x93NUMPY\x01\x00" + struct.pack("<H", 60000) + b"("),
        ("giant", giant_npy()),
    ):
        yield Case(
            kind="cache",
            name=f"npy-is-{name}",
            parts=(DATA,),
            spoil=partial(spoil, name="npy", damage=lambda data, rng, content=content: content),
            read=read,
            expect="accepted",
        )


def giant_npy():
    """An array of 2 TB by its header."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": (2 * 10**12,)})
    return buffer.getvalue()


def cases(rng):
    """All of them."""
    yield from foreign_cases()
    yield from stored_cases(rng)
