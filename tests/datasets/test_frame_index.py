"""The index of a file: exact, cached, bounded; and what happens when it does not fit the file."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import numpy as np
import pytest

from opensora.datasets import frame_index
from opensora.datasets.reading import ClipError, Deadline
from opensora.datasets.video_io import probe, read_clip

B_FRAMES = {"bf": "2", "preset": "veryfast"}


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(frame_index, "_cache", frame_index._Cache())


@pytest.fixture
def change_index(monkeypatch):
    """Return a function that makes every index from now on another one."""

    def change(edit):
        make = frame_index._make_index
        monkeypatch.setattr(frame_index, "_make_index", lambda *arguments: edit(make(*arguments)))

    return change


def numbers(frames, read_number):
    return [read_number(frame) for frame in frames.numpy()]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.mov"])
@pytest.mark.parametrize("fps", [24, 25])
def test_times_keys_and_rate_are_those_of_a_decoder(write_clip, name, fps):
    path = write_clip(name, num_frames=40, gop=8, fps=fps, options=B_FRAMES)
    index = frame_index.frame_index(path, Deadline(path, 60))
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert index.fps == pytest.approx(float(stream.average_rate))
        assert index.time_base == stream.time_base
        frames = list(container.decode(stream))
    assert index.exact
    assert index.pts.tolist() == [frame.pts for frame in frames]
    assert index.keys == [i for i, frame in enumerate(frames) if frame.key_frame] == list(range(0, 40, 8))


def test_files_without_times_are_counted(write_clip, read_number, change_index):
    path = write_clip(num_frames=30)
    change_index(lambda index: dataclasses.replace(index, keys=[], exact=False))
    assert probe(path).num_frames == 30
    assert numbers(read_clip(path, [3, 21]), read_number) == [3, 21]
    with pytest.raises(ClipError, match="frame 30 was asked, the file has 30"):
        read_clip(path, [30])


@pytest.mark.parametrize(
    "edit",
    [
        lambda index: dict(pts=index.pts + 1),
        lambda index: dict(keys=[key + 3 for key in index.keys]),
        lambda index: dict(pts=np.append(index.pts[:-1], index.pts[-1] + 10**6)),
    ],
    ids=["times that never come", "keys that are none", "a last frame that is not there"],
)
def test_an_index_that_lies_falls_back(write_clip, read_number, change_index, edit):
    """Wrong entries lead to decoding from the start, not to wrong frames."""
    path = write_clip(num_frames=30, gop=10, options=B_FRAMES)
    change_index(lambda index: dataclasses.replace(index, **edit(index)))
    for wanted in ([3, 21], [29], [14, 15]):
        assert numbers(read_clip(path, wanted), read_number) == wanted


def test_index_is_cached_and_bounded(write_clip, monkeypatch):
    made = []
    make = frame_index._make_index
    monkeypatch.setattr(
        frame_index, "_make_index", lambda path, deadline: made.append(path) or make(path, deadline)
    )
    path = write_clip(num_frames=20)
    for _ in range(3):
        read_clip(path, [1])
    assert len(made) == 1
    write_clip(num_frames=25)  # the same path, another file
    assert probe(path).num_frames == 25
    monkeypatch.setattr(frame_index, "_CACHED_FRAMES", 2 * (20 + frame_index._WORTH))
    for i in range(5):
        probe(write_clip(f"{i}.mp4", num_frames=20))
    assert len(frame_index._cache._indices) == 2


def test_threads_share_the_cache(monkeypatch):
    monkeypatch.setattr(frame_index, "_CACHED_FRAMES", 20 * (3 + frame_index._WORTH))
    cache = frame_index._Cache()

    def use(thread):
        for i in range(3000):
            key = (f"{i % 60}", thread, 0)
            if cache.get(key) is None:
                cache.put(key, frame_index.FrameIndex(np.arange(3), [0], True, 24.0, Fraction(1, 24)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    assert len(cache._indices) == 20 and cache._size == 20 * (3 + frame_index._WORTH)


def test_a_file_with_too_many_frames_is_no_clip(write_clip, monkeypatch):
    monkeypatch.setattr(frame_index, "_MOST_FRAMES", 15)
    with pytest.raises(ClipError, match="more than 15 frames"):
        read_clip(write_clip(num_frames=20), [0])
