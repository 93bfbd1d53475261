"""Files that appear whole or not at all, even if the process or the machine stops."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opensora.utils.logging import get_logger

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a place to write to; what is there at the end takes the name `path`, flushed to the disk.

    When writing fails, the old file is still there.

    Args:
        path: The file. Its folder exists.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_to_disk(path.parent)  # the new name, not only the data, must survive


def write_text(text: str, path: str | Path) -> None:
    """Write a text file in UTF-8, as `whole_file` does."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush_to_disk(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def if_disk_allows(path: Path) -> Iterator[None]:
    """Warn when the disk is full, instead of failing: for a file that a run can do without."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        get_logger().warning("%s: not written (%s). Free space on that disk.", path, error.strerror)
