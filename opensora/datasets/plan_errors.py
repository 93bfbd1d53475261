"""Why a table and a `bucket_config` give no training step, and the smallest change that would."""

import numpy as np

from opensora.datasets.buckets import (
    EXCLUDED,
    MIN_AREA,
    NO_IMAGES,
    NO_VIDEOS,
    PROBABILITY,
    TOO_SHORT,
    Buckets,
    BucketTable,
)
from opensora.datasets.resolutions import area


def explain_empty_plan(
    columns: tuple[np.ndarray, np.ndarray, np.ndarray],
    buckets: Buckets,
    table: BucketTable,
    shape: np.ndarray,
    batches_per_step: int,
    frame_interval: int,
) -> str:
    """Say why a plan has no step.

    Args:
        columns: Length, height and width of each file.
        buckets: Where clips belong.
        table: Where each row went, and why.
        shape: The same with the rows of the epoch before.
        batches_per_step: Batches of a step.
        frame_interval: Step between frames.

    Returns:
        The text of an error: rows by reason, and a remedy.
    """
    taken = int((shape >= 0).sum())
    lines = ["the plan has no step: no training step can be filled.", f"  {len(shape):>8} rows in the table"]
    lines += [f"  {n:>8} {reason}" for reason, n in table.counts().items() if n and reason != "taken"]
    if taken:
        lines.append(f"  {taken:>8} in buckets, but too few for full batches (remainder)")
        remedy = _fill_more(buckets, shape, batches_per_step)
    elif len(shape) == 0:
        remedy = "The table is empty: add rows."
    else:
        remedy = _take_more(columns, buckets, table, frame_interval)
    return "\n".join([*lines, remedy])


def _fill_more(buckets: Buckets, shape: np.ndarray, batches_per_step: int) -> str:
    count = np.bincount(shape[shape >= 0], minlength=len(buckets.shapes))
    full = int(
        sum(n // s.batch_size for n, s in zip(count.tolist(), buckets.shapes, strict=True) if s.batch_size)
    )
    if full:
        return (
            f"There are {full} full batches, and a step takes batches_per_step={batches_per_step}. "
            f"Set batches_per_step={full} or lower, with as few processes, or use smaller batches."
        )
    fullest = max(
        range(len(count)), key=lambda number: count[number] / max(1, buckets.shapes[number].batch_size)
    )
    best, n = buckets.shapes[fullest], int(count[fullest])
    bucket = buckets.buckets[best.bucket]
    where = f"{bucket.resolution}, {bucket.num_frames} frames, {best.height} x {best.width}"
    return (
        f"The fullest bucket ({where}) has {n} clips for batches of {best.batch_size}. Set the batch size of "
        f"bucket_config[{bucket.resolution!r}][{bucket.num_frames}] to {n}, or add {best.batch_size - n} "
        "such clips."
    )


def _take_more(
    columns: tuple[np.ndarray, np.ndarray, np.ndarray],
    buckets: Buckets,
    table: BucketTable,
    frame_interval: int,
) -> str:
    """Name the change for the clips that came nearest to a bucket."""
    num_frames, height, width = (np.asarray(column) for column in columns)
    reason = int(table.reason.min())
    rows = table.reason == reason
    resolution = buckets.buckets[-1].resolution
    if reason == EXCLUDED:
        return "All rows are excluded: mend the files, and remove them from the quarantine."
    if reason == PROBABILITY:
        return "Clips fit, but probabilities refuse them all: raise them in bucket_config."
    if reason == TOO_SHORT:
        longest = int(num_frames[rows].max())
        shortest = min(bucket.num_frames for bucket in buckets.buckets if bucket.num_frames > 1)
        add = f"Add a length of {longest // frame_interval} or less to bucket_config[{resolution!r}]"
        lower = "lower frame_interval" if longest // frame_interval < 2 else f"{add}, or lower frame_interval"
        return (
            f"The longest such clip has {longest} frames; the shortest length, {shortest}, needs "
            f"{shortest * frame_interval} with frame_interval={frame_interval}. "
            f"{add if frame_interval == 1 else lower[0].upper() + lower[1:]}."
        )
    if reason == NO_IMAGES:
        where = f"bucket_config[{resolution!r}]"
        return f"The table holds images, the buckets only videos: add 1: (1.0, BATCH) to {where}."
    if reason == NO_VIDEOS:
        longest = int(num_frames[rows].max()) // frame_interval
        return (
            f"The table holds videos, the buckets only images: add {longest}: (1.0, BATCH), or a shorter "
            f"length, to bucket_config[{resolution!r}]."
        )
    pixels = int((height[rows].astype(np.int64) * width[rows].astype(np.int64)).max())
    return (
        f"The largest clip has {pixels} pixels, {resolution} needs {MIN_AREA:g} of its {area(resolution)}. "
        f"Add a resolution of at most {int(pixels / MIN_AREA)} pixels to bucket_config, or use larger clips."
    )
