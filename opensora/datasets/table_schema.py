"""The typed schema of a table of clips: its columns, and what their cells must be."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SIZES = ("num_frames", "height", "width")
TYPES = {"label": np.int64, "num_frames": np.int32, "height": np.int32, "width": np.int32, "fps": np.float32}
TEXTS = ("path", "text")
_LEAST = {"label": 0, "num_frames": 1, "height": 1, "width": 1}
# What people call our columns; named in errors, never guessed.
_SYNONYMS = {
    "path": ("video", "image", "file", "filename", "file_name", "video_path"),
    "text": ("caption", "prompt", "cap"),
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a table.

    Args:
        row: Row, 0 is the first below the header.
        column: Name of the column, "" for the row as a whole.
        said: What is wrong, and what is expected.
    """

    row: int
    column: str
    said: str

    def __str__(self) -> str:
        return f"row {self.row}: {f'column {self.column} ' if self.column else ''}{self.said}"


@dataclass
class Problems:
    """What is wrong with a table: all as a number, the first ones in words.

    Args:
        most: Problems that are kept in words.

    Attributes:
        left_out: Rows that were no rows; others have moved up for them. Increasing.
    """

    most: int
    first: list[Problem] = field(default_factory=list)
    count: int = 0
    left_out: list[int] = field(default_factory=list)

    def add(self, row: int, column: str, said: str) -> None:
        """Note a problem."""
        self.count += 1
        if len(self.first) < self.most:
            self.first.append(Problem(row, column, said))

    def leave_out(self, row: int, said: str) -> None:
        """Note a row that is none."""
        self.left_out.append(row)
        self.add(row, "", said)

    def row_in_file(self, row: int) -> int:
        """Return where a row stood before rows were left out."""
        for gone in self.left_out:
            if gone > row:
                break
            row += 1
        return row

    def add_cells(
        self, column: str, values: pa.Array, wrong: np.ndarray, first_row: int, wish: str | None = None
    ) -> None:
        """Note wrong cells of a piece of a column, given by a mask of shape [N]; no `wish`: empty ones."""
        rows = np.flatnonzero(wrong)
        shown = rows[: max(0, self.most - len(self.first))].tolist()
        for row in shown:
            value = values[row].as_py()
            said = f"is {'' if value is None else value!r}, expected {wish}" if wish else "is empty"
            self.add(self.row_in_file(first_row + row), column, said)
        self.count += len(rows) - len(shown)

    def lines(self, most: int) -> str:
        """Return the first ones, one a line."""
        shown = "\n".join(f"  {problem}" for problem in self.first[:most])
        return shown + (f"\n  ... and {self.count - most} more" if self.count > most else "")


def rename(where: str, piece: Mapping[str, pa.Array], columns: Mapping[str, str]) -> dict[str, pa.Array]:
    """Give columns our names.

    Args:
        where: Name of the table, for errors.
        piece: Columns.
        columns: From our name to the table's, such as {"text": "caption"}.

    Raises:
        ValueError: The table has no such column.
    """
    for ours, theirs in columns.items():
        if theirs not in piece:
            raise ValueError(
                f"{where}: dataset.columns says {ours!r} is called {theirs!r}; the table has "
                f"{', '.join(piece)}."
            )
    taken = set(columns.values()) | set(columns)
    renamed = {ours: piece[theirs] for ours, theirs in columns.items()}
    return {**renamed, **{name: column for name, column in piece.items() if name not in taken}}


def require(where: str, names: Sequence[str], probe: bool) -> None:
    """Complain about missing columns.

    Raises:
        ValueError: `path` is missing, or without `probe` a size.
    """
    missing = [name for name in ("path", *(() if probe else SIZES)) if name not in names]
    if not missing:
        return
    hints = []
    for name in missing:
        others = [other for other in names if other.lower() in _SYNONYMS.get(name, ())]
        near = others or difflib.get_close_matches(name, names, n=1, cutoff=0.7)
        hints += [f"rename {near[0]!r} to {name!r}, or set dataset.columns"] if near else []
    if set(missing) & set(SIZES):
        hints.append("set dataset.probe=True to read sizes from the files")
    hints = hints or ["the first line of a table names its columns"]
    raise ValueError(
        f"{where}: no column {', '.join(missing)}; it has {', '.join(names)}. Remedy: {'; '.join(hints)}."
    )


def to_texts(name: str, values: pa.Array, first_row: int, problems: Problems) -> pa.Array:
    """Turn a piece of a column into texts without nulls; an empty path or caption is a problem."""
    try:
        texts = values.cast(pa.string()).fill_null("")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # lists, structs, bytes that are no UTF-8
        texts = pa.array(["" if value is None else str(value) for value in values.to_pylist()], pa.string())
    if name in TEXTS:
        empty = pc.or_(pc.equal(pc.binary_length(texts), 0), pc.utf8_is_space(texts))
        if pc.any(empty).as_py():
            problems.add_cells(name, texts, empty.to_numpy(zero_copy_only=False), first_row)
    return texts


def to_numbers(
    name: str, values: pa.Array, first_row: int, may_be_empty: bool, problems: Problems
) -> np.ndarray:
    """Turn a piece of a numeric column into an array of its type, float64 for scores.

    Empty and wrong cells become 0; -1 in labels, NaN in fps and scores.
    """
    texts = values if pa.types.is_string(values.type) or pa.types.is_large_string(values.type) else None
    if texts is not None:
        texts = pc.utf8_trim_whitespace(texts)
        values = pc.if_else(pc.equal(texts, ""), pa.scalar(None, texts.type), texts)
    empty = values.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
    try:
        found = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        found = np.array([_number(value) for value in values.to_pylist()], dtype=np.float64)
    with np.errstate(invalid="ignore"):
        if name not in TYPES:
            good, wish = np.isfinite(found), "a number"
        elif name == "fps":
            good, wish = np.isfinite(found) & (found > 0), "a number above 0"
        else:
            good = (found >= _LEAST[name]) & (found == np.floor(found)) & (found <= np.iinfo(TYPES[name]).max)
            wish = f"an integer from {_LEAST[name]}"
    allowed = name not in _LEAST or (may_be_empty and name in SIZES)
    wrong = ~good & ~(empty & allowed)
    if wrong.any():
        problems.add_cells(name, texts if texts is not None else values, wrong, first_row, wish)
    nothing = -1 if name == "label" else 0 if name in _LEAST else np.nan
    return np.where(good, found, nothing).astype(TYPES.get(name, np.float64))


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return float("nan")
