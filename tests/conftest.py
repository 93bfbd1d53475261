"""Settings and fixtures for all tests."""

import json
import logging
import os
import runpy
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs a hub must fail, not wait

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# Far above what any test takes, also beside other work: who waits for a process that never comes must end.
_LIMIT_S, _SLOW_LIMIT_S = 900, 2700


@pytest.fixture(autouse=True)
def fresh_logger() -> None:
    """Let each test set up the logger again, whatever level an earlier one gave it."""
    logger = logging.getLogger("opensora")
    logger.handlers.clear()
    logger.disabled, logger.propagate = False, True
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def repo_files() -> list[str]:
    """Return the files of the repository as relative paths."""
    return runpy.run_path(str(ROOT / "docs/tree.py"))["repo_files"](ROOT)


@pytest.fixture(scope="session")
def complain() -> Callable[[list[str]], None]:
    """Return a function that fails with a list of findings, if there are any."""

    def fail(findings: list[str]) -> None:
        if findings:
            pytest.fail("\n".join(findings), pytrace=False)

    return fail


class LanguageModel(ThreadingHTTPServer):
    """Speaks OpenAI's protocol: gives what is in `answers`, one after the other, and keeps what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.url = f"http://127.0.0.1:{self.server_port}/v1/"
        self.answers, self.asked, self.headers = [], [], []


class _Answering(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, json.loads(body)))
        self.server.headers.append(dict(self.headers))
        answer = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        if callable(answer):
            return answer(self)
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def language_model() -> Iterator[LanguageModel]:
    """Start a server on this machine that stands in for a language model's."""
    server = LanguageModel()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is none, and end those that hang."""
    for item in items:
        limit = _SLOW_LIMIT_S if item.get_closest_marker("slow") else _LIMIT_S
        item.add_marker(pytest.mark.timeout(limit, method="signal"))
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
