"""Requests: what to generate, one per prompt and sample."""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGE_FPS = 120  # what published models were told for images


@dataclass(frozen=True)
class Request:
    """One video or image to make.

    Args:
        prompt: Its text.
        negative: What to move away from; None uses the null caption.
        index: Number of the prompt, for file names.
        sample: Number among the samples of the prompt.
        num_frames: Frames; 1 is an image.
        height: Pixels.
        width: Pixels.
        fps: Frames per second that the model is told.
    """

    prompt: str
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
    prompts: Sequence[str] | str | None, path: str | None, start: int, end: int | None
) -> list[str]:
    """Collect prompts from the command line or a file.

    Args:
        prompts: One prompt, or several.
        path: A .txt file with a prompt per line, or a .csv file with a column `text`.
        start: First prompt of the file.
        end: Prompt of the file to stop before; None takes all.

    Raises:
        ValueError: Both or neither are given, or there is no prompt in them.
        FileNotFoundError: The file does not exist.
    """
    if (prompts is None) == (path is None):
        raise ValueError(
            f"prompt={prompts!r}, prompt_path={path!r}: give one of them, as --prompt or --prompt-path."
        )
    if prompts is not None:
        found = [prompts] if isinstance(prompts, str) else list(prompts)
    else:
        found = _read_file(Path(path))[start:end]
    found = [prompt.strip() for prompt in found]
    if not found or not all(found):
        raise ValueError(
            f"prompt={prompts!r}, prompt_path={path!r}: a prompt is empty, or there is none; write one."
        )
    return found


def make_requests(cfg: Mapping[str, Any], size: tuple[int, int], num_frames: int) -> list[Request]:
    """Build the requests of a config, prompt by prompt, sample by sample.

    Args:
        cfg: Keys of `configs/_base_/inference.py`.
        size: Height and width in pixels.
        num_frames: Frames, legal for the autoencoder.
    """
    start = cfg["start_index"] if cfg["prompt_path"] is not None else 0
    prompts = read_prompts(cfg["prompt"], cfg["prompt_path"], start, cfg["end_index"])
    negatives = cfg["neg_prompt"]
    if isinstance(negatives, str) or (negatives is not None and len(negatives) == 1):
        negatives = [negatives if isinstance(negatives, str) else negatives[0]] * len(prompts)
    if negatives is not None and len(negatives) != len(prompts):
        raise ValueError(
            f"{len(negatives)} negative prompts for {len(prompts)} prompts; give one, or one each."
        )
    return [
        Request(
            prompt=prompt,
            negative=None if negatives is None else negatives[i],
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


def _read_file(path: Path) -> list[str]:
    if not path.exists():
        raise FileNotFoundError(f"prompt_path={str(path)!r}: no such file. Give a .txt or .csv file.")
    if path.suffix == ".txt":
        return [line for line in path.read_text().splitlines() if line.strip()]
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        if rows and "text" not in rows[0]:
            raise ValueError(
                f"prompt_path={str(path)!r}: it has columns {list(rows[0])}; a column `text` is needed."
            )
        return [row["text"] for row in rows]
    raise ValueError(f"prompt_path={str(path)!r}: give a .txt file with a prompt per line, or a .csv file.")
