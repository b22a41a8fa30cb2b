import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pipeline.data import images
from pipeline.data.images import (
    ImageSet,
    Sample,
    encode_png,
    key_of,
    load_image,
    open_images,
    store_images,
    to_float,
    to_uint8,
)
from pipeline.errors import InputError

LOSSLESS = {"PNG": {}, "BMP": {}, "WEBP": {"lossless": True}}


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encode(image, format, **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("format", LOSSLESS)
def test_at_its_own_size_a_lossless_picture_comes_back_exactly(format, tmp_path):
    picture = noise(16, 16)
    path = tmp_path / "picture"
    path.write_bytes(encode(picture, format, **LOSSLESS[format]))
    assert np.array_equal(load_image(path, 16), picture)
    assert np.array_equal(load_image(path.read_bytes(), 16), picture)


def test_jpeg_is_read_as_pillow_reads_it():
    data = encode(noise(16, 16), "JPEG", quality=95)
    assert np.array_equal(load_image(data, 16), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize(("height", "width", "top", "left"), [(20, 31, 0, 5), (31, 20, 5, 0)])
def test_the_centre_square_is_kept(height, width, top, left):
    picture = noise(height, width)
    assert np.array_equal(load_image(encode(picture, "PNG"), 20), picture[top : top + 20, left : left + 20])


def test_reduction_is_antialiased():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 254
    inside = load_image(encode(stripes, "PNG"), 16)[:, 2:-2]
    assert np.abs(inside.astype(int) - 127).max() <= 2  # without a low-pass filter, stripes of 0 or 254 would remain


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_exif_orientation_is_honoured(orientation, format):
    upright = Image.fromarray(noise(24, 24))
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that undoes the one a viewer applies
    stored = upright.transpose(Image.Transpose(turned[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored, format, exif=exif, **LOSSLESS[format])
    assert np.array_equal(np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")), upright)
    assert np.array_equal(load_image(data, 24), np.asarray(upright))


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA"])
def test_opaque_pictures_of_other_modes_become_rgb(mode):
    picture = Image.fromarray(noise(16, 16)).convert(mode)
    assert np.array_equal(load_image(encode(picture, "PNG"), 16), np.asarray(picture.convert("RGB")))


def test_16_bit_grey_keeps_the_high_byte():
    grey = np.random.default_rng(0).integers(0, 65536, (16, 16), dtype=np.uint16)
    loaded = load_image(encode(grey, "PNG"), 16)
    assert np.array_equal(loaded, np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=-1))


def test_16_bit_colour_keeps_the_high_byte():
    deep = np.random.default_rng(0).integers(0, 65536, (16, 16, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    header = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.array_equal(load_image(data, 16), (deep >> 8).astype(np.uint8))


def test_cmyk_is_converted_by_the_documented_formula():
    inks = np.full((16, 16, 4), (51, 102, 0, 25), dtype=np.uint8)
    loaded = load_image(encode(Image.fromarray(inks, "CMYK"), "JPEG", quality=100), 16)
    expected = 255 * (1 - np.array([51, 102, 0]) / 255) * (1 - 25 / 255)
    assert np.abs(loaded - expected).max() <= 3  # JPEG rounding


def test_a_telephones_jpeg_with_a_map_appended_is_its_main_picture():
    main, extra = Image.fromarray(noise(16, 16)), Image.fromarray(noise(16, 16, seed=1))
    data = encode(main, "MPO", save_all=True, append_images=[extra])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert np.array_equal(load_image(data, 16), load_image(encode(main, "JPEG"), 16))


def transparent(mode):
    picture = Image.fromarray(noise(16, 16, 4)).convert("RGBA")
    if mode == "P":
        return encode(picture.convert("P"), "PNG", transparency=picture.convert("P").getpixel((3, 3)))
    if mode == "I;16":
        return encode(np.arange(256, dtype=np.uint16).reshape(16, 16), "PNG", transparency=7)
    if mode == "RGB":
        return encode(picture.convert("RGB"), "PNG", transparency=picture.convert("RGB").getpixel((3, 3)))
    return encode(picture.convert(mode), "PNG")


ANIMATION = [Image.fromarray(noise(16, 16, seed=seed)) for seed in range(3)]
REFUSED = {
    "empty": (b"", "0 bytes"),
    "text": (b"<html>404</html>", "not a PNG"),
    "gif": (encode(noise(16, 16), "GIF"), "not a PNG"),
    "tiff": (encode(noise(16, 16), "TIFF"), "not a PNG"),
    "start": (encode(noise(16, 16), "PNG")[:40], "cut short"),
    "half": (encode(noise(16, 16), "PNG")[:300], "truncated"),
    "small": (encode(noise(8, 300), "PNG"), "300x8 is too small"),
    "animated webp": (encode(ANIMATION[0], "WEBP", save_all=True, append_images=ANIMATION[1:]), "3 frames"),
    "animated png": (encode(ANIMATION[0], "PNG", save_all=True, append_images=ANIMATION[1:]), "3 frames"),
    **{f"transparent {mode}": (transparent(mode), "transparent") for mode in ("RGBA", "LA", "P", "RGB", "I;16")},
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_faithfully_is_refused_by_name_and_reason(case, tmp_path):
    data, reason = REFUSED[case]
    path = tmp_path / "holiday.png"
    path.write_bytes(data)
    with pytest.raises(InputError, match=reason) as caught:
        load_image(path, 16)
    assert str(caught.value).startswith(str(path))
    with pytest.raises(InputError, match=r"^shard 3, a\.png: "):
        load_image(data, 16, "shard 3, a.png")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_truncated_file_is_refused_or_lost_nothing(format):
    data = encode(noise(16, 16), format)
    whole = load_image(data, 16)
    refused = 0
    for length in range(0, len(data), 7):
        try:
            assert np.array_equal(load_image(data[:length], 16), whole)
        except InputError:
            refused += 1
    assert refused > 0.8 * len(data) / 7


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP"])
def test_damage_never_raises_anything_but_input_errors(format):
    data = bytearray(encode(noise(16, 16), format))
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(data)
        for place in rng.integers(0, min(len(data), 120), 3):
            damaged[place] = rng.integers(256)
        with contextlib.suppress(InputError):
            assert load_image(bytes(damaged), 16).shape == (16, 16, 3)


@pytest.mark.filterwarnings("error")  # Pillow warns at 89 million pixels and raises at twice that
@pytest.mark.parametrize("side", [9_200, 12_000, 60_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))
    with pytest.raises(InputError, match="over the limit of 80,000,000 pixels"):
        load_image(data, 16)


def test_files_that_are_missing_folders_or_too_large_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="cannot be opened"):
        load_image(tmp_path / "nothing.png", 16)
    with pytest.raises(InputError, match="cannot be opened"):
        load_image(tmp_path, 16)
    (tmp_path / "large.png").write_bytes(encode(noise(16, 16), "PNG"))
    monkeypatch.setattr(images, "BYTES_LIMIT", 100)
    with pytest.raises(InputError, match="limit"):
        load_image(tmp_path / "large.png", 16)


def test_enlarging_happens_only_when_allowed():
    data = encode(noise(8, 8), "PNG")
    assert load_image(data, 16, allow_enlarge=True).shape == (16, 16, 3)
    with pytest.raises(InputError, match="too small"):
        load_image(data, 16)


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_uint8_to_float_and_back_is_exact(lead):
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(16, 16, 3).expand(*lead, 16, 16, 3)
    x = to_float(pixels)
    assert x.shape == (*lead, 3, 16, 16)
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    assert torch.equal(to_uint8(x), pixels)
    assert torch.equal(to_uint8(x.double()), pixels)
    assert torch.equal(to_float(pixels.numpy()), x)


def test_channels_and_rows_are_not_mixed_up():
    pixels = np.zeros((4, 5, 3), dtype=np.uint8)
    pixels[1, 2, 0] = 255
    x = to_float(pixels)
    assert x[0, 1, 2] == 1
    assert (x == 1).sum() == 1


def test_to_uint8_clips_and_refuses_what_is_no_number():
    x = torch.tensor([-1.5, 0.0, 7.0]).reshape(3, 1, 1)
    assert to_uint8(x).flatten().tolist() == [0, 128, 255]
    x[1] = torch.nan
    with pytest.raises(InputError, match="1 of 3 pixel values"):
        to_uint8(x)


def test_arrays_of_another_form_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        to_float(np.zeros((4, 4, 3), dtype=np.float32))
    with pytest.raises(ValueError, match=r"\[\.\.\., 3, H, W\]"):
        to_uint8(torch.zeros(4, 4, 3))


def test_png_is_lossless_and_the_same_every_time():
    picture = noise(16, 16)
    assert encode_png(picture) == encode_png(picture.copy())
    assert np.array_equal(load_image(encode_png(picture), 16), picture)


def test_keys_stay_where_they_can_and_are_escaped_where_they_must():
    assert key_of("faces-test_0001") == "faces-test_0001"
    assert key_of("cats/no.1") == "cats~2Fno~2E1"
    assert key_of("é") == key_of("e\u0301") == "~C3~A9"  # one name, two Unicode spellings


def test_keys_are_ascii_short_and_different_for_different_names():
    names = ["a/b", "a.b", "a~2Fb", "a b", "a_b", "a-b", "A/b", "ä", "a" * 80, "a" * 81, "a" * 82, "/" * 90, "\udcff"]
    keys = [key_of(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(len(key) <= 80 and key.isascii() and "." not in key and "/" not in key for key in keys)


def some(count, attributes=None):
    return [Sample(key=f"k{k}", image=noise(8, 8, seed=k), attributes=attributes) for k in range(count)]


def test_stored_images_are_mapped_read_only(tmp_path):
    advanced = []
    store_images(some(3, {"color": 1}), tmp_path / "set", (3, 8, 8, 3), advanced.append)
    found = open_images(tmp_path / "set", (3, 8, 8, 3))
    assert isinstance(found, ImageSet)
    assert isinstance(found.images, np.memmap)
    assert not found.images.flags.writeable
    assert found.keys == ["k0", "k1", "k2"]
    assert found.attributes == [{"color": 1}] * 3
    assert all(np.array_equal(found.images[k], noise(8, 8, seed=k)) for k in range(3))
    assert sum(advanced) == 3


def test_stored_images_that_are_incomplete_are_not_opened(tmp_path):
    stem, shape = tmp_path / "set", (3, 8, 8, 3)
    assert open_images(stem, shape) is None
    store_images(some(3), stem, shape, None)
    assert open_images(stem, (2, 8, 8, 3)) is None
    whole = stem.with_suffix(".npy").read_bytes()
    for damaged in (whole[:-1], whole[:50], b""):
        stem.with_suffix(".npy").write_bytes(damaged)
        assert open_images(stem, shape) is None
    stem.with_suffix(".npy").write_bytes(whole)
    assert open_images(stem, shape).attributes is None
    stem.with_suffix(".json").unlink()
    assert open_images(stem, shape) is None


def test_an_interrupted_store_leaves_nothing(tmp_path):
    def interrupted():
        yield from some(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store_images(interrupted(), tmp_path / "set", (3, 8, 8, 3), None)
    assert list(tmp_path.iterdir()) == []
