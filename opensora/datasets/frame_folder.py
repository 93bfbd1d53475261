"""Clips as folders of numbered frames, such as time-lapse collections come in."""

import os
import re
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def is_frame_folder(path: str) -> bool:
    """Say whether a path names a folder of frames: it ends with a slash."""
    return path.endswith("/")


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers in names by value: "frame 9" before "frame 10"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


@lru_cache(maxsize=64)
def frame_files(folder: str) -> tuple[str, ...]:
    """Return the frames of a folder in their order.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: No image lies in it.
    """
    names = [n for n in os.listdir(folder) if n.lower().endswith(IMAGE_EXTENSIONS) and n[0] != "."]
    if not names:
        raise ValueError("no image lies in this folder")
    return tuple(os.path.join(folder, name) for name in sorted(names, key=natural))


def read_frames(
    folder: str,
    indices: Sequence[int],
    scale: Callable[[int, int], tuple[int, int]] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """Read frames of a folder by their numbers.

    Args:
        folder: Path of the folder.
        indices: Frame numbers from 0. Length T.
        scale: Called with (height, width); gives those that frames are scaled to, with a low-pass filter.
        check: Called before each frame; raises an error when the time is over.

    Returns:
        uint8 RGB. Shape [T, H, W, 3].

    Raises:
        OSError: A frame cannot be read.
        ValueError: There are fewer frames, or their sizes differ.
    """
    files = frame_files(folder)
    if max(indices) >= len(files):
        raise ValueError(f"frame {max(indices)} was asked, the folder has {len(files)} images")
    frames = {}
    for number in set(indices):
        check()
        with Image.open(files[number]) as image:
            picture = ImageOps.exif_transpose(image).convert("RGB")
        if scale is not None:
            height, width = scale(picture.height, picture.width)
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        frames[number] = np.array(picture)
    if len({frame.shape for frame in frames.values()}) > 1:
        raise ValueError(f"its frames differ in size, {sorted({f.shape[:2] for f in frames.values()})}")
    return torch.from_numpy(np.stack([frames[number] for number in indices]))  # [T, H, W, 3]
