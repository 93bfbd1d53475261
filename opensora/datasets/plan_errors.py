"""Why a table and a `bucket_config` give no good plan, and the smallest change that would."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opensora.datasets.assignment import (
    EXCLUDED,
    NO_IMAGES,
    NO_VIDEOS,
    PROBABILITY,
    STARVED,
    TAKEN,
    TOO_SHORT,
    TOO_SMALL,
    BucketTable,
    Columns,
    Starved,
)
from opensora.datasets.buckets import MIN_AREA, Buckets, Shape
from opensora.datasets.resolutions import area

_LINES = 5  # starved buckets that an error names


@dataclass(frozen=True)
class Situation:
    """What an error is about.

    Args:
        columns: Length, height and width of each file.
        buckets: Where clips belong.
        table: Where each row went, and why.
        count: Rows of each shape, those of the epoch before included. Shape [shapes].
        batches_per_step: Batches of a step.
        frame_interval: Step between frames.
    """

    columns: Columns
    buckets: Buckets
    table: BucketTable
    count: np.ndarray
    batches_per_step: int
    frame_interval: int

    def lines(self) -> list[str]:
        """Say how many rows the table has, and how many are taken nowhere, by reason."""
        rows = [f"  {len(self.table.reason):>8} rows in the table"]
        return rows + [f"  {n:>8} {why}" for why, n in self.table.counts().items() if n and why != "taken"]


def explain_empty_plan(situation: Situation) -> str:
    """Say why a plan has no step: rows by reason, and a remedy."""
    taken = int(situation.count.sum())
    lines = ["the plan has no step: no training step can be filled.", *situation.lines()]
    if taken:
        lines.append(f"  {taken:>8} in buckets, but too few for full batches (remainder)")
        remedy = _fill_more(situation)
    elif len(situation.table.reason) == 0:
        remedy = "The table is empty: add rows."
    else:
        remedy = _take_more(situation, int(situation.table.reason.min()), 1)
    return "\n".join([*lines, remedy])


def explain_dropped(situation: Situation, carried_over: int, max_dropped: float) -> str:
    """Say which rows a plan drops, and how to drop few enough.

    Args:
        situation: What the error is about.
        carried_over: Rows that fill no batch or no step.
        max_dropped: The share that may be dropped.
    """
    reason = situation.table.reason
    counts = np.bincount(reason, minlength=EXCLUDED + 1)
    counts[[TAKEN, PROBABILITY, EXCLUDED]] = 0
    lost = int(counts.sum()) + carried_over
    lines = [
        f"the plan drops {lost} of {len(reason)} rows, more than the share plan.max_dropped={max_dropped:g}.",
        *situation.lines(),
        f"  {carried_over:>8} fill no batch or no step (remainder)",
    ]
    if carried_over > counts.max():
        remedy = (
            f"Use smaller batches, or fewer than batches_per_step={situation.batches_per_step} batches in a "
            "step; or plan.remainder='pad', which repeats rows."
        )
    else:
        worst = int(counts.argmax())
        few = min(int(counts[worst]), lost - int(max_dropped * len(reason)))
        remedy = _take_more(situation, worst, few)
    share = -(-lost * 1000 // len(reason)) / 1000
    return "\n".join([*lines, f"{remedy} If the rows are no loss, set plan.max_dropped={share:g}."])


def explain_starved(buckets: Buckets, starved: Sequence[Starved], rule: str) -> str:
    """Say which buckets can never fill a batch.

    Args:
        buckets: Where clips belong.
        starved: Those buckets.
        rule: The config's `plan.starved`.
    """
    lines = ["these buckets can never fill a batch:"]
    for entry in sorted(starved, key=lambda entry: -entry.rows)[:_LINES]:
        shape = buckets.shapes[entry.shape]
        lines.append(f"  {name_of(buckets, shape)}: {entry.rows} rows for batches of {shape.batch_size}")
    if len(starved) > _LINES:
        lines.append(f"  and {len(starved) - _LINES} more")
    worst = max(starved, key=lambda entry: entry.rows / buckets.shapes[entry.shape].batch_size)
    shape = buckets.shapes[worst.shape]
    bucket = buckets.buckets[shape.bucket]
    other = (
        "plan.starved='merge' sends their clips to the next bucket that fits them, 'drop' leaves them out."
        if rule == "error"
        else "No other bucket fits their clips; plan.starved='drop' leaves them out."
    )
    return "\n".join(
        [
            *lines,
            f"Set the batch size of bucket_config[{bucket.resolution!r}][{bucket.num_frames}] to "
            f"{worst.rows}, or add {shape.batch_size - worst.rows} such clips. {other}",
        ]
    )


def name_of(buckets: Buckets, shape: Shape) -> str:
    """Name a shape for people: resolution, length and size."""
    resolution = buckets.buckets[shape.bucket].resolution
    return f"{resolution}, {shape.num_frames} frames, {shape.height} x {shape.width}"


def _fill_more(situation: Situation) -> str:
    shapes, buckets = situation.buckets.shapes, situation.buckets
    count = situation.count.tolist()
    full = sum(n // s.batch_size for n, s in zip(count, shapes, strict=True) if s.batch_size)
    n = situation.batches_per_step
    if full >= n:
        return (
            f"There are {full} full batches, but buckets whose rows were left over before lack some for "
            f"as many batches as that. Set batches_per_step below {n}, or plan.remainder='pad'."
        )
    if full:
        return (
            f"There are {full} full batches, and a step takes batches_per_step={n}. Set "
            f"batches_per_step={full} or lower, with as few processes, or use smaller batches."
        )
    fullest = max(range(len(count)), key=lambda number: count[number] / max(1, shapes[number].batch_size))
    best, n = shapes[fullest], count[fullest]
    bucket = buckets.buckets[best.bucket]
    return (
        f"The fullest bucket ({name_of(buckets, best)}) has {n} clips for batches of {best.batch_size}. Set "
        f"the batch size of bucket_config[{bucket.resolution!r}][{bucket.num_frames}] to {n}, or add "
        f"{best.batch_size - n} such clips."
    )


def _take_more(situation: Situation, reason: int, rows: int) -> str:
    """Name the change that takes so many more rows of those that a reason keeps out.

    Args:
        situation: What the error is about.
        reason: Position in `REASONS`.
        rows: How many of these rows must be taken.
    """
    buckets, interval = situation.buckets, situation.frame_interval
    num_frames, height, width = (
        np.asarray(column)[situation.table.reason == reason].astype(np.int64) for column in situation.columns
    )
    resolution = buckets.buckets[-1].resolution
    if reason == EXCLUDED:
        return "All rows are excluded: mend the files, and remove them from the quarantine."
    if reason == PROBABILITY:
        return "Clips fit, but probabilities refuse them all: raise them in bucket_config."
    if reason == STARVED:
        return (
            f"{len(num_frames)} rows fit only buckets that can never fill a batch: use smaller batches, or "
            "plan.starved='merge'."
        )
    if reason == NO_IMAGES:
        where = f"bucket_config[{resolution!r}]"
        return f"The table holds images, the buckets only videos: add 1: (1.0, BATCH) to {where}."
    wanted = _largest(num_frames, rows) // interval
    if reason == TOO_SHORT:
        shortest = min(bucket.num_frames for bucket in buckets.buckets if bucket.num_frames > 1)
        add = f"Add a length of {wanted} or less to bucket_config[{resolution!r}]"
        lower = "lower frame_interval" if wanted < 2 else f"{add}, or lower frame_interval"
        return (
            f"The longest such clip has {num_frames.max()} frames; the shortest length, {shortest}, needs "
            f"{shortest * interval} with frame_interval={interval}. "
            f"{add if interval == 1 else lower[0].upper() + lower[1:]}."
        )
    if reason == NO_VIDEOS:
        return (
            f"The table holds videos, the buckets only images: add {wanted}: (1.0, BATCH), or a shorter "
            f"length, to bucket_config[{resolution!r}]."
        )
    assert reason == TOO_SMALL, reason
    pixels = height * width
    if buckets.rule == "ratio":
        return (
            f"The largest clip has {pixels.max()} pixels, and no size of its ratio lies inside it. Add a "
            "smaller resolution to bucket_config, or set plan.bucket_rule='resolution'."
        )
    return (
        f"The largest clip has {pixels.max()} pixels, {resolution} needs {MIN_AREA:g} of its "
        f"{area(resolution)}. Add a resolution of at most {int(_largest(pixels, rows) / MIN_AREA)} pixels to "
        "bucket_config, or use larger clips."
    )


def _largest(values: np.ndarray, place: int) -> int:
    """Return the value that so many values reach."""
    return int(np.partition(values, len(values) - place)[len(values) - place])
