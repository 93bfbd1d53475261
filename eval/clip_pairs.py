"""Pairs of clips or images in two folders, read frame by frame under the same options."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from opensora.datasets.video_io import is_image, is_video, probe, read_clip, read_image


@dataclass(frozen=True)
class PairOptions:
    """Which frames are compared, and at which size.

    Args:
        num_frames: The first so many frames, after `sample_rate`; None is all.
        sample_rate: Take every so manieth frame.
        resolution: Scale the shorter side to so many pixels; None keeps the size.
        crop_size: Side of the square cut from the centre; None cuts nothing.
        subset_size: The first so many pairs by name; None is all.

    Raises:
        ValueError: A number is below 1.
    """

    num_frames: int | None = None
    sample_rate: int = 1
    resolution: int | None = None
    crop_size: int | None = None
    subset_size: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: use a whole number from 1.")


@dataclass(frozen=True)
class ClipPair:
    """A reference and what is compared with it.

    Args:
        name: File name without its ending.
        reference: File.
        other: File.
    """

    name: str
    reference: Path
    other: Path

    def frames(self, options: PairOptions) -> list[int]:
        """Return the numbers of the frames that are compared.

        Raises:
            ValueError: The clips are of different lengths and nothing says which frames to take, or one is
                too short.
        """
        lengths = [probe(str(path)).num_frames for path in (self.reference, self.other)]
        numbers = list(range(0, min(lengths), options.sample_rate))
        if options.num_frames is None:
            if lengths[0] != lengths[1]:
                raise ValueError(
                    f"{self.name}: {lengths[0]} frames in {self.reference}, {lengths[1]} in {self.other}; "
                    f"give --num-frames, at most {len(numbers)}, to compare the first ones."
                )
            return numbers
        if len(numbers) < options.num_frames:
            raise ValueError(
                f"{self.name}: {len(numbers)} frames can be compared, --num-frames asks for "
                f"{options.num_frames}; give fewer, or take the clip out."
            )
        return numbers[: options.num_frames]

    def pieces(self, options: PairOptions, size: int, overlap: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pieces of both clips, so that long ones need little memory.

        Args:
            options: Which frames, at which size.
            size: Frames of a piece.
            overlap: Frames that a piece shares with the one before it.

        Yields:
            Float in [0, 1], two of shape [T, 3, H, W].

        Raises:
            ValueError: Lengths or sizes do not fit together.
        """
        numbers, start = self.frames(options), 0
        while start < len(numbers) - (overlap if start else 0):
            part = numbers[start : start + size]
            a, b = (_read(path, part, options) for path in (self.reference, self.other))
            if a.shape != b.shape:
                raise ValueError(
                    f"{self.name}: {a.shape[2]} x {a.shape[3]} pixels in {self.reference}, {b.shape[2]} x "
                    f"{b.shape[3]} in {self.other}; give --resolution and --crop-size that bring both to "
                    "one size."
                )
            yield a, b
            start += size - overlap


def find_pairs(reference: str | Path, other: str | Path, subset_size: int | None = None) -> list[ClipPair]:
    """Pair two files, or the files of two folders that have the same name.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: A file has no partner, or there are none.
    """
    for path in (Path(reference), Path(other)):
        if not path.exists():
            raise FileNotFoundError(f"{path}: does not exist; give a clip, an image, or a folder of them.")
    if Path(reference).is_file() and Path(other).is_file():
        return [ClipPair(Path(reference).stem, Path(reference), Path(other))]
    ours, theirs = _by_stem(Path(reference)), _by_stem(Path(other))
    alone = sorted(ours.keys() ^ theirs.keys())
    if alone or not ours:
        named = f", such as {', '.join(alone[:3])}" if alone else ""
        raise ValueError(
            f"{reference} has {len(ours)} clips and {other} has {len(theirs)}; {len(alone)} have no "
            f"partner of the same name{named}. Every clip needs one."
        )
    names = sorted(ours)[:subset_size]
    return [ClipPair(name, ours[name], theirs[name]) for name in names]


def _by_stem(folder: Path) -> dict[str, Path]:
    files = [p for p in sorted(folder.iterdir()) if is_image(str(p)) or is_video(str(p))]
    found: dict[str, Path] = {}
    for path in files:
        if path.stem in found:
            raise ValueError(f"{folder}: {found[path.stem].name} and {path.name} have one name; rename one.")
        found[path.stem] = path
    return found


def _read(path: Path, numbers: list[int], options: PairOptions) -> Tensor:
    frames = read_image(str(path)) if is_image(str(path)) else read_clip(str(path), numbers)
    x = frames.permute(0, 3, 1, 2).float() / 255
    if options.resolution is not None:
        scale = options.resolution / min(x.shape[2:])
        size = [round(side * scale) for side in x.shape[2:]]
        x = F.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    if options.crop_size is not None:
        top, left = ((side - options.crop_size) // 2 for side in x.shape[2:])
        if top < 0 or left < 0:
            raise ValueError(
                f"{path}: {x.shape[2]} x {x.shape[3]} pixels, --crop-size {options.crop_size} is larger; "
                "give a smaller one, or --resolution."
            )
        x = x[:, :, top : top + options.crop_size, left : left + options.crop_size]
    return torch.clamp(x, 0, 1)
