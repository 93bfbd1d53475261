"""Output: from a decoded video to files, and what they are called."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from opensora.datasets.video_io import through_sheet, write_frames, write_image, write_video
from opensora.engine.prompts import Request
from opensora.engine.recipe import Recipes
from opensora.postprocess import apply_steps, build_steps
from opensora.utils.logging import get_logger

# What Windows refuses, what a path would mean, and what cannot be seen: control and formatting characters.
_UNUSUAL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff/\\:*?\"<>|]+|^[.\s-]+"
)
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9\u00b9\u00b2\u00b3])\s*", re.IGNORECASE)  # Windows
_LONGEST_NAME = 180  # bytes; file systems take 255, with the ending and the sheet's


VIDEO_FORMATS = ("mp4", "mkv", "webm", "png")


class Output:
    """Save what requests ask for, with the recipe of each file in it.

    Args:
        cfg: Keys of `configs/_base_/inference.py` and of the components.
        device: Kind of the device that the run uses.
    """

    def __init__(self, cfg: Mapping[str, Any], device: str) -> None:
        self.cfg, self.device = cfg, device
        self.steps = build_steps(cfg["postprocess"])
        self._recipes: Recipes | None = None

    def save(self, video: Iterable[Tensor], request: Request) -> Path:
        """Write a video and its contact sheet, or an image.

        Args:
            video: Its parts in time, which are written as they come. About [-1, 1]. Shape [3, n, H, W] each.
            request: What it was made from.
        """
        path = file_path(request, self.cfg)
        note = None
        if self.cfg["metadata"]:  # not before now: the text encoder has found its files
            self._recipes = self._recipes or Recipes(self.cfg, self.device)
            note = self._recipes.note(request)
        video, length, fps = apply_steps(self.steps, video, request.length, file_fps(self.cfg))
        if request.num_frames == 1:
            write_image(next(iter(video)), path, note)
        else:  # the sheet is written before the video has its name: a video that is there has one
            if self.cfg["contact_sheet"]:
                video = through_sheet(video, length, path.with_name(f"{path.stem}_sheet.png"))
            if self.cfg["video_format"] == "png":
                write_frames(video, path, note)
            else:
                write_video(video, path, fps, self.cfg["crf"], note)
        get_logger().info("saved %s", path)
        return path


def check_output(cfg: Mapping[str, Any]) -> None:
    """Check the keys that say how and where files are written.

    Raises:
        ValueError: One is wrong.
        TypeError: A post-processor's config does not fit its constructor.
        KeyError: There is no such post-processor.
        ImportError: It needs a package that is missing.
    """
    build_steps(cfg["postprocess"])
    if cfg["video_format"] not in VIDEO_FORMATS:
        raise ValueError(f"video_format={cfg['video_format']!r}: use one of {', '.join(VIDEO_FORMATS)}.")
    crf, name = cfg["crf"], cfg["sample_name"]
    if crf is not None and (not isinstance(crf, int | float) or not 0 <= crf <= 51):
        raise ValueError(f"crf={crf!r}: use a number from 0, the best, to 51, or None.")
    if name is not None and (not isinstance(name, str) or (name and _file_stem(name) != name)):
        raise ValueError(f"sample_name={name!r}: use a plain file name; --save-dir names the folder.")


def file_fps(cfg: Mapping[str, Any]) -> float:
    """Return the frames per second of the files."""
    return cfg["save_fps"] if cfg["save_fps"] is not None else cfg["fps"] / cfg["frame_interval"]


def file_path(request: Request, cfg: Mapping[str, Any]) -> Path:
    """Return a request's file: named by a number, or by its prompt.

    A prompt that makes no good file name is changed and gets its key, so different prompts have different
    files; so does one with references.
    """
    start = cfg["sample_name"]
    stem = f"{'sample' if start is None else start}_{request.index:04d}"
    if cfg["prompt_as_path"]:
        stem = _file_stem(request.prompt)
        if stem != request.prompt or request.guide.text:
            stem = f"{stem}-{request.file_key:014x}"
        stem = (start or "") + stem
    if cfg["num_sample"] != 1:
        stem = f"{stem}-{request.sample}"
    ending = ".png" if request.num_frames == 1 else f".{cfg['video_format']}"
    if request.num_frames > 1 and cfg["video_format"] == "png":
        ending = ""  # a folder
    return Path(cfg["save_dir"]) / (stem + ending)


def _file_stem(text: str) -> str:
    """Return a name that every file system takes and that stays in its folder."""
    stem = _UNUSUAL.sub("_", unicodedata.normalize("NFC", text))
    stem = stem.encode(errors="ignore")[:_LONGEST_NAME].decode(errors="ignore").strip()
    return f"_{stem}" if not stem or _RESERVED.fullmatch(stem.split(".")[0]) else stem
