"""The program around the page: flags, visitors, what is missing, and the template of a space."""

import asyncio
import re
import runpy
import subprocess
import sys

import pytest
from app import CONFIG, INSTALL, launch, parse, visitors
from walls import Walls


def test_flags(root):
    flags, rest = parse([])
    assert (flags.config, flags.host, flags.port, flags.share, rest) == (CONFIG, "127.0.0.1", 7860, False, [])
    assert (flags.queue_size, flags.output, flags.auth) == (5, "samples/page", None)
    words = ["my.py", "--port", "8000", "--host", "0.0.0.0", "--share", "--queue-size", "2", "--output", "o"]
    flags, rest = parse([*words, "--ckpt-path", "w", "--dtype", "fp32"])
    assert (flags.config, flags.port, flags.host, flags.share) == ("my.py", 8000, "0.0.0.0", True)
    assert (flags.queue_size, flags.output, rest) == (2, "o", ["--ckpt-path", "w", "--dtype", "fp32"])
    assert (root / CONFIG).is_file()


def test_visitors(tmp_path):
    file = tmp_path / "visitors"
    file.write_text("ann:a:b\n\nbob:c\n")
    assert visitors(file) == [("ann", "a:b"), ("bob", "c")]
    for text, said in (("ann\n", "line 1: write NAME:PASSWORD"), ("\n", "nobody is in it")):
        file.write_text(text)
        with pytest.raises(ValueError, match=said):
            visitors(file)
    with pytest.raises(FileNotFoundError, match="no such file"):
        visitors(tmp_path / "none")


def test_what_is_wrong_is_said_in_one_line(start, tmp_path):
    pytest.importorskip("gradio")
    for words, said in (
        (["--queue-size", "0"], "--queue-size 0: use a whole number from 1"),
        (["--output", f"{tmp_path}/a;b"], "without ';'"),
        (["--cheese", "1"], "'cheese' is not in the config"),
    ):
        with pytest.raises((ValueError, KeyError), match=said):
            launch([*start, "--output", str(tmp_path / "o"), *words], wait=False)


def test_without_gradio_the_page_says_what_to_install(root, tmp_path):
    hide = "import sys; sys.modules['gradio'] = None; sys.argv = ['app.py']; "
    run = "import runpy; runpy.run_path('gradio/app.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", hide + run], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and done.stderr == f"error: {INSTALL}\n"
    assert (root / INSTALL.split()[-1]).is_file()


def test_the_folder_hides_no_package(root):
    program = "import sys, importlib.util as i; sys.path.insert(0, 'gradio'); print(i.find_spec('gradio'))"
    pytest.importorskip("gradio")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120, check=True
    )
    assert "site-packages" in done.stdout
    taken = sys.stdlib_module_names | {"gradio", "torch", "opensora"}
    assert not taken & {path.stem for path in (root / "gradio").glob("*.py")}


def test_the_space(root, monkeypatch):
    space = root / "gradio/space"
    words = runpy.run_path(str(space / "app.py"))["words"]
    monkeypatch.setenv("OPENSORA_FLAGS", "--queue-size 9 --title 'My page'")
    monkeypatch.setenv("PORT", "9000")
    flags, rest = parse(words())
    assert (flags.port, flags.host, flags.queue_size, flags.title) == (9000, "0.0.0.0", 9, "My page")
    assert rest == ["--resolution", "360p"] and (root / flags.config).is_file()
    core = re.search(r"CORE = \[(.*?)\n\]", (root / "setup.py").read_text(), re.DOTALL)[1]
    listed = [line for line in (space / "requirements.txt").read_text().splitlines() if line[0] != "#"]
    assert listed == re.findall(r'"([\w.-]+[><=][^"]+)"', core)
    front = (space / "README.md").read_text().split("---")[1]
    pinned = (root / "requirements/requirements-gradio.txt").read_text()
    assert f"gradio=={re.search('sdk_version: (.*)', front)[1]}" in pinned and "app_file: app.py" in front


def answered(kind, parts):
    """Return start and body of what the walls make of an answer."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        for i, part in enumerate(parts):
            more = i < len(parts) - 1
            await send({"type": "http.response.body", "body": part, "more_body": more})

    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(Walls(app)({"type": "http"}, None, send))
    return dict(sent[0]["headers"]), b"".join(message.get("body", b"") for message in sent[1:])


def test_walls_cut_what_points_outside_and_nothing_else():
    page = b'<head><script src="https://cdn.example/a.js" async></script><script src="./own.js"></script>'
    page += b'<link rel="preconnect" href="https://fonts.example" /><link rel="x" href="./own.css"></head>'
    headers, body = answered(b"text/html; charset=utf-8", [page[:70], page[70:]])
    assert body == b'<head><script src="./own.js"></script><link rel="x" href="./own.css"></head>'
    assert headers[b"content-length"] == str(len(body)).encode()
    assert b"default-src 'self'" in headers[b"content-security-policy"]
    headers, body = answered(b"application/json", [page])
    assert body == page and headers[b"x-content-type-options"] == b"nosniff"
