"""Sizes and lengths of many files, read from the files themselves and remembered for the next time."""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from opensora.datasets.reading import ClipError
from opensora.datasets.video_io import ClipInfo, probe
from opensora.utils.logging import get_logger

# What is remembered of a file: which file in which state, and what it said. All zeros: it could not be read.
_RECORD = np.dtype(
    [("key", "S16"), ("num_frames", "<i4"), ("height", "<i4"), ("width", "<i4"), ("fps", "<f4")]
)
_ROUND = 256  # files between two writes, and between two looks at the clock
_SECONDS = 10.0  # between lines of progress


class ProbeMemory:
    """Remembers what files said about themselves, as long as they do not change.

    Args:
        file: Where; made when it is missing. None remembers nothing beyond this object. One process at a time
            may write it.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        known = np.zeros(0, dtype=_RECORD)
        if file is not None and file.is_file():
            raw = file.read_bytes()  # a process that was killed may have left half a record at the end
            known = np.frombuffer(raw[: len(raw) // _RECORD.itemsize * _RECORD.itemsize], dtype=_RECORD)
        self._known = np.sort(known, order="key")

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which keys are known, and their records. Bool and records, each of shape [N]."""
        if len(self._known) == 0:
            return np.zeros(len(keys), dtype=bool), np.zeros(len(keys), dtype=_RECORD)
        place = np.minimum(np.searchsorted(self._known["key"], keys), len(self._known) - 1)
        return self._known["key"][place] == keys, self._known[place]

    def add(self, records: np.ndarray) -> None:
        """Append records to the file."""
        if self.file is None or len(records) == 0:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "ab") as file:
            file.truncate(file.tell() // _RECORD.itemsize * _RECORD.itemsize)
            file.write(records.tobytes())


def probe_files(
    paths: Sequence[str], num_threads: int, memory: ProbeMemory
) -> Iterator[list[ClipInfo | ClipError]]:
    """Probe files in their order, some hundred at a time, and log the rate and the time that is left.

    Args:
        paths: Files; a sequence that is read once.
        num_threads: Files that are probed at once.
        memory: What is known already is not probed again, except failures, whose reason is wanted.

    Yields:
        For each file of a round what it says, or why it cannot be read.
    """
    start = last = time.monotonic()
    with ThreadPoolExecutor(num_threads) as pool:
        for first in range(0, len(paths), _ROUND):
            part = [paths[row] for row in range(first, min(first + _ROUND, len(paths)))]
            keys = np.array(list(pool.map(_key, part)), dtype="S16")
            known, records = memory.find(keys)
            known &= records["num_frames"] > 0
            asked = [path for path, is_known in zip(part, known, strict=True) if not is_known]
            found = iter(pool.map(_try_probe, asked))
            results = [_info(records[row]) if known[row] else next(found) for row in range(len(part))]
            memory.add(_records(keys, known, results))
            yield results
            if time.monotonic() - last > _SECONDS:
                last, done = time.monotonic(), first + len(part)
                rate = done / (last - start)
                left = (len(paths) - done) / rate
                get_logger().info("probed %d of %d files, %.0f/s, %.0f s left", done, len(paths), rate, left)


def _records(keys: np.ndarray, known: np.ndarray, results: list[ClipInfo | ClipError]) -> np.ndarray:
    new = [
        (keys[row], result.num_frames, result.height, result.width, result.fps)
        for row, result in enumerate(results)
        if isinstance(result, ClipInfo) and not known[row] and keys[row]
    ]
    return np.array(new, dtype=_RECORD)


def _info(record: np.void) -> ClipInfo:
    return ClipInfo(*(record[name].item() for name in ("num_frames", "height", "width", "fps")))


def _key(path: str) -> bytes:
    """Return a name for a file in its present state; empty if there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return b""
    state = f"{os.path.abspath(path)}\0{stat.st_size}\0{stat.st_mtime_ns}"
    # Bytes of value 0 at the end would be lost in NumPy.
    return hashlib.blake2b(state.encode("utf-8", "surrogateescape"), digest_size=16).digest()[:15] + b"."


def _try_probe(path: str) -> ClipInfo | ClipError:
    try:
        return probe(path)
    except ClipError as error:
        return error
