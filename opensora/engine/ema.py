"""Exponential moving average of the fp32 weights, in the pieces that this process holds."""

from typing import Any

import torch
from torch import Tensor


class Ema:
    """Average the weights of one module.

    Args:
        engine: Holds the fp32 masters; each process averages its own pieces.
        name: Which module.
        decay: Share of the old average kept in each step, in [0, 1).

    Source: Polyak and Juditsky 1992.
    """

    def __init__(self, engine: Any, name: str, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay={decay}: use a number in [0, 1), or None to keep no average.")
        self.engine, self.name, self.decay = engine, name, decay
        self.pieces = {key: value.detach().clone() for key, value in engine.masters(name).items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights. Once per optimizer step."""
        for key, master in self.engine.masters(self.name).items():
            self.pieces[key].lerp_(master, 1 - self.decay)

    def whole(self) -> dict[str, Tensor]:
        """Return whole averaged tensors on the main process, nothing elsewhere. Called by all processes."""
        return self.engine.gather(self.name, self.pieces)

    def load(self, whole: dict[str, Tensor]) -> None:
        """Restore from whole tensors; every process passes the same."""
        for key, piece in self.engine.scatter(self.name, whole).items():
            self.pieces[key].copy_(piece)
