"""The pages in a real browser, opened from disk: nothing is fetched or complained of, and paging shows what it says."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from docs.make_screenshots import BROWSERS, SHOTS, beside, find_browser, open_browser, save, take
from experiment.made_up import MASKS, SMALL, World, pixels
from experiment.test_report_steering import SteeredWorld, draw_sheets, steady, steered_params
from pipeline.experiment.report import PAGES

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
METHODS = ("ddnm", "copaint", "tiramisu")


BROKEN = "[...document.images].filter((image) => image.loading !== 'lazy' && !image.naturalWidth).length"
CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const known = new Map();
  const linear = (value) => (value /= 255) <= 0.04 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const measure = (color) => {
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const light = (color) => known.get(color) ?? known.set(color, measure(color)).get(color);
  const ground = (node) => {
    const color = getComputedStyle(node).backgroundColor;
    return color === "rgba(0, 0, 0, 0)" ? ground(node.parentElement) : color;
  };
  const told = (node) => [...node.childNodes].some((one) => one.nodeType === 3 && one.data.trim());
  const ratio = (node) => {
    const [a, b] = [light(getComputedStyle(node).color), light(ground(node))].sort((x, y) => x - y);
    return (b + 0.05) / (a + 0.05);
  };
  const texts = [...document.querySelectorAll("main *, header *")].filter((node) => told(node) && !node.closest("svg"));
  const seen = texts.filter((node) => node.checkVisibility());
  const found = seen.map((node) => [ratio(node), node.outerHTML.slice(0, 60)]);
  return found.sort((x, y) => x[0] - y[0])[0];
}"""
"""The least contrast of a text with its ground, and where."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the PATH, and playwright has none of its own")
    with open_browser(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A profile with everything that the pages can show."""
    rows = {"tiramisu": steered_params()}
    made = SteeredWorld(
        tmp_path_factory.mktemp("seen"),
        rows=rows,
        shifts={name: steady(-0.01) for name in rows},
        datasets=("faces", "rooms"),
    )
    for dataset in ("faces", "rooms"):
        for model in ("circuit", "transformer"):
            made.prior(model, dataset)
        draw_sheets(made, dataset)
    made.report()
    return made


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A profile in which most has no place, and images have names that HTML would take for its own."""
    made = World(tmp_path_factory.mktemp("bare"), key="<script>{}", **SMALL)
    for folder in ("vqgan", "ddpm"):
        shutil.rmtree(made.root / folder)
    made.report()
    return made


class Seen:
    """A page with what it complained of and asked for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def open(self, world: World, name: str, fragment: str = "") -> Page:
        self.page.goto(f"{(world.out / name).as_uri()}{fragment}")
        return self.page


@pytest.fixture
def seen(browser: Browser) -> Iterator[Seen]:
    context = browser.new_context(viewport=DESKTOP)
    yield Seen(context.new_page())
    context.close()


@pytest.mark.parametrize(("viewport", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def test_pages_open_from_disk_in_silence_fit_and_can_be_read(browser, world, bare, viewport, scheme):
    """Text has a contrast of at least 4.5, as WCAG 2 asks for."""
    context = browser.new_context(viewport=viewport, color_scheme=scheme, offline=True)
    for each, name in product((world, bare), PAGES):
        seen = Seen(context.new_page())
        page = seen.open(each, name)
        assert seen.said == []
        assert [url for url in seen.asked if not url.startswith("data:")] == [(each.out / name).as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], name
        assert page.evaluate(BROKEN) == 0
        least, where = page.evaluate(CONTRAST)
        assert least >= 4.5, f"{name}: {where}"
        page.close()
    context.close()


def expected(world: World, dataset: str, mask: str, image: int, method: str) -> NDArray[np.uint8]:
    """What a method made of an image, known pixels pasted."""
    with np.load(world.root / "inpaint" / dataset / method / f"{mask}.npz") as cell:
        known = cell["known"][image][..., None]
        return np.where(known, world.images[dataset][image], cell["samples"][image, 0])


def check_shown(page: Page, world: World, dataset: str, mask: str, image: int) -> None:
    """The viewer says that it shows this, and every method's picture is that of this."""
    viewer = page.locator("#viewer")
    assert (viewer.get_attribute("data-dataset"), viewer.get_attribute("data-mask")) == (dataset, mask)
    assert page.locator(".line").get_attribute("data-image") == world.keys[image]
    assert f"image {image + 1} of 4, {world.keys[image]}" in page.locator("#where").inner_text()
    assert page.evaluate("location.hash") in (f"#{dataset}/{mask}/{image + 1}", f"#{dataset}/{mask}")
    for method in METHODS:
        source = page.locator(f".tile[data-method={method}] img.result").get_attribute("src")
        np.testing.assert_array_equal(pixels(source), expected(world, dataset, mask, image, method))
    np.testing.assert_array_equal(
        pixels(page.locator(".tile[data-method=truth] img").get_attribute("src")), world.images[dataset][image]
    )


def choose(page: Page, choice: str, text: str) -> None:
    page.locator(f"[data-choice={choice}] button", has_text=text).first.click()


def test_buttons_page_by_dataset_mask_and_image(seen, world):
    page = seen.open(world, "pictures.html", "#faces/left")
    check_shown(page, world, "faces", "left", 0)
    choose(page, "dataset", "rooms")
    check_shown(page, world, "rooms", "left", 0)
    choose(page, "mask", "expand2")
    check_shown(page, world, "rooms", "expand2", 0)
    page.get_by_role("button", name="Next image").click()
    check_shown(page, world, "rooms", "expand2", 1)
    page.get_by_role("button", name="Previous image").click()
    page.get_by_role("button", name="Previous image").click()
    check_shown(page, world, "rooms", "expand2", 3)
    assert seen.said == []


def test_keys_page_by_dataset_mask_and_image(seen, world):
    page = seen.open(world, "pictures.html", "#faces/left")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    check_shown(page, world, "faces", "top", 2)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    check_shown(page, world, "faces", "wide", 1)
    page.keyboard.press("d")
    check_shown(page, world, "rooms", "wide", 1)
    page.keyboard.press("Control+ArrowRight")
    check_shown(page, world, "rooms", "wide", 1)


SWIPE = """([from, to]) => {
  const touch = (x) => [new Touch({identifier: 1, target: document.body, clientX: x, clientY: 300})];
  const viewer = document.getElementById("viewer");
  viewer.dispatchEvent(new TouchEvent("touchstart", {changedTouches: touch(from)}));
  viewer.dispatchEvent(new TouchEvent("touchend", {changedTouches: touch(to)}));
}"""


def test_on_a_touch_screen_a_swipe_pages_and_a_tap_shows_the_truth(browser, world):
    context = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True)
    page = Seen(context.new_page()).open(world, "pictures.html", "#rooms/top/2")
    check_shown(page, world, "rooms", "top", 1)
    page.evaluate(SWIPE, [300, 100])
    check_shown(page, world, "rooms", "top", 2)
    page.evaluate(SWIPE, [100, 300])
    page.evaluate(SWIPE, [100, 130])
    check_shown(page, world, "rooms", "top", 1)
    tile = page.locator(".tile[data-method=ddnm] .pic")
    tile.tap()
    expect(tile).to_have_attribute("aria-pressed", "true")
    assert looks_like(tile, world.images["rooms"][1])
    tile.tap()
    expect(tile).to_have_attribute("aria-pressed", "false")
    assert looks_like(tile, expected(world, "rooms", "top", 1, "ddnm"))
    context.close()


def looks_like(tile: Locator, image: NDArray[np.uint8]) -> bool:
    """Whether the screen shows an image in the place of a tile: in the middle of each of its pixels, corners apart."""
    shown = np.asarray(Image.open(io.BytesIO(tile.screenshot())).convert("RGB"), float)
    rows, columns = (((np.arange(len(image)) + 0.5) * size / len(image)).astype(int) for size in shown.shape[:2])
    return bool(np.abs(shown[rows][:, columns] - image)[1:-1, 1:-1].mean() < 4)


def test_truth_and_input_take_the_place_of_results(seen, world):
    page = seen.open(world, "pictures.html", "#faces/left/2")
    tile, truth = page.locator(".tile[data-method=copaint] .pic"), world.images["faces"][1]
    result = expected(world, "faces", "left", 1, "copaint")
    assert not np.allclose(result, truth, atol=20)
    assert looks_like(tile, result)
    choose(page, "shows", "truth")
    assert looks_like(tile, truth)
    page.keyboard.press("i")
    assert not looks_like(tile, truth)
    half = np.asarray(Image.open(io.BytesIO(tile.screenshot())).convert("RGB"), float)
    assert (
        half[:, -len(half) // 3 :].std(axis=2).mean() < 6 < half[:, : len(half) // 3].std(axis=2).mean()
    )  # grey hatching
    page.keyboard.press("r")
    assert looks_like(tile, result)
    tile.hover()
    assert looks_like(tile, truth)


def test_all_images_and_all_masks_are_seen_at_once(seen, world):
    page = seen.open(world, "pictures.html", "#rooms/wide/3")
    choose(page, "rows", "all images")
    shown = page.locator(".line").evaluate_all("lines => lines.map(line => [line.dataset.image, line.dataset.mask])")
    assert shown == [[key, "wide"] for key in world.keys[:4]]
    assert page.get_by_role("button", name="Next image").is_disabled()
    choose(page, "rows", "all masks")
    shown = page.locator(".line").evaluate_all("lines => lines.map(line => [line.dataset.image, line.dataset.mask])")
    assert shown == [[world.keys[2], mask] for mask in MASKS]
    last = page.locator(".line").last.locator(".tile[data-method=tiramisu] img.result").get_attribute("src")
    np.testing.assert_array_equal(pixels(last), expected(world, "rooms", "wide", 2, "tiramisu"))


def test_pictures_may_be_smoothed(seen, world):
    page = seen.open(world, "pictures.html")
    style = "getComputedStyle(document.querySelector('.tile img.result')).imageRendering"
    assert page.evaluate(style) == "pixelated"
    page.get_by_label("Smooth").check()
    assert page.evaluate(style) == "auto"


def test_the_map_of_settings_leads_to_their_pictures(seen, world):
    page = seen.open(world, "index.html")
    page.locator(".map tbody tr").nth(2).locator("a").nth(1).click()
    check_shown(page, world, "rooms", "expand1", 0)


def test_an_address_of_what_is_not_there_shows_what_is(seen, world):
    page = seen.open(world, "pictures.html", "#cats/%E0/77")
    assert page.locator("#viewer").get_attribute("data-dataset") == "faces"
    assert "image 4 of 4" in page.locator("#where").inner_text()
    assert seen.said == []


def test_the_first_page_shows_another_metric_and_the_truth_in_place(seen, world):
    page = seen.open(world, "index.html")
    assert page.locator("[data-metric=psnr] table").first.is_hidden()
    page.get_by_label("Metric").select_option("psnr")
    assert page.locator("[data-metric=psnr] table").first.is_visible()
    assert page.locator("[data-metric=lpips] table").first.is_hidden()
    tile = page.locator("#look button.pic").first
    assert looks_like(tile, expected(world, "faces", "left", 0, "ddnm"))
    tile.click()
    page.mouse.move(0, 0)
    assert looks_like(tile, world.images["faces"][0])


def test_names_are_texts(seen, bare):
    page = seen.open(bare, "pictures.html")
    page.keyboard.press("ArrowRight")
    assert page.locator("#where").inner_text().endswith("image 2 of 4, <script>1")
    assert seen.said == []


def test_without_scripts_all_tables_are_seen(browser, world):
    context = browser.new_context(viewport=DESKTOP, java_script_enabled=False)
    page = Seen(context.new_page()).open(world, "index.html")
    assert page.locator("[data-metric=psnr] table").first.is_visible()
    page = Seen(context.new_page()).open(world, "pictures.html")
    assert page.locator("noscript p").is_visible()
    context.close()


def test_in_print_there_are_no_controls_and_nothing_is_folded(seen, world):
    page = seen.open(world, "index.html")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("nav").is_hidden()
    assert page.locator("select").is_hidden()
    assert page.locator(".differences table").first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_the_screenshots_of_the_documentation_can_be_taken(browser, world, tmp_path):
    for name, pages in SHOTS.items():
        shots = [take(browser, world.out, page.format(dataset="faces", mask="expand1"), *size) for page, *size in pages]
        save(beside(shots), tmp_path / f"{name}.png")
        assert 5_000 < (tmp_path / f"{name}.png").stat().st_size < 300_000
    with Image.open(tmp_path / "report_phone.png") as phone:
        assert phone.size == (3 * 390 + 2 * 24, 844)
