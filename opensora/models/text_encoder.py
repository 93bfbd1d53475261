"""What text encoders share: loading at the first use, encoding captions one by one, freeing the weights."""

import gc
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from opensora.utils.logging import get_logger

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MOST_WARNINGS = 10


class TextEncoder(nn.Module):
    """A pretrained language model that turns captions into features.

    Nothing is read before the first `tokenize` or `encode`, so building is free and works on the meta device.
    `width` and `max_length` are compared with the model when it is loaded. Only safetensors are read.

    Args:
        from_pretrained: Folder with `config.json`, a tokenizer and `model.safetensors`, or a hub name.
        width: Features per token F.
        max_length: Most tokens of a caption; longer ones are cut, with a warning.
        dtype: "fp32", "bf16" or "fp16": of the weights, the computation and the features.

    Raises:
        ValueError: `dtype` is unknown.
    """

    model_class = "AutoModel"

    def __init__(
        self, from_pretrained: str | Path | None, width: int, max_length: int, dtype: str = "fp32"
    ) -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"{type(self).__name__} dtype={dtype!r}: use one of {', '.join(DTYPES)}.")
        self.from_pretrained, self.width, self.max_length = from_pretrained, width, max_length
        self.model: nn.Module | None = None
        self._tokenizer: Any = None
        self._cut: set[str] = set()
        # `.to(...)` moves this as it moves weights: it remembers where the model belongs until it is loaded.
        self.register_buffer("place", torch.empty(0, dtype=DTYPES[dtype], device="cpu"), persistent=False)

    def train(self, mode: bool = True) -> "TextEncoder":
        """Stay in evaluation mode: a text encoder is never trained."""
        return super().train(False)

    def tokenize(self, texts: Sequence[str]) -> list[int]:
        """Return how many features each caption will have. It reads the tokenizer, not the weights."""
        return [len(ids) for ids in self._token_ids(texts)]

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode captions. Each distinct one runs alone, so its features do not depend on its neighbours.

        Args:
            texts: The captions; their number is B.

        Returns:
            Features, zero behind the end of a caption, and the mask of real tokens; L is the longest caption
            of the call. Shapes [B, L, F] and [B, L]. The mask stays on the CPU, where lengths are known
            without waiting for the device.

        Raises:
            ValueError: There is no caption, or model and config disagree.
            FileNotFoundError: The model or its tokenizer is not there.
            ImportError: transformers is missing or does not work.
        """
        distinct = list(dict.fromkeys(texts)) if not isinstance(texts, str) else texts
        ids = self._token_ids(distinct)
        model, rows = self._load(), {}
        for text, row in zip(distinct, ids, strict=True):
            with torch.autocast(self.place.device.type, enabled=False):
                rows[text] = self._features(model, torch.tensor([row], device=self.place.device))[0]
        chosen = [rows[text].to(self.place.dtype) for text in texts]
        features = nn.utils.rnn.pad_sequence(chosen, batch_first=True)  # [B, L, F]
        lengths = torch.tensor([len(row) for row in chosen])
        return features, torch.arange(features.shape[1]) < lengths[:, None]

    def release(self) -> None:
        """Free the weights; the next `encode` loads them again."""
        if self.model is not None:
            self.model = None
            gc.collect()
            if self.place.is_cuda:
                torch.cuda.empty_cache()

    def _features(self, model: nn.Module, ids: Tensor) -> Tensor:
        """Return the features of one caption. Shape [1, L] to [1, L, F]."""
        return model(input_ids=ids).last_hidden_state

    def _length_limit(self, config: Any) -> int | None:
        """Return the most tokens that the model's positions allow."""
        return min(config.max_position_embeddings, self._tokenizer.model_max_length)

    def location(self) -> str:
        """Return the folder or hub name of the model."""
        if self.from_pretrained is None:
            raise ValueError(
                f"{type(self).__name__} from_pretrained=None: name the folder of its weights with "
                "--text_encoder.from_pretrained; docs/weights.md says which files it holds."
            )
        return str(self.from_pretrained)

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        if isinstance(texts, str) or not texts:
            raise ValueError(
                f"{type(self).__name__}: captions are {texts!r}; give a list with one string or more."
            )
        tokenizer, texts = self._load_tokenizer(), list(texts)
        ids = tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        for i, (text, row) in enumerate(zip(texts, ids, strict=True)):
            if len(row) > self.max_length:
                ids[i] = tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"]
                self._warn_cut(text, len(row))
        return ids

    def _warn_cut(self, text: str, length: int) -> None:
        if text not in self._cut and len(self._cut) < _MOST_WARNINGS:
            self._cut.add(text)
            get_logger().warning(
                "caption %r... has %d tokens and is cut to max_length %d", text[:60], length, self.max_length
            )

    def _load_tokenizer(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = self._make_tokenizer()
        return self._tokenizer

    def _make_tokenizer(self) -> Any:
        """Return what transformers makes of the folder's tokenizer files, if there are any."""
        tokenizer = self._pretrained("AutoTokenizer")
        # transformers makes up an empty tokenizer where the files are missing.
        if len(tokenizer.get_vocab()) - len(tokenizer.added_tokens_decoder) < 2:
            raise FileNotFoundError(
                f"{self.location()}: there is no tokenizer; copy tokenizer.json, spiece.model or the "
                "vocabulary files into that folder. docs/weights.md lists them."
            )
        return tokenizer

    def _load(self) -> nn.Module:
        if self.model is None:
            self._load_tokenizer()
            model, report = self._pretrained(
                self.model_class, use_safetensors=True, dtype=self.place.dtype, output_loading_info=True
            )
            self._check(model.config, [*report["missing_keys"], *report["mismatched_keys"]])
            self.model = model.to(self.place.device).requires_grad_(False).eval()
        return self.model

    def _check(self, config: Any, unset: Sequence[Any]) -> None:
        """Compare a loaded model with the config, and refuse weights that it had to make up."""
        name, where = type(self).__name__, self.location()
        if config.hidden_size != self.width:
            raise ValueError(
                f"{name} width={self.width}: {where} gives {config.hidden_size} features per token; set that."
            )
        limit = self._length_limit(config)
        if limit is not None and self.max_length > limit:
            raise ValueError(
                f"{name} max_length={self.max_length}: {where} takes {limit} tokens at most; lower it."
            )
        unset = sorted(
            str(key) for key in unset if not str(key).startswith("pooler.")
        )  # made up, and not used
        if unset:
            raise ValueError(
                f"{where}: {len(unset)} tensors of {self.model_class} are missing in its weights or have "
                f"another shape, such as {unset[0]}; copy the complete files."
            )

    def _pretrained(self, kind: str, **options: Any) -> Any:
        """Call `from_pretrained` of a transformers class, and explain what goes wrong."""
        where = self.location()
        folder = Path(where).expanduser()
        self._check_files(folder, where)
        try:
            import transformers

            source = {"local_files_only": True} if folder.is_dir() else {}
            return getattr(transformers, kind).from_pretrained(
                folder if source else where, trust_remote_code=False, **source, **options
            )
        except (ImportError, RuntimeError, AttributeError) as error:
            raise _explained(error, f"{type(self).__name__} {where}") from error
        except (OSError, ValueError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]
            raise FileNotFoundError(
                f"{where}: {kind} cannot be loaded from there ({reason}). docs/weights.md says which files "
                "to bring to a machine without network access."
            ) from error

    def _check_files(self, folder: Path, where: str) -> None:
        hub_name = where.count("/") <= 1 and where[:1] not in (".", "~", "/")
        if not folder.is_dir() and not hub_name:
            raise FileNotFoundError(
                f"{type(self).__name__} from_pretrained={where!r}: no such folder; it should hold config.json"
                ", a tokenizer and model.safetensors; docs/weights.md says how to bring it here."
            )
        if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
            raise FileNotFoundError(
                f"{where}: holds .bin weights, and only safetensors are read. Convert them once: "
                f"`python scripts/convert_weights.py {where} {folder / 'model.safetensors'}`."
            )


def _explained(error: Exception, what: str) -> Exception:
    """Say why transformers does not work, and how to mend it."""
    if isinstance(error, ModuleNotFoundError) and error.name == "transformers":
        return ModuleNotFoundError(
            f"{what}: run `pip install transformers`, which it needs.", name=error.name
        )
    if "torchvision" in "".join(traceback.format_exception(error)):
        return ImportError(
            f"{what}: transformers fails because the installed torchvision does not work with torch "
            f"{torch.__version__}. Nothing here needs torchvision: run `pip uninstall torchvision`, or "
            "install the release that belongs to this torch."
        )
    return ImportError(f"{what}: transformers cannot load it: {error}")
