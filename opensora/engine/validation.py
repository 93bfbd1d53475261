"""Validation along the way: the loss at fixed times, and a sample to look at."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from opensora.acceleration.parallel import parallel_state, share_batches
from opensora.datasets.loader import collate
from opensora.utils.random import Draws


class Validation:
    """Measure a task on fixed clips with fixed random numbers: the figure moves only with the weights.

    Args:
        task: A task with `evaluate(batch, num_times, draws)`, and `show(batch, path)` for samples.
        data: Training data, whose clips are used.
        cfg: `num_batches` of the first epoch's plan, `num_times`, `sample` (whether to save a sample).
        folder: Folder of the run; samples go to `samples/`.
    """

    def __init__(self, task: Any, data: Any, cfg: Mapping[str, Any], folder: Path) -> None:
        self.task, self.cfg, self.folder = task, cfg, folder
        plan = data.first_plan
        clips = [plan.batch(number) for number in range(min(cfg["num_batches"], len(plan.sizes)))]
        reads = parallel_state().sequence_rank == 0
        batches = [collate([data.dataset[clip] for clip in batch]) for batch in (clips if reads else [])]
        self.batches = share_batches(batches)

    @torch.no_grad()
    def __call__(self, step: int) -> dict[str, float]:
        """Return the values to log. All processes compute the same, and one writes the sample."""
        totals: dict[str, float] = {}
        for batch in self.batches:
            draws = Draws(0, batch["sample"].tolist())
            for name, value in self.task.evaluate(batch, self.cfg["num_times"], draws).items():
                totals[name] = totals.get(name, 0.0) + value / len(self.batches)
        if self.cfg["sample"]:  # by all processes: the network may be in pieces, or the tokens shared out
            folder = self.folder / "samples"
            folder.mkdir(exist_ok=True)
            self.task.show(self.batches[0], folder / f"step{step:07d}")
        return {f"validation_{name}": value for name, value in totals.items()}
