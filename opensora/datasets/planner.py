"""The order of training as an explicit plan: which clips, in which batches, in which steps.

A step is `batches_per_step` batches of one shape each. The plan is a function of the table, the buckets, the
seed and the epoch, never of the number of processes: they only share out the batches of a step.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from opensora.datasets.buckets import Buckets, BucketTable, ClipIndex, hashed_bits
from opensora.datasets.epoch_plan import EpochPlan
from opensora.datasets.plan_errors import explain_empty_plan

Columns = tuple[np.ndarray, np.ndarray, np.ndarray]  # num_frames, height, width: each of shape [N]

# Names of the random orders, as streams of `hashed_bits`; buckets use the numbers from 0.
_CLIPS, _CUT, _TIES, _STEPS = -1, -2, -3, -4


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

    def plan(
        self, epoch: int, carry: np.ndarray | None = None, excluded: np.ndarray | None = None
    ) -> EpochPlan:
        """Plan an epoch.

        Each clip is used at most once. Clips that do not fill a batch, and batches that do not fill a step,
        are carried over: they keep their shape and go first in the next epoch. The batches of a step cost
        about the same.

        Args:
            epoch: Epoch, from 0.
            carry: What the epoch before left over; None for nothing.
            excluded: Rows that are not taken, also not from the carry; None for none.

        Returns:
            The plan; it has at least one step.

        Raises:
            ValueError: The clips do not fill one step; the message says why, and what to change.
        """
        buckets, n, seed = self.buckets, self.batches_per_step, self.seed
        if n < 1:
            raise ValueError(f"batches_per_step={n}: a step has at least one batch.")
        table = buckets.assign(*self.columns, seed, epoch, self.frame_interval)
        excluded = _checked_rows(excluded, len(table.shape))
        table = table.without(excluded)
        carried = np.asarray([] if carry is None else carry, dtype=np.int64).reshape(-1, 2)
        carried = carried[~np.isin(carried[:, 0], excluded)]
        shape = _with_carried(table, carried, buckets)
        rows, starts, number = _fill_batches(shape, carried[:, 0], buckets, seed, epoch)
        chosen = _arrange(rows, starts, number, carried[:, 0], buckets, n, seed, epoch)
        if len(chosen) == 0:
            raise ValueError(explain_empty_plan(self.columns, buckets, table, shape, n, self.frame_interval))
        planned = [rows[starts[k] : starts[k + 1]] for k in chosen]
        used = np.concatenate(planned)
        unused = np.setdiff1d(np.flatnonzero(shape >= 0), used)
        key = f"{self.table_fingerprint}/{buckets.fingerprint}/{seed}/{self.frame_interval}"
        sizes = np.array([shape[2:5] for shape in buckets.shapes], dtype=np.int32)
        return EpochPlan(
            key=hashlib.blake2b(key.encode(), digest_size=16).hexdigest(),
            epoch=epoch,
            batches_per_step=n,
            rows=used,
            starts=np.concatenate([[0], np.cumsum([len(part) for part in planned])]),
            sizes=sizes[number[chosen]],
            carried=carried,
            carry=np.stack([unused, shape[unused].astype(np.int64)], axis=1),
            excluded=excluded,
            counts={**table.counts(), "used": len(used), "carried over": len(unused)},
        )

    def load(self, path: str | Path) -> EpochPlan:
        """Read a plan that this planner, in an earlier process, made.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged, or was made from another table, configuration or seed.
        """
        plan = EpochPlan.load(path)
        if self.plan(plan.epoch, plan.carried, plan.excluded).hash != plan.hash:
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


def _checked_rows(rows: np.ndarray | None, count: int) -> np.ndarray:
    """Return rows sorted, each once. int64, shape [E]."""
    rows = np.unique(np.asarray([] if rows is None else rows, dtype=np.int64))
    if len(rows) and not 0 <= rows[0] <= rows[-1] < count:
        raise ValueError(
            f"excluded names rows {rows[0]} to {rows[-1]}; this table has {count} rows, from 0. The list is "
            "of another table."
        )
    return rows


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
