"""Requests: what to generate, one per prompt and sample."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opensora.datasets.video_io import IMAGE_FPS
from opensora.engine.guides import Guide, make_guide
from opensora.engine.prompt_files import merge_sections, read_prompts, split_sections, text_of_loop
from opensora.utils.caption_cleaning import clean_caption
from opensora.utils.logging import get_logger

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
_NUMBER = re.compile(r"-?\d{1,9}(\.\d{1,9})?")


@dataclass(frozen=True)
class Request:
    """One video or image to make.

    Args:
        prompt: What the user wrote; it names the random numbers and the file.
        text: What the text encoder reads: the prompt with scores, cleaned if the config says so. Of a prompt
            per loop it is the first text.
        negative: What to move away from; None uses the null caption.
        index: Number of the prompt, for file names.
        sample: Number among the samples of the prompt.
        num_frames: Frames that the model makes at once; 1 is an image.
        height: Pixels.
        width: Pixels.
        fps: Frames per second that the model is told.
        later: Texts of later clips of a long video, with the numbers of the clips that they start with.
        guide: Which frames are given.
        total: Frames of the file where clips continue each other; 0 is those of one clip.
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
    later: tuple[tuple[int, str], ...] = ()
    guide: Guide = Guide()
    total: int = 0

    @property
    def length(self) -> int:
        """Frames of the file."""
        return self.total or self.num_frames

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text that an encoder reads for it."""
        parts = (self.text, *(text for _, text in self.later), self.negative)
        return tuple(text for text in parts if text is not None)

    def text_in(self, loop: int) -> str:
        """Return the text of a clip of a long video."""
        return text_of_loop(((0, self.text), *self.later), loop)

    @property
    def key(self) -> int:
        """Name of the prompt's random numbers: a function of its text, not of its place in a list."""
        return _digest(self.prompt)

    @property
    def file_key(self) -> int:
        """Name of the prompt with what is said about its references."""
        return _digest(self.prompt + self.guide.text)


def make_requests(cfg: Mapping[str, Any], size: tuple[int, int], num_frames: int) -> list[Request]:
    """Build the requests of a config, prompt by prompt, sample by sample.

    Args:
        cfg: Keys of `configs/_base_/inference.py`.
        size: Height and width in pixels.
        num_frames: Frames, legal for the autoencoder.

    Raises:
        ValueError: Prompts are missing or empty, or negative ones or references do not fit them.
        FileNotFoundError: The prompt file does not exist.
    """
    start = cfg["start_index"]
    prompts = read_prompts(
        cfg["prompt"], cfg["prompt_path"], start, cfg["end_index"], cfg["csv_reference_column_name"]
    )
    negatives = [
        None if text is None else _final_text(text, text, cfg["clean_prompts"])
        for text in _negatives(cfg["neg_prompt"], len(prompts))
    ]
    references, strategies = (
        _each(name, cfg[name], len(prompts)) for name in ("reference_path", "mask_strategy")
    )
    requests = []
    for i, (prompt, reference, strategy) in enumerate(prompts):
        texts = [
            (loop, _final_text(append_scores(text, cfg), prompt, cfg["clean_prompts"]))
            for loop, text in split_sections(prompt)
        ]
        if cfg["verbose"] > 1:
            get_logger().info("%d: %s", start + i, merge_sections(texts) if len(texts) > 1 else texts[0][1])
        guide = make_guide(
            references[i] if reference is None else reference,
            strategies[i] if strategy is None else strategy,
            cfg["cond_type"],
        )
        requests += [
            Request(
                prompt=prompt,
                text=texts[0][1],
                later=tuple(texts[1:]),
                negative=negatives[i],
                index=start + i,
                sample=k,
                num_frames=num_frames,
                height=size[0],
                width=size[1],
                fps=IMAGE_FPS if num_frames == 1 else cfg["fps"],
                guide=guide,
            )
            for k in range(cfg["num_sample"])
        ]
    return requests


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


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def _word(score: float | str | None, table: Sequence[tuple[float, str]]) -> str | None:
    if score is None or (isinstance(score, str) and not _NUMBER.fullmatch(score)):
        return score
    score = float(score)
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


def _each(name: str, given: Sequence[str | None] | str | None, count: int) -> list[str | None]:
    """Return one text per prompt; a single one is for all. The word "none" is None."""
    listed = [given] if given is None or isinstance(given, str) else list(given)
    listed = listed * count if len(listed) == 1 else listed
    if len(listed) != count:
        raise ValueError(f"{name} has {len(listed)} texts for {count} prompts; give one, or one each.")
    return [None if text is None or text.strip().lower() == "none" else text for text in listed]


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
