"""The text encoder of CLIP.

Source: Radford et al. 2021, "Learning transferable visual models from natural language supervision".
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from opensora.models.text_encoder import TextEncoder
from opensora.registry import MODELS


@MODELS.register_module()
class CLIPTextEncoder(TextEncoder):
    """CLIP's text transformer: one feature per caption, or one per token.

    Args:
        from_pretrained: Folder with `config.json`, a tokenizer and `model.safetensors`, or a hub name.
        width: Features per token F.
        max_length: Most tokens of a caption; CLIP has 77 positions.
        pooled: Whether a caption is one feature, the state of its end token, as in published
            configs. Otherwise every token is one.
        dtype: "fp32", "bf16" or "fp16".
    """

    model_class = "CLIPTextModel"

    def __init__(
        self,
        from_pretrained: str | Path,
        width: int = 768,
        max_length: int = 77,
        pooled: bool = True,
        dtype: str = "fp32",
    ) -> None:
        super().__init__(from_pretrained, width, max_length, dtype)
        self.pooled = pooled

    def tokenize(self, texts: Sequence[str]) -> list[int]:
        """Return how many features each caption will have: one if they are pooled."""
        lengths = super().tokenize(texts)
        return [1] * len(lengths) if self.pooled else lengths

    def _features(self, model: nn.Module, ids: Tensor) -> Tensor:
        states = model(input_ids=ids)
        return states.pooler_output[:, None] if self.pooled else states.last_hidden_state
