"""Requests: what to generate, one per prompt and sample."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opensora.datasets.video_io import IMAGE_FPS
from opensora.engine.guides import Guide, make_guide
from opensora.engine.prompt_files import merge_sections, read_prompts, split_sections, text_of_loop
from opensora.utils.caption_cleaning import clean_caption
from opensora.utils.logging import get_logger
from opensora.utils.score_words import Scores, append_scores


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
        texts = texts_of(prompt, cfg)
        if texts[-1][0] >= cfg["loop"]:
            get_logger().warning(
                "%r: its text from clip %d on is never read; loop=%d", prompt, texts[-1][0], cfg["loop"]
            )
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


def texts_of(
    prompt: str, cfg: Mapping[str, Any], rewrite: Callable[[str, int], str] | None = None
) -> list[tuple[int, str]]:
    """Return what the text encoder reads of a prompt: its texts, with scores, cleaned if the config says so.

    Args:
        prompt: One text, or texts per clip of a long video.
        cfg: Keys of `configs/_base_/inference.py`.
        rewrite: Makes another text of each and the number of its first clip.

    Returns:
        For each text the clip that it starts with, and the text.

    Raises:
        ValueError: A score is wrong, cleaning leaves nothing, or texts per clip are out of order.
    """
    scores = Scores(cfg["aes"], cfg["flow"], cfg["camera_motion"])
    clean = cfg["clean_prompts"] and (rewrite is not None or not cfg["llm_refine"])  # else it comes later
    found, sections = [], split_sections(prompt)
    loops = [loop for loop, _ in sections]
    if loops != sorted(set(loops)) or not all(section for _, section in sections):
        raise ValueError(
            f"prompt {prompt!r}: each number is larger than the one before, with a text behind it."
        )
    for loop, section in sections:
        text = section if rewrite is None else rewrite(section, loop)
        text = append_scores(text, scores, cfg["score_format"])
        found.append((loop, _final_text(text, prompt, clean)))
    return found


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


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
