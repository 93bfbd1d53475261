"""The order of training as an explicit plan: every step of an epoch, and every clip of its batches.

A step is `batches_per_step` batches of one shape each. The plan is a function of the table, the buckets, the
seed and the epoch, never of the number of processes: they only share out the batches of a step.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from torch.utils.data import Sampler

from opensora.datasets.buckets import Buckets, BucketTable, ClipIndex, hashed_bits
from opensora.datasets.plan_errors import explain_empty_plan

Columns = tuple[np.ndarray, np.ndarray, np.ndarray]  # num_frames, height, width: each of shape [N]

# Names of the random orders, as streams of `hashed_bits`; buckets use the numbers from 0.
_CLIPS, _CUT, _TIES, _STEPS = -1, -2, -3, -4


@dataclass(frozen=True)
class EpochPlan:
    """All steps of an epoch.

    Batch k holds `rows[starts[k] : starts[k + 1]]`. Step i holds batches i * n to (i + 1) * n, with n =
    `batches_per_step`.

    Args:
        key: Hash of what the plan was made from, apart from the epoch and the carry.
        epoch: Epoch.
        batches_per_step: Batches of a step, over all processes.
        rows: Rows of the table, batch by batch. int64, shape [M].
        starts: Where the batches start in `rows`, and its end. int64, shape [K + 1].
        sizes: num_frames, height and width of each batch. int32, shape [K, 3].
        carried: Rows that came from the epoch before, with the numbers of their shapes. int64, shape [A, 2].
        carry: Rows that were left over, and go first in the next epoch. As `carried`.
        counts: How many rows of the table were taken, and how many not, by reason.
    """

    key: str
    epoch: int
    batches_per_step: int
    rows: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    carried: np.ndarray
    carry: np.ndarray
    counts: dict[str, int]

    @property
    def num_steps(self) -> int:
        """Steps of the epoch."""
        return len(self.sizes) // self.batches_per_step

    @property
    def costs(self) -> np.ndarray:
        """Pixels of each batch over all its clips and frames, which stand for its work. int64, shape [K]."""
        return self.sizes.astype(np.int64).prod(1) * np.diff(self.starts)

    @cached_property
    def hash(self) -> str:
        """Hash of the whole plan. Processes compare it before they start."""
        digest = hashlib.blake2b(f"{self.key}/{self.epoch}/{self.batches_per_step}".encode(), digest_size=16)
        for array in (self.rows, self.starts, self.sizes, self.carried, self.carry):
            digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def batch(self, number: int) -> list[ClipIndex]:
        """Return the clips of a batch."""
        size = [int(n) for n in self.sizes[number]]
        rows = self.rows[self.starts[number] : self.starts[number + 1]]
        return [ClipIndex(int(row), *size, self.epoch) for row in rows]

    def step(self, number: int) -> list[list[ClipIndex]]:
        """Return the batches of a step."""
        first = number * self.batches_per_step
        return [self.batch(first + i) for i in range(self.batches_per_step)]

    def save(self, path: str | Path) -> None:
        """Write the plan as .npz. The file appears under its name when it is whole."""
        path = Path(path)
        header = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _ARRAYS}
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(temporary, "wb") as file:
                np.savez(
                    file,
                    header=np.frombuffer(json.dumps({**header, "hash": self.hash}).encode(), dtype=np.uint8),
                    **{name: getattr(self, name) for name in _ARRAYS},
                )
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> "EpochPlan":
        """Read a plan.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is no plan, or is damaged.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such plan; it lies beside the checkpoint of a run.")
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(file["header"].tobytes())
                plan_hash = header.pop("hash")
                plan = cls(**header, **{name: file[name] for name in _ARRAYS})
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            raise ValueError(
                f"{path}: no plan of an epoch ({error}); delete it, it is made again."
            ) from error
        if plan.hash != plan_hash:
            raise ValueError(
                f"{path}: the plan's hash is {plan.hash}, not {plan_hash}; the file is damaged, delete it."
            )
        return plan


_ARRAYS = ("rows", "starts", "sizes", "carried", "carry")


def make_plan(
    table_fingerprint: str,
    columns: Columns,
    buckets: Buckets,
    batches_per_step: int,
    seed: int,
    epoch: int,
    carry: np.ndarray | None = None,
    frame_interval: int = 1,
) -> EpochPlan:
    """Plan an epoch.

    Each clip is used at most once. Clips that do not fill a batch, and batches that do not fill a step, are
    carried over: they keep their shape and go first in the next epoch. The batches of a step cost about the
    same.

    Args:
        table_fingerprint: Hash of the table.
        columns: Length, height and width of each file.
        buckets: Where clips belong.
        batches_per_step: Batches of a step, over all processes and accumulation. At least 1.
        seed: Seed of the run.
        epoch: Epoch, from 0.
        carry: What the epoch before left over; None for nothing.
        frame_interval: Step between frames.

    Returns:
        The plan; it has at least one step.

    Raises:
        ValueError: The clips do not fill one step; the message says why, and what to change.
    """
    if batches_per_step < 1:
        raise ValueError(f"batches_per_step={batches_per_step}: a step has at least one batch.")
    table = buckets.assign(*columns, seed=seed, epoch=epoch, frame_interval=frame_interval)
    carried = np.asarray([] if carry is None else carry, dtype=np.int64).reshape(-1, 2)
    shape = _with_carried(table, carried, buckets)
    rows, starts, number = _fill_batches(shape, carried[:, 0], buckets, seed, epoch)
    chosen = _arrange(rows, starts, number, carried[:, 0], buckets, batches_per_step, seed, epoch)
    if len(chosen) == 0:
        raise ValueError(explain_empty_plan(columns, buckets, table, shape, batches_per_step, frame_interval))
    planned = [rows[starts[k] : starts[k + 1]] for k in chosen]
    used = np.concatenate(planned)
    unused = np.setdiff1d(np.flatnonzero(shape >= 0), used)
    key = f"{table_fingerprint}/{buckets.fingerprint}/{seed}/{frame_interval}"
    sizes = np.array([shape[2:5] for shape in buckets.shapes], dtype=np.int32)
    return EpochPlan(
        key=hashlib.blake2b(key.encode(), digest_size=16).hexdigest(),
        epoch=epoch,
        batches_per_step=batches_per_step,
        rows=used,
        starts=np.concatenate([[0], np.cumsum([len(part) for part in planned])]),
        sizes=sizes[number[chosen]],
        carried=carried,
        carry=np.stack([unused, shape[unused].astype(np.int64)], axis=1),
        counts={**table.counts(), "used": len(used), "carried over": len(unused)},
    )


@dataclass
class Planner:
    """Makes the plans of a run, epoch by epoch.

    Args:
        table_fingerprint: Hash of the table.
        columns: Length, height and width of each file.
        buckets: Where clips belong.
        batches_per_step: Batches of a step, over all processes and accumulation.
        seed: Seed of the run.
        frame_interval: Step between frames.
    """

    table_fingerprint: str
    columns: Columns
    buckets: Buckets
    batches_per_step: int
    seed: int
    frame_interval: int = 1
    _last: tuple[int, BucketTable] | None = field(default=None, init=False, repr=False, compare=False)

    def plan(self, epoch: int, carry: np.ndarray | None = None) -> EpochPlan:
        """Plan an epoch; arguments and errors as for `make_plan`."""
        return make_plan(
            self.table_fingerprint,
            self.columns,
            self.buckets,
            self.batches_per_step,
            self.seed,
            epoch,
            carry,
            self.frame_interval,
        )

    def load(self, path: str | Path) -> EpochPlan:
        """Read a plan that this planner, in an earlier process, made.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged, or was made from another table, configuration or seed.
        """
        plan = EpochPlan.load(path)
        if self.plan(plan.epoch, plan.carried).hash != plan.hash:
            raise ValueError(
                f"{path}: the plan of epoch {plan.epoch} was made from another table, bucket_config, "
                "batches_per_step, frame_interval or seed. Restore them to continue this epoch, or set "
                "start_from_scratch=True."
            )
        return plan

    def same_shape(self, clip: ClipIndex) -> np.ndarray:
        """Return the rows that could stand in for a clip: those of its shape in its epoch. int64, [R]."""
        if self._last is None or self._last[0] != clip.epoch:
            table = self.buckets.assign(*self.columns, self.seed, clip.epoch, self.frame_interval)
            self._last = (clip.epoch, table)
        wanted = [n for n, shape in enumerate(self.buckets.shapes) if shape[2:5] == tuple(clip[1:4])]
        return np.flatnonzero(np.isin(self._last[1].shape, wanted))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}


class BucketSampler(Sampler[list[ClipIndex]]):
    """Yields the batches of one process, in the order of the plan.

    Of each step, process r of R takes the batches r, r + R, ...

    Args:
        planner: Makes the plans.
        rank: Number of this process among those with data of their own.
        world_size: How many there are; divides the planner's `batches_per_step`.
        plan: Plan to start with; None plans epoch 0.
        start_step: Step to start at, for a resumed run.

    Attributes:
        plan: The plan of the epoch.
        start_step: Step at which the next pass starts.

    Raises:
        ValueError: `world_size` does not divide `batches_per_step`, or a number is out of range.
    """

    def __init__(
        self,
        planner: Planner,
        rank: int = 0,
        world_size: int = 1,
        plan: EpochPlan | None = None,
        start_step: int = 0,
    ) -> None:
        n = planner.batches_per_step
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} of world_size={world_size}: ranks go from 0 to world_size - 1.")
        if n % world_size:
            raise ValueError(
                f"batches_per_step={n} is not a multiple of the {world_size} processes; "
                f"use {n // world_size * world_size or world_size} or {-(-n // world_size) * world_size}."
            )
        self.planner = planner
        self.rank = rank
        self.world_size = world_size
        self.set_plan(plan or planner.plan(0), start_step)

    def set_plan(self, plan: EpochPlan, start_step: int = 0) -> None:
        """Go on with a plan, from a step.

        Raises:
            ValueError: The plan has no such step.
        """
        if not 0 <= start_step <= plan.num_steps:
            raise ValueError(
                f"start_step={start_step}: epoch {plan.epoch} has {plan.num_steps} steps; give 0 to "
                f"{plan.num_steps}."
            )
        self.plan = plan
        self.start_step = start_step

    def next_epoch(self) -> None:
        """Plan the next epoch, with what this one left over, and start at its beginning."""
        self.set_plan(self.planner.plan(self.plan.epoch + 1, self.plan.carry))

    def __iter__(self) -> Iterator[list[ClipIndex]]:
        n = self.plan.batches_per_step
        for step in range(self.start_step, self.plan.num_steps):
            for place in range(self.rank, n, self.world_size):
                yield self.plan.batch(step * n + place)

    def __len__(self) -> int:
        """Batches that a pass yields."""
        return (self.plan.num_steps - self.start_step) * self.plan.batches_per_step // self.world_size


def _with_carried(table: BucketTable, carried: np.ndarray, buckets: Buckets) -> np.ndarray:
    """Return the shape of each row, where carried rows keep theirs. int32, shape [N]."""
    shape = table.shape.copy()
    if len(carried) == 0:
        return shape
    rows, numbers = carried.T
    if (
        rows.min() < 0
        or rows.max() >= len(shape)
        or numbers.min() < 0
        or numbers.max() >= len(buckets.shapes)
    ):
        raise ValueError(
            f"carry names rows up to {rows.max()} and shapes up to {numbers.max()}; this table has "
            f"{len(shape)} rows and these buckets {len(buckets.shapes)} shapes. It is from another table or "
            "bucket_config."
        )
    shape[rows] = numbers
    return shape


def _fill_batches(
    shape: np.ndarray, carried: np.ndarray, buckets: Buckets, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut the rows of each shape into full batches, carried rows first, the others in random order.

    Returns:
        Rows, batch by batch; where batches start, and the end; the shape of each batch.
    """
    rows = np.flatnonzero(shape >= 0)
    late = np.full(len(shape), len(carried), dtype=np.int64)
    late[carried] = np.arange(len(carried))
    rows = rows[np.lexsort((hashed_bits(seed, epoch, rows, _CLIPS, 0), late[rows], shape[rows]))]
    batch_size = np.array([s.batch_size for s in buckets.shapes], dtype=np.int64)
    count = np.bincount(shape[rows], minlength=len(batch_size))
    place = np.arange(len(rows)) - (np.cumsum(count) - count)[shape[rows]]
    full = count // np.maximum(batch_size, 1)
    rows = rows[place < (full * batch_size)[shape[rows]]]
    number = np.repeat(np.arange(len(batch_size)), full)
    return rows, np.concatenate([[0], np.cumsum(batch_size[number])]), number


def _arrange(
    rows: np.ndarray,
    starts: np.ndarray,
    number: np.ndarray,
    carried: np.ndarray,
    buckets: Buckets,
    batches_per_step: int,
    seed: int,
    epoch: int,
) -> np.ndarray:
    """Choose the batches of whole steps and their order: equal costs within a step, steps in random order."""
    every = np.arange(len(number))
    has_carried = np.logical_or.reduceat(np.isin(rows, carried), starts[:-1]) if len(number) else every > 0
    order = np.lexsort((hashed_bits(seed, epoch, every, _CUT, 0), ~has_carried))
    kept = order[: len(order) // batches_per_step * batches_per_step]
    cost = np.array(
        [s.num_frames * s.height * s.width * s.batch_size for s in buckets.shapes], dtype=np.int64
    )
    kept = kept[np.lexsort((hashed_bits(seed, epoch, kept, _TIES, 0), cost[number[kept]]))]
    steps = kept.reshape(-1, batches_per_step)
    order = np.argsort(hashed_bits(seed, epoch, np.arange(len(steps)), _STEPS, 0), kind="stable")
    return steps[order].reshape(-1)
