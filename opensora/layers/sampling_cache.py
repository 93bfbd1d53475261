"""What the steps of one sampling run have in common, computed once."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from torch import Tensor


class BranchCache:
    """Results of one set of guidance branches that do not depend on the latents.

    A network keeps here what its conditions make: tokens, keys and values, embedded times. Caches that skip
    blocks belong here too: `step` tells them how old a result is.

    Args:
        times: Time of every step and row of the batch. Shape [steps, rows].

    Attributes:
        step: Number of the step that runs now, from 0.
    """

    def __init__(self, times: Tensor) -> None:
        self.times, self.step = times, 0
        self._values: dict[Hashable, Any] = {}

    def keep(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """Return what `make` returned when this name was asked for first."""
        if name not in self._values:
            self._values[name] = make()
        return self._values[name]

    @property
    def num_bytes(self) -> int:
        """Memory of the kept tensors."""
        return sum(
            {
                t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(self._values)
            }.values()
        )


class SamplingCache:
    """The `BranchCache` of each set of branches that guidance runs in some step.

    It lives as long as the run, in which conditions and weights stay the same.

    Args:
        times: Time of every step and sample. Shape [steps, B].
    """

    def __init__(self, times: Tensor) -> None:
        self._times = times
        self._branches: dict[tuple[int, ...], BranchCache] = {}

    def at(self, step: int, branches: Sequence[int]) -> BranchCache:
        """Return the cache of a step that runs these branches, in this order in the batch."""
        key = tuple(branches)
        if key not in self._branches:
            self._branches[key] = BranchCache(self._times.repeat(1, len(key)))
        self._branches[key].step = step
        return self._branches[key]

    @property
    def num_bytes(self) -> int:
        """Memory of the kept tensors."""
        return sum(branch.num_bytes for branch in self._branches.values())


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    elif hasattr(value, "__dataclass_fields__"):
        value = list(vars(value).values())
    return [t for part in value for t in _tensors(part)] if isinstance(value, list | tuple) else []
