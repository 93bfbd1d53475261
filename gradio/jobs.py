"""Jobs: what visitors asked for, made one after the other, and cancelled when they say so."""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opensora.utils.logging import get_logger
from opensora.utils.user_errors import USER_ERRORS

_REMEMBERED = 200  # finished jobs
_RUNNING = ("waiting", "running")


class CancelledError(Exception):
    """The visitor wants this job no more."""


@dataclass
class Job:
    """One press of a button.

    Args:
        owner: Who pressed it.
        kind: "video" or "image".
        cfg: Its config.
        command: The command line that makes the same.
        prompt: As the visitor wrote it.
    """

    owner: str
    kind: str
    cfg: Mapping[str, Any]
    command: str
    prompt: str
    name: str
    state: str = "waiting"  # then "running", then "done", "failed" or "cancelled"
    stage: str = ""
    done: int = 0
    total: int = 1
    preview: bytes | None = None
    previews: int = 0
    paths: list[Path] = field(default_factory=list)
    error: str = ""
    began: float = 0.0
    took: float = 0.0
    _sampling: tuple[float, int] = (0.0, 0)
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in _RUNNING

    def listen(self, stage: str, done: int, total: int) -> None:
        """Remember how far it is.

        Raises:
            CancelledError: It is not wanted any more.
        """
        if stage == "sampling" and self.stage != stage:
            self._sampling = (time.monotonic(), done)
        self.stage, self.done, self.total = stage, done, max(total, 1)
        if self._stop.is_set():
            raise CancelledError(f"{self.name}: cancelled in {stage}; make it again for the whole file")

    @property
    def rate(self) -> float:
        """Sampling steps per second; 0 while unknown."""
        since, first = self._sampling
        steps = self.done - first
        return steps / max(time.monotonic() - since, 1e-6) if self.stage == "sampling" and steps > 0 else 0.0

    def cancel(self) -> None:
        """Stop it before its next step."""
        self._stop.set()
        if self.state == "waiting":
            self.state = "cancelled"


def job_name() -> str:
    """Return a name that nobody guesses: it is part of the addresses of files."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(6)}"


class Jobs:
    """A queue with one worker.

    Args:
        make: Makes what a job asks for and returns the files; it calls `job.listen`.
        most: Jobs that may wait or run at once.
    """

    def __init__(self, make: Callable[[Job], list[Path]], most: int) -> None:
        self.make, self.most = make, most
        self._all: deque[Job] = deque()
        self._changed = threading.Condition()
        threading.Thread(target=self._work, daemon=True, name="jobs").start()

    def submit(self, job: Job) -> None:
        """Add a job.

        Raises:
            ValueError: The queue is full.
        """
        with self._changed:
            waiting = sum(other.active for other in self._all)
            if waiting >= self.most:
                raise ValueError(f"The queue is full: {waiting} jobs. Try again when one of them is done.")
            self._all.append(job)
            done = [other for other in self._all if not other.active]
            for old in done[: max(0, len(done) - _REMEMBERED)]:
                self._all.remove(old)
            self._changed.notify()

    def of(self, owner: str) -> list[Job]:
        """Return somebody's jobs, oldest first."""
        with self._changed:
            return [job for job in self._all if job.owner == owner]

    def before(self, job: Job) -> int:
        """Return how many jobs are made before this one."""
        with self._changed:
            active = [other for other in self._all if other.active]
            return active.index(job) if job in active else 0

    def _work(self) -> None:
        while True:
            with self._changed:
                job = next((job for job in self._all if job.state == "waiting"), None)
                if job is None:
                    self._changed.wait()
                    continue
                job.state, job.began = "running", time.monotonic()
            self._run(job)

    def _run(self, job: Job) -> None:
        state = "done"
        try:
            job.listen("starting", 0, 1)
            job.paths = self.make(job)
        except CancelledError:
            state = "cancelled"
        except USER_ERRORS as error:
            state, job.error = "failed", said(error)
            get_logger().warning("job %s: %s", job.name, job.error)
        except Exception as error:  # the page lives on, and the log says where it comes from
            state, job.error = (
                "failed",
                f"something broke ({type(error).__name__}); the server's log says where",
            )
            get_logger().exception("job %s", job.name)
        job.took, job.preview = time.monotonic() - job.began, None
        job.state = state


def said(error: BaseException) -> str:
    """Return the sentence of an error."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__
