"""Output: from a decoded video to files, and what they are called."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from opensora.datasets.video_io import through_sheet, write_image, write_video
from opensora.engine.prompts import Request
from opensora.utils.logging import get_logger

_UNUSUAL = re.compile(r"[\x00-\x1f\x7f/\\:*?\"<>|]+|^[.\s]+")
_LONGEST_NAME = 180  # bytes; file systems take 255, with the ending and the sheet's


class Output:
    """Save what requests ask for.

    Args:
        cfg: Keys of `configs/_base_/inference.py`.
    """

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        self.cfg = cfg

    def save(self, video: Iterable[Tensor], request: Request) -> Path:
        """Write a video and its contact sheet, or an image.

        Args:
            video: Its parts in time, which are written as they come. About [-1, 1]. Shape [3, n, H, W] each.
            request: What it was made from.
        """
        path = file_path(request, self.cfg)
        if request.num_frames == 1:
            write_image(next(iter(video)), path)
        else:  # the sheet is written before the video has its name: a video that is there has one
            video = through_sheet(video, request.length, path.with_name(f"{path.stem}_sheet.png"))
            write_video(video, path, file_fps(self.cfg))
        get_logger().info("saved %s", path)
        return path


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
        stem = _UNUSUAL.sub("_", request.prompt).encode()[:_LONGEST_NAME].decode(errors="ignore").strip()
        if stem != request.prompt or request.guide.text:
            stem = f"{stem}-{request.file_key:014x}"
        stem = (start or "") + stem
    if cfg["num_sample"] != 1:
        stem = f"{stem}-{request.sample}"
    return Path(cfg["save_dir"]) / (stem + (".png" if request.num_frames == 1 else ".mp4"))
