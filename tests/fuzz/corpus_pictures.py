"""Pictures and masks of one's own: damaged, of other kinds, bombs, links, and names that are hard to print."""

import io
import os
import random
import socket
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from fuzz.cases import Case
from fuzz.damage import BYTES, bytes_cases, json_cases
from fuzz.world import SIZE, settings
from pipeline.data.images import load_image
from pipeline.data.sources import Folder
from pipeline.experiment.fusion_groups import region
from pipeline.experiment.layout import Layout
from pipeline.experiment.masks import mask_of, read_masks, write_masks
from pipeline.experiment.prepare import prepare

PIXELS = np.random.RandomState(0).randint(0, 256, (24, 30, 3)).astype(np.uint8)
NAMES = [
    "with space",
    "caf\u00e9",
    "new\nline",
    "tab\tbed",
    "bell\x07",
    "\x1b[31mred",
    "quote'\"",
    "-rf",
    "%s{x}",
    "\u202eright",
    "\udcff",
]


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, *chunks, depth=8, colour=2, data=b""):
    """A PNG that declares a size, whatever it holds."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def text_bomb():
    """A picture with a compressed text of 200 MB."""
    packed = zlib.compress(bytes(200_000_000), 9)
    return png(24, 24, chunk(b"zTXt", b"Comment\0\0" + packed), data=zlib.compress(bytes(24 * 73)))


def pixel_bomb(width, height):
    """A few kilobytes that declare, and hold, a black picture of any size."""
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes((width + 7) // 8 + 1)) for _ in range(height)) + packer.flush()
    return png(width, height, depth=1, colour=0, data=data)


RGB = Image.fromarray(PIXELS)
GREY = RGB.convert("L")
WHOLE = encoded(RGB)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


PICTURES = {
    "rgb": (encoded(RGB), ".png"),
    "jpeg": (encoded(RGB, "JPEG"), ".jpg"),
    "webp": (encoded(RGB, "WEBP"), ".webp"),
    "bmp": (encoded(RGB, "BMP"), ".bmp"),
    "jpeg-named-png": (encoded(RGB, "JPEG"), ".png"),
    "grey": (encoded(GREY), ".png"),
    "one-bit": (encoded(RGB.convert("1")), ".png"),
    "palette": (encoded(RGB.convert("P")), ".png"),
    "opaque-alpha": (encoded(RGB.convert("RGBA")), ".png"),
    "sixteen-bits": (encoded(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)), ".png"),
    "cmyk": (encoded(RGB.convert("CMYK"), "JPEG"), ".jpg"),
    "exif-turned": (encoded(RGB, "JPEG", exif=exif(6)), ".jpg"),
    "exif-nonsense": (encoded(RGB, "JPEG", exif=exif(99)), ".jpg"),
    "just-large-enough": (encoded(RGB.crop((0, 0, SIZE, SIZE))), ".png"),
    "upper-case": (encoded(RGB), ".PNG"),
}
"""What is read."""

NO_PICTURES = {
    "transparent": (encoded(Image.fromarray(np.dstack([PIXELS, PIXELS[..., :1]]))), ".png"),
    "transparent-palette": (encoded(RGB.convert("P"), transparency=0), ".png"),
    "too-small": (encoded(RGB.crop((0, 0, SIZE - 1, SIZE))), ".png"),
    "one-pixel": (encoded(RGB.crop((0, 0, 1, 1))), ".png"),
    "animated": (encoded(RGB, save_all=True, append_images=[GREY.convert("RGB")]), ".png"),
    "animated-webp": (encoded(RGB, "WEBP", save_all=True, append_images=[GREY.convert("RGB")]), ".webp"),
    "gif": (encoded(RGB, "GIF"), ".png"),
    "tiff": (encoded(RGB, "TIFF"), ".png"),
    "float": (encoded(Image.fromarray(PIXELS[..., 0].astype(np.float32)), "TIFF"), ".png"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg' width='32' height='32'/>", ".png"),
    "no-size": (png(0, 0), ".png"),
    "no-data": (png(30, 30), ".png"),
    "negative-size": (png(2**31 - 1, 2**31 - 1), ".png"),
    "declared-giant": (png(40_000, 40_000, data=zlib.compress(bytes(99))), ".png"),
    "pixel-bomb": (pixel_bomb(30_000, 30_000), ".png"),
    "text-bomb": (text_bomb(), ".png"),
    "wide-line": (png(10**6, 1, data=zlib.compress(bytes(3 * 10**6 + 1))), ".png"),
    "broken-checksum": (WHOLE[:29] + b"\0\0\0\0" + WHOLE[33:], ".png"),
    "unknown-bit-depth": (png(30, 30, depth=7, data=zlib.compress(bytes(9999))), ".png"),
    "unknown-colour": (png(30, 30, colour=5, data=zlib.compress(bytes(9999))), ".png"),
    "gif-with-a-suffix": (encoded(RGB, "GIF"), ".gif"),
}
"""What is refused."""


def put(root, name, content):
    path = root / "pictures" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def special(root, name, kind):
    """Something that has the name of a picture and is no file."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "link-to-nothing":
        path.symlink_to("nothing")
    elif kind == "link-to-itself":
        path.symlink_to(path.name)
    elif kind == "locked":
        path.write_bytes(WHOLE)
        path.chmod(0)


SPECIAL = ["pipe", "device", "link-to-nothing", "link-to-itself", "folder"] + ["locked"] * bool(os.geteuid())


def stage(root):
    """The stage prepare on the folder of pictures."""
    params = settings()
    source = Folder(path="pictures", val=1, test=2)
    prepare(params.model_copy(update={"datasets": {"own": source}}), Layout(root, "smoke"), "own")


def one(name):
    return lambda root: load_image(Path("pictures") / name, SIZE)


def picture_cases(rng):
    """Single pictures, as load_image reads them."""
    case = partial(Case, kind="pictures", parts=())
    for name, (content, suffix) in PICTURES.items():
        spoil = partial(put, name=f"a{suffix}", content=content)
        yield case(name=name, spoil=spoil, read=one(f"a{suffix}"), expect="accepted")
    for name, (content, suffix) in NO_PICTURES.items():
        spoil = partial(put, name=f"a{suffix}", content=content)
        yield case(name=name, spoil=spoil, read=one(f"a{suffix}"), says=(f"a{suffix}",))
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        for name, damage in BYTES.items():
            spoil = partial(put, name="a.png", content=damage(encoded(RGB, kind), rng))
            yield case(name=f"{kind}-{name}", spoil=spoil, read=one("a.png"), says=("a.png",), expect="either")
    for kind in SPECIAL:
        yield case(
            name=kind, spoil=partial(special, name="pictures/a.png", kind=kind), read=one("a.png"), says=("a.png",)
        )
    yield case(name="missing", spoil=lambda root: None, read=one("a.png"), says=("a.png",))


def sorted_folder(root, **more):
    """Pictures in train, val and test."""
    for k, split in enumerate(("train", "val", "test")):
        put(root, f"{split}/x{k}.png", encoded(Image.fromarray(np.roll(PIXELS, k, 0))))
    for name, content in more.items():
        put(root, name, content)


def folder_cases():
    """Folders of pictures, as the stage prepare reads them."""
    case = partial(Case, kind="folders", parts=(), read=stage)

    def with_one(name, content):
        return lambda root: sorted_folder(root, **{name: content})

    for name in NAMES:
        word = name.encode("unicode_escape").decode()[:8]
        yield case(name=f"cut-{word}", spoil=with_one(f"train/{name}.png", WHOLE[:99]), says=("train/",))
        yield case(name=f"whole-{word}", spoil=with_one(f"train/{name}.png", WHOLE), expect="accepted")
    for kind in SPECIAL:

        def spoil(root, kind=kind):
            sorted_folder(root)
            special(root, "pictures/train/y.png", kind)

        yield case(
            name=kind,
            spoil=spoil,
            says=() if kind == "folder" else ("y.png",),
            expect="accepted" if kind == "folder" else "refused",
        )
    yield case(name="missing", spoil=lambda root: None, says=("pictures",))
    yield case(name="empty", spoil=lambda root: (root / "pictures").mkdir(), says=("pictures",))
    yield case(name="a-file", spoil=lambda root: (root / "pictures").write_bytes(WHOLE), says=("pictures",))
    yield case(name="no-val", spoil=partial(put, name="train/a.png", content=WHOLE), says=("pictures", "val"))
    yield case(name="beside-the-splits", spoil=with_one("a.png", WHOLE), says=("a.png", "train"))
    yield case(name="in-two-splits", spoil=with_one("test/b.png", encoded(RGB)), says=("test", "train"))
    yield case(name="two-extensions", spoil=with_one("train/x0.jpg", encoded(RGB, "JPEG")), says=("x0.jpg", "x0.png"))
    yield case(name="not-read", spoil=with_one("train/a.gif", encoded(RGB, "GIF")), says=("a.gif",))
    yield case(name="notes-beside", spoil=with_one("train/notes.txt", b"x"), expect="accepted")
    yield case(name="all-is-well", spoil=sorted_folder, expect="accepted")

    def linked(root):
        sorted_folder(root)
        (root / "pictures" / "train" / "loop").symlink_to(root / "pictures")

    yield case(name="linked-folder", spoil=linked, says=("loop",))


HALF = np.zeros((SIZE, SIZE), np.uint8)
HALF[: SIZE // 2] = 255
PLAIN = encoded(Image.fromarray(HALF))

MASKS = {
    "grey": PLAIN,
    "one-bit": encoded(Image.fromarray(HALF).convert("1")),
    "rgb": encoded(Image.fromarray(HALF).convert("RGB")),
    "opaque-alpha": encoded(Image.fromarray(HALF).convert("RGBA")),
    "palette": encoded(Image.fromarray(HALF).convert("P")),
}

NO_MASKS = {
    "smaller": encoded(Image.fromarray(HALF[:, 1:])),
    "larger": encoded(Image.fromarray(np.kron(HALF, np.ones((2, 2), np.uint8)))),
    "turned": encoded(Image.fromarray(HALF[:, :8])),
    "one-pixel": encoded(Image.fromarray(HALF[:1, :1])),
    "grey-values": encoded(Image.fromarray(HALF // 2)),
    "soft-edge": encoded(Image.fromarray(np.linspace(0, 255, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint8))),
    "all-known": encoded(Image.fromarray(np.full_like(HALF, 255))),
    "all-hidden": encoded(Image.fromarray(np.zeros_like(HALF))),
    "sixteen-bits": encoded(Image.fromarray(HALF.astype(np.uint16) * 257)),
    "coloured": encoded(Image.fromarray(np.dstack([HALF, HALF * 0, HALF]))),
    "transparent": encoded(Image.fromarray(np.dstack([HALF, HALF, HALF, HALF]))),
    "jpeg": encoded(Image.fromarray(HALF), "JPEG"),
    "gif": encoded(Image.fromarray(HALF), "GIF"),
    "bmp": encoded(Image.fromarray(HALF), "BMP"),
    "animated": encoded(Image.fromarray(HALF), save_all=True, append_images=[Image.fromarray(255 - HALF)]),
    "no-size": png(0, 0),
    "no-data": png(SIZE, SIZE),
    "declared-giant": png(100_000, 100_000, data=zlib.compress(bytes(99))),
    "pixel-bomb": pixel_bomb(12_000, 12_000),
    "text-bomb": text_bomb(),
    "unknown-bit-depth": png(SIZE, SIZE, depth=7, data=zlib.compress(bytes(9999))),
}


def write_mask(root, content, name="0.png"):
    (root / "mine" / name).write_bytes(content)


def draw(root):
    return mask_of(settings(), "mine", Path())


def masks_stage(root):
    """The stage masks, which draws the built-in ones first."""
    write_masks(settings(), Layout(root, "smoke"))


def mask_cases(rng):
    """Folders of masks: of one's own, as the stage masks reads them; and a region of stages.fuse."""
    case = partial(Case, kind="masks", parts=("mine",))
    for name, content in MASKS.items():
        yield case(name=name, spoil=partial(write_mask, content=content), read=masks_stage, expect="accepted")
    for name, content in NO_MASKS.items():
        yield case(name=name, spoil=partial(write_mask, content=content), read=masks_stage, says=("0.png",))
    for name, damage in BYTES.items():
        yield case(
            name=f"bytes-{name}",
            spoil=partial(write_mask, content=damage(PLAIN, rng)),
            read=draw,
            says=("0.png",),
            expect="either",
        )
    for kind in SPECIAL:
        yield case(name=kind, spoil=partial(special, name="mine/0.png", kind=kind), read=draw, says=("0.png",))
    for name in NAMES[2:6]:
        word = name.encode("unicode_escape").decode()[:8]
        yield case(
            name=f"named-{word}",
            spoil=partial(write_mask, content=WHOLE, name=f"{name}.png"),
            read=draw,
            says=("mine/",),
            expect="either",
        )
        yield case(
            name=f"strange-{word}", spoil=partial(write_mask, content=WHOLE, name=name), read=draw, says=("mine",)
        )
    yield case(
        name="notes-beside", spoil=partial(write_mask, content=b"x", name="notes.txt"), read=draw, says=("notes.txt",)
    )
    for name, spoil in (
        ("no-folder", lambda root: [path.unlink() for path in (root / "mine").iterdir()] and (root / "mine").rmdir()),
        ("empty-folder", lambda root: [path.unlink() for path in (root / "mine").iterdir()]),
    ):
        yield case(name=name, spoil=spoil, read=draw, says=("mine",))
    for name in ("missing.png", "nowhere", "~nobody-has-this-name/x.png", "a\0b", ""):
        yield case(
            name=f"region-{name.encode('unicode_escape').decode()}",
            spoil=lambda root: None,
            read=lambda root, name=name: region(name, SIZE),
        )


WRITTEN = "runs/smoke/masks"


def written_cases(rng):
    """Masks as the stage left them."""
    case = partial(Case, kind="written masks", parts=(WRITTEN,), read=lambda root: read_masks(Path(WRITTEN), "left", 2))
    index = {"schema": 1, "image_size": SIZE, "masks": {"left": {"files": 1, "hidden": 0.5, "digest": "0" * 64}}}
    yield from json_cases(case, f"{WRITTEN}/masks.json", index, ignored=("schema", "masks.left.hidden"))
    yield from bytes_cases(case, f"{WRITTEN}/left/000.png", rng, says=("left",), expect="either")


def cases(rng: random.Random):
    """All of them."""
    yield from picture_cases(rng)
    yield from folder_cases()
    yield from mask_cases(rng)
    yield from written_cases(rng)
