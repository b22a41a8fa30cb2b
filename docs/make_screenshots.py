"""Take docs/images/report*.png of a finished report: python docs/make_screenshots.py [profile].

Needs playwright and a Chromium; nothing is served, the pages are opened from disk.
"""

import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
IMAGES = Path("docs", "images")
LARGEST = 300_000  # bytes of a picture
GAP = 24  # pixels between pictures side by side
SHOTS: dict[str, list[tuple[str, int, int]]] = {
    "report": [("index.html", 1280, 1180)],
    "report_pictures": [("pictures.html#{dataset}/{mask}/1", 1280, 860)],
    "report_circuit": [("circuit.html#completions", 1280, 1100)],
    "report_phone": [
        ("index.html", 390, 844),
        ("index.html#look", 390, 844),
        ("pictures.html#{dataset}/{mask}/1", 390, 844),
    ],
}
"""Pictures by name: pages side by side, each with width and height."""


def find_browser() -> str | None:
    """The path of a Chromium on this machine, or of playwright's own."""
    with sync_playwright() as play:
        own = Path(play.chromium.executable_path)
    return next((path for path in map(shutil.which, BROWSERS) if path), str(own) if own.is_file() else None)


@contextmanager
def open_browser(path: str) -> Iterator[Browser]:
    """Start the browser, headless."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def take(browser: Browser, report: Path, address: str, width: int, height: int) -> Image.Image:
    """Show a page of the report and take what is seen."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light", reduced_motion="reduce")
    page.goto(f"{report.absolute().as_uri()}/{address}")
    shown = Image.open(io.BytesIO(page.screenshot()))
    page.close()
    return shown.convert("RGB")


def beside(pictures: list[Image.Image]) -> Image.Image:
    """Put pictures side by side."""
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    sheet = Image.new(
        "RGB", (width, max(picture.height for picture in pictures)), "#d5d8dc" if len(pictures) > 1 else 0
    )
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    return sheet


def save(picture: Image.Image, path: Path) -> None:
    """Write as PNG, with fewer colours if it would become too large."""
    for colors in (None, 256, 128, 64):
        picture = picture if colors is None else picture.quantize(colors, dither=Image.Dither.NONE)
        picture.save(path, optimize=True)
        if path.stat().st_size <= LARGEST:
            return


def main(report: Path, images: Path) -> None:
    """Take all pictures of a report."""
    path = find_browser()
    if path is None:
        sys.exit(f"No browser: none of {', '.join(BROWSERS)} is on the PATH, and playwright has none of its own.")
    if not (report / "index.html").is_file():
        sys.exit(f"{report / 'index.html'} is missing; run the pipeline with that profile first: make repro.")
    images.mkdir(parents=True, exist_ok=True)
    place = {"dataset": "faces", "mask": "expand1"}
    with open_browser(path) as browser:
        for name, pages in SHOTS.items():
            shots = [take(browser, report, address.format(**place), width, height) for address, width, height in pages]
            save(beside(shots), images / f"{name}.png")


if __name__ == "__main__":
    main(Path("reports", sys.argv[1] if len(sys.argv) > 1 else "embedded"), IMAGES)
