"""BucketSampler: the batches of one process, in the order of the plan."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from opensora.datasets.buckets import ClipIndex
from opensora.datasets.epoch_plan import EpochPlan
from opensora.datasets.planner import Planner


class BucketSampler(Sampler[list[ClipIndex]]):
    """Yields the batches of one process, in the order of the plan.

    Of each step, process r of R takes the batches r, r + R, ...

    Args:
        planner: Makes the plans.
        rank: Number of this process among those with data of their own.
        world_size: How many there are; divides the planner's `batches_per_step`.
        plan: Plan to start with; None plans epoch 0.
        start_step: Step to start at, for a resumed run.

    Attributes:
        plan: The plan of the epoch.
        start_step: Step at which the next pass starts.

    Raises:
        ValueError: `world_size` does not divide `batches_per_step`, or a number is out of range.
    """

    def __init__(
        self,
        planner: Planner,
        rank: int = 0,
        world_size: int = 1,
        plan: EpochPlan | None = None,
        start_step: int = 0,
    ) -> None:
        n = planner.batches_per_step
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} of world_size={world_size}: ranks go from 0 to world_size - 1.")
        if n % world_size:
            raise ValueError(
                f"batches_per_step={n} is not a multiple of the {world_size} processes; "
                f"use {n // world_size * world_size or world_size} or {-(-n // world_size) * world_size}."
            )
        self.planner = planner
        self.rank = rank
        self.world_size = world_size
        self.set_plan(plan or planner.plan(0), start_step)

    def set_plan(self, plan: EpochPlan, start_step: int = 0) -> None:
        """Go on with a plan, from a step.

        Raises:
            ValueError: The plan has no such step.
        """
        if not 0 <= start_step <= plan.num_steps:
            raise ValueError(
                f"start_step={start_step}: epoch {plan.epoch} has {plan.num_steps} steps; give 0 to "
                f"{plan.num_steps}."
            )
        self.plan = plan
        self.start_step = start_step

    def next_epoch(self, excluded: np.ndarray | None = None) -> None:
        """Plan the next epoch, with what this one left over, and start at its beginning.

        Args:
            excluded: Rows that are not taken in it.
        """
        self.set_plan(self.planner.plan(self.plan.epoch + 1, self.plan.carry, excluded))

    def __iter__(self) -> Iterator[list[ClipIndex]]:
        n = self.plan.batches_per_step
        for step in range(self.start_step, self.plan.num_steps):
            for place in range(self.rank, n, self.world_size):
                yield self.plan.batch(step * n + place)

    def __len__(self) -> int:
        """Batches that a pass yields."""
        return (self.plan.num_steps - self.start_step) * self.plan.batches_per_step // self.world_size
