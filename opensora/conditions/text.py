"""Captions: tokens for cross attention."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from opensora.layers.interfaces import Injection
from opensora.layers.transformer import Mlp
from opensora.registry import CONDITIONS


@CONDITIONS.register_module()
class TextCondition(nn.Module):
    """Project caption features to the width of the network.

    The null caption is a table of features that replaces a dropped caption, under the mask of the caption
    that it
    replaces: released weights were trained so. Negative prompts replace it with their own features and mask.

    Args:
        hidden_size: Width of the network D; filled in by the network.
        text_width: Width of the text encoder's features F; filled in from the text encoder.
        text_length: Longest caption in tokens; filled in from the text encoder.
        projected: Whether features arrive at the network's width, projected beforehand.
    """

    def __init__(self, hidden_size: int, text_width: int, text_length: int, projected: bool = False) -> None:
        super().__init__()
        self.projected = projected
        self.register_buffer("y_embedding", torch.empty(text_length, text_width))
        self.y_proj = Mlp(text_width, hidden_size, hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the projection, and the null caption at random."""
        nn.init.normal_(self.y_embedding, std=self.y_embedding.shape[1] ** -0.5)
        for layer in (self.y_proj.fc1, self.y_proj.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def prepare(self, batch: Mapping[str, Any], z: Tensor | None, draws: Any) -> dict[str, Tensor]:
        """Trim captions to the longest of the batch; keep a mask only where lengths differ.

        Args:
            batch: `text_features` [B, L, F] and, when captions have padding, `text_mask` [B, L]; for negative
                prompts `negative` [B, L', F] and `negative_mask`.
            z: Not used.
            draws: Not used.

        Returns:
            `text_features`, and where needed `text_mask`, `negative`, `negative_mask`, all of one length.

        Raises:
            ValueError: A caption has no token, or more than `text_length`.
        """
        pairs = {"text_features": "text_mask", "negative": "negative_mask"}
        found = {name: _lengths(name, batch, mask) for name, mask in pairs.items() if name in batch}
        longest = max(int(lengths.max()) for lengths, _ in found.values())
        if longest > self.y_embedding.shape[0]:
            raise ValueError(
                f"a caption has {longest} tokens; this model was built for {self.y_embedding.shape[0]}. "
                f"Lower the text "
                f"encoder's max_length to that, or load a model with a longer null caption."
            )
        ragged = any(int(lengths.min()) < longest or not filled for lengths, filled in found.values())
        cond = {}
        for name in found:
            features = batch[name][:, :longest]
            cond[name] = nn.functional.pad(features, (0, 0, 0, longest - features.shape[1]))
            if ragged:
                mask = batch.get(pairs[name])
                if mask is None:
                    mask = torch.ones(batch[name].shape[:2], dtype=torch.bool, device=features.device)
                mask = mask[:, :longest].bool().to(features.device)
                cond[pairs[name]] = nn.functional.pad(mask, (0, longest - mask.shape[1]))
        return cond

    def forward(self, cond: Mapping[str, Tensor], drop: Tensor | None) -> Injection:
        """Return `context`, `context_mask` and `null_context`, the null caption under the prompt's mask.

        Args:
            cond: What `prepare` returned.
            drop: Captions to replace by the negative prompt or the null caption. Bool, shape [B].
        """
        dtype = self.y_proj.fc1.weight.dtype
        text, mask = cond["text_features"].to(dtype), cond.get("text_mask")
        null = self.y_embedding[: text.shape[1]].to(dtype)[None]
        null_context = self.y_proj(null).expand(text.shape[0], -1, -1)
        if drop is not None:
            other = cond.get("negative")
            if other is None:
                other = null_context if self.projected else null
            text = torch.where(drop[:, None, None], other.to(dtype), text)
            if "negative_mask" in cond:
                mask = torch.where(drop[:, None], cond["negative_mask"], mask)
        return Injection(
            context=text if self.projected else self.y_proj(text),
            context_mask=mask,
            null_context=null_context,
        )


def _lengths(name: str, batch: Mapping[str, Any], mask_name: str) -> tuple[Tensor, bool]:
    """Return each caption's last real token + 1, and whether there is no hole before it."""
    features, mask = batch[name], batch.get(mask_name)
    if mask is None:
        return torch.full((features.shape[0],), features.shape[1]), True
    mask = mask.bool().cpu()
    counts = mask.sum(1)
    if int(counts.min()) == 0:
        raise ValueError(
            f"{mask_name}: caption {int(counts.argmin())} of the batch has no token; give it at least one."
        )
    last = mask.shape[1] - mask.flip(1).int().argmax(1)
    return last, bool((last == counts).all())
