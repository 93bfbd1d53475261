"""The optimizer and its learning rate."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def build_optimizer(module: nn.Module, cfg: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Build AdamW over the parameters that are trained.

    Args:
        module: What is trained.
        cfg: `lr`, `weight_decay`, `eps`, `betas`.

    Raises:
        ValueError: Nothing is trained.

    Source: Loshchilov and Hutter 2019.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            "no parameter is trained: model.freeze and model.train_only leave none; change them."
        )
    return torch.optim.AdamW(parameters, **cfg)


class LrSchedule:
    """Learning rate of a step: linear warm-up, then constant or a cosine to 0.

    A pure function of the step, so there is nothing to save.

    Args:
        lr: Rate after the warm-up.
        num_steps: Steps of the whole run, where the cosine ends.
        warmup_steps: Steps of the warm-up.
        initial_lr: Rate at which it starts.
        cosine: Whether the rate falls afterwards.
    """

    def __init__(
        self, lr: float, num_steps: int, warmup_steps: int = 0, initial_lr: float = 0.0, cosine: bool = False
    ) -> None:
        self.lr, self.num_steps, self.cosine = lr, num_steps, cosine
        self.warmup_steps, self.initial_lr = warmup_steps, initial_lr

    def __call__(self, step: int) -> float:
        """Return the rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.initial_lr + (self.lr - self.initial_lr) * (step + 1) / (self.warmup_steps + 1)
        if not self.cosine:
            return self.lr
        progress = (step - self.warmup_steps) / max(self.num_steps - self.warmup_steps, 1)
        return 0.5 * self.lr * (1 + math.cos(math.pi * min(progress, 1.0)))
