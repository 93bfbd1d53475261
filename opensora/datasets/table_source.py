"""Where clips are listed, and the list as checked columns."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from opensora.datasets.columns import Strings, TextWriter, array_digest
from opensora.datasets.folders import read_folder
from opensora.datasets.table_files import TABLE_SUFFIXES, Piece, read_pieces
from opensora.datasets.table_schema import TYPES, Problems, rename, require, to_numbers, to_texts
from opensora.utils.files import whole_file

Columns = dict[str, Strings | np.ndarray]
COLUMNS = {"path", "text", *TYPES}  # those that have a meaning

SHOWN = 5  # problems listed in an error
_FORMAT = 1  # of prepared tables; a new one makes them anew
_SETTLED = 2.0  # seconds after which a changed file has another time, on every file system


@dataclass(frozen=True)
class Source:
    """Where clips are listed, and how to read the list.

    Args:
        path: A table, or a folder of clips.
        layout: How a folder is laid out: "captions", "classes" or "frames".
        columns: From our names of columns to the table's, such as {"text": "caption"}.
        root: Folder that relative paths start at; None is the current one, or the folder of clips.
        probe: Whether sizes may be missing, to be read from the files. In a folder they always are.
    """

    path: Path
    layout: str = "captions"
    columns: Mapping[str, str] = field(default_factory=dict)
    root: str | None = None
    probe: bool = False

    def __post_init__(self) -> None:
        if not self.path.exists():
            raise FileNotFoundError(
                f"data_path={str(self.path)!r}: no such table or folder; set --data-path to one of "
                f"{', '.join(TABLE_SUFFIXES)}, or to a folder of clips."
            )
        if self.root is not None and not os.path.isdir(self.root):
            raise FileNotFoundError(
                f"dataset.root={self.root!r}: no such folder; relative paths start there."
            )

    @property
    def is_folder(self) -> bool:
        """Whether clips are listed by a folder."""
        return self.path.is_dir()

    def pieces(self, problems: Problems) -> Iterator[Piece]:
        """Read the list piece by piece, with our names, and note rows that are none."""
        if self.is_folder:
            yield from read_folder(self.path, self.layout)
            return
        for piece in read_pieces(self.path, problems.leave_out):
            piece = rename(str(self.path), piece, self.columns)
            require(str(self.path), list(piece), self.probe)
            yield piece

    def state(self) -> str:
        """Return a name for the table in its present state; waits until a later change would be seen."""
        stat = self.path.stat()
        while 0 <= (age := time.time() - stat.st_mtime) < _SETTLED:
            time.sleep(_SETTLED - age)
            stat = self.path.stat()
        parts = [
            _FORMAT,
            str(self.path.resolve()),
            stat.st_size,
            stat.st_mtime_ns,
            sorted(self.columns.items()),
        ]
        text = json.dumps([*parts, self.root, self.probe])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def build_columns(
    source: Source, problems: Problems, folder: Path | None = None
) -> tuple[Columns, dict[str, str]]:
    """Read a table, noting what is wrong in it.

    Args:
        source: The table.
        problems: What is told about wrong rows and cells; wrong cells become 0, NaN or "".
        folder: Where the columns are written; None keeps them in memory.

    Returns:
        The columns, and the hash of each.

    Raises:
        ValueError: A column is missing, there is no row, or the file is no table.
    """
    writer = TextWriter(None if folder is None else folder / "texts.arrow")
    numbers: dict[str, list[np.ndarray]] = {}
    names: list[str] = []
    total = 0
    for piece in source.pieces(problems):
        names = names or list(piece)
        absent = sorted((set(names) - piece.keys()) | (piece.keys() - set(names)) & COLUMNS)
        if absent:
            raise ValueError(
                f"{source.path}: column {absent[0]} is in some rows around row {total} and not in others; "
                "give it in every row."
            )
        texts = {}
        for name in names:
            if name in TYPES:
                part = to_numbers(name, piece[name], total, source.probe, problems)
                numbers.setdefault(name, []).append(part)
            else:
                texts[name] = to_texts(name, piece[name], total, problems)
        writer.write(texts)
        total += len(texts["path"])
    if not total:
        complain(source, problems)
        raise ValueError(f"{source.path}: the table has no rows below its header; add some.")
    columns: Columns = dict(writer.close())
    digests = writer.digests()
    for name in list(numbers):
        array = np.concatenate(numbers.pop(name))
        digests[name] = array_digest(array)
        columns[name] = array
        if folder is not None:
            with whole_file(folder / f"{name}.npy") as temporary:
                np.save(temporary, array, allow_pickle=False)
    return columns, digests


def complain(source: Source, problems: Problems) -> None:
    """Raise an error that lists problems, if there are any."""
    if problems.count:
        raise ValueError(
            f"{source.path}: {problems.count} cells are wrong (row 0 is the first below the header):\n"
            f"{problems.lines(SHOWN)}\n"
            "Correct or remove these rows; dataset.probe=True fills empty sizes from the files."
        )
