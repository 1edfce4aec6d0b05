"""The pictures of docs/tutorial.md, taken of what its commands left: `make pictures`. They need Debian's chromium."""

from __future__ import annotations

import shutil
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tests.programs.stack import ROOT, embedded_server, gateway

CHROMIUM = shutil.which("chromium")
MODEL = "clothing"
PHOTO = "photos/validation/hat/d7c07f9f-8362-4abc-92aa-193221a7db5b.jpg"
WIDTH_PX, HEIGHT_PX = 1000, 800
REPORTS = {
    "explore": "reports/explore/explore.html",
    "training": f"runs/{MODEL}/*/report.html",
    "evaluation": "reports/evaluate/evaluation.html",
    "explain": "reports/explain/explain.html",
}


def take(work: Path, out: Path) -> None:
    """Write a picture of each report in a folder, and of the gateway's page with the answer to the tutorial's photo."""
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page(
            viewport={"width": WIDTH_PX, "height": HEIGHT_PX}, color_scheme="light", reduced_motion="reduce"
        )
        for name, pattern in REPORTS.items():
            page.goto(min(work.glob(pattern)).resolve().as_uri())
            _save(page, out / f"{name}.webp")
        with (
            embedded_server(work.resolve() / "model-store", name=MODEL) as address,
            gateway(address, name=MODEL) as running,
        ):
            page.goto(f"http://127.0.0.1:{running.port}/")
            page.set_input_files("#file", work / PHOTO)
            page.wait_for_selector("#result:not([hidden])")
            _save(page, out / "page.webp")
        browser.close()


def _save(page: Page, path: Path) -> None:
    Image.open(BytesIO(page.screenshot())).save(path, quality=80, method=6)


if __name__ == "__main__":
    if not CHROMIUM:
        sys.exit("Install Chromium first: apt-get install chromium")
    take(ROOT, ROOT / "docs" / "pictures")
