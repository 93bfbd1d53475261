"""Tables as files: CSV, Parquet, JSON lines and JSON lists, read piece by piece into Arrow columns.

Cells of CSV and JSON come as texts, so that captions such as "None" or "NA" stay captions. Their types are
settled in `opensora.datasets.table_schema`.
"""

import csv
import gzip
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

Piece = dict[str, pa.Array]  # columns of equal length
BadRow = Callable[[int, str], None]  # what is told a row that is no row, and why

TABLE_SUFFIXES = (".csv", ".csv.gz", ".parquet", ".jsonl", ".json")
_QUOTES = "texts with commas or line breaks need double quotes"
_ROWS = 100_000  # of a piece of a Parquet or JSON file
_BYTES = 16 << 20  # of a piece of a CSV file, and so the longest row


def table_suffix(path: Path) -> str:
    """Return which of `TABLE_SUFFIXES` a path has.

    Raises:
        ValueError: None of them.
    """
    name = path.name.lower()
    found = [suffix for suffix in TABLE_SUFFIXES if name.endswith(suffix)]
    if not found:
        raise ValueError(
            f"data_path={str(path)!r}: a table is {', '.join(TABLE_SUFFIXES)}, or a folder of clips; convert "
            "it or change the suffix."
        )
    return found[0]


def read_pieces(path: Path, bad_row: BadRow) -> Iterator[Piece]:
    """Read a table piece by piece, in the order of its rows.

    Args:
        path: A file with one of `TABLE_SUFFIXES`.
        bad_row: Called for rows that have more or fewer cells than the header; they are left out.

    Raises:
        ValueError: The file is no such table.
    """
    suffix = table_suffix(path)
    if suffix == ".parquet":
        pieces = _read_parquet(path)
    elif suffix == ".json":
        pieces = _from_objects(path, _json_list(path))
    elif suffix == ".jsonl":
        pieces = _from_objects(path, _json_lines(path))
    else:
        pieces = _read_csv(path, bad_row)
    for piece in pieces:
        names = [str(name).strip() for name in piece]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{path}: two columns are called {', '.join(twice)}; rename one of each.")
        yield dict(zip(names, piece.values(), strict=True))


def _read_csv(path: Path, bad_row: BadRow) -> Iterator[Piece]:
    def note(row: Any) -> str:
        # Arrow counts the header as row 1.
        said = (
            f"has {row.actual_columns} cells, the header {row.expected_columns}; {_QUOTES}: {row.text[:80]}"
        )
        bad_row(row.number - 2, said)
        return "skip"

    try:
        open_text = gzip.open if path.suffix.lower() == ".gz" else open
        with open_text(path, "rt", encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file), [])
        if len(set(names)) < len(names):
            raise ValueError(f"{path}: two columns have one name: {', '.join(names)}; rename one.")
        reader = pa.csv.open_csv(
            path,
            # One thread: only then rows have numbers.
            pa.csv.ReadOptions(use_threads=False, block_size=_BYTES),
            pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
            pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
        batch = None
        for batch in reader:
            yield dict(zip(batch.schema.names, batch.columns, strict=True))
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: no CSV with a header in UTF-8 ({error}); {_QUOTES}.") from error
    if batch is not None and len(batch):
        _check_end(path, batch.column(batch.num_columns - 1)[-1].as_py())


def _check_end(path: Path, last: str) -> None:
    """Complain when the last cell swallowed the rest of the file, because its quote is never closed."""
    if "\n" not in last or path.suffix.lower() == ".gz":
        return
    with open(path, "rb") as file:
        file.seek(-min(64, path.stat().st_size), 2)
        if not file.read().rstrip().endswith(b'"'):
            raise ValueError(
                f"{path}: a double quote is never closed, in the row that begins {last[:80]!r}; {_QUOTES}."
            )


def _read_parquet(path: Path) -> Iterator[Piece]:
    try:
        with pa.parquet.ParquetFile(path, memory_map=True) as file:
            for batch in file.iter_batches(batch_size=_ROWS):
                yield dict(zip(batch.schema.names, batch.columns, strict=True))
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: no parquet file ({error}); write the table anew.") from error


def _json_lines(path: Path) -> Iterator[Any]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                try:
                    if line.strip():
                        yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(
                        f"{path}, line {number}: no JSON ({error}); each line holds one object, such as "
                        '{"path": "a.mp4", "text": "a dog"}.'
                    ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not in UTF-8 ({error}); save it as UTF-8.") from error


def _json_list(path: Path) -> Iterator[Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: no JSON in UTF-8 ({error}); see docs/data.md.") from error
    if not isinstance(found, list):
        raise ValueError(
            f'{path}: holds a {type(found).__name__}; expected a list, such as [{{"path": "a.mp4", ...}}].'
        )
    yield from found


def _from_objects(path: Path, objects: Iterator[Any]) -> Iterator[Piece]:
    """Turn JSON objects into columns of texts; a key that an object lacks is an empty cell."""
    first, names = 0, []
    while rows := list(islice(objects, _ROWS)):
        for number, row in enumerate(rows, start=first):
            if not isinstance(row, dict):
                raise ValueError(
                    f'{path}, row {number}: {str(row)[:80]!r} is no object such as {{"path": "a.mp4"}}.'
                )
        names = names or list(dict.fromkeys(name for row in rows for name in row))
        yield {name: pa.array([_cell(row.get(name)) for row in rows], pa.string()) for name in names}
        first += len(rows)


def _cell(value: Any) -> str | None:
    """Write a JSON value as the text of a cell; of several captions the first is taken."""
    if isinstance(value, list) and value and isinstance(value[0], str):
        value = value[0]
    return value if value is None or isinstance(value, str) else json.dumps(value)
