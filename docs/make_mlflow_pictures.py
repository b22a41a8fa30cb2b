"""Photograph MLflow's pages for docs/mlflow.md: python docs/make_mlflow_pictures.py, in the folder of a finished run.

Serves the runs as `make ui` does, which `make track` must have shown, looks at them with Chromium and writes
docs/images/mlflow_*.png beside this file. Needs the extra `dev` and Chromium at CHROMIUM.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from mlflow import MlflowClient
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
PORT, PATIENCE = 5099, 120_000  # milliseconds; the first page loads megabytes of JavaScript
COLORS = 256  # of a picture
TARGET = Path(__file__).parent / "images"


@contextmanager
def serving() -> Iterator[tuple[str, str]]:
    """Run `make ui`; yield the server's address and the id of the experiment."""
    command = [sys.executable, "-m", "stages.ui", "--port", str(PORT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            links = (re.search(r"(http://\S+)/#/experiments/(\d+)/runs", line) for line in process.stdout)
            found = next(filter(None, links))
            yield found[1], found[2]
        finally:
            process.terminate()


class Camera:
    """A page of MLflow, and where its pictures go."""

    def __init__(self, page: Page, server: str, experiment: str) -> None:
        page.set_default_timeout(PATIENCE)
        self.page, self.server, self.experiment = page, server, experiment
        self.runs = f"#/experiments/{experiment}/runs?workflowType=machine_learning"

    def open(self, path: str, text: str, *, width: int = 1400, height: int = 900) -> None:
        """Load a page and wait until it shows a text; close what covers it."""
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.goto("about:blank")
        self.page.goto(f"{self.server}/{path}")
        expect(self.page.get_by_text(text).first).to_be_visible(timeout=PATIENCE)
        self.page.wait_for_timeout(6000)
        while self.page.get_by_role("button", name="Close").count():  # news and the assistant
            self.page.get_by_role("button", name="Close").first.click()
            self.page.wait_for_timeout(1000)

    def search(self, question: str, text: str, view: str = "TABLE", **kept: int) -> None:
        """Load the list of runs that a search line finds."""
        self.open(f"{self.runs}&searchFilter={quote(question)}&compareRunsMode={view}", text, **kept)

    def compare(self, runs: list[str], metrics: list[str]) -> None:
        """Load the page that compares runs, with these metrics as axes of its parallel coordinates."""
        runs_and_experiments = f"runs={quote(json.dumps(runs))}&experiments={quote(json.dumps([self.experiment]))}"
        self.open(f"#/compare-runs?{runs_and_experiments}", "Parallel Coordinates")
        self.page.get_by_role("button", name="Clear All").click()
        self.page.get_by_role("combobox").nth(1).click()
        for name in metrics:
            choice = self.page.locator("[class*=select-item-option-content]").get_by_text(name, exact=True)
            while not choice.count():  # the list holds only what it shows
                self.page.keyboard.press("ArrowDown")
                self.page.wait_for_timeout(100)
            choice.click()
        self.page.keyboard.press("Escape")

    def columns(self, *names: str) -> None:
        """Show columns of the list, or hide those that show."""
        self.page.get_by_role("button", name="Columns").click()
        for name in names:
            self.page.get_by_text(name, exact=True).last.click()
        self.page.keyboard.press("Escape")

    def shoot(self, name: str) -> None:
        """Write a picture once the page has come to rest."""
        self.page.wait_for_timeout(5000)
        path = TARGET / f"mlflow_{name}.png"
        self.page.screenshot(path=path)
        Image.open(path).convert("RGB").quantize(COLORS).save(path, optimize=True)
        sys.stdout.write(f"{path}: {path.stat().st_size // 1000} kB\n")


def photograph(camera: Camera, rows: list[str], column: str) -> None:
    """Take all pictures; `rows` are ids of the runs that sum up a method, `column` the metric that decides."""
    left = "params.dataset = 'faces' and params.mask = 'left'"
    camera.search("params.method = 'copaint' and tags.mask = 'left'", "copaint left faces", height=520)
    camera.columns("Dataset", "Source", "Models", column, "place", "seconds_per_image")
    camera.shoot("search")
    camera.search("tags.kind = 'row'", f"{column}/faces", "CHART")
    camera.shoot("methods")
    camera.search(left, "faces-test-000000", "ARTIFACT", width=2000)
    camera.shoot("pictures")
    camera.compare(rows, [f"{column}/{dataset}" for dataset in ("faces", "objects", "rooms")] + ["seconds_per_image"])
    camera.shoot("compare")
    camera.open("#/models", "@ current", height=620)
    camera.shoot("models")


def main() -> None:
    """Serve, look, write."""
    with serving() as (server, experiment), sync_playwright() as playwright:
        found = MlflowClient(server).search_runs([experiment], "tags.kind = 'row'")
        column = next(name for name in ("lpips", "lpips_domain") if name in found[0].data.metrics)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        photograph(Camera(browser.new_page(), server, experiment), [run.info.run_id for run in found], column)


if __name__ == "__main__":
    main()
