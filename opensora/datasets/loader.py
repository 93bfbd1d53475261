"""From a dataset and a sampler to batches."""

import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from multiprocessing import forkserver, resource_tracker
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from opensora.datasets.buckets import Buckets, ClipIndex
from opensora.datasets.reading import ClipError
from opensora.datasets.samplers import BucketSampler
from opensora.utils.logging import get_logger

_FLOATS = ("fps", "num_frames", "height", "width")
_INTEGERS = ("label", "sample", "epoch")

_LOOK_EVERY_S = 5  # how often who waits for a batch looks whether a reader hangs
_GRACE_S = 15.0  # beyond the time limit of a file: it stops by itself between two frames
_IDLE_S = 300.0  # without a file open: a reader has not even started, so all are started anew
_DYING_S = 1.0  # until a process that closed its connections counts as dead
_MOST_LOST = 10  # readers of a run: more is no matter of single files


def build_buckets(
    dataset: Any,
    bucket_config: Mapping[str, Mapping[int, Any]] | None,
    batch_size: int | None = None,
    rule: str = "resolution",
) -> Buckets:
    """Make the buckets of a run: those of a `bucket_config`, or one of the dataset's own size.

    Args:
        dataset: Has `num_frames` and `image_size`; one of features also `choose_buckets` and `keep_draws`.
        bucket_config: `{resolution: {frames: (probability, batch size)}}`, or None.
        batch_size: Clips per batch, without `bucket_config`.
        rule: Which resolutions a clip is large enough for; see `Buckets`.

    Raises:
        ValueError: Both ways are given, or neither.
    """
    if hasattr(dataset, "choose_buckets"):
        bucket_config, batch_size = dataset.choose_buckets(bucket_config, batch_size)
    keep_draws = getattr(dataset, "keep_draws", None)
    size = (dataset.num_frames, dataset.image_size, batch_size)
    if bucket_config is not None:
        if any(value is not None for value in size):
            raise ValueError(
                f"bucket_config is given, and num_frames, image_size, batch_size are {size}: sizes come "
                "from the buckets; set the three to None."
            )
        return Buckets(bucket_config, keep_draws=keep_draws, rule=rule)
    if any(value is None for value in size):
        raise ValueError(
            f"num_frames, image_size, batch_size are {size}: give all three, or a bucket_config such as "
            "{'360p': {1: (1.0, 60), 49: (1.0, 5)}}."
        )
    if getattr(dataset, "transform", None) == "rand_size_crop" and batch_size != 1:
        raise ValueError(
            f"batch_size={batch_size}: clips of transform='rand_size_crop' differ in size; use batch_size=1."
        )
    return Buckets.fixed(dataset.num_frames, *dataset.image_size, batch_size)


def build_dataloader(
    dataset: Dataset,
    sampler: BucketSampler,
    num_workers: int = 0,
    prefetch_factor: int | None = None,
    device: str | torch.device = "cpu",
) -> "BatchLoader":
    """Make the loader of a run. Its batches do not depend on the number of workers.

    Args:
        dataset: Takes a `ClipIndex`; if it has `replacements`, they are set to rows of the sampler's plan.
        sampler: Yields lists of `ClipIndex`.
        num_workers: Processes that read; 0 reads in this one.
        prefetch_factor: Batches that each worker reads ahead; None is torch's default.
        device: Where batches go; for a GPU they are put into pinned memory.

    Returns:
        An iterable of batches with the keys of `opensora.datasets`, and `replaced`: how many files of the
        batch stand for files that could not be read, which are in `failures`. After `sampler.next_epoch()` it
        yields the next epoch.
    """
    if hasattr(dataset, "replacements"):
        dataset.replacements = partial(sampler.planner.same_shape, excluded=sampler.plan.excluded)
    return BatchLoader(dataset, sampler, num_workers, prefetch_factor, torch.device(device).type == "cuda")


class BatchLoader:
    """Yields the batches of a sampler, whatever happens to the processes that read them.

    A reader that does not come back, because a decoder hangs or a disk does, is ended; one may also die. The
    file that it was reading counts as one that cannot be read, and reading goes on at the same batch.

    Args:
        dataset: Takes a `ClipIndex`.
        sampler: Yields lists of `ClipIndex` of its plan; `len` is how many.
        num_workers: Processes that read.
        prefetch_factor: Batches that each of them reads ahead.
        pin_memory: Put batches into pinned memory.

    Raises:
        ClipError: A file cannot be read and nothing can replace it, or readers are lost again and again.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: BucketSampler,
        num_workers: int,
        prefetch_factor: int | None,
        pin_memory: bool,
    ) -> None:
        self.dataset, self.sampler, self.num_workers = dataset, sampler, num_workers
        self.prefetch_factor, self.pin_memory = prefetch_factor, pin_memory
        self._rest = _Rest(sampler)
        self._excluded = sampler.plan.excluded
        self._loader: DataLoader | None = None
        self._lost = 0

    def __len__(self) -> int:
        """Batches that a pass yields."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the batches of a pass."""
        done, self._rest.skip = 0, 0
        self._follow_plan()
        while True:
            self._loader = self._loader or self._start()
            batches = iter(self._loader)
            try:
                while (batch := self._wait(batches)) is not None:
                    done += 1
                    yield batch
                return
            except _ReaderLostError:
                self._loader = batches = None  # ends all readers; the new ones pass over the lost file
                self._rest.skip = done

    def _follow_plan(self) -> None:
        """Let no row stand in for another that the running plan excludes."""
        if np.array_equal(self._excluded, self.sampler.plan.excluded):
            return
        self._excluded = self.sampler.plan.excluded
        if getattr(self.dataset, "replacements", None) is not None:
            self.dataset.replacements = partial(self.sampler.planner.same_shape, excluded=self._excluded)
            self._loader = None  # readers have a copy of the dataset: new ones have this

    def _start(self) -> DataLoader:
        workers = worker_settings(self.num_workers, self.prefetch_factor)
        if self.num_workers:
            workers["timeout"] = _LOOK_EVERY_S
            if hasattr(self.dataset, "reading"):
                self.dataset.reading = torch.full((self.num_workers, 3), -1.0).double().share_memory_()
        return DataLoader(
            _Lossless(self.dataset),
            batch_sampler=self._rest,
            collate_fn=collate,
            pin_memory=self.pin_memory,
            **workers,
        )

    def _wait(self, batches: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
        """Return the next batch, None at the end."""
        since = time.monotonic()
        while True:
            try:
                batch = next(batches, None)
            except RuntimeError as error:  # torch has no types for these
                text = str(error)
                if text.startswith("DataLoader worker") and "exited unexpectedly" in text:
                    self._give_up("the process that read it died", [int(n) for n in re.findall(r"\d+", text)])
                if not text.startswith("DataLoader timed out"):
                    raise
                self._give_up_hanging(since, [reader.pid for reader in batches._workers])
                continue
            except (ConnectionError, EOFError, FileNotFoundError):
                # Batches are fetched from the process that made them. It is gone, unnoticed by torch.
                time.sleep(_DYING_S)
                dead = [reader.pid for reader in batches._workers if not reader.is_alive()]
                if not dead:
                    raise
                self._give_up("the process that read it died", dead)
            if batch is not None and "lost" in batch:
                raise ClipError(batch["lost"])
            return batch

    def _give_up_hanging(self, since: float, readers: list[int]) -> None:
        """End readers that have read one file for too long, or all if none reads since that moment."""
        if getattr(self.dataset, "reading", None) is None:
            return
        waited = time.monotonic() - since
        if waited > _IDLE_S and bool((self.dataset.reading[:, 0] < 0).all()):
            self._lost += 1
            if self._lost > _MOST_LOST:
                raise ClipError(f"no clip came within {waited:.0f} s again and again; try num_workers=0.")
            get_logger().warning("No clip came within %.0f s, and none is read: readers start anew.", waited)
            self._restart(readers)
        limit = self.dataset.options.timeout_s + _GRACE_S
        hangs = (self.dataset.reading[:, 0] >= 0) & (time.monotonic() - self.dataset.reading[:, 1] > limit)
        pids = self.dataset.reading[hangs, 2].long().tolist()
        if pids:
            self._give_up(f"reading it did not come back within {limit:g} s", pids)

    def _give_up(self, why: str, pids: list[int]) -> NoReturn:
        self._lost += 1
        reading = getattr(self.dataset, "reading", None)
        account = [] if reading is None else reading.tolist()
        rows = [int(row) for row, _, pid in account if row >= 0 and int(pid) in pids]
        paths = [f"{self.dataset.manifest.path[row]}: {why}" for row in rows]
        if not rows or self._lost > _MOST_LOST:
            raise ClipError(
                f"{self._lost} processes that read clips were lost, the last with "
                f"{'; '.join(paths) or 'no file open'}. If memory is short, use fewer num_workers."
            )
        for row, text in zip(rows, paths, strict=True):
            self.dataset.unreadable[row] = f"{text}; remove it from the table or re-encode it."
            get_logger().warning("%s. Reading goes on without it.", text)
        self._restart(pids)

    def _restart(self, pids: list[int]) -> NoReturn:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        raise _ReaderLostError


class _ReaderLostError(Exception):
    """A process that reads clips is gone."""


class _Lossless(Dataset):
    """A dataset whose errors of single clips arrive as they are: torch would add the worker's traceback."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, clip: ClipIndex) -> dict[str, Any]:
        try:
            return self.dataset[clip]
        except ClipError as error:
            return {"lost": str(error)}


class _Rest:
    """What a sampler yields, without the first few."""

    def __init__(self, sampler: BucketSampler) -> None:
        self.sampler, self.skip = sampler, 0

    def __iter__(self) -> Iterator[list[Any]]:
        return islice(iter(self.sampler), self.skip, None)

    def __len__(self) -> int:
        return len(self.sampler) - self.skip


def worker_settings(num_workers: int, prefetch_factor: int | None = None) -> dict[str, Any]:
    """Return the arguments of a `DataLoader` that make its workers, as for `build_dataloader`."""
    if not num_workers:
        return {"num_workers": 0}
    # Not "fork": it would copy locks that threads of this process hold.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["opensora.datasets.video"])
    # Ctrl-C reaches the whole group of processes. The training ends its step and saves; its readers must
    # outlast that from their first moment on: they inherit that the signal is blocked.
    resource_tracker.ensure_running()  # which unblocks it
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return {
        "num_workers": num_workers,
        "multiprocessing_context": context,
        "persistent_workers": True,
        "prefetch_factor": prefetch_factor,
        "worker_init_fn": _start_worker,
    }


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join samples to a batch.

    Args:
        samples: One dict each, with equal keys and shapes.

    Returns:
        Tensors stacked along a new first axis, numbers as tensors of shape [B] (sizes and rates float32,
        names of random numbers int64), texts as a list, `replaced` as one number, `failures` as one list, and
        `text_features` padded with zeros to the longest, with their `text_mask`. If a sample is lost, only
        `lost`: why.
    """
    lost = [sample["lost"] for sample in samples if "lost" in sample]
    if lost:
        return {"lost": lost[0]}
    batch: dict[str, Any] = {}
    for key in samples[0]:
        values = [sample[key] for sample in samples]
        if key in ("replaced", "failures"):
            batch[key] = sum(values, start=type(values[0])())
        elif key == "text_features":  # captions have different lengths
            lengths = torch.tensor([len(value) for value in values])
            batch[key] = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)  # [B, L, F]
            batch["text_mask"] = torch.arange(batch[key].shape[1]) < lengths[:, None]
        elif isinstance(values[0], Tensor):
            batch[key] = torch.stack(values)
        elif key in _FLOATS or isinstance(values[0], float):
            batch[key] = torch.tensor(values, dtype=torch.float32)
        elif key in _INTEGERS or isinstance(values[0], int):
            batch[key] = torch.tensor(values, dtype=torch.int64)
        else:
            batch[key] = values
    return batch


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)  # workers share the cores with each other and with the training
    threading.Thread(target=_end_with_owner, daemon=True).start()


def _end_with_owner() -> None:
    """End this process when the one that it reads for is killed: torch looks at the fork server instead."""
    multiprocessing.parent_process().join()
    os._exit(1)
