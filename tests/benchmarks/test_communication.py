"""The communication benchmark: what it counts is what a formula says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.communication import DEPTH, WIDTH

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.dist
def test_counts_are_those_of_the_formula():
    command = [sys.executable, "-m", "benchmarks", "communication", "--only", "communication/2x"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    blocks, tokens = 2 * DEPTH, 8 * 16 * 16
    part = tokens * WIDTH * 4 / 2 / 2 / 1024  # KiB: half of the tokens, half of them to the other process
    last = tokens * 8 * 4 * 4 / 2 / 1024  # 8 channels and 4 pixels of a patch, gathered
    expected = {
        "axis": (blocks - 1) * part,
        "ulysses": 4 * blocks * part,
        "gather_split": blocks / 2 * 2 * part,
    }
    for form in ("positions", "windows"):
        for way, sent in expected.items():
            line = found[f"communication/2x/{form}/even/forward/{way}"]
            # Ulysses cuts by rows: blocks whose windows lie in one half of the rows need no other process.
            share = {"positions": 1 / 2, "windows": 3 / 4}[form] if way == "ulysses" else 1
            assert line["value"] == pytest.approx((share * sent + last) / blocks, rel=1e-4)
        ratio = found[f"communication/2x/{form}/uneven/training/axis_over_ulysses"]
        assert ratio["ok"] and ratio["aim"] == "<= 0.5"
