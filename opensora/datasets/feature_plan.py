"""What to extract: the clips that training will ask for, each content once, cut into shards."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from opensora.datasets.buckets import ClipIndex
from opensora.datasets.planner import Planner


def plan_features(
    dataset: Any, planner: Planner, variants: int, by_epoch: bool = False
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the clips to encode, and where each clip that training asks for is among them.

    Clips with the same frames of the same row are encoded once. Rows that the plans of these epochs leave
    over are there too: other batches per step, or another seed of the training, may use them.

    Args:
        dataset: The `VideoDataset`.
        planner: Plans the epochs.
        variants: Epochs that are extracted, from 0.
        by_epoch: Whether features depend on random numbers of the epoch, beside the frames.

    Returns:
        Fields of `ClipIndex`, row by row, int64 [N, 5]; and columns of the index: `shapes` (frames, height,
        width) [S, 3]; `clip`, the sorted numbers (row * S + shape) * variants + variant; `entry`, the clip
        for each of them.
    """
    sizes = np.array([shape[2:5] for shape in planner.buckets.shapes], dtype=np.int64)
    wanted, carry = [], None
    for variant in range(variants):
        # A row that is carried over keeps its size. Another run may carry others: all of the epoch count.
        plans = [planner.plan(variant, carry)] + ([planner.plan(variant)] if variant else [])
        for plan in plans:
            rows = np.concatenate([plan.rows, plan.carry[:, 0]])
            size = np.repeat(plan.sizes, np.diff(plan.starts), axis=0)
            size = np.concatenate([size, sizes[plan.carry[:, 1]]])
            wanted.append(np.column_stack([rows, size, np.full(len(rows), variant)]).astype(np.int64))
        carry = plans[0].carry
    asked = np.unique(np.concatenate(wanted), axis=0)  # row by row, so files are read one after the other
    shapes, shape = np.unique(asked[:, 1:4], axis=0, return_inverse=True)
    names = (asked[:, 0] * len(shapes) + shape.reshape(-1)) * variants + asked[:, 4]
    entries, clips, seen = np.empty(len(asked), dtype=np.int32), [], {}
    for i, fields in enumerate(asked.tolist()):
        content = (*fields[:4], *dataset.frame_indices(ClipIndex(*fields)), fields[4] if by_epoch else 0)
        entries[i] = seen.setdefault(content, len(clips))
        if entries[i] == len(clips):
            clips.append(fields)
    order = np.argsort(names)
    table = {"clip": names[order], "entry": entries[order], "shapes": shapes.astype(np.int32)}
    return np.array(clips, dtype=np.int64), table


def not_extracted(
    planner: Planner, table: Mapping[str, np.ndarray], variants: int
) -> dict[tuple[int, int, int], list[int]]:
    """Return the rows that training would ask for in a size that was not extracted.

    Args:
        planner: Plans the training; draws of epochs repeat after `variants`.
        table: What `plan_features` returned.
        variants: Epochs that were extracted.

    Returns:
        Rows by (frames, height, width), without sizes of none.
    """
    number = {tuple(size): n for n, size in enumerate(table["shapes"].tolist())}
    shape_of = np.array([number.get(shape[2:5], -1) for shape in planner.buckets.shapes])
    missing: dict[tuple[int, int, int], set[int]] = {}
    for variant in range(variants):
        drawn = planner.assignment(np.empty(0, dtype=np.int64)).draw(planner.seed, variant).shape
        rows = np.flatnonzero(drawn >= 0)
        shape = shape_of[drawn[rows]]
        names = (rows * len(number) + shape) * variants + variant
        lacks = (shape < 0) | ~np.isin(names, table["clip"])
        for n in np.unique(drawn[rows[lacks]]).tolist():
            those = rows[lacks & (drawn[rows] == n)].tolist()
            missing.setdefault(planner.buckets.shapes[n][2:5], set()).update(those)
    return {size: sorted(rows) for size, rows in missing.items()}


def pack(sizes: Sequence[int], most: float) -> list[list[int]]:
    """Put numbers into groups, in order, whose sizes add up to `most` at most, as far as one alone does."""
    groups: list[list[int]] = []
    total = 0
    for number, size in enumerate(sizes):
        if not groups or total + size > most:
            groups.append([])
            total = 0
        groups[-1].append(number)
        total += size
    return groups


def shorten(frames: list[int]) -> list[int] | dict[str, int]:
    """Write frame numbers at equal steps as first, step and count."""
    steps = set(np.diff(frames).tolist())
    if len(steps) > 1:
        return frames
    return {"first": frames[0], "step": steps.pop() if steps else 1, "count": len(frames)}
