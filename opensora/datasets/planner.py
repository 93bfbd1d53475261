"""The order of training as an explicit plan: which clips, in which batches, in which steps.

A step is `batches_per_step` batches of one shape each. The plan is a function of the table, the buckets, the
seed and the epoch, never of the number of processes: they only share out the batches of a step.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from opensora.datasets.assignment import (
    EXCLUDED,
    PROBABILITY,
    STARVED,
    TAKEN,
    Assignment,
    Columns,
    Starved,
)
from opensora.datasets.buckets import Buckets, ClipIndex
from opensora.datasets.epoch_plan import EpochPlan
from opensora.datasets.plan_errors import Situation, explain_dropped, explain_empty_plan, explain_starved
from opensora.datasets.steps import Lines, arrange, kept_batches, line_up, pad_steps, take
from opensora.utils.logging import get_logger

REMAINDERS = ("carry", "pad")
STARVED_RULES = ("error", "merge", "drop")


@dataclass(frozen=True)
class PlanRules:
    """What becomes of rows that fill no batch, and what a batch costs.

    Args:
        remainder: "carry" keeps rows that fill no batch or no step for the next epoch, where they go first;
            "pad" repeats rows until all is full.
        starved: A bucket that can never fill a batch is an "error"; or "merge" sends its clips to the next
            bucket that fits them; or "drop" leaves them out.
        max_dropped: Largest share of the table that may fit no bucket or be carried over in the first epoch.
        costs: Seconds that a batch of a bucket takes, {resolution: {frames: seconds}}; None counts pixels.

    Raises:
        ValueError: A value is out of range.
    """

    remainder: str = "carry"
    starved: str = "merge"
    max_dropped: float = 0.5
    costs: Mapping[str, Mapping[int, float]] | None = None

    @classmethod
    def from_config(cls, plan: Mapping[str, Any]) -> "PlanRules":
        """Read the config's `plan`, where `costs` may be a JSON file, and `bucket_rule` is of the buckets.

        Raises:
            ValueError: A value is out of range, a key is unknown, or the file is no such table.
            FileNotFoundError: There is no such file.
        """
        values = {name: value for name, value in plan.items() if name != "bucket_rule"}
        if isinstance(values["costs"], str):
            values["costs"] = _read_costs(Path(values["costs"]))
        return cls(**values)

    def __post_init__(self) -> None:
        for name, value, values in [
            ("remainder", self.remainder, REMAINDERS),
            ("starved", self.starved, STARVED_RULES),
        ]:
            if value not in values:
                raise ValueError(f"plan.{name}={value!r}: use one of {', '.join(values)}.")
        if not 0.0 <= self.max_dropped <= 1.0:
            raise ValueError(f"plan.max_dropped={self.max_dropped!r}: use a share of the table from 0 to 1.")

    def cost_of_shapes(self, buckets: Buckets) -> np.ndarray:
        """Return what a batch of each shape costs. Shape [shapes].

        Raises:
            ValueError: A bucket has no cost, or one that is not positive.
        """
        if self.costs is None:
            return np.array([s.num_frames * s.height * s.width * s.batch_size for s in buckets.shapes])
        found = []
        for bucket in buckets.buckets:
            lengths = self.costs[bucket.resolution] if bucket.resolution in self.costs else {}
            cost = lengths[bucket.num_frames] if bucket.num_frames in lengths else None
            if bucket.batch_size is not None and not (isinstance(cost, int | float) and cost > 0):
                raise ValueError(
                    f"plan.costs[{bucket.resolution!r}][{bucket.num_frames}] is {cost!r}: give the seconds "
                    "that a batch of each bucket takes, or costs=None to count pixels."
                )
            found.append(cost or 0.0)
        return np.array([found[shape.bucket] for shape in buckets.shapes])


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
        rules: What becomes of rows that fill no batch.
    """

    table_fingerprint: str
    columns: Columns
    buckets: Buckets
    batches_per_step: int
    seed: int
    frame_interval: int = 1
    rules: PlanRules = PlanRules()
    _whole: Assignment | None = field(default=None, init=False, repr=False, compare=False)
    _filled: tuple[np.ndarray, Assignment] | None = field(default=None, init=False, repr=False, compare=False)
    _last: tuple[int, np.ndarray, np.ndarray] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    def plan(
        self, epoch: int, carry: np.ndarray | None = None, excluded: np.ndarray | None = None
    ) -> EpochPlan:
        """Plan an epoch.

        Each row is used at most once, unless rows are repeated to fill batches. Rows that fill no batch, and
        batches that fill no step, are carried over: they keep their shape and go first in the next epoch. No
        row is cut twice while its shape has a batch in the plan, but for one case: if the full batches would
        fill a step, and none fits around the rows that were cut before, some of these are cut again, and a
        warning says so. The batches of a step cost about the same.

        Args:
            epoch: Epoch, from 0.
            carry: What the epoch before left over; None for nothing.
            excluded: Rows that are not taken, also not from the carry; None for none.

        Returns:
            The plan; it has at least one step.

        Raises:
            ValueError: The clips do not fill one step; or, in the first epoch, a bucket can never fill a
                batch or too many rows are dropped. The message says why, and what to change.
        """
        n = self.batches_per_step
        if n < 1:
            raise ValueError(f"batches_per_step={n}: a step has at least one batch.")
        excluded = _checked_rows(excluded, len(self.columns[0]))
        assignment = self.assignment(excluded)
        if epoch == 0:  # later, only rows that turned out to be bad can starve a bucket: no reason to stop
            self._check_starved(assignment, excluded)
        table = assignment.draw(self.seed, epoch)
        table.shape[excluded], table.reason[excluded] = -1, EXCLUDED
        carried = self._carried(carry, excluded, assignment)
        shape = table.shape
        shape[carried[:, 0]] = carried[:, 1]
        costs = self.rules.cost_of_shapes(self.buckets)
        batch_size = np.array([max(1, s.batch_size) for s in self.buckets.shapes])
        lines = line_up(shape, carried[:, 0], len(batch_size), self.seed, epoch)
        situation = Situation(self.columns, self.buckets, table, lines.count, n, self.frame_interval)
        number = self._batches(epoch, lines.count, carried, batch_size, assignment)
        if len(number) == 0 or (self.rules.remainder == "carry" and len(number) < n):
            raise ValueError(explain_empty_plan(situation))
        kept = np.bincount(number, minlength=len(batch_size))
        carry = _cut(lines, kept, batch_size, carried)
        if epoch == 0:
            self._check_dropped(situation, len(carry))
        if self.rules.remainder == "pad":
            chosen = pad_steps(number, n, self.seed, epoch)
        else:
            chosen = np.arange(len(number))
        index = chosen - (np.cumsum(kept) - kept)[number[chosen]]
        number = number[chosen]
        bucket = np.array([s.bucket for s in self.buckets.shapes])
        order = arrange(number, bucket, costs, n, self.seed, epoch)
        rows, starts = take(lines, number[order], index[order], batch_size)
        repeated = len(rows) - (int(lines.count.sum()) - len(carry))
        sizes = np.array([s[2:5] for s in self.buckets.shapes], dtype=np.int32)
        return EpochPlan(
            key=self.key,
            epoch=epoch,
            batches_per_step=n,
            rows=rows,
            starts=starts,
            sizes=sizes[number[order]],
            costs=costs[number[order]],
            carried=carried,
            carry=carry,
            excluded=excluded,
            counts={
                **table.counts(),
                "used": len(rows) - repeated,
                "carried over": len(carry),
                "repeated": repeated,
            },
        )

    @property
    def key(self) -> str:
        """Hash of what plans are made from, apart from the epoch, the carry and the excluded rows."""
        text = f"{self.table_fingerprint}/{self.buckets.fingerprint}/{self.seed}/{self.frame_interval}"
        return hashlib.blake2b(f"{text}/{self.rules}".encode(), digest_size=16).hexdigest()

    def assignment(self, excluded: np.ndarray) -> Assignment:
        """Return which rows fit which buckets, without those that can never fill a batch.

        Args:
            excluded: Rows that are never taken. Shape [E].
        """
        if self._whole is None:
            self._whole = Assignment.of(self.buckets, self.columns, self.frame_interval)
        if self._filled is None or not np.array_equal(self._filled[0], excluded):
            found = self._whole.close_starved(excluded, merge=self.rules.starved == "merge")
            self._filled = (excluded, found)
        return self._filled[1]

    @property
    def starved(self) -> tuple[Starved, ...]:
        """Buckets of the last plan that can never fill a batch, and where their clips go."""
        return () if self._filled is None else self._filled[1].starved

    def same_shape(self, clip: ClipIndex, excluded: np.ndarray | None = None) -> np.ndarray:
        """Return the rows that could stand in for a clip: those of its shape in its epoch. int64, [R].

        Args:
            clip: The clip.
            excluded: Rows that its plan does not take; None for none.
        """
        excluded = _checked_rows(excluded, len(self.columns[0]))
        last = self._last
        if last is None or last[0] != clip.epoch or not np.array_equal(last[1], excluded):
            shape = self.assignment(excluded).draw(self.seed, clip.epoch).shape
            shape[excluded] = -1
            self._last = last = (clip.epoch, excluded, shape)
        wanted = [n for n, shape in enumerate(self.buckets.shapes) if shape[2:5] == tuple(clip[1:4])]
        return np.flatnonzero(np.isin(last[2], wanted))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None, "_whole": None, "_filled": None}

    def _carried(self, carry: np.ndarray | None, excluded: np.ndarray, assignment: Assignment) -> np.ndarray:
        """Check the carry, and return it without excluded rows and closed shapes. int64, shape [A, 3]."""
        carried = np.asarray([] if carry is None else carry, dtype=np.int64).reshape(-1, 3)
        if len(carried):
            rows, shapes = carried[:, 0], carried[:, 1]
            if (
                min(rows.min(), shapes.min()) < 0
                or rows.max() >= len(self.columns[0])
                or shapes.max() >= len(self.buckets.shapes)
            ):
                raise ValueError(
                    f"carry names rows up to {rows.max()} and shapes up to {shapes.max()}; this table has "
                    f"{len(self.columns[0])} rows and these buckets {len(self.buckets.shapes)} shapes. It is "
                    "from another table or bucket_config."
                )
        open_shapes = assignment.eligible[carried[:, 1]] > 0
        return carried[open_shapes & ~np.isin(carried[:, 0], excluded)]

    def _batches(
        self,
        epoch: int,
        count: np.ndarray,
        carried: np.ndarray,
        batch_size: np.ndarray,
        assignment: Assignment,
    ) -> np.ndarray:
        """Return the shape of each batch of the epoch, ascending. Shape [K]."""
        if self.rules.remainder == "pad":
            return np.repeat(np.arange(len(count)), -(-count // batch_size))
        full = count // batch_size
        waiting = np.bincount(carried[:, 1], minlength=len(count))
        owed = -(-np.bincount(carried[carried[:, 2] > 0, 1], minlength=len(count)) // batch_size)
        # Excluded rows may leave too few to ever fill the batches that are owed.
        owed = np.minimum(owed, np.maximum(full, assignment.eligible // batch_size))
        n = self.batches_per_step
        kept = kept_batches(full, owed, waiting / batch_size, n)
        if not kept.any() and full.sum() >= n:
            get_logger().warning(
                "Epoch %d: clips that were left over before take %d batches. With them, the %d full batches "
                "fill no step of %d, so some of these clips are left over again.",
                *(epoch, owed.sum(), full.sum(), n),
            )
            kept = kept_batches(full, np.zeros_like(owed), waiting / batch_size, n)
        return np.repeat(np.arange(len(count)), kept)

    def _check_starved(self, found: Assignment, excluded: np.ndarray) -> None:
        hungry = found.starved
        if self.rules.starved == "drop" or not hungry:
            return
        if self.rules.starved == "merge":
            lost = found.miss[found.kind] == STARVED
            lost[excluded] = False
            hungry = tuple(s for s in hungry if s.home is None) if lost.any() else ()
        if hungry:
            raise ValueError(explain_starved(self.buckets, hungry, self.rules.starved))

    def _check_dropped(self, situation: Situation, carried_over: int) -> None:
        reason = situation.table.reason
        lost = int(np.isin(reason, (TAKEN, PROBABILITY, EXCLUDED), invert=True).sum()) + carried_over
        if lost > self.rules.max_dropped * len(reason):
            raise ValueError(explain_dropped(situation, carried_over, self.rules.max_dropped))


def _read_costs(path: Path) -> dict[str, dict[int, float]]:
    if not path.is_file():
        raise FileNotFoundError(f"plan.costs={str(path)!r}: no such file; give one, or None to count pixels.")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return {name: {int(n): cost for n, cost in row.items()} for name, row in table.items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"plan.costs={str(path)!r}: no JSON of the form "
            f'{{"360p": {{"1": 2.1, "49": 3.4}}}}, seconds of a batch of each bucket ({error}).'
        ) from error


def _cut(lines: Lines, kept: np.ndarray, batch_size: np.ndarray, carried: np.ndarray) -> np.ndarray:
    """Return what is left over, first the owed rows, in the order of their lines. int64, shape [A, 3].

    Columns: row, shape, and 1 if the row was cut while its shape had a batch in the plan, now or before.
    """
    left = np.maximum(lines.count - kept * batch_size, 0)
    shape = np.repeat(np.arange(len(left)), left)
    place = np.arange(len(shape)) - np.repeat(np.cumsum(left) - left, left)
    rows = lines.rows[(lines.start + lines.count - left)[shape] + place].astype(np.int64)
    owed = (kept[shape] > 0) | np.isin(rows, carried[carried[:, 2] > 0, 0])
    cut = np.stack([rows, shape, owed], axis=1).astype(np.int64)
    return cut[np.argsort(~owed, kind="stable")]


def _checked_rows(rows: np.ndarray | None, count: int) -> np.ndarray:
    """Return rows sorted, each once. int64, shape [E]."""
    rows = np.unique(np.asarray([] if rows is None else rows, dtype=np.int64))
    if len(rows) and not 0 <= rows[0] <= rows[-1] < count:
        raise ValueError(
            f"excluded names rows {rows[0]} to {rows[-1]}; this table has {count} rows, from 0. The list is "
            "of another table."
        )
    return rows
