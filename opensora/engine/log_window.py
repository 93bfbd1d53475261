"""LogWindow: what the next line of the log is made of."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from opensora.acceleration.parallel import all_reduce_mean, parallel_state

COUNTS = ("replaced", "skipped")  # added up; all other values are averaged


class LogWindow:
    """Values of the steps since the last line, joined over the processes.

    Steps are joined one by one and in float64, so a line has the same bits whether or not a checkpoint, or
    the end of a process, fell between its steps.

    Args:
        steps: Joined values of steps, of a run that is continued.
    """

    def __init__(self, steps: Sequence[Mapping[str, float]] = ()) -> None:
        self._joined = [dict(step) for step in steps]
        self._own: list[Mapping[str, Any]] = []

    def add(self, values: Mapping[str, Any]) -> None:
        """Take this process's values of a step, numbers or tensors; the names are equal everywhere."""
        self._own.append(values)

    def steps(self) -> list[dict[str, float]]:
        """Return the joined values of each step. Called by all processes."""
        wide = {"dtype": torch.float64, "device": parallel_state().device}
        flat = [torch.as_tensor(value, **wide) for step in self._own for value in step.values()]
        if flat:
            means = iter(all_reduce_mean(torch.stack(flat)).tolist())
            self._joined += [{key: next(means) for key in step} for step in self._own]
            self._own = []
        return self._joined

    def close(self) -> dict[str, float]:
        """Return the line's values and start the next. Called by all processes.

        Means leave out what is not finite; a value that is never finite is missing.
        """
        steps, line = self.steps(), {}
        self._joined = []
        for name in dict.fromkeys(key for step in steps for key in step):
            values = [step[name] for step in steps if name in step and math.isfinite(step[name])]
            if name in COUNTS:
                line[name] = float(round(math.fsum(values) * parallel_state().world_size))
            elif values:
                line[name] = math.fsum(values) / len(values)
        return line
