"""Heartbeats: what each process does, in a file that the others read when one of them stays behind.

    phase("data", step=12)   # from now on, until the next call
    with waiting(): ...      # "collective" inside, and afterwards what was before

Without a `Watchdog` (`watchdog.py`) these calls only remember.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

_SIZE = 2048  # bytes of a file: always the same, so that a full disk does not stop the beats
_MOST_TEXT = 800


@dataclass(frozen=True)
class Beat:
    """Where a process is.

    Args:
        step: Steps done.
        phase: "start", "data", "encode", "forward", "backward", "collective", "save" or "validation".
        count: Phases since the step began.
        since: When the phase began, on this process's monotonic clock.
        seconds: How long the phase has lasted when the beat was written.
        number: Beats before this one.
        state: "running", "done", "failed", or "lost" if the process ended because of another.
        error: Why it failed.
        pid: Number of the process on its machine.
        machine: Names the machine, and the container on it.
    """

    step: int = 0
    phase: str = "start"
    count: int = 0
    since: float = 0.0
    seconds: float = 0.0
    number: int = 0
    state: str = "running"
    error: str = ""
    pid: int = 0
    machine: str = ""

    @property
    def place(self) -> tuple[int, int]:
        """How far the process is; the one that others wait for is furthest behind."""
        return self.step, self.count

    @property
    def is_dead(self) -> bool:
        """Whether the process ran on this machine, and is no more."""
        return self.machine == _machine() and not _alive(self.pid)

    def __str__(self) -> str:
        """Name the phase: "data of step 12"."""
        return self.phase if self.phase == "start" else f"{self.phase} of step {self.step}"


_now = Beat()
_listener: Callable[[], None] | None = None


def phase(name: str, step: int | None = None) -> None:
    """Say what this process does from now on.

    Args:
        name: See `Beat.phase`.
        step: Begins this step.
    """
    global _now
    where = {"count": _now.count + 1} if step is None else {"count": 0, "step": step}
    _now = replace(_now, phase=name, since=time.monotonic(), **where)
    if _listener is not None:
        _listener()


@contextmanager
def waiting() -> Iterator[None]:
    """Say that this process waits for the others meanwhile."""
    before = _now.phase
    phase("collective")
    yield
    phase(before)


def listen(listener: Callable[[], None] | None) -> None:
    """Call something at the beginning of each phase from now on."""
    global _listener
    _listener = listener


def here() -> Beat:
    """Return where this process is."""
    now = _now
    return replace(now, seconds=time.monotonic() - now.since, pid=os.getpid(), machine=_machine())


def write_beat(path: Path, beat: Beat) -> None:
    """Write a beat over the one before. An error of the disk is passed over: the next beat tries again."""
    beat = replace(beat, error=beat.error[:_MOST_TEXT])
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, json.dumps(vars(beat)).encode().ljust(_SIZE), 0)
        finally:
            os.close(descriptor)  # other machines see what was written before it was closed


def read_beat(path: Path) -> Beat | None:
    """Read a process's last beat; None if there is none yet, or it is being written."""
    try:
        return Beat(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


@cache
def _machine() -> str:
    try:  # process numbers mean something inside one container only
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in "ZX"
