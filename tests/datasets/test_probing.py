"""Probing many files: what is remembered, and for how long."""

import os
from pathlib import Path

import pytest

from opensora.datasets import probing
from opensora.datasets.probing import ProbeMemory, probe_files
from opensora.datasets.video_io import ClipError, ClipInfo


@pytest.fixture
def probed(monkeypatch):
    """Return the list of files that are really probed."""
    found, real = [], probing.probe

    def count(path):
        found.append(path)
        return real(path)

    monkeypatch.setattr(probing, "probe", count)
    return found


def run(paths: list[str], file: Path | None) -> list[ClipInfo | ClipError]:
    return [result for results in probe_files(paths, 2, ProbeMemory(file)) for result in results]


def test_only_what_is_new_or_changed_is_probed(tmp_path, write_clip, write_picture, probed, monkeypatch):
    monkeypatch.setattr(probing, "_ROUND", 2)
    paths = [write_clip(), write_picture(), write_clip("b.mp4", num_frames=7), str(tmp_path / "none.mp4")]
    memory = tmp_path / "cache/memory.bin"
    first = run(paths, memory)
    assert [result.num_frames for result in first[:3]] == [30, 1, 7] and isinstance(first[3], ClipError)
    assert sorted(probed) == sorted(paths)
    probed.clear()
    assert run(paths, memory)[:3] == first[:3]
    assert probed == paths[3:]  # why it cannot be read is asked anew
    write_clip("b.mp4", num_frames=8)
    os.utime(paths[1], (1, 1))
    probed.clear()
    again = run(paths[:3], memory)
    assert sorted(probed) == sorted(paths[1:3]) and again[2].num_frames == 8


def test_half_a_record_is_no_harm(tmp_path, write_clip, write_picture, probed):
    memory = tmp_path / "memory.bin"
    paths = [write_clip(), write_picture()]
    run(paths[:1], memory)
    with open(memory, "ab") as file:
        file.write(b"torn")
    first = run(paths, memory)
    probed.clear()
    assert run(paths, memory) == first and probed == []


def test_progress_says_rate_and_time_left(write_clip, monkeypatch, caplog):
    monkeypatch.setattr(probing, "_SECONDS", 0.0)
    monkeypatch.setattr(probing, "_ROUND", 1)
    with caplog.at_level("INFO", logger="opensora"):
        run([write_clip()] * 2, None)
    assert "probed 1 of 2 files" in caplog.text and "s left" in caplog.text
