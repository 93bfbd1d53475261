"""Large tables as files that are made once, and mapped into memory by every process that reads clips."""

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opensora.datasets.columns import Strings, map_array
from opensora.datasets.table_schema import TYPES, Problems
from opensora.datasets.table_source import SHOWN, Columns, Source, build_columns, complain
from opensora.utils.logging import get_logger


def open_or_prepare(source: Source, cache: Path) -> tuple[Columns, dict[str, str]]:
    """Open the files of a table; one process makes them, others wait for it.

    Args:
        source: The table.
        cache: Folder for the files.

    Returns:
        The columns and the hash of each.

    Raises:
        OSError: The folder cannot be written.
        ValueError: As for `build_columns`, and for wrong cells.
    """
    folder = cache / f"table-{source.state()}"
    if not folder.is_dir():
        with locked(cache / f".{folder.name}.lock") as alone:
            if not folder.is_dir():
                _prepare(source, folder, alone)
    about = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    columns: Columns = {name: Strings.open(str(folder / "texts.arrow"), name) for name in about["texts"]}
    for name in about["numbers"]:
        columns[name] = map_array(str(folder / f"{name}.npy"))
    return columns, about["digests"]


@contextmanager
def locked(file: Path) -> Iterator[bool]:
    """Let one process at a time go on; the lock ends with the process that holds it.

    Args:
        file: Name of the lock.

    Yields:
        True; False where the file system has no locks, and others may go on too.

    Raises:
        OSError: The folder cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = open(file, "w")  # noqa: SIM115
    except OSError as error:
        raise OSError(
            f"dataset.cache={str(file.parent)!r} cannot be written ({error}); set it to a folder that can, "
            "or to None, which keeps the table in memory."
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False
        yield alone


def _prepare(source: Source, folder: Path, alone: bool) -> None:
    """Write the files of a table; the folder appears when they are whole."""
    start = time.monotonic()
    for left in folder.parent.glob(f".{folder.name}-*") if alone else ():  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        problems = Problems(SHOWN)
        columns, digests = build_columns(source, problems, temporary)
        complain(source, problems)
        numbers = [name for name in columns if name in TYPES]
        about = {"texts": [n for n in columns if n not in TYPES], "numbers": numbers, "digests": digests}
        (temporary / "table.json").write_text(json.dumps(about), encoding="utf-8")
        temporary.chmod(0o755)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # else another process, without locks, was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    rows, seconds = len(columns["path"]), time.monotonic() - start
    get_logger().info("%s: %d rows prepared in %s, %.0f s", source.path, rows, folder, seconds)
