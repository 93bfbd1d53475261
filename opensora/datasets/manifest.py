"""Tables of clips: reading, checking, and columns that cost no memory in workers.

The columns are arrays, never lists of Python objects: processes that read clips share them.
"""

import difflib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from opensora.datasets.video_io import ClipError, ClipInfo
from opensora.datasets.video_io import probe as probe_file
from opensora.utils.logging import get_logger

SIZES = ("num_frames", "height", "width")
_TYPES = {"label": np.int64, "num_frames": np.int32, "height": np.int32, "width": np.int32, "fps": np.float32}
_LEAST = {"label": 0, "num_frames": 1, "height": 1, "width": 1}
# What people call our columns; named in errors, never guessed.
_SYNONYMS = {"path": ("video", "image", "file", "filename", "video_path"), "text": ("caption", "prompt")}
_ROWS_AT_ONCE = 100_000
_SHOWN = 5  # problems listed in an error


class Strings:
    """A column of texts as one array of bytes.

    Args:
        values: The texts.

    Attributes:
        data: UTF-8 of all texts. uint8, shape [M].
        ends: Where each text ends in `data`. int64, shape [N].
    """

    def __init__(self, values: Iterable[str]) -> None:
        data, lengths = bytearray(), []
        for value in values:
            encoded = value.encode()
            data += encoded
            lengths.append(len(encoded))
        # Tensors, because torch hands them to other processes through shared memory.
        self.data = torch.from_numpy(np.frombuffer(bytes(data), dtype=np.uint8).copy())
        self.ends = torch.from_numpy(np.cumsum(np.array(lengths, dtype=np.int64)))

    @classmethod
    def join(cls, parts: Sequence["Strings"]) -> "Strings":
        """Put columns one below the other."""
        joined = cls(())
        offsets = np.cumsum([0, *(len(part.data) for part in parts)]).tolist()
        joined.data = torch.cat([joined.data, *(part.data for part in parts)])
        moved = [part.ends + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
        joined.ends = torch.cat([joined.ends, *moved])
        return joined

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> str:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row}: the column has rows 0 to {len(self) - 1}.")
        start = int(self.ends[row - 1]) if row else 0
        return self.data[start : int(self.ends[row])].numpy().tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))


@dataclass
class Manifest:
    """A checked table. Columns have N rows.

    Args:
        path: Files.
        num_frames: Frames of each file, 1 for images; 0 for one that could not be probed. int32.
        height: Height in pixels, as displayed. int32.
        width: Width in pixels. int32.
        text: Captions, or None.
        label: Class numbers from 0, or None. int64.
        fps: Frames per second, NaN where the table does not say, or None. float32.
        extra: Other columns by name; nothing here uses them.
    """

    path: Strings
    num_frames: np.ndarray
    height: np.ndarray
    width: np.ndarray
    text: Strings | None = None
    label: np.ndarray | None = None
    fps: np.ndarray | None = None
    extra: dict[str, Strings | np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.path)

    @property
    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Length, height and width of each file."""
        return self.num_frames, self.height, self.width

    @property
    def fingerprint(self) -> str:
        """Hash of the content, apart from `extra`."""
        digest = hashlib.blake2b(digest_size=16)
        for name in ("path", "text", "label", *SIZES, "fps"):
            column = getattr(self, name)
            digest.update(name.encode())
            if isinstance(column, Strings):
                digest.update(column.ends.numpy().tobytes() + b"/")
                digest.update(column.data.numpy().tobytes())
            elif column is not None:
                digest.update(column.tobytes())
        return digest.hexdigest()

    def check_files(self, limit: int = 1000) -> None:
        """Look whether the files exist.

        Args:
            limit: Rows to look at, spread evenly over the table.

        Raises:
            FileNotFoundError: Some do not.
        """
        rows = np.unique(np.linspace(0, max(0, len(self) - 1), min(limit, len(self))).astype(np.int64))
        missing = [int(row) for row in rows if not Path(self.path[int(row)]).is_file()]
        if missing:
            shown = "\n".join(f"  row {row}: {self.path[row]}" for row in missing[:_SHOWN])
            raise FileNotFoundError(
                f"{len(missing)} of {len(rows)} files looked at do not exist:\n{shown}\n"
                f"Correct the column path; relative paths start at {Path.cwd()}."
            )


def read_manifest(path: str | Path, probe: bool = False, num_threads: int = 8) -> Manifest:
    """Read a table of clips and check it.

    Columns: `path`; `text` or `label`, or neither; `num_frames`, `height`, `width`; `fps` if it is known.
    Others are kept in `extra`.

    Args:
        path: A .csv or .parquet file.
        probe: Fill in missing or empty `num_frames`, `height`, `width`, `fps` from the files themselves.
        num_threads: Files that are probed at once.

    Raises:
        FileNotFoundError: There is no such table.
        ValueError: A column is missing, or cells are wrong; the message names rows, columns and a remedy.
        ModuleNotFoundError: A .parquet file without pyarrow.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"data_path={str(path)!r}: no such table; set --data-path to a .csv or .parquet file."
        )
    parts: dict[str, list[Any]] = {}
    problems: list[str] = []
    total = 0
    for frame in _read_frames(path):
        _require(path, list(frame.columns), probe)
        for name, values in frame.items():
            parts.setdefault(name, []).append(_column(name, values, total, probe, problems))
        total += len(frame)
    if not total:
        raise ValueError(f"{path}: the table has no rows below its header; add some.")
    columns: dict[str, Any] = {
        name: (Strings.join if isinstance(column[0], Strings) else np.concatenate)(column)
        for name, column in parts.items()
    }
    if problems:
        more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        shown = "\n".join(f"  {problem}" for problem in problems[:_SHOWN])
        raise ValueError(
            f"{path}: {len(problems)} cells are wrong (row 0 is the first below the header):\n{shown}{more}\n"
            "Correct or remove these rows; dataset.probe=True fills empty sizes from the files."
        )
    extra = {
        name: _simplify(columns.pop(name)) for name in list(columns) if name not in (*_TYPES, "path", "text")
    }
    if probe:
        _probe_missing(columns, num_threads)
    if "fps" in columns and np.isnan(columns["fps"]).all():
        del columns["fps"]
    return Manifest(**columns, extra=extra)


def _read_frames(path: Path) -> Iterator[pd.DataFrame]:
    """Read a table piece by piece: texts from CSV, values with their types from parquet."""
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(
            f"data_path={str(path)!r}: a table is .csv or .parquet; convert it or change the suffix."
        )
    for frame in _read_csv(path) if path.suffix.lower() == ".csv" else _read_parquet(path):
        frame.columns = [str(name).strip() for name in frame.columns]
        yield frame


def _read_csv(path: Path) -> Iterator[pd.DataFrame]:
    hint = "texts with commas or line breaks need double quotes"
    try:
        # Captions such as "None" or "NA" stay captions: every cell is read as text.
        reader = pd.read_csv(
            path,
            dtype=str,
            keep_default_na=False,
            na_filter=False,
            encoding="utf-8-sig",
            chunksize=_ROWS_AT_ONCE,
        )
        with reader:
            for frame in reader:
                if not isinstance(frame.index, pd.RangeIndex):  # pandas takes a surplus cell for a row's name
                    raise ValueError(f"{path}: rows have more cells than the header; {hint}.")
                yield frame
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no CSV with a header in UTF-8 ({error}); {hint}.") from error


def _read_parquet(path: Path) -> Iterator[pd.DataFrame]:
    try:
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{path}: .parquet needs pyarrow: pip install 'opensora[data]', or convert the table to .csv."
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                yield batch.to_pandas()
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: no parquet file ({error}); write the table anew.") from error


def _require(path: Path, names: list[str], probe: bool) -> None:
    """Complain about missing columns."""
    missing = [name for name in ("path", *(() if probe else SIZES)) if name not in names]
    if not missing:
        return
    hints = []
    for name in missing:
        others = [other for other in names if other.lower() in _SYNONYMS.get(name, ())]
        near = others or difflib.get_close_matches(name, names, n=1, cutoff=0.7)
        hints += [f"rename {near[0]!r} to {name!r}"] if near else []
    if set(missing) & set(SIZES):
        hints.append("set dataset.probe=True to read sizes from the files")
    hints = hints or ["the first line of a table names its columns"]
    raise ValueError(
        f"{path}: no column {', '.join(missing)}; it has {', '.join(names)}. Remedy: {'; '.join(hints)}."
    )


def _column(
    name: str, values: pd.Series, first_row: int, probe: bool, problems: list[str]
) -> Strings | np.ndarray:
    """Turn a piece of a column into its final form; note wrong cells."""
    raw = values.astype(object)
    empty = raw.map(_is_empty).to_numpy(dtype=bool)
    if name in _TYPES:
        return _numbers(name, raw, empty, first_row, probe, problems)
    if name in ("path", "text"):
        problems += [f"row {first_row + row}: column {name} is empty" for row in np.flatnonzero(empty)]
    return Strings("" if e else str(v) for e, v in zip(empty, raw, strict=True))


def _is_empty(cell: object) -> bool:
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())


def _numbers(
    name: str, raw: pd.Series, empty: np.ndarray, first_row: int, probe: bool, problems: list[str]
) -> np.ndarray:
    """Turn numeric cells into an array; note wrong ones. Empty sizes become 0, to be probed."""
    found = pd.to_numeric(raw.where(~empty, None), errors="coerce").to_numpy(
        dtype=np.float64, na_value=np.nan
    )
    if name == "fps":
        good, wish, may_be_empty = np.isfinite(found) & (found > 0), "a number above 0", True
    else:
        good = (found >= _LEAST[name]) & (found == np.floor(found)) & (found <= np.iinfo(_TYPES[name]).max)
        wish, may_be_empty = f"an integer from {_LEAST[name]}", probe and name in SIZES
    for row in np.flatnonzero(~good & ~(empty & may_be_empty)):
        problems.append(f"row {first_row + row}: column {name} is {raw.iloc[row]!r}, expected {wish}")
    return np.where(good, found, np.nan if name == "fps" else 0).astype(_TYPES[name])


def _simplify(column: Strings) -> Strings | np.ndarray:
    """Turn a column that nobody checks into float64 if all its cells are numbers."""
    try:
        return np.array([float(value) for value in column])
    except ValueError:
        return column


def _probe_missing(columns: dict[str, Any], num_threads: int) -> None:
    """Fill in sizes and rates from the files. One that cannot be read keeps 0 and belongs to no bucket."""
    total = len(columns["path"])
    for name in (*SIZES, "fps"):
        if name not in columns:
            columns[name] = np.full(total, np.nan if name == "fps" else 0, dtype=_TYPES[name])
    rows = np.flatnonzero((columns["num_frames"] == 0) | (columns["height"] == 0) | (columns["width"] == 0))
    if len(rows) == 0:
        return
    paths = [columns["path"][int(row)] for row in rows]
    with ThreadPoolExecutor(num_threads) as pool:
        infos = list(pool.map(_try_probe, paths))
    for row, info in zip(rows, infos, strict=True):
        if isinstance(info, ClipInfo):
            for name in SIZES:
                columns[name][row] = columns[name][row] or getattr(info, name)
            if np.isnan(columns["fps"][row]):
                columns["fps"][row] = info.fps
        else:
            for name in SIZES:
                columns[name][row] = 0
    failed = [info for info in infos if isinstance(info, str)]
    if failed:
        shown = "\n".join(f"  {message}" for message in failed[:_SHOWN])
        if len(failed) == total:
            raise ValueError(f"none of the {total} files of the table can be read:\n{shown}")
        get_logger().warning("%d of %d files cannot be read and are left out:\n%s", len(failed), total, shown)


def _try_probe(path: str) -> ClipInfo | str:
    try:
        return probe_file(path)
    except ClipError as error:
        return str(error)
