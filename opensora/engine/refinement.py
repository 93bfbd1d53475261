"""Refinement: prompts rewritten by a language model, behind any endpoint that speaks OpenAI's protocol.

`OPENAI_BASE_URL` names the endpoint and `OPENAI_API_KEY` its key. Nothing is sent anywhere unless the config
asks for it. What goes wrong leaves a prompt as it was, with a line in the log.
"""

import base64
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from opensora.datasets.video_io import is_image, read_clip, read_image
from opensora.engine.prompts import Request, texts_of
from opensora.utils.logging import get_logger

_OPENAI = "https://api.openai.com/v1"
_MOST_BYTES = 1 << 20  # of an answer
_MOST_LETTERS = 2000  # of a prompt
_MOST_TOKENS = 400
_SIDE = 512  # of a sent picture, in pixels at most
_PASSES = (408, 429, 500, 502, 503, 504)  # statuses after which asking again may help

_RULES = (
    "You write prompts for a model that makes short videos from text. Answer with the prompt alone: no "
    "title, no quotes, no remarks. Write in English, whatever language the user writes. Use one to six plain "
    "sentences about a single scene in one continuous shot, without cuts. Name every person and thing that "
    "the user names, and what they do. Add what can be seen: looks, place, light, and how the camera moves. "
    "Invent no story, and nothing that contradicts the user."
)
_REFINE = "Write the prompt for this wish: {}"
_RANDOM = "Think of a scene that would make a beautiful short video, and write its prompt."
_IMAGE = (
    "The video starts with this picture. Write the prompt: its style, what is in it, and how things begin to "
    "move. {}"
)


def refine_requests(requests: Sequence[Request], cfg: Mapping[str, Any]) -> list[Request]:
    """Rewrite the texts of requests, once per prompt; names and random numbers stay those of the prompt.

    Args:
        requests: With files of references in place.
        cfg: Keys of `configs/_base_/inference.py`.

    Raises:
        ValueError: A setting is wrong, or cleaning leaves nothing of a text.
    """
    refiner, known, refined = Refiner(cfg["llm"]), {}, []
    for request in requests:
        key = (request.prompt, request.guide)
        if key not in known:
            first = request.guide.files[0] if request.guide.files else None
            known[key] = texts_of(
                request.prompt,
                cfg,
                lambda text, loop, first=first: refiner.refine(text, None if loop else first),
            )
            if not refiner.off:
                get_logger().info("%r became %r", request.prompt, known[key][0][1])
        texts = known[key]
        refined.append(replace(request, text=texts[0][1], later=tuple(texts[1:])))
    return refined


def invent_prompts(cfg: Mapping[str, Any]) -> list[str]:
    """Return `random_prompts` prompts of a language model's own.

    Raises:
        ValueError: There is none, or prompts are given, too.
    """
    count = cfg["random_prompts"]
    if not isinstance(count, int) or count < 0 or cfg["prompt"] is not None or cfg["prompt_path"] is not None:
        raise ValueError(f"random_prompts={count!r}: a whole number, without --prompt and --prompt-path.")
    refiner = Refiner(cfg["llm"])
    return [refiner.invent() for _ in range(count)]


class Refiner:
    """Ask a language model for prompts.

    After a failure that would come again, it asks no more and leaves prompts as they are.

    Args:
        settings: `llm` of `configs/_base_/inference.py`: `model`, `timeout_s`, `retries`.

    Raises:
        ValueError: A setting or the address of the endpoint is wrong.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.model, self.timeout_s, self.retries = (settings[k] for k in ("model", "timeout_s", "retries"))
        if not self.timeout_s > 0 or not isinstance(self.retries, int) or self.retries < 0:
            raise ValueError(
                f"llm timeout_s={self.timeout_s!r}, retries={self.retries!r}: use seconds above 0, and a "
                "whole number from 0."
            )
        given, self.key = os.environ.get("OPENAI_BASE_URL"), os.environ.get("OPENAI_API_KEY")
        self.url = (given or _OPENAI).rstrip("/") + "/chat/completions"
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"OPENAI_BASE_URL={given!r}: give an address that starts with https://.")
        self.off = not given and not self.key
        if self.off:
            get_logger().warning(
                "prompts stay as they are: a language model needs OPENAI_API_KEY in the environment, or "
                "OPENAI_BASE_URL for another server than OpenAI's"
            )
        self._opener = urllib.request.build_opener(_NoRedirect)

    def refine(self, prompt: str, reference: str | None = None) -> str:
        """Return a prompt in English with more detail, or as it was.

        Args:
            prompt: What the user wrote, in any language.
            reference: Image or video whose first frame the video starts with; it is sent, made small.
        """
        if reference is None:
            return self._ask(_REFINE.format(prompt)) or prompt
        parts = [
            {"type": "text", "text": _IMAGE.format(f"The user's wish: {prompt}")},
            {"type": "image_url", "image_url": {"url": _data_url(reference), "detail": "low"}},
        ]
        return self._ask(parts) or prompt

    def invent(self) -> str:
        """Return a prompt of the model's own.

        Raises:
            ValueError: There is none.
        """
        prompt = self._ask(_RANDOM)
        if prompt is None:
            raise ValueError("random_prompts: no prompt came from the language model; give --prompt instead.")
        return prompt

    def _ask(self, content: str | list[dict[str, Any]]) -> str | None:
        """Return the answer, or None after a line in the log."""
        if self.off:
            return None
        messages = [{"role": "system", "content": _RULES}, {"role": "user", "content": content}]
        body = json.dumps({"model": self.model, "messages": messages, "max_tokens": _MOST_TOKENS}).encode()
        for attempt in range(self.retries + 1):
            try:
                return _answer_in(self._post(body))
            except urllib.error.HTTPError as error:
                error.close()
                why, again = f"status {error.code} {error.reason}", error.code in _PASSES
            except (OSError, http.client.HTTPException) as error:  # no connection, or it broke
                why, again = str(getattr(error, "reason", None) or error or type(error).__name__), True
            except ValueError as error:  # an answer, but no prompt: another prompt may fare better
                get_logger().warning("%s: %s; the prompt stays as it was", self.url, error)
                return None
            if again and attempt < self.retries:
                time.sleep(min(2.0**attempt, self.timeout_s))
                continue
            break
        self.off = True
        get_logger().warning("%s: %s; prompts stay as they are from here on", self.url, why)
        return None

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "User-Agent": "opensora"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        deadline = time.monotonic() + self.timeout_s
        request = urllib.request.Request(self.url, body, headers, method="POST")
        with self._opener.open(request, timeout=self.timeout_s) as answer:
            parts, size = [], 0
            while part := answer.read1(1 << 16):
                parts.append(part)
                size += len(part)
                if size > _MOST_BYTES:
                    raise ValueError("the answer is too long")
                if time.monotonic() > deadline:  # a server that sends drop by drop
                    raise TimeoutError(f"no whole answer within {self.timeout_s:g} seconds")
            return b"".join(parts)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: it would take the key to another host."""

    def redirect_request(self, *args: Any, **options: Any) -> None:
        """Refuse."""
        return


def _answer_in(body: bytes) -> str:
    """Return the text of an answer as one paragraph.

    Raises:
        ValueError: There is none.
    """
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"the answer has another form ({type(error).__name__})") from None
    if not isinstance(text, str):
        raise ValueError("the answer holds no text")
    text = " ".join(text.encode(errors="ignore").decode().split()).strip("\"'\u201c\u201d ")
    if not text or len(text) > _MOST_LETTERS:
        raise ValueError(f"the answer has {len(text)} letters; expected 1 to {_MOST_LETTERS}")
    return text


def _data_url(path: str) -> str:
    """Return the first frame of a file as a small JPEG, as text."""
    frame = (read_image(path) if is_image(path) else read_clip(path, [0]))[0]
    picture = Image.fromarray(frame.numpy())
    picture.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
