"""Columns that cost a process no memory of its own: texts in Arrow, numbers in NumPy, mapped from files."""

import bisect
import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from opensora.utils.files import flush_to_disk


class Strings:
    """A column of texts.

    A column of a file is handed to other processes by the file's name: they share its pages. Single texts are
    read from the file, not through its mapping, so a process never holds pages of all that it has read.

    Args:
        values: The texts, or Arrow columns of them, one below the other.
        root: Folder that the texts start at, if they are relative paths; "" leaves them as they are.

    Attributes:
        chunks: The Arrow columns, without `root`.
    """

    def __init__(self, values: Iterable[str] | Sequence[pa.Array], root: str = "") -> None:
        values = list(values)
        given = bool(values) and isinstance(values[0], pa.Array)
        self._set(values if given else [pa.array(values, pa.string())], None, root)

    @classmethod
    def open(cls, file: str, name: str, root: str = "") -> "Strings":
        """Map a column of an Arrow file into memory."""
        strings = cls.__new__(cls)
        mapped = _map(file)
        strings._set([batch.column(name) for batch in mapped.batches], (file, name), root)
        starts = [[part.address - mapped.address for part in chunk.buffers()[1:]] for chunk in strings.chunks]
        strings._file, strings._at = mapped.handle, starts
        return strings

    def _set(self, chunks: Sequence[pa.Array], source: tuple[str, str] | None, root: str) -> None:
        self.chunks, self._source, self._root = chunks, source, root
        self._starts = [0, *accumulate(len(chunk) for chunk in chunks)]

    def below(self, root: str) -> "Strings":
        """Return the column as paths that start at a folder, where they are relative."""
        make, (*source, _) = self.__reduce__()
        return make(*source, root)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._source is None:
            return Strings, (self.chunks, self._root)
        return Strings.open, (*self._source, self._root)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: int) -> str:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row}: the column has rows 0 to {len(self) - 1}.")
        number = bisect.bisect_right(self._starts, row) - 1
        place = row - self._starts[number]
        text = self.chunks[number][place].as_py() if self._source is None else self._read(number, place)
        return os.path.join(self._root, text) if self._root else text

    def _read(self, number: int, place: int) -> str:
        offsets, data = self._at[number]
        start, end = np.frombuffer(os.pread(self._file.fileno(), 8, offsets + 4 * place), "<i4").tolist()
        if start == end:  # if all texts of the part are empty, there is no place in the file
            return ""
        return os.pread(self._file.fileno(), end - start, data + start).decode()

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))


class RowsOf(Sequence[str]):
    """Some rows of a column of texts, read when they are asked for.

    Args:
        column: The column.
        rows: Row numbers. Shape [N].
    """

    def __init__(self, column: Strings, rows: np.ndarray) -> None:
        self._column, self._rows = column, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> str:
        return self._column[int(self._rows[place])]


class _Mapped(NamedTuple):
    handle: BinaryIO
    address: int  # of the mapping in memory
    batches: list[pa.RecordBatch]


@lru_cache(maxsize=16)  # paths and texts of one table share a mapping
def _map(file: str) -> _Mapped:
    handle = open(file, "rb")  # noqa: SIM115
    pages = pa.py_buffer(mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ))
    reader = pa.ipc.open_file(pages)
    batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    return _Mapped(handle, pages.address, batches)


class MappedArray(np.memmap):
    """An array in a .npy file, which other processes get by the file's name."""

    def __reduce__(self) -> tuple[Any, ...]:
        whole = getattr(self, "whole", None)
        return (map_array, (whole,)) if whole else np.array(self).__reduce__()

    def __array_finalize__(self, obj: Any) -> None:
        super().__array_finalize__(obj)
        self.whole = None  # a part of it, or what is computed from it, is another array


def map_array(file: str) -> np.ndarray:
    """Map an array from a .npy file into memory."""
    mapped = np.load(file, mmap_mode="r", allow_pickle=False).view(MappedArray)
    mapped.whole = file
    return mapped


class TextWriter:
    """Gathers texts piece by piece, in memory or in an Arrow file, and their hash.

    Args:
        file: Where to; None keeps them in memory.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._pieces: dict[str, list[pa.Array]] = {}
        self._hashes: dict[str, tuple[Any, Any]] = {}
        self._sink: Any = None
        self._writer: Any = None

    def write(self, columns: dict[str, pa.Array]) -> None:
        """Append a piece of all columns; each has the columns of the first."""
        if not self._hashes:
            self._hashes = {name: (_new_hash(), _new_hash()) for name in columns}
            self._pieces = {name: [] for name in columns}
        for name, column in columns.items():
            ends, text = _buffers(column)
            self._hashes[name][0].update(np.diff(ends).tobytes())
            self._hashes[name][1].update(text)
        if self.file is None:
            for name, column in columns.items():
                self._pieces[name].append(column)
            return
        batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
        if self._writer is None:
            self._sink = open(self.file, "wb")  # noqa: SIM115
            self._writer = pa.ipc.new_file(self._sink, batch.schema)
        self._writer.write_batch(batch)

    def digests(self) -> dict[str, str]:
        """Return the hash of each column: of its lengths and of its bytes, however it came in pieces."""
        return {name: "".join(part.hexdigest() for part in pair) for name, pair in self._hashes.items()}

    def close(self) -> dict[str, Strings]:
        """Finish the file, and return the columns."""
        if self._writer is not None:
            self._writer.close()
            self._sink.close()
            flush_to_disk(self.file)
            return {name: Strings.open(str(self.file), name) for name in self._hashes}
        return {name: Strings(pieces) for name, pieces in self._pieces.items()}


def array_digest(array: np.ndarray) -> str:
    """Return the hash of an array."""
    digest = _new_hash()
    digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def combine(digests: dict[str, str]) -> str:
    """Return one hash for the hashes of columns."""
    return hashlib.blake2b(json.dumps(digests, sort_keys=True).encode(), digest_size=16).hexdigest()


def _new_hash() -> Any:
    return hashlib.blake2b(digest_size=16)


def _buffers(column: pa.Array) -> tuple[np.ndarray, memoryview]:
    """Return where texts start and end, and their bytes. int32 [N + 1], uint8 [M]."""
    _, offsets, data = column.buffers()
    if len(column) == 0 or data is None:
        return np.zeros(len(column) + 1, dtype=np.int32), memoryview(b"")
    ends = np.frombuffer(offsets, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    return ends, memoryview(data)[ends[0] : ends[-1]]
