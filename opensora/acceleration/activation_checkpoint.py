"""Activation checkpointing: recompute a block's activations in the backward pass instead of keeping them.

Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".
"""

from typing import Any

import torch
from torch import nn


def set_activation_checkpoint(model: nn.Module, enabled: bool = True) -> None:
    """Switch checkpointing on or off for every block that `model` runs through `checkpointed`."""
    for module in model.modules():
        module.activation_checkpoint = enabled


def checkpointed(module: nn.Module, *args: Any) -> Any:
    """Call `module(*args)`, with checkpointing if it is switched on and gradients are needed.

    Random numbers inside are not replayed: networks here draw none.
    """
    if getattr(module, "activation_checkpoint", False) and torch.is_grad_enabled():
        from torch.utils.checkpoint import checkpoint

        return checkpoint(module, *args, use_reentrant=False, preserve_rng_state=False)
    return module(*args)
