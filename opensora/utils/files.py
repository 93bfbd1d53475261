"""Files that appear whole or not at all, even if the process or the machine stops."""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opensora.utils.logging import get_logger

LOCK = ".lock"
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


@contextmanager
def alone_in(folder: Path, patience_s: float = 60.0) -> Iterator[None]:
    """Keep other processes that ask for the same folder away until the end, however this process ends.

    The lock is the system's, by process: it is gone with the process, and workers do not inherit it. Take it
    once, and open the file nowhere else in this process: closing it would end the lock. Where a file system
    has no locks, nobody is kept away.

    Args:
        folder: An existing folder; gets a file `.lock` that says who has it.
        patience_s: Seconds to wait for a process that is about to end.

    Raises:
        BlockingIOError: Another process still has it.
    """
    with open(folder / LOCK, "a+", encoding="utf-8") as file:
        deadline, waited = time.monotonic() + patience_s, False
        while not _lock(file.fileno()):
            file.seek(0)
            owner = file.read().strip() or "another process"
            if time.monotonic() > deadline:
                raise BlockingIOError(
                    f"{folder}: {owner} works in this folder, and two would spoil each other's files. Wait "
                    "for it or stop it, or give another --run-name."
                )
            if not waited:
                get_logger().info("%s: %s works there; waiting %.0f s for it", folder, owner, patience_s)
            waited = True
            time.sleep(min(0.5, patience_s))
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _lock(descriptor: int) -> bool:
    """Take a lock; False if another process has it. A file system without locks counts as free."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True
