"""Tables of clips: reading, checking, and columns that processes share.

A large table is prepared once: its columns go into files in the folder `cache`, which every process that
reads clips maps into memory. A small one is read anew each time.
"""

import hashlib
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from opensora.datasets.columns import RowsOf, Strings, array_digest, combine
from opensora.datasets.prepared import locked, open_or_prepare
from opensora.datasets.probing import ProbeMemory, probe_files
from opensora.datasets.reading import ClipError
from opensora.datasets.table_schema import SIZES, TYPES, Problems, to_numbers
from opensora.datasets.table_source import COLUMNS, SHOWN, Source, build_columns, complain
from opensora.datasets.video_io import ClipInfo
from opensora.datasets.video_io import probe as probe_file
from opensora.utils.logging import get_logger

_LARGE = 32 << 20  # bytes of a table that is prepared in files
_MOST_MISSING = 0.01  # of the files looked at before a run starts


@dataclass
class Manifest:
    """A checked table. Columns have N rows.

    Args:
        path: Files; folders of frames end with a slash.
        num_frames: Frames of each file, 1 for images; 0 for one that could not be probed. int32.
        height: Height in pixels, as displayed. int32.
        width: Width in pixels. int32.
        text: Captions, or None.
        label: Class numbers from 0, or None. int64.
        fps: Frames per second, NaN where the table does not say, or None. float32.
        extra: Other columns by name, as texts; `numbers` reads scores.
        fingerprint: Hash of the content, apart from `extra` and `root`.
    """

    path: Strings
    num_frames: np.ndarray
    height: np.ndarray
    width: np.ndarray
    text: Strings | None = None
    label: np.ndarray | None = None
    fps: np.ndarray | None = None
    extra: dict[str, Strings] = field(default_factory=dict)
    fingerprint: str = ""

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.path)

    @property
    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Length, height and width of each file."""
        return self.num_frames, self.height, self.width

    def numbers(self, name: str) -> np.ndarray:
        """Return a column of scores from `extra`. float64, NaN for empty cells, shape [N].

        Raises:
            KeyError: There is no such column.
            ValueError: It holds other things than numbers.
        """
        if name not in self.extra:
            others = ", ".join(self.extra) or "none"
            raise KeyError(f"column {name!r} is not in the table; columns of scores are: {others}.")
        problems = Problems(SHOWN)
        parts, first = [], 0
        for chunk in self.extra[name].chunks:
            parts.append(to_numbers(name, chunk, first, True, problems))
            first += len(chunk)
        if problems.count:
            raise ValueError(f"column {name!r} holds no numbers:\n{problems.lines(SHOWN)}")
        return np.concatenate(parts)

    def check_files(self, limit: int = 1000, opened: int = 8) -> None:
        """Look whether files exist, and whether the table says of them what they say themselves.

        Args:
            limit: Rows whose files are looked for, spread evenly over the table; 0 checks nothing.
            opened: How many of them are opened.

        Raises:
            FileNotFoundError: More than one percent do not exist.
            ValueError: None that was opened can be read, or most have other sizes than the table says.
        """
        rows = _spread(np.flatnonzero(self.num_frames), limit)
        missing = [row for row in rows if not os.path.exists(self.path[row])]
        if missing:
            lines = [f"  row {row}: {self.path[row]}" for row in missing[:SHOWN]]
            said = "\n".join([f"{len(missing)} of {len(rows)} files looked at do not exist:", *lines])
            if len(missing) <= _MOST_MISSING * len(rows):
                get_logger().warning("%s", said)
            else:
                raise FileNotFoundError(f"{said}\n{self._where_to_look(missing[0])}")
        wrong = [(row, self._compare(row)) for row in _spread(np.setdiff1d(rows, missing), opened)]
        unread = [said for _, said in wrong if isinstance(said, ClipError)]
        if wrong and len(unread) == len(wrong):
            lines = "\n".join(f"  {said}" for said in unread[:SHOWN])
            raise ValueError(f"none of {len(wrong)} files that were opened can be read:\n{lines}")
        different = [f"  row {row}: {said}" for row, said in wrong if isinstance(said, str)]
        if 2 * len(different) > len(wrong):
            lines = "\n".join(different[:SHOWN])
            raise ValueError(
                f"{len(different)} of {len(wrong)} files that were opened differ from the table:\n{lines}\n"
                "Repair the table: python -m tools.datasets.check TABLE --output NEW. Were height and width "
                "swapped, or clips cut since?"
            )

    def _where_to_look(self, row: int) -> str:
        if self.text is not None and os.path.exists(self.text[row]):
            return "The column text holds files: are path and text swapped?"
        return (
            "Correct the column path, or set dataset.root to the folder where its relative paths start; they "
            f"start at {Path.cwd()} now."
        )

    def _compare(self, row: int) -> ClipError | str | None:
        """Return how a file differs from its row: an error if it cannot be read, None if it does not."""
        try:
            found = probe_file(self.path[row])
        except ClipError as error:
            return error
        table = tuple(int(column[row]) for column in self.columns)
        if table[0] <= found.num_frames and table[1:] == found[1:3]:
            return None  # a file with more frames than the table says is read correctly
        names = ("frames", "height", "width")
        said = [
            f"{name} {t}, the file {f}" for name, t, f in zip(names, table, found, strict=False) if t != f
        ]
        return f"{self.path[row]}: the table says {', '.join(said)}"


def read_manifest(
    path: str | Path,
    probe: bool = False,
    num_threads: int = 8,
    layout: str = "captions",
    columns: Mapping[str, str] | None = None,
    root: str | None = None,
    cache: str | Path | None = None,
) -> Manifest:
    """Read a table of clips and check it.

    Columns: `path`; `text` or `label`, or neither; `num_frames`, `height`, `width`; `fps` if it is known.
    Others are kept in `extra`.

    Args:
        path: A .csv, .csv.gz, .parquet, .jsonl or .json file, or a folder of clips.
        probe: Fill in missing or empty `num_frames`, `height`, `width`, `fps` from the files themselves.
        num_threads: Files that are probed at once.
        layout: How a folder is laid out: "captions", "classes" or "frames"; see `read_folder`.
        columns: From our names of columns to the table's, such as {"text": "caption"}.
        root: Folder that relative paths start at.
        cache: Folder for the files of large tables, and for what probing found; None keeps all in memory.

    Raises:
        FileNotFoundError: There is no such table.
        ValueError: A column is missing, or cells are wrong; the message names rows, columns and a remedy.
    """
    source = Source(Path(path), layout, dict(columns or {}), root, probe or Path(path).is_dir())
    cache = None if cache is None else Path(cache)
    if cache is None or source.is_folder or source.path.stat().st_size < _LARGE:
        problems = Problems(SHOWN)
        found, digests = build_columns(source, problems)
        complain(source, problems)
    else:
        found, digests = open_or_prepare(source, cache)
    return _finish(source, found, digests, num_threads, cache)


def _finish(
    source: Source,
    columns: dict[str, Any],
    digests: dict[str, str],
    num_threads: int,
    cache: Path | None,
) -> Manifest:
    """Fill in sizes from the files, and make the manifest."""
    root = source.root or (str(source.path) if source.is_folder else "")
    extra = {name: columns.pop(name) for name in list(columns) if name not in COLUMNS}
    paths = columns["path"].below(root) if root else columns["path"]
    if source.probe:
        _probe_missing(columns, paths, num_threads, None if cache is None else memory_file(source, cache))
        digests = {**digests, **{name: array_digest(columns[name]) for name in (*SIZES, "fps")}}
    if "fps" in columns and np.isnan(columns["fps"]).all():
        del columns["fps"]
    used = {name: digest for name, digest in digests.items() if name in columns}
    return Manifest(**{**columns, "path": paths}, extra=extra, fingerprint=combine(used))


def memory_file(source: Source, cache: Path) -> Path:
    """Return where it is remembered what probing the files of a table found."""
    name = hashlib.blake2b(str(source.path.resolve()).encode(), digest_size=8).hexdigest()
    return cache / f"probed-{name}.bin"


def _spread(rows: np.ndarray, limit: int) -> list[int]:
    """Return at most `limit` of some rows, evenly spread."""
    places = np.linspace(0, max(0, len(rows) - 1), min(limit, len(rows))).astype(np.int64)
    return rows[np.unique(places)].tolist()


def _probe_missing(columns: dict[str, Any], paths: Strings, num_threads: int, memory: Path | None) -> None:
    """Fill in sizes and rates from the files. One that cannot be read keeps 0 and belongs to no bucket."""
    total = len(paths)
    for name in (*SIZES, "fps"):
        empty = np.full(total, np.nan if name == "fps" else 0, dtype=TYPES[name])
        columns[name] = np.array(columns[name]) if name in columns else empty
    rows = np.flatnonzero((columns["num_frames"] == 0) | (columns["height"] == 0) | (columns["width"] == 0))
    if len(rows) == 0:
        return
    with nullcontext() if memory is None else locked(memory.with_suffix(".lock")):
        failed = _probe_rows(columns, paths, rows, num_threads, ProbeMemory(memory))
    if failed:
        shown = "\n".join(f"  {message}" for message in failed[:SHOWN])
        if len(failed) == total:
            raise ValueError(f"none of the {total} files of the table can be read:\n{shown}")
        get_logger().warning("%d of %d files cannot be read and are left out:\n%s", len(failed), total, shown)


def _probe_rows(
    columns: dict[str, Any], paths: Strings, rows: np.ndarray, num_threads: int, memory: ProbeMemory
) -> list[str]:
    """Probe rows into the columns, and return why files cannot be read."""
    failed, done = [], 0
    for results in probe_files(RowsOf(paths, rows), num_threads, memory):
        for row, result in zip(rows[done : done + len(results)], results, strict=True):
            if isinstance(result, ClipInfo):
                for name in SIZES:
                    columns[name][row] = columns[name][row] or getattr(result, name)
                if np.isnan(columns["fps"][row]):
                    columns["fps"][row] = result.fps
            else:
                failed.append(str(result))
                for name in SIZES:
                    columns[name][row] = 0
        done += len(results)
    return failed
