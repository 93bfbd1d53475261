"""The page in a real browser: Debian's Chromium, headless, driven by Playwright.

Screenshots of each state go to the folder that PAGE_SHOTS names, or to a temporary one.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT_MS = 60_000

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def shots(tmp_path_factory) -> Path:
    folder = Path(os.environ.get("PAGE_SHOTS") or tmp_path_factory.mktemp("shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield started
        started.close()


@pytest.fixture
def visit(browser, served) -> Iterator[Any]:
    """Return a function that opens the page in a fresh session; `.outside` lists requests to other hosts."""
    contexts = []

    def open_page(width: int = 1280, height: int = 900, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.outside, page.errors = [], []
        own = (served.url, "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(own) else page.outside.append(r.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(served.url)
        page.wait_for_selector("#os-size p")  # the first look has come back
        return page

    yield open_page
    for context in contexts:
        context.close()


def make(page: Any, prompt: str) -> None:
    page.fill("#os-prompt textarea", prompt)
    page.click("#os-make")


def test_text_to_video(visit, served, shots):
    page = visit()
    page.screenshot(path=shots / "start.png", full_page=True)
    make(page, "a cat")
    page.wait_for_selector("#os-video video")
    page.wait_for_selector("#os-status .info")
    page.screenshot(path=shots / "video.png", full_page=True)
    assert "Done in" in page.inner_text("#os-status")
    assert page.outside == [] and page.errors == []
    assert len(list(served.output.glob("*_0000.mp4"))) == 1
