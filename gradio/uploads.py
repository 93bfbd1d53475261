"""Uploads: files of visitors, checked before anything reads all of them, and kept under names of our own."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from opensora.datasets.reading import ClipError, ReadOptions
from opensora.datasets.video_io import is_image, is_video, probe, read_image

_PIXELS = 50e6  # of an image
_VIDEO_PIXELS = 3840 * 2160
_READ = ReadOptions(timeout_s=10.0, retries=0)


class Uploads:
    """The folder of uploaded files.

    Args:
        folder: Where they are kept.
        limits: `megabytes` and `seconds` that a file may have.
    """

    def __init__(self, folder: Path, limits: Mapping[str, float]) -> None:
        self.folder, self.limits = folder, limits
        folder.mkdir(parents=True, exist_ok=True)

    def accept(self, path: str, name: str | None = None) -> str:
        """Check a file and keep it, named by its content. Returns its path.

        Args:
            path: Where the server put it.
            name: What the visitor called it.

        Raises:
            ValueError: It is too large, too long, or no image or video that can be read.
        """
        file = Path(path)
        if not file.resolve().is_relative_to(self.folder.parent.resolve()) or not file.is_file():
            raise ValueError("This file did not come through this page; choose it again.")
        shown = f"{(name or file.name)[-60:]!r}"
        size = file.stat().st_size
        if not is_image(path) and not is_video(path):
            raise ValueError(f"{shown} is neither an image nor a video; use .png, .jpg, .webp or .mp4.")
        if size > self.limits["megabytes"] * 1e6:
            raise ValueError(f"{shown} has {size / 1e6:.0f} MB; at most {self.limits['megabytes']:g} MB fit.")
        try:
            info = probe(path, _READ)
            if info.height * info.width > (_PIXELS if is_image(path) else _VIDEO_PIXELS):
                raise ValueError(f"{shown} has {info.width} x {info.height} pixels; make it smaller.")
            if is_image(path):
                read_image(path, _READ)  # all of it: half a file shows only here
        except ClipError:
            raise ValueError(
                f"{shown} cannot be read: the file is damaged or not what its name says."
            ) from None
        if is_video(path) and info.num_frames / info.fps > self.limits["seconds"]:
            raise ValueError(
                f"{shown} lasts {info.num_frames / info.fps:.0f} s; at most {self.limits['seconds']:g} s fit."
            )
        with open(file, "rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        target = self.folder / f"{digest}{file.suffix.lower()}"
        if not target.exists():
            shutil.copyfile(file, target)
        return str(target)
