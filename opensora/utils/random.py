"""Counter-based randomness: a draw is a function of its name, never of what was drawn before.

Every random number of a run belongs to one sample. Its stream is named by (seed, epoch, sample, name, step),
so 1, 2 or 4 ranks, a resumed run and an uninterrupted one draw the same numbers, and nothing has to be saved.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox).
"""

import hashlib
import math
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch. Only weight initialisation depends on it; samples draw from `Draws`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def use_deterministic_kernels() -> None:
    """Let torch take only kernels that give the same bits every time; it warns of operations without one.

    On a CPU all kernels in use here are such. On a GPU sums of gradients otherwise come in any order.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product on a GPU
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it would only cost time


_records: list[dict[str, Tensor]] = []


@contextmanager
def recorded_draws() -> Iterator[dict[str, Tensor]]:
    """Give a dict that fills with what `Draws` draw meanwhile, as "name/step": for reports and replays."""
    record: dict[str, Tensor] = {}
    _records.append(record)
    try:
        yield record
    finally:
        _records.remove(record)


class Draws:
    """Named random numbers for the samples of a batch.

    Row b of a result depends only on (`seed`, `epoch[b]`, `sample[b]`, name, step): neither on the batch it
    is in, nor on the rank, nor on earlier draws. Numbers are made on the CPU, so a GPU run uses the same
    ones.

    Args:
        seed: Seed of the run.
        sample: Number of each sample, for example its row in the table. Length B.
        epoch: Epoch of each sample, or one epoch for all of them.
    """

    def __init__(self, seed: int, sample: Sequence[int], epoch: int | Sequence[int] = 0) -> None:
        samples = [int(s) for s in sample]
        epochs = [int(epoch)] * len(samples) if isinstance(epoch, int) else [int(e) for e in epoch]
        if len(epochs) != len(samples):
            raise ValueError(
                f"epoch has {len(epochs)} entries for {len(samples)} samples; give one, or one each."
            )
        self.keys = [(int(seed), e, s) for e, s in zip(epochs, samples, strict=True)]

    def __len__(self) -> int:
        """Number of samples in the batch."""
        return len(self.keys)

    def rows(self) -> "list[Draws]":
        """Return the draws of each sample alone."""
        twins = [copy(self) for _ in self.keys]
        for twin, key in zip(twins, self.keys, strict=True):
            twin.keys = [key]
        return twins

    def other(self, name: str) -> "Draws":
        """Return draws of the same samples that do not depend on these."""
        twin = copy(self)
        twin.keys = [(f"{seed}+{name}", epoch, sample) for seed, epoch, sample in self.keys]
        return twin

    def normal(self, name: str, step: int, shape: Sequence[int]) -> Tensor:
        """Draw standard normal numbers.

        Args:
            name: What they are for, for example "noise".
            step: Counter within that name; 0 when there is only one draw.
            shape: Shape of the result; its first size is B.

        Returns:
            float32 on the CPU.
        """
        return self._rows(name, step, shape, _normal)

    def uniform(self, name: str, step: int, shape: Sequence[int]) -> Tensor:
        """Draw uniform numbers in [0, 1). Arguments and result as for `normal`."""
        return self._rows(name, step, shape, _uniform)

    def choice(self, name: str, step: int, weights: Sequence[float]) -> list[int]:
        """Draw one index per sample with probability proportional to `weights`.

        Raises:
            ValueError: A weight is negative, or all are 0.
        """
        total = math.fsum(weights)
        if total <= 0 or min(weights) < 0:
            raise ValueError(f"weights for {name!r} are {list(weights)}; they must be >= 0 and not all 0.")
        edges = np.cumsum(np.asarray(weights, dtype=np.float64)) / total
        last = max(i for i, w in enumerate(weights) if w > 0)
        u = [float(_uniform64(_stream(*key, name, step), 1)[0]) for key in self.keys]
        picks = [min(int(np.searchsorted(edges, x, side="right")), last) for x in u]
        _record(name, step, torch.tensor(picks))
        return picks

    def _rows(self, name: str, step: int, shape: Sequence[int], draw) -> Tensor:  # noqa: ANN001
        if not shape or shape[0] != len(self.keys):
            raise ValueError(
                f"shape {tuple(shape)} for {name!r}: its first size must be the batch, {len(self.keys)}."
            )
        count = math.prod(shape[1:])
        rows = [torch.from_numpy(draw(_stream(*key, name, step), count)) for key in self.keys]
        result = torch.stack(rows).reshape(tuple(shape))
        _record(name, step, result)
        return result


class ReplayDraws:
    """Draws that were recorded elsewhere, by name: what replays a reference's random numbers.

    Args:
        values: For each name a sequence of tensors, one per step.
    """

    def __init__(self, values: dict[str, Sequence[Tensor]]) -> None:
        self.values = values

    def normal(self, name: str, step: int, shape: Sequence[int]) -> Tensor:
        """Return the recorded tensor of `name` at `step`.

        Raises:
            KeyError: Nothing was recorded under that name and step.
            ValueError: The recorded shape is another one.
        """
        if name not in self.values or step >= len(self.values[name]):
            raise KeyError(f"no draw recorded for {name!r}, step {step}; recorded: {sorted(self.values)}.")
        value = self.values[name][step]
        if tuple(value.shape) != tuple(shape):
            raise ValueError(
                f"draw {name!r}, step {step} was recorded as {tuple(value.shape)}, asked {tuple(shape)}."
            )
        return value

    uniform = normal


def _record(name: str, step: int, result: Tensor) -> None:
    for record in _records:
        known = [record[key]] if (key := f"{name}/{step}") in record else []  # of clips drawn one by one
        record[key] = torch.cat((*known, result))


def _stream(seed: int | str, epoch: int, sample: int, name: str, step: int) -> np.random.Philox:
    label = f"{seed}/{epoch}/{sample}/{name}/{step}".encode()
    key = np.frombuffer(hashlib.blake2b(label, digest_size=16).digest(), dtype=np.uint64)
    return np.random.Philox(key=key)


def _uniform64(stream: np.random.Philox, count: int) -> np.ndarray:
    return (stream.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _uniform(stream: np.random.Philox, count: int) -> np.ndarray:
    return (stream.random_raw(count) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def _normal(stream: np.random.Philox, count: int) -> np.ndarray:
    # Box-Muller from raw bits in float64: NumPy promises stable raw bits, not stable normal numbers.
    raw = stream.random_raw((count + 1) // 2)
    radius = np.sqrt(-2.0 * np.log(((raw >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32))
    angle = (raw & np.uint64(0xFFFFFFFF)).astype(np.float64) * (2.0 * math.pi * 2.0**-32)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.reshape(-1)[:count].astype(np.float32)
