"""From the rows of each shape to full batches, and from batches to steps of equal cost."""

from dataclasses import dataclass

import numpy as np

from opensora.datasets.assignment import CHUNK
from opensora.datasets.buckets import hashed_bits

# Names of the random orders, as streams of `hashed_bits`; buckets use the numbers from 0.
_CLIPS, _PADDING, _PHASES, _SLOTS = -1, -2, -3, -4

PERIOD = 50  # steps after which the mix of buckets repeats
_NEAR = 0.02  # batches whose costs differ by less are mixed within a step
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Lines:
    """The rows of an epoch in the order in which they enter batches, shape by shape.

    Args:
        rows: Rows of all shapes, one shape after the other. int32, shape [M].
        count: Rows of each shape. Shape [shapes].
    """

    rows: np.ndarray
    count: np.ndarray

    @property
    def start(self) -> np.ndarray:
        """Where each shape starts in `rows`. Shape [shapes]."""
        return np.cumsum(self.count) - self.count


def line_up(shape: np.ndarray, carried: np.ndarray, num_shapes: int, seed: int, epoch: int) -> Lines:
    """Order the rows of each shape: the carried ones first, in their order, then the others at random.

    Args:
        shape: Shape of each row of the table, -1 for none. Shape [N].
        carried: Rows that go first. Shape [A].
        num_shapes: Number of shapes.
        seed: Seed of the run.
        epoch: Epoch.
    """
    # One number per row, whose order is the order of the lines: shape, place or random bits, row.
    row_bits = max(1, int(len(shape) - 1).bit_length())
    random_bits = 63 - row_bits - num_shapes.bit_length()
    count = np.bincount(shape[shape >= 0], minlength=num_shapes)
    keys = np.empty(int(count.sum()), dtype=np.uint64)
    place = np.full(len(shape), -1, dtype=np.int32)
    place[carried] = np.arange(len(carried), dtype=np.int32)
    done = 0
    for begin in range(0, len(shape), CHUNK):
        rows = np.flatnonzero(shape[begin : begin + CHUNK] >= 0) + begin
        bits = hashed_bits(seed, epoch, rows, _CLIPS, 0) >> np.uint64(64 - random_bits)
        bits |= np.uint64(1 << random_bits)
        late = place[rows] >= 0
        bits[late] = place[rows[late]]
        key = shape[rows].astype(np.uint64) << np.uint64(random_bits + 1)
        key = ((key | bits) << np.uint64(row_bits)) | rows.astype(np.uint64)
        keys[done : done + len(rows)] = key
        done += len(rows)
    keys.sort()
    keys &= np.uint64((1 << row_bits) - 1)
    return Lines(keys.astype(np.int32 if len(shape) < 1 << 31 else np.int64), count)


def kept_batches(
    full: np.ndarray, owed: np.ndarray, carried: np.ndarray, batches_per_step: int
) -> np.ndarray:
    """Choose how many batches of each shape are in the epoch, so that they fill whole steps.

    Owed rows were cut in an epoch that had a batch of their shape. They must all be in this one, or their
    shape waits: then all its batches are cut. Batches are cut where most are left over; only if owed rows
    need all batches that there are does a shape wait, and one that waited before is the last to do so again.

    Args:
        full: Full batches of each shape. Shape [shapes].
        owed: Batches that its owed rows take. Shape [shapes].
        carried: Batches that all its carried rows take. Shape [shapes].
        batches_per_step: Batches of a step.

    Returns:
        Batches of each shape, in all a multiple of `batches_per_step`. Shape [shapes].
    """
    kept = np.where(owed <= full, full, 0)
    least = np.maximum(owed, 1)
    while surplus := int(kept.sum()) % batches_per_step:
        spare = np.where(kept > 0, kept - least, 0)
        if spare.any():
            most = int(spare.argmax())
            kept[most] -= 1 if spare[most] < 2 * surplus else surplus
        else:
            kept[int(np.where(kept > 0, carried, np.inf).argmin())] = 0
    return kept


def take(
    lines: Lines, number: np.ndarray, index: np.ndarray, batch_size: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Collect the rows of batches.

    Args:
        lines: Rows of each shape.
        number: Shape of each batch. Shape [K].
        index: Number of each batch within its shape; behind the last row a batch goes on with the first.
        batch_size: Rows per batch of each shape. Shape [shapes].

    Returns:
        Rows, batch by batch, [sum of sizes]; where batches start, and the end, [K + 1].
    """
    size = batch_size[number]
    starts = np.concatenate([[0], np.cumsum(size)])
    rows = np.empty(starts[-1], dtype=lines.rows.dtype)
    begin, count = lines.start[number], lines.count[number]
    step = max(1, CHUNK // max(1, int(size.max(initial=1))))
    for first in range(0, len(number), step):
        part = slice(first, first + step)
        within = np.arange(starts[first], starts[min(first + step, len(number))])
        within -= np.repeat(starts[:-1][part], size[part])
        place = (np.repeat(index[part] * size[part], size[part]) + within) % np.repeat(
            count[part], size[part]
        )
        rows[starts[first] : starts[first] + len(place)] = lines.rows[
            np.repeat(begin[part], size[part]) + place
        ]
    return rows, starts


def pad_steps(number: np.ndarray, batches_per_step: int, seed: int, epoch: int) -> np.ndarray:
    """Return which batches fill the steps, in order: all, and random ones once more. Shape [multiple]."""
    every = np.arange(len(number))
    missing = -len(number) % batches_per_step
    again = np.argsort(hashed_bits(seed, epoch, every, _PADDING, 0), kind="stable")
    return np.sort(np.concatenate([every, np.resize(again, missing)]))


def arrange(
    number: np.ndarray,
    bucket: np.ndarray,
    cost: np.ndarray,
    batches_per_step: int,
    seed: int,
    epoch: int,
) -> np.ndarray:
    """Put batches into steps so that the batches of a step cost the same and all steps draw from one mix.

    Batches are sorted by level of cost and cut into as many slots as a period has steps. Each period has one
    step from each slot, always in the same order, in which cheap and costly steps alternate evenly. So any
    whole period has the mix of the epoch, however rare a level is; a step has batches of one level, but for
    those slots in which one level ends and the next begins: their steps hold both, in the slot's proportion.
    Over time, each level hands out its buckets and shapes evenly. Within a step the cheapest stand first, so
    that processes, which take every R-th batch, get as many of each.

    Args:
        number: Shape of each batch, ascending; a multiple of `batches_per_step` of them. Shape [K].
        bucket: Bucket of each shape, ascending. Shape [shapes].
        cost: Cost of a batch of each shape. Shape [shapes].
        batches_per_step: Batches of a step.
        seed: Seed of the run.
        epoch: Epoch.

    Returns:
        Positions in `number`, step by step. Shape [K].

    Source: Roberts 2018, "The unreasonable effectiveness of quasirandom sequences" (the golden ratio).
    """
    steps = len(number) // batches_per_step
    if steps == 0:
        return np.empty(0, dtype=np.int64)
    level = _levels(cost)
    batches = _by_level(number, bucket, level, seed, epoch)

    period = min(PERIOD, steps)
    phase = hashed_bits(seed, epoch, np.zeros(1, dtype=np.int64), _SLOTS, 0)[0] * 2.0**-64
    slots = np.argsort(np.argsort((np.arange(period) * _GOLDEN + phase) % 1.0, kind="stable"), kind="stable")
    slot_of_step = np.resize(slots, steps)
    slot = np.repeat(np.sort(slot_of_step), batches_per_step)

    # How many batches of each level a step has: in each slot, they are spread evenly over its steps.
    level = level[number[batches]]
    first = np.flatnonzero(np.diff(slot, prepend=-1) | np.diff(level, prepend=-1))
    length = np.diff(np.append(first, len(slot)))
    spread = slot + (np.arange(len(slot)) - np.repeat(first, length) + 0.5) / np.repeat(length, length)
    by_slot = level[np.argsort(spread, kind="stable")].reshape(steps, batches_per_step)
    in_time = np.empty_like(by_slot)
    in_time[np.argsort(slot_of_step, kind="stable")] = by_slot

    # Each level deals out its batches in time.
    order = np.empty_like(batches)
    order[np.argsort(in_time.reshape(-1), kind="stable")] = batches
    order = order.reshape(steps, batches_per_step)
    return np.take_along_axis(order, np.argsort(cost[number[order]], axis=1, kind="stable"), 1).reshape(-1)


def _by_level(number: np.ndarray, bucket: np.ndarray, level: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Order batches by level; within it interleave buckets evenly, and within those their shapes. [K]."""
    batches = np.arange(len(number))
    for depth, group in enumerate((np.arange(len(level)), level * (bucket.max() + 1) + bucket)):
        # Each group of batches, in the order so far, gets evenly spaced places in [0, 1).
        group = np.unique(group, return_inverse=True)[1][number[batches]]
        by_group = np.argsort(group, kind="stable")
        count = np.bincount(group)
        index = np.arange(len(number)) - np.repeat(np.cumsum(count) - count, count)
        phase = hashed_bits(seed, epoch, np.arange(len(count)), _PHASES, depth) * 2.0**-64
        place = (index + np.repeat(phase, count)) / np.repeat(count, count)
        batches = batches[by_group]
        batches = batches[np.argsort(level[number[batches]] + place, kind="stable")]
    return batches


def _levels(cost: np.ndarray) -> np.ndarray:
    """Number costs by size, equal numbers for costs that differ by less than `_NEAR`. Shape [shapes]."""
    level = np.zeros(len(cost), dtype=np.int64)
    current, base = -1, -np.inf
    for n in np.argsort(cost, kind="stable"):
        if cost[n] > base * (1 + _NEAR) or current < 0:
            base, current = cost[n], current + 1
        level[n] = current
    return level
