"""Masks: laws over the table, the published geometry in pixels, frozen free-form masks, and files that are refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.masks import MASKS, PER_IMAGE, load_mask, mask_folder, save_mask, wide
from pipeline.errors import InputError

SIZES = [(32, 32), (64, 64), (128, 128), (256, 256), (512, 512), (64, 128), (96, 40)]


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_law_shape_and_neither_empty_nor_full(name: str, height: int, width: int) -> None:
    known = MASKS[name](height, width, 3)
    assert known.dtype == np.bool_
    assert known.shape == (height, width)
    assert 0 < known.sum() < known.size


@pytest.mark.parametrize("name", MASKS)
def test_law_same_arguments_same_mask_and_a_fresh_array(name: str) -> None:
    first, again = MASKS[name](64, 64, 5), MASKS[name](64, 64, 5)
    assert (first == again).all()
    first[:] = True
    assert (MASKS[name](64, 64, 5) == again).all()


@pytest.mark.parametrize("name", MASKS)
def test_law_only_the_masks_in_per_image_depend_on_the_index(name: str) -> None:
    differ = (MASKS[name](64, 64, 0) != MASKS[name](64, 64, 1)).any()
    assert differ == (name in PER_IMAGE)


@pytest.mark.parametrize("name", MASKS)
def test_law_sizes_show_the_same_shapes(name: str) -> None:
    coarse, fine = MASKS[name](64, 64, 2), MASKS[name](256, 256, 2)
    averaged = fine.reshape(64, 4, 64, 4).mean(axis=(1, 3))
    assert (coarse == (averaged > 0.5))[np.abs(averaged - 0.5) > 0.45].all()


@pytest.mark.parametrize("name", MASKS)
def test_law_too_small_or_negative_index_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="at least 16 x 16"):
        MASKS[name](15, 64, 0)
    with pytest.raises(InputError, match="index"):
        MASKS[name](64, 64, -1)


@pytest.mark.parametrize(
    ("name", "sums"),
    {  # known pixels at 32, 64, 128, 256, 512
        "left": (512, 2048, 8192, 32768, 131072),
        "top": (512, 2048, 8192, 32768, 131072),
        "expand1": (64, 256, 1024, 4096, 16384),
        "expand2": (64, 256, 1024, 4096, 16384),
        "v_strip": (24, 92, 368, 1472, 5888),
        "h_strip": (24, 92, 368, 1472, 5888),
    }.items(),
)
def test_rectangles_have_the_published_number_of_known_pixels(name: str, sums: tuple[int, ...]) -> None:
    assert tuple(int(MASKS[name](size, size, 0).sum()) for size in (32, 64, 128, 256, 512)) == sums


@pytest.mark.parametrize(
    ("name", "size", "rows", "columns"),
    [
        ("left", 256, (0, 256), (0, 128)),
        ("top", 256, (0, 128), (0, 256)),
        ("expand1", 256, (96, 160), (96, 160)),
        ("expand1", 32, (12, 20), (12, 20)),
        ("expand2", 256, (64, 128), (64, 128)),
        ("expand2", 32, (8, 16), (8, 16)),
        ("v_strip", 256, (72, 164), (120, 136)),
        ("v_strip", 64, (18, 41), (30, 34)),
        ("v_strip", 32, (9, 21), (15, 17)),  # 164 / 8 = 20.5 rounds up
        ("h_strip", 256, (120, 136), (72, 164)),
        ("h_strip", 128, (60, 68), (36, 82)),
    ],
)
def test_rectangles_lie_where_the_authors_code_has_them(
    name: str, size: int, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    expected = np.zeros((size, size), dtype=bool)
    expected[slice(*rows), slice(*columns)] = True
    assert (MASKS[name](size, size, 0) == expected).all()


@pytest.mark.parametrize(
    ("size", "checksum"),
    [
        (64, "fa48ee6d15ce6d12"),
        (256, "f4676aa836849d7d"),
    ],
)
def test_the_first_hundred_wide_masks_never_change(size: int, checksum: str) -> None:
    digest = hashlib.sha256()
    for index in range(100):
        digest.update(np.packbits(wide(size, size, index)).tobytes())
    assert digest.hexdigest()[:16] == checksum


def test_wide_hides_as_much_as_lama_and_never_more_than_half() -> None:
    hole = np.array([1.0 - wide(64, 64, index).mean() for index in range(300)])
    assert hole.max() <= 0.5
    assert hole.mean() == pytest.approx(0.271, abs=0.02)  # 595 masks of LaMa's own generator; standard error here 0.008
    quantiles = np.quantile(hole, [0.05, 0.25, 0.5, 0.75, 0.95])
    assert quantiles == pytest.approx([0.061, 0.163, 0.276, 0.375, 0.472], abs=0.035)


@pytest.mark.parametrize("size", [32, 128, 256, 512])
def test_wide_never_hides_more_than_half_and_always_something(size: int) -> None:
    for index in range(25):
        assert 0.0 < 1.0 - wide(size, size, index).mean() <= 0.5


def test_a_saved_mask_comes_back(tmp_path: Path) -> None:
    known = wide(64, 48, 7)
    save_mask(tmp_path / "mask.png", known)
    assert (load_mask(tmp_path / "mask.png", 64, 48) == known).all()
    assert (load_mask(tmp_path / "mask.png", 64, 48, polarity="hidden") == ~known).all()
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "1"


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA"])
def test_black_and_white_png_of_any_mode_is_read(tmp_path: Path, mode: str) -> None:
    known = MASKS["left"](32, 32, 0)
    Image.fromarray(known).convert("L").convert(mode).save(tmp_path / "mask.png")
    assert (load_mask(tmp_path / "mask.png", 32, 32) == known).all()


def _gradient(path: Path) -> None:
    Image.fromarray(np.arange(1024, dtype=np.uint32).astype(np.uint8).reshape(32, 32)).save(path)


def _colored(path: Path) -> None:
    Image.new("RGB", (32, 32), (255, 0, 0)).save(path)


def _transparent(path: Path) -> None:
    Image.new("RGBA", (32, 32), (255, 255, 255, 100)).save(path)


def _sixteen_bits(path: Path) -> None:
    Image.fromarray(np.eye(32, dtype=np.uint16) * 65535).save(path)


def _jpeg(path: Path) -> None:
    Image.fromarray(wide(32, 32, 4)).convert("L").save(path, format="JPEG")


def _small(path: Path) -> None:
    save_mask(path, MASKS["left"](16, 32, 0))


def _white(path: Path) -> None:
    save_mask(path, np.ones((32, 32), dtype=bool))


def _black(path: Path) -> None:
    save_mask(path, np.zeros((32, 32), dtype=bool))


def _text(path: Path) -> None:
    path.write_text("not an image")


def _nothing(path: Path) -> None:
    assert not path.exists()


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (_gradient, r"PNG with 256 grey values.*point\("),
        (_colored, r"got colours.*point\("),
        (_transparent, "transparency"),
        (_sixteen_bits, "16 bits"),
        (_jpeg, r"got a JPEG with \d+ grey values"),
        (_small, "expected a mask of 32 x 32 pixels .*, got 16 x 32; masks are never resized"),
        (_white, "nothing is hidden"),
        (_black, "nothing is known"),
        (_text, "cannot be read as an image"),
        (_nothing, "found none"),
    ],
)
def test_a_file_that_is_no_mask_is_refused_by_name(tmp_path: Path, write: object, sentence: str) -> None:
    path = tmp_path / "mask.png"
    write(path)  # type: ignore[operator]
    with pytest.raises(InputError, match=sentence) as caught:
        load_mask(path, 32, 32)
    assert str(path) in str(caught.value)


def test_the_advice_on_binarising_works(tmp_path: Path) -> None:
    known = wide(32, 32, 4)
    Image.fromarray(known).convert("L").save(tmp_path / "mask.jpg", quality=60)
    with Image.open(tmp_path / "mask.jpg") as image:
        image.convert("L").point(lambda v: 255 * (v > 127)).convert("1").save(tmp_path / "mask-bw.png")
    assert (load_mask(tmp_path / "mask-bw.png", 32, 32) == known).all()


def test_a_folder_gives_its_masks_in_turn(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        save_mask(tmp_path / f"{number:03d}.png", wide(32, 32, number))
    (tmp_path / ".DS_Store").write_text("")
    masks = mask_folder(tmp_path)
    for index in range(7):
        assert (masks(32, 32, index) == wide(32, 32, index % 3)).all()
    assert (mask_folder(tmp_path, polarity="hidden")(32, 32, 4) == ~wide(32, 32, 1)).all()


def test_a_folder_without_masks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found none"):
        mask_folder(tmp_path / "absent")
    with pytest.raises(InputError, match="an empty folder"):
        mask_folder(tmp_path)
    save_mask(tmp_path / "0.png", wide(32, 32, 0))
    (tmp_path / "1.jpg").write_text("")
    with pytest.raises(InputError, match=r"1\.jpg"):
        mask_folder(tmp_path)
