"""The page in a real browser: Debian's Chromium, headless, driven by Playwright.

Screenshots of each state go to the folder that PAGE_SHOTS names, or to a temporary one.
"""

import http.client
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import Job
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT_MS = 90_000

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


def settle(page: Any, text: str) -> None:
    """Wait until the page says how a job ended."""
    page.wait_for_function(
        "text => document.querySelector('#os-status')?.innerText.includes(text)", arg=text, timeout=WAIT_MS
    )


def choose_mode(page: Any, label: str) -> None:
    page.click("#os-mode input")
    page.click(f"ul[role=listbox] li:has-text('{label}')")


def set_number(page: Any, name: str, value: int) -> None:
    page.click("button:has-text('Advanced')") if not page.is_visible(f"#os-{name} input") else None
    field = page.locator(f"#os-{name} input[type=number]")
    field.fill(str(value))
    field.press("Enter")


def test_image_to_video_and_a_wrong_upload(visit, served, shots, tmp_path):
    picture, wrong, large = tmp_path / "sea.png", tmp_path / "notes.txt", tmp_path / "large.png"
    Image.effect_noise((96, 64), 80).convert("RGB").save(picture)
    wrong.write_text("no picture")
    large.write_bytes(b"0" * 1_500_000)
    page = visit()
    choose_mode(page, "Start with an image")
    page.wait_for_selector("#os-film .os-film i")
    page.fill("#os-prompt textarea", "waves")
    page.click("#os-make")
    page.wait_for_selector("#os-note-frames .error")
    assert "First frame: choose an image" in page.inner_text("#os-note-frames")
    page.set_input_files("#os-first input[type=file]", wrong)
    page.wait_for_function("document.querySelector('#os-note-frames').innerText.includes('notes.txt')")
    assert "is neither an image nor a video" in page.inner_text("#os-note-frames")
    page.screenshot(path=shots / "wrong_upload.png", full_page=True)
    page.click("#os-first button[aria-label='Clear']")
    page.wait_for_selector("#os-first input[type=file]", state="attached")
    page.set_input_files("#os-first input[type=file]", picture)
    page.wait_for_selector("#os-film img")
    page.screenshot(path=shots / "given_frames.png", full_page=True)
    page.click("#os-make")
    page.wait_for_selector("#os-video video")
    settle(page, "Done in")
    page.screenshot(path=shots / "image_to_video.png", full_page=True)
    kept = list((served.output / "uploads").glob("*.png"))
    assert len(kept) == 1 and kept[0].read_bytes() == picture.read_bytes()
    page.click("#os-first button[aria-label='Clear']")
    page.wait_for_selector("#os-first input[type=file]", state="attached")
    page.set_input_files("#os-first input[type=file]", large)  # more than --upload-mb
    page.wait_for_function("document.querySelector('#os-note-frames').innerText.includes('at most 1 MB')")
    assert page.errors == []


def test_a_cancelled_job_two_jobs_and_a_reload(visit, served, shots, monkeypatch):
    listen = Job.listen

    def slowly(job: Job, stage: str, done: int, total: int) -> None:
        time.sleep(0.2 if job.prompt == "a long wait" and stage == "sampling" else 0)
        listen(job, stage, done, total)

    monkeypatch.setattr(Job, "listen", slowly)
    page, other = visit(), visit()
    set_number(page, "steps", 200)
    make(page, "a long wait")
    page.wait_for_selector(".os-preview")
    page.screenshot(path=shots / "running.png", full_page=True)
    make(other, "a dog")
    other.wait_for_function("document.querySelector('#os-status').innerText.includes('1 job before it')")
    other.screenshot(path=shots / "queue.png", full_page=True)
    page.reload()
    page.wait_for_selector(".os-job:has-text('step')")
    page.screenshot(path=shots / "reloaded.png", full_page=True)
    (running,) = [job for job in served.studio.jobs.of(served.studio.jobs._all[-2].owner)]
    assert running.state == "running" and running.done < 190
    page.click("#os-cancel")
    settle(page, "Cancelled")
    page.screenshot(path=shots / "cancelled.png", full_page=True)
    assert running.state == "cancelled" and running.paths == []
    assert not list(served.output.glob(f"{running.name}*"))
    other.wait_for_selector("#os-video video")  # the second job had its turn
    settle(other, "Done in")
    assert not page.is_visible("#os-video video")  # sessions see their own files only
    other.reload()
    other.wait_for_selector("#os-video video")
    assert page.errors == other.errors == [] and other.outside == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light"), (390, "dark")])
def test_dark_and_on_a_phone(visit, shots, width, scheme):
    page = visit(width, 844, color_scheme=scheme)
    make(page, "")
    page.wait_for_selector("#os-note-prompt .error")
    page.screenshot(path=shots / f"{scheme}_{width}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(map(int, background[4:-1].split(",")[:3])) < 200
    assert dark == (scheme == "dark")
    assert page.locator("#os-make").bounding_box()["y"] < page.locator("#os-result").bounding_box()["y"] or (
        width > 860
    )
    page.click("#os-theme")
    page.wait_for_function("was => getComputedStyle(document.body).backgroundColor != was", arg=background)


def test_an_image_becomes_the_first_frame(visit, shots):
    page = visit()
    page.fill("#os-prompt textarea", "a bird")
    page.click("#os-draw")
    page.wait_for_selector("#os-image img")
    page.wait_for_selector("#os-film img")
    page.screenshot(path=shots / "image.png", full_page=True)
    assert page.input_value("#os-mode input") == "Start with an image"
    page.click("button:has-text('Command line')")
    page.wait_for_selector("#os-command")
    assert "--num-frames=1" in page.inner_text("#os-command")


def test_files_of_the_machine_stay_closed(served, root):
    def status(path: str) -> int:
        connection = http.client.HTTPConnection(served.url[7:-1], timeout=20)
        connection.request("GET", path)  # as it stands: no client tidies it up
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status

    mine = next(served.output.glob("*.mp4"))
    assert status(f"/gradio_api/file={mine}") == 200
    for path in (
        str(root / "README.md"),
        f"{served.output}/../../{served.output.parent.name}/../x",
        f"{served.output}/../../../../../../../../etc/hostname",
        f"{served.output}/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/hostname",
        "/etc/hostname",
        "file:///etc/hostname",
        str(root / "gradio/app.py"),
    ):
        assert status(f"/gradio_api/file={path}") in (403, 404), path
    link = served.output / "link.txt"
    link.symlink_to("/etc/hostname")
    assert status(f"/gradio_api/file={link}") in (403, 404)
    link.unlink()


def test_much_too_large_uploads_are_cut_off(served):
    boundary = "b0undary"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
    body = head.encode() + b"0" * 3_000_000 + f"\r\n--{boundary}--\r\n".encode()
    connection = http.client.HTTPConnection(served.url[7:-1], timeout=20)
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    connection.request("POST", "/gradio_api/upload", body, kind)
    assert connection.getresponse().status == 413
    assert not any(path.stat().st_size > 2_500_000 for path in served.output.rglob("*") if path.is_file())


def test_the_page_tells_browsers_to_stay(served):
    connection = http.client.HTTPConnection(served.url[7:-1], timeout=20)
    connection.request("GET", "/")
    answer = connection.getresponse()
    body = answer.read().decode()
    assert "default-src 'self'" in answer.getheader("content-security-policy")
    assert not re.findall(r"<(?:script|link)[^>]*https?://", body)
    assert served.studio.maker.folders[0] in str(served.output / "uploads")
