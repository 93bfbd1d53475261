"""Clips and tables for the tools."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def make_clip(here) -> Callable[..., str]:
    """Return a function that writes a clip or image of noise below the folder, and gives its path."""

    def make(name: str, num_frames: int = 20, height: int = 48, width: int = 64) -> str:
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = np.random.default_rng(len(name)).integers(0, 255, (num_frames, height, width, 3), np.uint8)
        if not name.endswith(".mp4"):
            Image.fromarray(frames[0]).save(path)
            return name
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return name

    return make


@pytest.fixture
def run_tool(monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """Return a function that runs a tool as `python -m` does, and gives its status and what it printed."""

    def run(module: str, *words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [module, *map(str, words)])
        status = 0
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as end:
            status = int(end.code or 0)
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run
