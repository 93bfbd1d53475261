"""BERT, the encoder of small sentence models: transformers takes two seconds to import its own.

Source: Devlin et al. 2019, "BERT"; layers are torch's.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

_LAYER = {
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "linear1",
    "output.dense": "linear2",
    "output.LayerNorm": "norm2",
}


class Bert(nn.Module):
    """Token, position and type embeddings, then encoder layers with norms behind.

    Args:
        config: Values of the `config.json` of a published folder.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        self.words = nn.Embedding(config["vocab_size"], width)
        self.positions = nn.Embedding(config["max_position_embeddings"], width)
        self.types = nn.Embedding(config["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, eps)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                config["num_attention_heads"],
                config["intermediate_size"],
                dropout=0.0,
                activation="gelu",
                layer_norm_eps=eps,
                batch_first=True,
            )
            for _ in range(config["num_hidden_layers"])
        )

    @staticmethod
    def reads(published: Mapping[str, Any]) -> bool:
        """Return whether a published config is of this form."""
        form = {"model_type": "bert", "hidden_act": "gelu"}
        positions = published.get("position_embedding_type", "absolute")
        return form.items() <= published.items() and positions == "absolute"

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        """Encode tokens.

        Args:
            input_ids: Shape [B, L].
            attention_mask: 1 for real tokens. Shape [B, L].

        Returns:
            `last_hidden_state`, shape [B, L, D].
        """
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        h = self.norm(self.words(input_ids) + self.types.weight[0] + self.positions(places))
        padding = None if attention_mask is None else attention_mask == 0
        for layer in self.layers:
            h = layer(h, src_key_padding_mask=padding)
        return SimpleNamespace(last_hidden_state=h)


def from_published(state: Mapping[str, Tensor], num_layers: int) -> tuple[dict[str, Tensor], list[str]]:
    """Rename published tensors; return them, and the published names that are missing."""
    state = {name.removeprefix("bert."): tensor for name, tensor in state.items()}
    names = {f"embeddings.LayerNorm.{part}": f"norm.{part}" for part in ("weight", "bias")}
    for theirs, ours in (("word", "words"), ("position", "positions"), ("token_type", "types")):
        names[f"embeddings.{theirs}_embeddings.weight"] = f"{ours}.weight"
    found, missing = {}, []
    for i in range(num_layers):
        for part in ("weight", "bias"):
            for theirs, ours in _LAYER.items():
                names[f"encoder.layer.{i}.{theirs}.{part}"] = f"layers.{i}.{ours}.{part}"
            joint = [f"encoder.layer.{i}.attention.self.{x}.{part}" for x in ("query", "key", "value")]
            missing += [name for name in joint if name not in state]
            if all(name in state for name in joint):
                found[f"layers.{i}.self_attn.in_proj_{part}"] = torch.cat([state[name] for name in joint])
    missing += [name for name in names if name not in state]
    return found | {ours: state[name] for name, ours in names.items() if name in state}, missing
