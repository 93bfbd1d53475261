"""Numbers that describe a clip: frames per second, height, width, length."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opensora.layers.embeddings import SizeEmbedder
from opensora.layers.interfaces import Injection
from opensora.registry import CONDITIONS

FIELDS = ("fps", "height", "width", "num_frames")


@CONDITIONS.register_module()
class SizeCondition(nn.Module):
    """Embed sizes and add them to the time embedding. A dropped sample gets no size at all.

    Args:
        hidden_size: Width of the network; filled in by the network.
        fields: Which of fps, height, width and num_frames. Images have 120 fps in published models.
    """

    def __init__(self, hidden_size: int, fields: Sequence[str] = ("fps",)) -> None:
        super().__init__()
        unknown = [field for field in fields if field not in FIELDS]
        if unknown or not fields:
            raise ValueError(
                f"SizeCondition fields={tuple(fields)}: choose at least one of {', '.join(FIELDS)}."
            )
        self.embedders = nn.ModuleDict({field: SizeEmbedder(hidden_size) for field in fields})
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start from no effect: the last layer is zero."""
        for embedder in self.embedders.values():
            nn.init.normal_(embedder.mlp[0].weight, std=0.02)
            nn.init.zeros_(embedder.mlp[0].bias)
            nn.init.zeros_(embedder.mlp[2].weight)
            nn.init.zeros_(embedder.mlp[2].bias)

    def prepare(self, batch: Mapping[str, Any], z: Tensor | None, draws: Any) -> dict[str, Tensor]:
        """Return nothing of its own: sizes are in `cond` for every network.

        Raises:
            KeyError: A field is missing in the batch.
        """
        for field in self.embedders:
            if field not in batch:
                raise KeyError(f"batch has no {field!r}; SizeCondition needs {', '.join(self.embedders)}.")
        return {}

    def forward(self, cond: Mapping[str, Tensor], drop: Tensor | None) -> Injection:
        """Return the sum of the embeddings as `vector` [B, D]."""
        weight = next(self.parameters())
        vector = sum(embedder(cond[field].to(weight.device)) for field, embedder in self.embedders.items())
        if drop is not None:
            vector = torch.where(drop[:, None], torch.zeros_like(vector), vector)
        return Injection(vector=vector)
