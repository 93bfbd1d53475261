"""T5, the text encoder of Open-Sora 1.2 and 1.3.

Source: Raffel et al. 2020, "Exploring the limits of transfer learning with a unified text-to-text
transformer".
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opensora.models.text_encoder import TextEncoder
from opensora.registry import MODELS


@MODELS.register_module()
class T5Encoder(TextEncoder):
    """The encoder of a T5 model: one feature per token, the end token included.

    Args:
        from_pretrained: Folder with `config.json`, `spiece.model` or `tokenizer.json`, and
            `model.safetensors`, or a hub name. Published models use DeepFloyd/t5-v1_1-xxl.
        width: Features per token F: 4096 for xxl, 2048 for xl.
        max_length: Most tokens of a caption; published 300, positions are relative and set no limit.
        dtype: "fp32", "bf16" or "fp16". xxl takes 19 GB in fp32, half of that in bf16.
    """

    model_class = "T5EncoderModel"

    def __init__(
        self, from_pretrained: str | Path, width: int = 4096, max_length: int = 300, dtype: str = "fp32"
    ) -> None:
        super().__init__(from_pretrained, width, max_length, dtype)

    def _length_limit(self, config: Any) -> None:
        return None

    def _make_tokenizer(self) -> Any:
        file = _sentencepiece_file(self.location())
        return super()._make_tokenizer() if file is None else SentencePieceTokenizer(file)


class SentencePieceTokenizer:
    """The published tokenizer file, read by sentencepiece itself: transformers would need protobuf for it.

    Args:
        file: `spiece.model`.
    """

    def __init__(self, file: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self.processor = SentencePieceProcessor(model_file=str(file))

    def __call__(
        self, text: str | Sequence[str], truncation: bool, max_length: int = 0, verbose: bool = False
    ) -> dict[str, Any]:
        """Return `input_ids` of a text, or of each: its pieces and the end token."""
        if not isinstance(text, str):
            return {"input_ids": [self(one, truncation, max_length)["input_ids"] for one in text]}
        ids = self.processor.encode(text)
        return {"input_ids": [*(ids[: max_length - 1] if truncation else ids), self.processor.eos_id()]}


def _sentencepiece_file(where: str) -> Path | None:
    folder = Path(where).expanduser()
    if folder.is_dir():
        found = (folder / "spiece.model").is_file() and not (folder / "tokenizer.json").is_file()
        return folder / "spiece.model" if found else None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(where, "spiece.model"))
    except (OSError, ValueError):  # it has none, or is not there: transformers will say
        return None
