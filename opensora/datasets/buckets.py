"""Buckets: the checked form of a `bucket_config`, groups of clips of one resolution and length."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from opensora.datasets.resolutions import area, sizes

PURPOSES = ("train", "evaluate", "search")
RULES = ("resolution", "ratio")
MIN_AREA = 0.8  # of the nominal area of a resolution: a clip with fewer pixels is too small for it

# (seed, epoch, rows [N], bucket number, step) -> uniform [N]; step counts the draws of a row in a bucket.
KeepDraws = Callable[[int, int, np.ndarray, int, int], np.ndarray]


class ClipIndex(NamedTuple):
    """What a dataset is asked for.

    Args:
        row: Row of the table.
        num_frames: Frames of the clip.
        height: Height in pixels.
        width: Width in pixels.
        epoch: Names the random numbers of the clip, together with `row`.
    """

    row: int
    num_frames: int
    height: int
    width: int
    epoch: int


class Shape(NamedTuple):
    """What all clips of a batch share: a bucket, and in it an aspect ratio.

    Args:
        bucket: Number of the bucket.
        aspect_ratio: Key of the table of sizes, such as "0.56".
        num_frames: Length in frames.
        height: Height in pixels.
        width: Width in pixels.
        batch_size: Clips per batch; 0 takes none.
    """

    bucket: int
    aspect_ratio: str
    num_frames: int
    height: int
    width: int
    batch_size: int


@dataclass(frozen=True)
class Bucket:
    """One entry of `bucket_config`.

    Args:
        resolution: Name of the resolution.
        num_frames: Length in frames; 1 is images.
        keep: Probability that a clip that fits is taken, in [0, 1]; None when evaluating.
        length: Probability that this length is considered at all, in [0, 1]; None is always.
        batch_size: Clips per batch; None takes no clips.
        variance: When searching batch sizes, how far from `batch_size` to look; else 0.
    """

    resolution: str
    num_frames: int
    keep: float | None
    length: float | None
    batch_size: int | None
    variance: int = 0


@dataclass(frozen=True)
class Group:
    """The buckets of one resolution.

    Args:
        least_area: Pixels that a clip needs, by the rule "resolution".
        sizes: (height, width) by aspect key.
        entries: The longest first.
    """

    least_area: float
    sizes: dict[str, tuple[int, int]]
    entries: list[Bucket]


class Buckets:
    """The checked form of a `bucket_config`.

    Args:
        bucket_config: `{resolution: {frames: (probability, batch size)}}`. The probability is a number, or a
            pair (keep, length). To evaluate it may be None. To search batch sizes an entry is (guess,
            variance).
        purpose: "train", "evaluate" or "search".
        keep_draws: Where the uniform numbers of the probabilities come from; by default hashes of names.
        rule: Which resolutions a clip is large enough for. "resolution": those of whose area it has 0.8; then
            it takes the nearest of its aspect ratios, and may be enlarged a little. "ratio": the nearest
            aspect ratio of all resolutions first, then those whose size of it lies inside the clip, so that
            nothing is enlarged.

    Attributes:
        groups: Resolutions, the largest first.
        buckets: All entries, the largest resolution first, and in it the longest first.
        shapes: All shapes, bucket by bucket.

    Raises:
        ValueError: An entry is wrong; the message names it.
    """

    def __init__(
        self,
        bucket_config: Mapping[str, Mapping[int, Any]],
        purpose: str = "train",
        keep_draws: KeepDraws | None = None,
        rule: str = "resolution",
    ) -> None:
        if rule not in RULES:
            raise ValueError(f"plan.bucket_rule={rule!r}: use one of {', '.join(RULES)}.")
        if purpose not in PURPOSES:
            raise ValueError(f"purpose={purpose!r}: use one of {', '.join(PURPOSES)}.")
        if not isinstance(bucket_config, Mapping) or not bucket_config:
            raise ValueError(
                f"bucket_config={bucket_config!r}: give at least one entry, such as "
                "{'360p': {1: (1.0, 60), 49: (1.0, 5)}}: resolution, frames, (probability, batch size)."
            )
        groups = []
        for resolution, lengths in bucket_config.items():
            try:
                pixels = area(resolution)
            except ValueError as error:
                raise ValueError(f"bucket_config[{resolution!r}]: {error}") from None
            if not isinstance(lengths, Mapping):
                raise ValueError(
                    f"bucket_config[{resolution!r}] is {lengths!r}; it must be a dict from frames to "
                    "(probability, batch size)."
                )
            entries = [_bucket(resolution, frames, entry, purpose) for frames, entry in lengths.items()]
            entries.sort(key=lambda bucket: -bucket.num_frames)
            groups.append(Group(MIN_AREA * pixels, sizes(resolution), entries))
        # The sort is stable: resolutions of one area keep the order of the config.
        self._set(sorted(groups, key=lambda group: -group.least_area), keep_draws, rule)

    @classmethod
    def fixed(cls, num_frames: int, height: int, width: int, batch_size: int) -> "Buckets":
        """Make a single bucket of one size, into which every clip goes that is long enough.

        Args:
            num_frames: Length in frames; 1 is images.
            height: Height in pixels.
            width: Width in pixels.
            batch_size: Clips per batch.

        Raises:
            ValueError: A number is below 1.
        """
        for name, value in dict(
            num_frames=num_frames, height=height, width=width, batch_size=batch_size
        ).items():
            if not _is_int(value) or value < 1:
                raise ValueError(f"{name}={value!r}: give an integer from 1, or a bucket_config.")
        buckets = cls.__new__(cls)
        entry = Bucket(f"{height}x{width}", num_frames, 1.0, None, batch_size)
        buckets._set([Group(0.0, {"1.00": (height, width)}, [entry])], None, "resolution")
        return buckets

    def _set(self, groups: list[Group], keep_draws: KeepDraws | None, rule: str) -> None:
        self.groups = groups
        self.rule = rule
        self.keep_draws = keep_draws or hashed_uniform
        self.buckets = [bucket for group in groups for bucket in group.entries]
        self.shapes = [
            Shape(number, key, bucket.num_frames, *size, bucket.batch_size or 0)
            for number, (group, bucket) in enumerate((g, b) for g in groups for b in g.entries)
            for key, size in group.sizes.items()
        ]

    def __len__(self) -> int:
        """Number of entries."""
        return len(self.buckets)

    def draw(self, number: int, rows: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw for rows that fit a bucket.

        Args:
            number: Number of the bucket.
            rows: Row numbers. Shape [N].
            seed: Seed of the run.
            epoch: Epoch.

        Returns:
            The rows whose length is considered, and those of them that are kept.
        """
        bucket, steps = self.buckets[number], 0
        if bucket.length is not None:
            rows = rows[self.keep_draws(seed, epoch, rows, number, steps) < bucket.length]
            steps += 1
        keep = 1.0 if bucket.keep is None else bucket.keep
        if bucket.batch_size is None:
            keep = 0.0
        if keep >= 1.0 or keep <= 0.0:
            return rows, rows[: len(rows) if keep else 0]
        return rows, rows[self.keep_draws(seed, epoch, rows, number, steps) < keep]

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides where a clip belongs."""
        text = repr([self.rule, *((group.least_area, group.sizes, group.entries) for group in self.groups)])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def hashed_uniform(seed: int, epoch: int, rows: np.ndarray, stream: int, step: int) -> np.ndarray:
    """Draw one uniform number per row, as a function of all arguments.

    Args:
        seed: Seed of the run.
        epoch: Epoch.
        rows: Row numbers, int64. Shape [N].
        stream: What the number is for, for example a bucket's number.
        step: Counter within the stream.

    Returns:
        float64 in [0, 1). Shape [N].

    Source: Steele et al. 2014, "Fast splittable pseudorandom number generators" (the mixing function).
    """
    return (hashed_bits(seed, epoch, rows, stream, step) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def hashed_bits(seed: int, epoch: int, rows: np.ndarray, stream: int, step: int) -> np.ndarray:
    """Draw 64 random bits per row. Arguments as for `hashed_uniform`; uint64, shape [N]."""
    name = hashlib.blake2b(f"{seed}/{epoch}/{stream}/{step}".encode(), digest_size=16).digest()
    first, second = np.frombuffer(name, dtype=np.uint64)
    return _mix(_mix(np.asarray(rows).astype(np.uint64) + first) ^ second)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _bucket(resolution: str, frames: object, entry: object, purpose: str) -> Bucket:
    where = f"bucket_config[{resolution!r}][{frames!r}]"
    if not _is_int(frames) or frames < 1:
        raise ValueError(f"{where}: the length must be an integer number of frames, at least 1.")
    if not _is_pair(entry):
        raise ValueError(f"{where} is {entry!r}; give (probability, batch size).")
    first, second = entry
    if purpose == "search":
        if not (_is_int(first) and _is_int(second) and first >= 1 and second >= 0):
            raise ValueError(
                f"{where} is {entry!r}; to search give (guess, variance), integers >= 1 and >= 0."
            )
        return Bucket(resolution, frames, None, None, first, second)
    keep, length = tuple(first) if _is_pair(first) else (first, None)
    if purpose == "evaluate" and first is None:
        keep = None
    elif not _is_probability(keep) or not (length is None or _is_probability(length)):
        hint = "" if first is not None else " None is for evaluation only."
        raise ValueError(f"{where}: probability {first!r}; use a number in [0, 1], or a pair of them.{hint}")
    if length is not None and frames == 1:
        raise ValueError(f"{where}: probability {first!r}; images have no length to choose, use one number.")
    may_skip = purpose == "evaluate" or keep == 0.0
    if not (second is None and may_skip) and not (_is_int(second) and second >= 1):
        raise ValueError(
            f"{where}: batch size {second!r}; use an integer, at least 1. None takes no clips and needs "
            "probability 0.0."
        )
    return Bucket(resolution, frames, keep, length, second)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_pair(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2


def _is_probability(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= 1.0
