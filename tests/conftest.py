"""Settings and fixtures for all tests."""

import logging
import os
import runpy
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs a hub must fail, not wait

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is none."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
