"""A short training on each of the other kinds of data: folders of clips, of frames, and lists of captions."""

import json
from pathlib import Path

import pytest
import torch

from opensora.datasets.video_io import write_image, write_video
from opensora.engine.tracker import read_log

FRAMES = 6


def captions(folder: Path) -> list[object]:
    """Write clips with captions beside them."""
    for number in range(2):
        write_video(torch.rand(3, FRAMES, 24, 32), folder / f"{number}.mp4", 8)
        (folder / f"{number}.txt").write_text(f"clip {number}")
    return ["--data-path", folder]


def classes(folder: Path) -> list[object]:
    """Write a folder per class."""
    for number, name in enumerate(("TennisSwing", "JumpRope")):
        write_video(torch.rand(3, FRAMES, 24, 32), folder / name / f"{number}.mp4", 8)
    return ["--data-path", folder, "--dataset.layout", "classes"]


def frames(folder: Path) -> list[object]:
    """Write a folder of frames per clip."""
    for number in range(2):
        for frame in range(FRAMES):
            write_image(torch.rand(3, 24, 32), folder / f"{number}" / f"{frame}.png")
        (folder / f"{number}.txt").write_text(f"clouds {number}")
    return ["--data-path", folder, "--dataset.layout", "frames"]


def listed(folder: Path) -> list[object]:
    """Write a list of captions beside a folder of videos."""
    captions(folder / "videos")
    rows = [{"path": f"{number}.mp4", "cap": [f"clip {number}", "other words"]} for number in range(2)]
    (folder / "captions.json").write_text(json.dumps(rows))
    words = ["--data-path", folder / "captions.json", "--dataset.root", folder / "videos"]
    return [*words, "--dataset.columns", "{'text': 'cap'}", "--dataset.probe", "True"]


@pytest.mark.parametrize("make", [captions, classes, frames, listed])
def test_training_runs_on(scripts, denoiser, make, tmp_path):
    data = make(tmp_path / "data")
    options = ["--max-steps", 1, "--dataset.cache", tmp_path / "cache", "--num-workers", 0, "--log-every", 1]
    scripts.here(*denoiser(tmp_path, *data, *options))
    losses = [line["loss"] for line in read_log(tmp_path / "run") if "loss" in line]
    assert len(losses) == 1 and 0 < losses[0] < 100


def test_readers_share_a_prepared_table(scripts, denoiser, table, tmp_path, monkeypatch):
    monkeypatch.setattr("opensora.datasets.manifest._LARGE", 0)
    monkeypatch.setattr("opensora.datasets.table_source._SETTLED", 0.0)
    options = ["--max-steps", 2, "--dataset.cache", tmp_path / "cache", "--num-workers", 1, "--log-every", 2]
    scripts.here(*denoiser(tmp_path / "mapped", *options))
    assert [path.name[:6] for path in (tmp_path / "cache").glob("table-*")] == ["table-"]
    monkeypatch.undo()
    options[3] = tmp_path / "none"
    scripts.here(*denoiser(tmp_path / "read", *options))
    mapped, read = (
        [line["loss"] for line in read_log(tmp_path / name / "run") if "loss" in line]
        for name in ("mapped", "read")
    )
    assert mapped == read and len(mapped) == 1 and not (tmp_path / "none").exists()
