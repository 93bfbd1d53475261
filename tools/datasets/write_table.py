"""Write a table of clips: CSV, Parquet or JSON lines, whole or not at all."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from opensora.datasets.columns import Strings
from opensora.datasets.table_schema import TYPES
from opensora.datasets.table_source import Columns
from opensora.utils.files import whole_file

OUTPUTS = (".csv", ".parquet", ".jsonl")
_ROWS = 100_000  # at once
_FIRST = ("path", "text", *TYPES)  # the order of columns, others follow


def check_output(path: Path) -> None:
    """Complain about a name that no table can have.

    Raises:
        ValueError: The suffix is none of `OUTPUTS`.
        FileNotFoundError: There is no folder for it.
    """
    if path.suffix.lower() not in OUTPUTS:
        raise ValueError(f"--output {path}: a table is written as {', '.join(OUTPUTS)}; change the suffix.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--output {path}: there is no folder {path.parent}; make it first.")


def write_table(columns: Columns, rows: np.ndarray, path: Path) -> None:
    """Write some rows of columns.

    Args:
        columns: Texts and arrays by name.
        rows: Row numbers, increasing.
        path: A name that `check_output` accepts; an older file is replaced.
    """
    names = sorted(columns, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    columns = {name: columns[name] for name in names}
    with whole_file(path) as temporary, _writer(temporary, _piece(columns, rows[:0]).schema) as write:
        for start in range(0, len(rows), _ROWS):
            write(_piece(columns, rows[start : start + _ROWS]))


def _piece(columns: Columns, rows: np.ndarray) -> pa.Table:
    # Arrow takes NaN for an empty cell only when it is asked to.
    return pa.table(
        {
            name: pa.array([column[row] for row in rows.tolist()], pa.string())
            if isinstance(column, Strings)
            else pa.array(column[rows], from_pandas=True)
            for name, column in columns.items()
        }
    )


@contextmanager
def _writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    if path.suffix.lower() == ".jsonl":
        with open(path, "w", encoding="utf-8") as file:
            yield lambda table: file.writelines(
                f"{json.dumps(row, ensure_ascii=False)}\n" for row in table.to_pylist()
            )
    else:
        make = pa.csv.CSVWriter if path.suffix.lower() == ".csv" else pa.parquet.ParquetWriter
        with make(path, schema) as writer:
            yield writer.write_table if hasattr(writer, "write_table") else writer.write
