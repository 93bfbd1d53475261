"""Assignment: which bucket each row of a table goes to, for all rows at once.

Rows are first sorted into kinds: rows of one kind fit the same buckets. The rules are applied to the few
kinds, and only the draws of the probabilities to the many rows.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from opensora.datasets.buckets import Bucket, Buckets

# Why a clip is in no bucket, the nearest miss first: of all resolutions, the nearest miss counts.
REASONS = (
    *("taken", "probability", "starved", "too short", "no bucket for images", "no bucket for videos"),
    *("too small", "excluded"),
)
TAKEN, PROBABILITY, STARVED, TOO_SHORT, NO_IMAGES, NO_VIDEOS, TOO_SMALL, EXCLUDED = range(len(REASONS))

Columns = tuple[np.ndarray, np.ndarray, np.ndarray]  # num_frames, height, width: each of shape [N]
CHUNK = 1 << 20  # rows at once, which bounds the memory of what lies between


@dataclass(frozen=True)
class BucketTable:
    """Where each row of a table belongs.

    Args:
        shape: Number in `Buckets.shapes`, -1 for none. int32, shape [N].
        reason: Position in `REASONS`. int8, shape [N].
    """

    shape: np.ndarray
    reason: np.ndarray

    def counts(self) -> dict[str, int]:
        """Return how many rows have each reason."""
        counts = np.bincount(self.reason, minlength=len(REASONS))
        return dict(zip(REASONS, counts.tolist(), strict=True))


@dataclass(frozen=True)
class Starved:
    """A shape that can never fill a batch, because too few rows of the table may ever go there.

    Args:
        shape: Number in `Buckets.shapes`.
        rows: Rows that may go there.
        home: Where those go that fit nothing else, when buckets are merged; None for nowhere.
    """

    shape: int
    rows: int
    home: int | None = None


@dataclass(frozen=True)
class Assignment:
    """The rules of a bucket_config, applied to the kinds of rows of a table.

    Args:
        buckets: Where clips belong.
        kind: Kind of each row. Shape [N].
        fits: Number of the shape that a kind takes in a bucket, -1 if it does not fit. int32, shape
            [buckets, kinds].
        miss: Why a kind that fits no bucket fits none, as position in `REASONS`. int8, shape [kinds].
        starved: Shapes that are closed, since they can never fill a batch.
        eligible: Rows that may ever go to each shape; None before `close_starved`. Shape [shapes].
    """

    buckets: Buckets
    kind: np.ndarray
    fits: np.ndarray
    miss: np.ndarray
    starved: tuple[Starved, ...] = ()
    eligible: np.ndarray | None = None

    @classmethod
    def of(cls, buckets: Buckets, columns: Columns, frame_interval: int = 1) -> "Assignment":
        """Find the kinds of all rows, and what each fits.

        A clip fits a length if it has `frame_interval` times as many frames: a frame of the clip stands for
        `frame_interval` of the file, so exactly the bucket's duration is enough, and a frame less is not.

        Args:
            buckets: Where clips belong.
            columns: Length, height and width of each file; sizes of 0 stand for unreadable files.
            frame_interval: Step between frames.
        """
        ratios = _Ratios.of(buckets)
        lengths = sorted({b.num_frames * frame_interval for b in buckets.buckets if b.num_frames > 1})
        least = np.array([group.least_area for group in buckets.groups])
        groups, classes = len(least), len(lengths) + 3  # unreadable, image, shorter than all, ...
        count = (groups + 1) * classes * ratios.count
        kind = np.empty(len(columns[0]), dtype=np.uint16 if count < 1 << 16 else np.int32)
        for start in range(0, len(kind), CHUNK):
            part = slice(start, start + CHUNK)
            frames, height, width = (np.asarray(column[part]) for column in columns)
            pixels = height.astype(np.int64) * width
            ratio = ratios.of_rows(height, width)
            if buckets.rule == "ratio":
                group = np.full(len(frames), groups)
                for g in reversed(range(groups)):
                    inside = (height >= ratios.size[g, ratio, 0]) & (width >= ratios.size[g, ratio, 1])
                    group[inside] = g
            else:
                group = groups - np.searchsorted(least[::-1], pixels, side="right")
            length = np.searchsorted(lengths, frames, side="right") + 2
            length[frames == 1] = 1
            length[(frames < 1) | (pixels <= 0)] = 0
            kind[part] = (group * classes + length) * ratios.count + ratio
        return cls(buckets, kind, *_rules(buckets, ratios, lengths, frame_interval))

    def draw(self, seed: int, epoch: int) -> BucketTable:
        """Find the shape of every row in an epoch.

        For each resolution, the largest first: the longest length that the clip has is chosen, exactly that
        length included; a pair (keep, length) considers its length only with probability `length`. Then the
        clip is kept with probability `keep`, or goes on to the next resolution. Images go to entries of 1
        frame, and only they do.

        Args:
            seed: Seed of the run.
            epoch: Epoch; other epochs draw anew.
        """
        first, certain = self._certain
        shape = np.empty(len(self.kind), dtype=np.int32)
        reason = np.empty(len(self.kind), dtype=np.int8)
        for start in range(0, len(shape), CHUNK):
            part = slice(start, start + CHUNK)
            kind = self.kind[part]
            shape[part] = np.where(certain, first, -1)[kind]
            reason[part] = np.where(first < 0, self.miss, np.where(certain, TAKEN, PROBABILITY))[kind]
            rows = np.flatnonzero((~certain & (first >= 0))[kind]) + start
            for group in self._groups():
                left = rows
                for number, _ in group:
                    if len(left) == 0:
                        break
                    found = self.fits[number, self.kind[left]]
                    accepted, kept = self.buckets.draw(number, left[found >= 0], seed, epoch)
                    shape[kept] = self.fits[number, self.kind[kept]]
                    reason[kept] = TAKEN
                    if len(accepted):
                        left = left[_not_among(left, accepted)]
                rows = rows[shape[rows] < 0]
        return BucketTable(shape, reason)

    def close_starved(self, excluded: np.ndarray, merge: bool) -> "Assignment":
        """Close the shapes that can never fill a batch, from the first bucket to the last.

        Rows that would go to a closed shape go on as if it did not exist, which may fill a later one. With
        `merge`, rows that then fit nothing go to the nearest open aspect ratio of the first bucket that they
        fit; if none is open, all such rows of the bucket share the ratio that most of them have.

        Args:
            excluded: Rows that are never taken. Shape [E].
            merge: Whether rows that fit nothing else may change their aspect ratio.
        """
        rows = np.bincount(self.kind, minlength=self.fits.shape[1])
        rows -= np.bincount(self.kind[excluded], minlength=len(rows))
        fits, lost = self.fits.copy(), np.full_like(self.fits, -1)
        shapes = self.buckets.shapes
        batch_size = np.array([shape.batch_size for shape in shapes])
        eligible = np.zeros(len(shapes), dtype=np.int64)
        reach = np.ones(fits.shape[1], dtype=bool)
        for group in self._groups():
            stays, goes_on = reach.copy(), np.zeros_like(reach)
            for number, bucket in group:
                here = stays & (fits[number] >= 0)
                if bucket.keep != 0.0 and bucket.batch_size is not None and bucket.length != 0.0:
                    found = np.bincount(fits[number, here], weights=rows[here], minlength=len(shapes))
                    hungry = (found > 0) & (found < batch_size)
                    closed = here & hungry[fits[number]]
                    lost[number, closed] = fits[number, closed]
                    fits[number, closed] = -1
                    here &= ~closed
                    eligible += np.where(hungry, 0, found).astype(np.int64)
                if bucket.length is None or bucket.length >= 1.0:
                    stays &= ~here
                if bucket.length != 0.0 and bucket.keep is not None and bucket.keep < 1.0:
                    goes_on |= here
            reach = stays | goes_on
        possible = self._possible(fits)
        homeless = (possible < 0) & (lost >= 0).any(0)
        homes = _merge(self.buckets, fits, lost, homeless, rows, eligible) if merge else {}
        starved = [
            Starved(int(n), int(rows[(lost == n).any(0)].sum()), homes.get(int(n)))
            for n in np.unique(lost[lost >= 0])
            if eligible[n] == 0
        ]
        miss = np.where(homeless & (fits < 0).all(0), STARVED, self.miss).astype(np.int8)
        return Assignment(self.buckets, self.kind, fits, miss, tuple(starved), eligible)

    def _possible(self, fits: np.ndarray) -> np.ndarray:
        """Return for each kind a bucket that may take it, -1 for none. Shape [kinds]."""
        found, reach = np.full(fits.shape[1], -1), np.ones(fits.shape[1], dtype=bool)
        for group in self._groups():
            stays, goes_on = reach.copy(), np.zeros_like(reach)
            for number, bucket in group:
                here = stays & (fits[number] >= 0)
                if bucket.keep != 0.0 and bucket.batch_size is not None and bucket.length != 0.0:
                    found[here & (found < 0)] = number
                if bucket.length is None or bucket.length >= 1.0:
                    stays &= ~here
                if bucket.length != 0.0 and bucket.keep is not None and bucket.keep < 1.0:
                    goes_on |= here
            reach = stays | goes_on
        return found

    @cached_property
    def _certain(self) -> tuple[np.ndarray, np.ndarray]:
        """For each kind: the shape of the first bucket that it fits, and whether no draw stands before."""
        first, certain = np.full(self.fits.shape[1], -1), np.zeros(self.fits.shape[1], dtype=bool)
        for number, bucket in enumerate(self.buckets.buckets):
            new = (first < 0) & (self.fits[number] >= 0)
            first[new] = self.fits[number, new]
            certain[new] = _is_certain(bucket)
        return first, certain

    def _groups(self) -> list[list[tuple[int, Bucket]]]:
        """Return the buckets of each resolution with their numbers."""
        numbered = iter(enumerate(self.buckets.buckets))
        return [[next(numbered) for _ in group.entries] for group in self.buckets.groups]


@dataclass(frozen=True)
class _Ratios:
    """Classes of height / width, within which every resolution has one nearest aspect ratio.

    Args:
        edges: Where classes end: class c holds edges[c - 1] <= ratio < edges[c]. Shape [count - 1].
        position: Of a class's nearest key in the sizes of a group, -1 if the group lacks it. [groups, count].
        size: Height and width of it; larger than any clip if the group lacks it. [groups, count, 2].
    """

    edges: np.ndarray
    position: np.ndarray
    size: np.ndarray

    @property
    def count(self) -> int:
        return len(self.edges) + 1

    @classmethod
    def of(cls, buckets: Buckets) -> "_Ratios":
        tables = [list(group.sizes) for group in buckets.groups]
        if buckets.rule == "ratio":  # the nearest of all keys, whether or not a group has it
            tables = [list(dict.fromkeys(key for table in tables for key in table))] * len(tables)
        ends = [_edges([float(key) for key in table]) for table in tables]
        edges = np.unique(np.concatenate([edge for edge, _ in ends]))
        inside = np.concatenate([[-np.inf], edges])  # a ratio of each class
        position = np.full((len(tables), len(inside)), -1)
        size = np.full((len(tables), len(inside), 2), np.iinfo(np.int64).max)
        for g, (group, table, (edge, order)) in enumerate(zip(buckets.groups, tables, ends, strict=True)):
            own = list(group.sizes)
            for c, number in enumerate(order[np.searchsorted(edge, inside, side="right")]):
                if table[number] in group.sizes:
                    position[g, c] = own.index(table[number])
                    size[g, c] = group.sizes[table[number]]
        return cls(edges, position, size)

    def of_rows(self, height: np.ndarray, width: np.ndarray) -> np.ndarray:
        """Return the class of each row. Shape [N]."""
        return np.searchsorted(self.edges, height / np.maximum(width, 1), side="right")


def _edges(keys: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return from which number on the next key is nearest, and the positions of the keys in this order.

    An edge is the smallest floating-point number to which the next key is nearer, or as near and earlier in
    the table; so looking a ratio up gives what comparing it with all keys gives, to the bit.
    """
    order = np.argsort(keys, kind="stable")
    edges = []
    for low, high in zip(order[:-1], order[1:], strict=True):
        middle = (keys[low] + keys[high]) / 2

        def is_high(ratio: float, low: int = low, high: int = high) -> bool:
            to_low, to_high = abs(ratio - keys[low]), abs(ratio - keys[high])
            return to_high < to_low or (to_high == to_low and high < low)

        while is_high(middle):
            middle = np.nextafter(middle, -np.inf)
        while not is_high(middle):
            middle = np.nextafter(middle, np.inf)
        edges.append(middle)
    return np.array(edges), order


def _rules(
    buckets: Buckets, ratios: _Ratios, lengths: list[int], frame_interval: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return what each kind fits, and why not if it fits nothing: `fits` and `miss` of `Assignment`."""
    groups, classes = len(buckets.groups), len(lengths) + 3
    first, length, ratio = (
        axis.reshape(-1) for axis in np.indices((groups + 1, classes, ratios.count), dtype=np.int32)
    )
    fits = np.full((len(buckets.buckets), len(first)), -1, dtype=np.int32)
    miss = np.full(len(first), TOO_SMALL, dtype=np.int8)
    number = first_shape = 0
    for g, group in enumerate(buckets.groups):
        large = (first <= g) & (length > 0) & (ratios.position[g, ratio] >= 0)
        has_images = any(bucket.num_frames == 1 for bucket in group.entries)
        has_videos = any(bucket.num_frames > 1 for bucket in group.entries)
        why = np.where(
            length == 1,
            TOO_SHORT if has_images else NO_IMAGES,
            TOO_SHORT if has_videos else NO_VIDEOS,
        )
        miss[large] = np.minimum(miss, why)[large]
        for bucket in group.entries:
            need = 1 if bucket.num_frames == 1 else 3 + lengths.index(bucket.num_frames * frame_interval)
            here = large & (length == 1 if bucket.num_frames == 1 else length >= need)
            fits[number, here] = first_shape + ratios.position[g, ratio[here]]
            number += 1
            first_shape += len(group.sizes)
    return fits, miss


def _merge(
    buckets: Buckets,
    fits: np.ndarray,
    lost: np.ndarray,
    homeless: np.ndarray,
    rows: np.ndarray,
    eligible: np.ndarray,
) -> dict[int, int]:
    """Give the kinds that lost their shapes another aspect ratio; changes `fits` and `eligible` in place.

    Returns:
        The new shape of each closed one.
    """
    homes: dict[int, int] = {}
    for number in range(len(buckets.buckets)):
        here = homeless & (lost[number] >= 0) & (rows > 0)
        if not here.any():
            continue
        members = [n for n, shape in enumerate(buckets.shapes) if shape.bucket == number]
        ready = [n for n in members if eligible[n]]
        need = rows[here].sum()
        if not ready and need >= buckets.shapes[members[0]].batch_size:
            found = np.bincount(lost[number, here], weights=rows[here], minlength=len(buckets.shapes))
            ready = [int(found.argmax())]
        if not ready:
            continue
        keys = np.array([float(buckets.shapes[n].aspect_ratio) for n in ready])
        for old in np.unique(lost[number, here]):
            key = float(buckets.shapes[old].aspect_ratio)
            new = ready[int(np.abs(np.log(keys / key)).argmin())]
            moved = here & (lost[number] == old)
            fits[number, moved] = new
            eligible[new] += rows[moved].sum()
            homes[int(old)] = new
            homeless &= ~moved
    return homes


def _is_certain(bucket: Bucket) -> bool:
    keep = 1.0 if bucket.keep is None else bucket.keep
    return bucket.length is None and keep >= 1.0 and bucket.batch_size is not None


def _not_among(rows: np.ndarray, some: np.ndarray) -> np.ndarray:
    """Say which rows are not among some of them; both ascend. Shape [R]."""
    mask = np.ones(len(rows), dtype=bool)
    mask[np.searchsorted(rows, some)] = False
    return mask
