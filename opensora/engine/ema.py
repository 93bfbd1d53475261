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
        self.engine, self.name, self.decay = engine, name, decay
        self.pieces = {key: value.detach().clone() for key, value in engine.masters(name).items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights. Once per optimizer step."""
        for key, master in self.engine.masters(self.name).items():
            self.pieces[key].lerp_(master, 1 - self.decay)

    def whole(self, spread: bool = False) -> dict[str, Tensor]:
        """Return whole averaged tensors where `Engine.gather` puts them. Called by all processes."""
        return self.engine.gather(self.name, self.pieces, spread)

    def load(self, whole: dict[str, Tensor]) -> None:
        """Restore from whole tensors; every process passes the same.

        Args:
            whole: At least the trained parameters; a checkpoint holds frozen ones and buffers as well.
        """
        trained = {key: whole[key] for key in self.pieces}
        for key, piece in self.engine.scatter(self.name, trained).items():
            self.pieces[key].copy_(piece)
