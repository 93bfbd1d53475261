"""EpochPlan: every step of an epoch, and every clip of its batches."""

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from opensora.datasets.buckets import ClipIndex
from opensora.utils.files import whole_file


@dataclass(frozen=True)
class EpochPlan:
    """All steps of an epoch.

    Batch k holds `rows[starts[k] : starts[k + 1]]`. Step i holds batches i * n to (i + 1) * n, with n =
    `batches_per_step`.

    Args:
        key: Hash of what the plan was made from, apart from the epoch and the carry.
        epoch: Epoch.
        batches_per_step: Batches of a step, over all processes.
        rows: Rows of the table, batch by batch. int32, or int64 for more than 2^31 rows, shape [M].
        starts: Where the batches start in `rows`, and its end. int64, shape [K + 1].
        sizes: num_frames, height and width of each batch. int32, shape [K, 3].
        costs: What each batch costs: the seconds of a measured table, or else the pixels of all its clips and
            frames, which stand for its work. Shape [K].
        carried: Rows that came from the epoch before, each with the number of its shape, and 1 if it is owed:
            it was cut while its shape had a batch. int64, shape [A, 3].
        carry: Rows that were left over, and go first in the next epoch. As `carried`.
        excluded: Rows that are not taken, for example because they cannot be read. int64, sorted, shape [E].
        counts: How many rows of the table were taken, and how many not, by reason.
    """

    key: str
    epoch: int
    batches_per_step: int
    rows: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    costs: np.ndarray
    carried: np.ndarray
    carry: np.ndarray
    excluded: np.ndarray
    counts: dict[str, int]

    @property
    def num_steps(self) -> int:
        """Steps of the epoch."""
        return len(self.sizes) // self.batches_per_step

    def imbalance(self, ranks: int) -> float:
        """Return the mean over the steps of the largest cost of a process by their mean cost; 1 is ideal.

        Args:
            ranks: Processes; divides `batches_per_step`. Process r takes the batches r, r + ranks, ...
        """
        cost = self.costs.reshape(self.num_steps, -1, ranks).sum(1, dtype=np.float64)
        return float((cost.max(1) / cost.mean(1)).mean())

    @cached_property
    def hash(self) -> str:
        """Hash of the whole plan. Processes compare it before they start."""
        digest = hashlib.blake2b(f"{self.key}/{self.epoch}/{self.batches_per_step}".encode(), digest_size=16)
        for array in (getattr(self, name) for name in _ARRAYS):
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
        header = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _ARRAYS}
        text = json.dumps({**header, "hash": self.hash}).encode()
        with whole_file(path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                header=np.frombuffer(text, dtype=np.uint8),
                **{name: getattr(self, name) for name in _ARRAYS},
            )

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


_ARRAYS = ("rows", "starts", "sizes", "costs", "carried", "carry", "excluded")
