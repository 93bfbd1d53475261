"""The demo, whole: it survives being killed, and it has learned its clips."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.dist
def test_the_demo_learns_its_clips(root, tmp_path):
    folder = tmp_path / "demo"
    command = [sys.executable, "scripts/demo.py", "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "== killed" in result.stdout and "continued from" in result.stdout
    figures = json.loads((folder / "demo.json").read_text())
    assert figures["of"] == 5
    own = [i for i, row in enumerate(figures["distances"]) if row[i] == min(row)]
    learned = [i for i in own if figures["over noise"][i] <= 0.5]
    assert len(learned) >= 4, figures
    for name in (
        "demo.png",
        "lab/sample_0000.mp4",
        "vae/loss.png",
        "stdit3/loss.png",
        "samples/sample_0000.mp4",
        "samples/sample_0000_sheet.png",
    ):
        assert (folder / name).stat().st_size > 0
