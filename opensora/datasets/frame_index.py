"""Frame index: which frame of a file is shown when, and where decoding can start."""

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from opensora.datasets.reading import Deadline, open_video, video_stream

UNKNOWN_FPS = 24.0  # of a file that does not say

_CACHED_FRAMES = 1 << 20  # the indices that a process keeps, in frames of 8 bytes each
_WORTH = 128  # frames: what an index takes besides them
_MOST_FRAMES = 1 << 23  # of a file: three days of video; more is no clip


@dataclass(frozen=True)
class FrameIndex:
    """Presentation times of a file.

    Args:
        pts: Times of all frames in order of presentation. int64, shape [T].
        keys: Positions in `pts` where decoding can start.
        exact: Whether `pts` names every frame; else frames are only countable by decoding from the start.
        fps: Average frames per second.
        time_base: Seconds of one unit of `pts`.
    """

    pts: np.ndarray
    keys: list[int]
    exact: bool
    fps: float
    time_base: Fraction


class _Cache:
    """The indices that were used last, as many as fit. Threads share it: tables are probed by several."""

    def __init__(self) -> None:
        self._indices: OrderedDict[tuple[str, int, int], FrameIndex] = OrderedDict()
        self._lock = threading.Lock()
        self._size = 0

    def get(self, key: tuple[str, int, int]) -> FrameIndex | None:
        with self._lock:
            if key not in self._indices:
                return None
            self._indices.move_to_end(key)
            return self._indices[key]

    def put(self, key: tuple[str, int, int], index: FrameIndex) -> None:
        with self._lock:
            if key not in self._indices:
                self._indices[key] = index
                self._size += len(index.pts) + _WORTH
            while len(self._indices) > 1 and self._size > _CACHED_FRAMES:
                self._size -= len(self._indices.popitem(last=False)[1].pts) + _WORTH


_cache = _Cache()


def frame_index(path: str, deadline: Deadline) -> FrameIndex:
    """Return the index of a file, from the cache if the file has not changed. Nothing is decoded.

    Raises:
        ValueError: The file has no frames.
    """
    status = os.stat(path)
    key = (path, status.st_mtime_ns, status.st_size)
    index = _cache.get(key)
    if index is None:
        index = _make_index(path, deadline)
        _cache.put(key, index)
    return index


def _make_index(path: str, deadline: Deadline) -> FrameIndex:
    times, keys, exact = [], [], True
    with open_video(path, deadline, analyse=False) as container:
        stream = video_stream(container)
        fps = float(stream.average_rate or stream.guessed_rate or UNKNOWN_FPS)
        for packet in container.demux(stream):
            deadline.check()
            if packet.size == 0 or packet.is_discard:  # the end, and frames that the file says to skip
                continue
            exact = exact and packet.pts is not None
            times.append(packet.pts or 0)
            if packet.is_keyframe:
                keys.append(packet.pts or 0)
            if len(times) > _MOST_FRAMES:
                raise ValueError(f"it has more than {_MOST_FRAMES} frames")
        time_base = stream.time_base
    if not times:
        raise ValueError("it has no frames")
    exact = exact and bool(keys) and len(set(times)) == len(times)
    pts = np.array(sorted(times), dtype=np.int64)
    positions = np.searchsorted(pts, sorted(keys)).tolist() if exact else []
    return FrameIndex(pts, positions, exact, fps, time_base)
