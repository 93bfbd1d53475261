"""Watchdog: ends a process whose peers died or hang, and says which one, and in which phase."""

import faulthandler
import os
import select
import shutil
import signal
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType, TracebackType

from opensora.acceleration.heartbeat import Beat, here, listen, read_beat, write_beat
from opensora.acceleration.parallel import broadcast_text, parallel_state
from opensora.utils.user_errors import LOST_PROCESS, LostProcessError

FOLDER = ".heartbeats"
_BEAT_S = 2.0
_LOOK_S = 30.0  # between looks at the others, at most: they cost each process one file of every other
_SILENT_S = 10.0  # without a beat, when something else says too that a process is gone
_OWN_WORD_S = 5.0  # a process has so long to say itself what its peers fail with too
_SLOW = ("start", "save")
_GRACE_S = 25.0  # after a signal to stop: torchrun kills 30 s after it


class Watchdog:
    """Watches the processes of a run from a thread of its own, while used as a context. On all processes.

    A peer that failed, died (seen at once on the same machine) or was stuck in one phase for `timeout_s`
    seconds ends this process too, even while it waits in a collective. Heartbeats go through files, which
    need nobody alive to be read. What broke a collective is looked up in them as well.

    Args:
        folder: Folder of the run, on a disk that all processes share.
        timeout_s: Longest time without a new phase. 0 watches nothing.

    Raises:
        LostProcessError: In place of an error of a collective, whose cause is another process.
    """

    def __init__(self, folder: Path, timeout_s: float) -> None:
        if not timeout_s >= 0:
            raise ValueError(f"hang_timeout_s={timeout_s}: give seconds, or 0 to wait forever.")
        self.folder, self.timeout_s = folder, timeout_s
        self.rank, self.size = parallel_state().rank, parallel_state().world_size
        if self.rank == 0 and timeout_s:  # what an earlier start left, before anybody writes
            shutil.rmtree(folder / FOLDER, ignore_errors=True)
        self.beats = Path(broadcast_text(str(folder / FOLDER / f"{time.time_ns()}")))
        self._seen: dict[int, tuple[Beat, float]] = {}  # of each process, and when it was new
        self._failed: dict[int, float] = {}  # when a failure was first seen
        self._number, self._over = 0, False
        self._lock = threading.Lock()
        self._wake, self._ear = socket.socketpair()

    def __enter__(self) -> "Watchdog":
        if not self.timeout_s:
            return self
        self.beats.mkdir(parents=True, exist_ok=True)
        listen(self._beat)  # so that the last phase is known, however suddenly it ends
        for end in (self._wake, self._ear):
            end.setblocking(False)
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:  # the thread hears of a signal, also while the program waits in a collective
            self._before = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
            self._handler = signal.signal(signal.SIGTERM, _on_sigterm)
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.timeout_s:
            return
        if self._is_main:
            signal.set_wakeup_fd(self._before)
            # Not SIG_IGN, which programs that are started from here would inherit.
            signal.signal(signal.SIGTERM, _pass_over if error and self.size > 1 else self._handler)
        self._wake.send(b"\0")
        self._thread.join()
        listen(None)
        if error is None:
            self._beat("done")
            if self.rank == 0:
                self._sweep()
        elif isinstance(error, RuntimeError) and _is_of_a_collective(error) and (text := self._who_is_gone()):
            self._beat("lost", text)
            raise LostProcessError(lost_text(text)) from error
        else:
            self._beat("failed", f"{type(error).__name__}: {error}")

    def _watch(self) -> None:
        every = min(_BEAT_S, self.timeout_s / 5)
        last, look, asked = time.monotonic(), 0.0, -_GRACE_S
        while True:
            select.select([self._ear], [], [], every)
            try:
                heard = self._ear.recv(64)
            except BlockingIOError:
                heard = b""
            if b"\0" in heard:
                return
            now = time.monotonic()
            if {signal.SIGTERM, signal.SIGINT} & set(heard):
                asked = now
            if now - last > every + _SILENT_S:  # this process slept: it has not seen whether others did
                self._seen.clear()
            last = now
            self._beat()
            if now - asked < _GRACE_S or now >= look:
                look = now + min(_LOOK_S, self.timeout_s / 5)
                silent = _SILENT_S if now - asked < _GRACE_S else self.timeout_s
                if text := self._judge(min(silent, self.timeout_s)):
                    self._give_up(text)

    def _judge(self, silent_s: float) -> str:
        """Say which processes are gone or stuck; empty if none is."""
        now = time.monotonic()
        others = self._look(now)
        gone, told = [], []
        for rank, (beat, at) in others.items():
            if beat.state == "failed":
                if now - self._failed.setdefault(rank, now) > _OWN_WORD_S:
                    gone.append(f"process {rank} failed in {beat}: {beat.error}")
            elif beat.state == "lost":
                told.append(beat.error)
            elif beat.state == "running" and beat.is_dead:
                gone.append(f"process {rank} died in {beat} (if its memory was full, dmesg says so)")
            # Writing and loading large files may hold Python up.
            elif beat.state == "running" and now - at > (self.timeout_s if beat.phase in _SLOW else silent_s):
                gone.append(f"process {rank} has not answered for {now - at:.0f} s, since {beat}")
        if gone or told or self._failed:
            return "; ".join(gone or told[:1])
        running = {rank: b for rank, (b, _) in others.items() if b.state == "running"} | {self.rank: here()}
        last = min(beat.place for beat in running.values())
        stuck = {rank: beat for rank, beat in running.items() if beat.place == last}
        if any(b.phase == "start" or b.seconds <= self.timeout_s for b in stuck.values()):
            return ""
        told = [f"process {r} has been in {b} for {b.seconds:.0f} s" for r, b in sorted(stuck.items())]
        return "; ".join(told)

    def _look(self, now: float) -> dict[int, tuple[Beat, float]]:
        """Read the others' beats; a beat's `seconds` go on while no newer one comes."""
        with self._lock:
            for rank in range(self.size):
                beat = None if rank == self.rank else read_beat(self.beats / f"rank{rank}.json")
                old = self._seen.get(rank)
                if beat is not None and (old is None or beat.number != old[0].number):
                    self._seen[rank] = (beat, now)
            return {r: (replace(b, seconds=b.seconds + now - at), at) for r, (b, at) in self._seen.items()}

    def _who_is_gone(self) -> str:
        """Wait until it shows whose end broke a collective."""
        end = time.monotonic() + _SILENT_S + _OWN_WORD_S
        self._failed = dict.fromkeys(range(self.size), -_OWN_WORD_S)  # they may have said their word
        while time.monotonic() < end:
            self._beat()
            if text := self._judge(min(_SILENT_S, self.timeout_s)):
                return text
            time.sleep(0.2)
        return ""

    def _sweep(self) -> None:
        """Remove the heartbeats, when the others write none any more."""
        end = time.monotonic() + _OWN_WORD_S
        while time.monotonic() < end:
            if all(beat.state != "running" for beat, _ in self._look(time.monotonic()).values()):
                break
            time.sleep(0.02)
        shutil.rmtree(self.beats.parent, ignore_errors=True)

    def _beat(self, state: str = "running", error: str = "") -> None:
        if self._over:
            return
        self._number, self._over = self._number + 1, state in ("lost", "failed", "done")
        beat = replace(here(), number=self._number, state=state, error=error)
        write_beat(self.beats / f"rank{self.rank}.json", beat)

    def _give_up(self, text: str) -> None:
        """End this process at once, from whatever it does."""
        self._beat("lost", text)
        stacks = self.folder / "reports" / f"stacks_rank{self.rank}.txt"
        try:
            stacks.parent.mkdir(exist_ok=True)
            with open(stacks, "w") as file:
                faulthandler.dump_traceback(file)
        except OSError as error:
            text = f"{text} (no stacks: {error})"
        os.write(2, f"error in process {self.rank}: {lost_text(text)} Stacks: {stacks}\n".encode())
        os._exit(LOST_PROCESS)


def _pass_over(number: int, frame: FrameType | None) -> None:
    """Let this process say what is wrong before it ends, though torchrun asks it to."""


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    """Pass over it once steps are made: torchrun sends it when a process died, and the others shall say who.

    Training has a handler of its own, which saves.

    Raises:
        SystemExit: Nothing has been trained yet.
    """
    if here().phase == "start":
        raise SystemExit(128 + number)


def lost_text(text: str) -> str:
    """Complete what is known about lost processes to a message."""
    return f"{text}. Give the same command again: a named run goes on from its last checkpoint."


def _is_of_a_collective(error: RuntimeError) -> bool:
    """Say whether an error comes from the communication between processes; gloo's have no type of theirs."""
    names = {"DistBackendError", "DistNetworkError", "DistStoreError", "DistError"}
    return type(error).__name__ in names or "gloo" in str(error).lower() or "NCCL" in str(error)
