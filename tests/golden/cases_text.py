"""Golden cases of caption cleaning. A case's expectation is its field `out`."""

from collections.abc import Callable, Mapping
from typing import Any

from opensora.utils.caption_cleaning import clean_caption, fix_text


def _clean_caption(case: Mapping[str, Any], inputs: Any, weights: Any) -> dict[str, Any]:
    return {"out": clean_caption(case["args"]["caption"], passes=1)}


def _text_preprocessing(case: Mapping[str, Any], inputs: Any, weights: Any) -> dict[str, Any]:
    text, clean = case["args"]["text"], case["args"].get("use_text_preprocessing", True)
    return {"out": clean_caption(text) if clean else text.lower().strip()}


def _basic_clean(case: Mapping[str, Any], inputs: Any, weights: Any) -> dict[str, Any]:
    return {"out": fix_text(case["args"]["text"])}


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "clean_caption": _clean_caption,
    "text_preprocessing": _text_preprocessing,
    "basic_clean": _basic_clean,
}
