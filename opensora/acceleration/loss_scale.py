"""Loss scaling for fp16: multiply the loss so that small gradients do not vanish.

Source: Micikevicius et al. 2018, "Mixed precision training", section 3.2.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

LARGEST = 2.0**32


class LossScale:
    """A factor that halves when gradients overflow and doubles after many steps without.

    Args:
        enabled: Without it the factor is 1 forever.
        initial: First factor, a power of two, so that scaling rounds nothing.
        growth_interval: Steps without overflow after which it doubles.
    """

    def __init__(self, enabled: bool, initial: float = 2.0**16, growth_interval: int = 1000) -> None:
        self.enabled = enabled
        self.value = initial if enabled else 1.0
        self.growth_interval = growth_interval
        self.growth = 0  # steps since the last change

    def update(self, finite: bool) -> None:
        """Take notice of a step: were its gradients finite?"""
        if not self.enabled:
            return
        self.growth = self.growth + 1 if finite else 0
        if not finite:
            self.value = max(1.0, self.value / 2)
        elif self.growth == self.growth_interval:
            self.value, self.growth = min(LARGEST, self.value * 2), 0

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps; nothing when not enabled."""
        if not self.enabled:
            return {}
        return {"loss_scale": torch.tensor(self.value), "growth": torch.tensor(self.growth)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint; one without a scale (of another dtype) leaves the initial one."""
        if self.enabled and "loss_scale" in state:
            self.value, self.growth = float(state["loss_scale"]), int(state["growth"])
