"""Writing checkpoints: in the background, each process its share, under no name before all is whole.

A checkpoint grows in a hidden folder `.NAME.partial`. Each process writes its files there, flushes and hashes
them, and leaves a mark: `RANK.done.json`, or `RANK.failed`. When all have, the first process writes the
indices, the state and the manifest, renames the folder, and deletes what is not kept. The threads talk
through these marks alone: they share no communication with training, so neither can hold up the other.
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from torch import Tensor

from opensora.acceleration.parallel import barrier, gather_texts, parallel_state
from opensora.engine.checkpoint import (
    FOLDER,
    MANIFEST,
    OLD,
    STATE,
    RunState,
    checkpoint_name,
    describe_file,
    list_checkpoints,
    step_of,
)
from opensora.utils.files import flush_to_disk, write_text
from opensora.utils.logging import get_logger
from opensora.utils.weight_files import INDEX, SAFE
from opensora.utils.weights import save_safetensors

Parts = Mapping[str, Mapping[str, Tensor]]

_POLL_S = 0.02
_LONGEST_S = 1800.0  # that the first process waits for the parts of the others, after its own
_LONGEST_WHEN_LEAVING_S = 30.0  # after an error: one of the others may be gone


class CheckpointWriter:
    """Write the checkpoints of a run, one at a time, while training goes on.

    Every process has one and calls `save` and `wait` when the others do.

    Args:
        run_folder: Folder of the run, on a disk that all processes share.
        keep: How many checkpoints stay, the latest ones; 0 keeps all.
        keep_every: Checkpoints of steps that this divides stay too; 0 for none.
    """

    def __init__(self, run_folder: Path, keep: int = 0, keep_every: int = 0) -> None:
        self.run_folder, self.keep, self.keep_every = Path(run_folder), keep, keep_every
        self.rank, self.world_size = parallel_state().rank, parallel_state().world_size
        self._thread: Thread | None = None
        self._error: Exception | None = None
        self._step = 0  # of the checkpoint that is being written
        self._delete = False  # older ones, after it
        self._leaving = Event()

    @property
    def failed(self) -> bool:
        """Whether writing has failed here, and nobody was told yet: `wait` tells."""
        return self._error is not None

    def save(self, state: RunState, parts: Parts, keep_all: bool = False) -> Path:
        """Begin to write a checkpoint, and return when it has begun. The one before is waited for.

        Args:
            state: Where the run stands; it may change afterwards.
            parts: File stem to whole tensors, this process's share of them; nobody may change them.
            keep_all: Delete no older one after this one.

        Returns:
            The folder that will hold it.
        """
        self._join()
        self._step, self._delete = state.step, bool(self.keep) and not keep_all
        target = self.run_folder / FOLDER / checkpoint_name(state)
        if self.rank == 0:
            try:
                self._make_room(_partial(target), parts)
            except OSError as error:
                self._error = error
        barrier()
        text = json.dumps(vars(state), indent=1)
        if not self.failed:
            self._thread = Thread(target=self._write, args=(target, text, parts), daemon=True)
            self._thread.start()
        return target

    def wait(self) -> str:
        """Wait until the checkpoint is written. All processes call this, and hear of an error on any.

        Returns:
            Why it could not be; what was there before still is. Empty if it was.
        """
        self._join()
        error, self._error = self._error, None
        reasons = gather_texts("" if error is None else f"{type(error).__name__}: {error}")
        told = [f"process {rank}: {reason}" for rank, reason in enumerate(reasons) if reason]
        if not told:
            return ""
        left = list_checkpoints(self.run_folder)
        older = f"the newest is that of step {step_of(left[-1])}" if left else "none yet"
        full = os.strerror(errno.ENOSPC) in " ".join(told)
        return (
            f"{self.run_folder}: no checkpoint of step {self._step} ({'; '.join(told)}); {older}."
            f"{' Free space on that disk.' if full else ''}"
        )

    def leave(self) -> None:
        """Wait until this process has done its part, after an error too; log what went wrong with it."""
        self._leaving.set()
        self._join()
        self._leaving.clear()
        if self._error is not None:
            get_logger().error("step %d could not be saved: %s", self._step, self._error)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, target: Path, state: str, parts: Parts) -> None:
        """Write this process's part, and on the first one what is left. Runs in a thread of its own."""
        start, partial = time.perf_counter(), _partial(target)
        try:
            written = self._write_part(partial, parts)
            write_text(json.dumps(written), partial / f"{self.rank}.done.json")
        except Exception as error:  # whatever it is, `wait` tells it
            self._error = error
            with suppress(OSError):
                for file in partial.glob(f"*-{self.rank + 1:05d}-of-*"):
                    file.unlink(missing_ok=True)  # leaves room for the mark
                (partial / f"{self.rank}.failed").touch()
        if self.rank != 0:
            return
        try:
            written = self._collect(partial)
            size = self._finish(written, partial, target, state)
            seconds = time.perf_counter() - start
            get_logger().info("saved %s: %.3g GiB, in %.2f s beside training", target, size, seconds)
        except Exception as error:
            self._error = self._error or error
            shutil.rmtree(partial, ignore_errors=True)

    def _make_room(self, partial: Path, parts: Parts) -> None:
        """Clear away what broke off before, and make the folder."""
        folder = partial.parent
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".epoch*.partial"):
            shutil.rmtree(leftover)
        partial.mkdir()
        share = sum(tensor.nbytes for part in parts.values() for tensor in part.values())
        need, free = share * self.world_size, shutil.disk_usage(folder).free
        if need > free:
            text = "a checkpoint takes about %.3g GiB, and the disk of %s has %.3g GiB left; free space there"
            get_logger().warning(text, need / 2**30, folder, free / 2**30)

    def _write_part(self, partial: Path, parts: Parts) -> dict[str, Any]:
        """Write this process's tensors; return sizes and hashes of the files, and the file of each tensor."""
        ending = "" if self.world_size == 1 else f"-{self.rank + 1:05d}-of-{self.world_size:05d}"
        files, keys = {}, {}
        if not partial.is_dir():
            text = f"{partial} is not there; all processes must share the disk of `outputs`"
            raise OSError(errno.ENOENT, text)
        for stem, tensors in parts.items():
            path = partial / f"{stem}{ending}{SAFE}"
            keys[stem] = dict.fromkeys(tensors, path.name)
            if tensors or self.world_size == 1:
                save_safetensors(tensors, path)
                files[path.name] = describe_file(path)
        return {"files": files, "keys": keys}

    def _finish(self, written: list[dict[str, Any]], partial: Path, target: Path, state: str) -> float:
        """Put the parts together, name them, and delete what is not kept. Return their size in GiB."""
        files = {name: entry for part in written for name, entry in part["files"].items()}
        texts = {STATE: state}
        if len(written) > 1:
            for stem in written[0]["keys"]:
                places = {key: file for part in written for key, file in part["keys"][stem].items()}
                texts[f"{stem}{SAFE}{INDEX}"] = json.dumps({"metadata": {}, "weight_map": places}, indent=1)
        for name, text in texts.items():
            write_text(text, partial / name)
            files[name] = describe_file(partial / name)
        write_text(json.dumps({"files": files}, indent=1), partial / MANIFEST)
        _publish(partial, target)
        for path in list_checkpoints(self.run_folder)[: -self.keep] if self._delete else []:
            if not (self.keep_every and step_of(path) % self.keep_every == 0):
                _remove(path)
        return sum(entry["size"] for entry in files.values()) / 2**30

    def _collect(self, partial: Path) -> list[dict[str, Any]]:
        """Wait until all processes are done or have failed; return what they wrote, and take their marks."""
        end = time.monotonic() + _LONGEST_S
        marks = [partial / f"{rank}.done.json" for rank in range(self.world_size)]
        while late := [
            rank
            for rank, mark in enumerate(marks)
            if not (mark.exists() or (partial / f"{rank}.failed").exists() or (rank == 0 and self.failed))
        ]:
            if self._leaving.is_set():
                end = min(end, time.monotonic() + _LONGEST_WHEN_LEAVING_S)
            if time.monotonic() > end:
                raise OSError(errno.ETIMEDOUT, f"no part came from process {', '.join(map(str, late))}")
            time.sleep(_POLL_S)
        if not all(mark.exists() for mark in marks):
            raise OSError(errno.EIO, "another process could not write its part")
        written = [json.loads(mark.read_text()) for mark in marks]
        for mark in marks:
            mark.unlink()
        return written


def save_checkpoint(
    run_folder: Path, state: RunState, parts: Parts, keep: int = 0, keep_every: int = 0
) -> Path:
    """Write one checkpoint, and return its folder when it is there. See `CheckpointWriter`.

    Raises:
        OSError: It could not be written.
    """
    writer = CheckpointWriter(run_folder, keep, keep_every)
    target = writer.save(state, parts)
    if error := writer.wait():
        raise OSError(error)
    return target


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, so that it is none any more; return where it is."""
    aside = path.with_name(f"damaged-{path.name.strip('.')}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    return aside


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name.removeprefix('.')}.partial")


def _publish(partial: Path, target: Path) -> None:
    """Give a complete checkpoint its name; at any time there is one of that name, old or new."""
    folder = target.parent
    flush_to_disk(partial)
    if target.exists():  # the same step saved twice: the newer one wins
        old = folder / f".{target.name}{OLD}"
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    partial.rename(target)
    flush_to_disk(folder)
    for old in folder.glob(f".epoch*{OLD}"):
        _remove(old)


def _remove(path: Path) -> None:
    """Delete a checkpoint; from the first moment it is none any more."""
    partial = _partial(path)
    path.rename(partial)
    shutil.rmtree(partial)
