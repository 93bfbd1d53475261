"""What tests of the loop share."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def toy() -> SimpleNamespace:
    """Return the small table, task and trainer of test_trainer.py; tests do not import each other."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "test_trainer.py")))
