"""Requests: what to generate, one per prompt and sample."""

import csv
import hashlib
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opensora.datasets.video_io import IMAGE_FPS
from opensora.utils.caption_cleaning import clean_caption

# Below each bound stands a word that 1.3 learned; the last word is for everything above.
_AESTHETIC = (
    *((4.0, "terrible"), (4.5, "very poor"), (5.0, "poor"), (5.5, "fair"), (6.0, "good")),
    *((6.5, "very good"), (float("inf"), "excellent")),
)
_MOTION = (
    *((0.5, "very low"), (2.0, "low"), (5.0, "fair"), (10.0, "high"), (20.0, "very high")),
    (float("inf"), "extremely high"),
)
SCORE_FORMATS = ("words", "numbers")


@dataclass(frozen=True)
class Request:
    """One video or image to make.

    Args:
        prompt: What the user wrote; it names the random numbers and the file.
        text: What the text encoder reads: the prompt with scores, cleaned if the config says so.
        negative: What to move away from; None uses the null caption.
        index: Number of the prompt, for file names.
        sample: Number among the samples of the prompt.
        num_frames: Frames; 1 is an image.
        height: Pixels.
        width: Pixels.
        fps: Frames per second that the model is told.
    """

    prompt: str
    text: str
    negative: str | None
    index: int
    sample: int
    num_frames: int
    height: int
    width: int
    fps: float

    @property
    def key(self) -> int:
        """Name of the prompt's random numbers: a function of its text, not of its place in a list."""
        return int.from_bytes(hashlib.blake2b(self.prompt.encode(), digest_size=7).digest(), "big")


def read_prompts(
    prompts: Sequence[str] | str | None, path: str | None, start: int = 0, end: int | None = None
) -> list[str]:
    """Collect prompts from the command line or a file.

    Args:
        prompts: One prompt, or several.
        path: A .txt file with a prompt per line, or a .csv file with a column `text`. Empty lines do not
            count.
        start: First prompt of the file, from 0.
        end: Prompt of the file to stop before; None takes all.

    Raises:
        ValueError: Both or neither are given, or there is no prompt in them.
        FileNotFoundError: The file does not exist.
    """
    if prompts is None and path is None:
        raise ValueError("there is no prompt: give --prompt 'a text', or --prompt-path FILE (.txt or .csv).")
    if prompts is not None and path is not None:
        raise ValueError(f"prompt={prompts!r} and prompt_path={path!r}: give one of them, not both.")
    if path is None:
        found = [prompts] if isinstance(prompts, str) else list(prompts)
    else:
        if start < 0 or (end is not None and end <= start):
            raise ValueError(f"start_index={start}, end_index={end}: use 0 <= start_index < end_index.")
        if is_url(path):
            raise ValueError(f"prompt_path={path!r}: nothing is downloaded; fetch it, and name the file.")
        rows = _read_file(Path(path))
        found = rows[start:end]
        if not found:
            raise ValueError(f"prompt_path={path!r}: it has {len(rows)} prompts; start_index={start}.")
    empty = [i for i, prompt in enumerate(found) if not (prompt or "").strip()]
    if empty or not found:
        which = f"number {start + empty[0] if path else empty[0]} is empty" if empty else "the list is empty"
        raise ValueError(f"prompt={prompts!r}, prompt_path={path!r}: {which}; write a prompt.")
    return [prompt.strip() for prompt in found]


def is_url(text: str) -> bool:
    """Say whether a text is the address of something on the web, and so no path."""
    try:
        parts = urllib.parse.urlsplit(text)
    except ValueError:  # brackets that hold no address
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc) and len(text.split()) == 1


def make_requests(cfg: Mapping[str, Any], size: tuple[int, int], num_frames: int) -> list[Request]:
    """Build the requests of a config, prompt by prompt, sample by sample.

    Args:
        cfg: Keys of `configs/_base_/inference.py`.
        size: Height and width in pixels.
        num_frames: Frames, legal for the autoencoder.

    Raises:
        ValueError: Prompts are missing or empty, or negative ones do not fit them.
        FileNotFoundError: The prompt file does not exist.
    """
    start = cfg["start_index"]
    prompts = read_prompts(cfg["prompt"], cfg["prompt_path"], start, cfg["end_index"])
    texts = [_final_text(append_scores(prompt, cfg), prompt, cfg["clean_prompts"]) for prompt in prompts]
    negatives = [
        None if text is None else _final_text(text, text, cfg["clean_prompts"])
        for text in _negatives(cfg["neg_prompt"], len(prompts))
    ]
    return [
        Request(
            prompt=prompt,
            text=texts[i],
            negative=negatives[i],
            index=start + i,
            sample=k,
            num_frames=num_frames,
            height=size[0],
            width=size[1],
            fps=IMAGE_FPS if num_frames == 1 else cfg["fps"],
        )
        for i, prompt in enumerate(prompts)
        for k in range(cfg["num_sample"])
    ]


def append_scores(prompt: str, cfg: Mapping[str, Any]) -> str:
    """Append scores to a prompt in the words that a model learned. A score that is there already stays.

    Args:
        prompt: The text.
        cfg: `aes` and `flow` (a number; with words also a word), `camera_motion` (text), each or None, and
            `score_format`: "words" (1.3) or "numbers" (1.2).

    Raises:
        ValueError: The format is unknown, or a score is no number where one is needed.

    Source: Open-Sora 1.2 and 1.3 reports, conditioning on scores.
    """
    if cfg["score_format"] not in SCORE_FORMATS:
        raise ValueError(f"score_format={cfg['score_format']!r}: use one of {', '.join(SCORE_FORMATS)}.")
    camera = ("camera motion:", cfg["camera_motion"], " camera motion: {}.")
    if cfg["score_format"] == "words":
        parts = (
            ("aesthetic score is", _word(cfg["aes"], _AESTHETIC), " The aesthetic score is {}."),
            ("motion strength is", _word(cfg["flow"], _MOTION), " The motion strength is {}."),
            camera,
        )
    else:
        parts = (
            ("aesthetic score:", _decimal("aes", cfg["aes"]), " aesthetic score: {}."),
            ("motion score:", _decimal("flow", cfg["flow"]), " motion score: {}."),
            camera,
        )
    for marker, value, suffix in parts:
        if value is not None and marker not in prompt:
            prompt += suffix.format(value)
    return prompt


def _word(score: float | str | None, table: Sequence[tuple[float, str]]) -> str | None:
    if score is None or isinstance(score, str):
        return score
    return next(word for bound, word in table if score < bound or bound == float("inf"))


def _decimal(name: str, score: float | str | None) -> str | None:
    if isinstance(score, str):
        raise ValueError(f"{name}={score!r}: score_format='numbers' needs a number, such as 6.5.")
    return None if score is None else f"{score:.1f}"


def _final_text(text: str, prompt: str, clean: bool) -> str:
    cleaned = clean_caption(text) if clean else text
    if clean and not cleaned:
        raise ValueError(
            f"prompt {prompt!r}: cleaning leaves nothing of it; reword it, or clean_prompts=False."
        )
    return cleaned


def _negatives(given: Sequence[str | None] | str | None, count: int) -> list[str | None]:
    """Return one negative prompt per prompt; a single one is for all."""
    listed = [given] if given is None or isinstance(given, str) else list(given)
    if len(listed) == 1:
        listed *= count
    if len(listed) != count:
        raise ValueError(f"{len(listed)} negative prompts for {count} prompts; give one, or one each.")
    if None in listed and any(text is not None for text in listed):
        raise ValueError(f"neg_prompt={given!r}: None stands beside texts; give a text for each, or none.")
    return listed


def _read_file(path: Path) -> list[str | None]:
    if not path.is_file():
        raise FileNotFoundError(f"prompt_path={str(path)!r}: no such file. Give a .txt or .csv file.")
    if path.suffix.lower() == ".txt":
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if path.suffix.lower() == ".csv":
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns, rows = list(reader.fieldnames or ()), list(reader)
        if "text" not in columns:
            raise ValueError(
                f"prompt_path={str(path)!r}: it has columns {columns}; a column `text` is needed."
            )
        return [row["text"] for row in rows]
    raise ValueError(f"prompt_path={str(path)!r}: give a .txt file with a prompt per line, or a .csv file.")
