"""Which references may be read: paths, and addresses on a local server."""

import io
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from opensora.engine import reference_files
from opensora.engine.guides import make_guide
from opensora.engine.reference_files import ReferenceFiles

RULES = {"folders": None, "urls": True, "hosts": ["127.0.0.1"], "megabytes": 0.05, "seconds": 5}
AWAY = {
    "/away.png": "http://10.0.0.1/secret.png",
    "/file.png": "file:///etc/passwd",
    "/again.png": "/again.png",
    "/moved.png": "/a%20b.png?size=1",
}


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), (200, 30, 60)).save(buffer, "PNG")
    return buffer.getvalue()


class Server(BaseHTTPRequestHandler):
    """Images, and what should not be taken for them."""

    seen: list[str] = []

    def do_GET(self):
        self.seen.append(self.path)
        path = self.path.partition("?")[0]
        if path in AWAY:
            self.send_response(302)
            self.send_header("Location", AWAY[path])
            self.end_headers()
            return
        self.send_response(404 if path == "/none.png" else 200)
        kinds = {"/page.png": "text/html", "/named": "image/png", "/clip.png": "video/mp4"}
        self.send_header("Content-Type", kinds[path] if path in kinds else "image/png")
        self.end_headers()
        try:
            if path == "/slow.png":
                for _ in range(40):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.05)
            self.wfile.write(picture() + bytes(100_000 if path == "/big.png" else 0))
        except OSError:
            pass

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_an_image_is_fetched_once(address, tmp_path):
    files = ReferenceFiles(RULES, tmp_path)
    first = files.find(f"{address}/a.png")
    assert open(first, "rb").read() == picture() and first.endswith(".png")
    count = len(Server.seen)
    assert files.find(f"{address}/a.png") == first and len(Server.seen) == count
    assert files.find(f"{address}/named").endswith(".png")
    files.find(f"{address}/moved.png")
    assert Server.seen[-1] == "/a%20b.png?size=1"
    guide = files.localize(make_guide(f"{address}/a.png", f"0; keep {address}/named at end", None))
    assert guide.references == (first,) and guide.entries[1].path.startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "rules", "said"),
    [
        ("/a.png", {"urls": False}, "not fetched; get the file, or --references.urls True"),
        ("/a.png", {"hosts": []}, "'127.0.0.1' is a private address"),
        ("/a.png", {"hosts": ["images.example"]}, "'127.0.0.1' is not one of references.hosts"),
        ("/away.png", {}, "'10.0.0.1' is not one of references.hosts"),
        ("/file.png", {}, "leads to 'file:///etc/passwd'; only http and https"),
        ("/again.png", {}, "more than 3 redirects"),
        ("/page.png", {}, "it is text/html; expected an image or a video"),
        ("/clip.png", {}, "it is video/mp4; expected an image or a video"),
        ("/big.png", {}, "more than references.megabytes=0.05"),
        ("/slow.png", {"seconds": 0.3}, "not here within 0.3 seconds"),
        ("/none.png", {}, "the server answers 404"),
    ],
)
def test_what_is_not_fetched(address, tmp_path, path, rules, said):
    with pytest.raises(ValueError, match=said):
        ReferenceFiles({**RULES, **rules}, tmp_path).find(address + path)


def test_hosts_with_private_addresses_are_refused_also_behind_redirects(address, tmp_path, monkeypatch):
    files = ReferenceFiles({**RULES, "hosts": []}, tmp_path)
    for host in ("localhost", "127.1", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "0.0.0.0"):
        with pytest.raises(ValueError, match="is a private address"):
            files.find(f"http://{host}/a.png")
    with pytest.raises(ValueError, match="without a user's name"):
        files.find("http://me:secret@127.0.0.1/a.png")
    monkeypatch.setattr(reference_files, "_is_public", lambda text: text == "127.0.0.1")
    assert files.find(f"{address}/a.png")
    with pytest.raises(ValueError, match="'10.0.0.1' is a private address"):
        files.find(f"{address}/away.png")


def test_paths(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "notes.txt").write_text("x")
    files = ReferenceFiles({**RULES, "folders": [str(tmp_path)]}, tmp_path)
    assert files.find(str(tmp_path / "sub/../a.png")) == str(tmp_path / "a.png")
    with pytest.raises(ValueError, match="neither an image nor a video"):
        files.find(str(tmp_path / "notes.txt"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        files.find(str(tmp_path / "b.png"))
    with pytest.raises(ValueError, match="outside of references.folders"):
        files.find("/etc/passwd")
    with pytest.raises(ValueError, match="no path of a file"):
        files.find("a\0.png")
