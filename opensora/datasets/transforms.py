"""From decoded frames to a video of the asked length and size.

Videos are resized bilinearly without a low-pass filter, images bicubically with one. Released weights were
trained so. Offsets of crops are rounded as there too; the two kinds differ by a pixel where a difference is
odd.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

_MIDDLE = (0.5, 0.5, 0.5, 0.5)


class Cut(NamedTuple):
    """What a transform makes of frames: scale them, and cut out a window.

    Args:
        scaled: (height, width) that whole frames are scaled to.
        top: First row of the window in the scaled frames.
        left: First column.
        height: Rows of the window.
        width: Columns of the window.
    """

    scaled: tuple[int, int]
    top: int
    left: int
    height: int
    width: int


def normalize(frames: Tensor) -> Tensor:
    """Map bytes to [-1, 1].

    Args:
        frames: uint8 or float in [0, 255]. Any shape.

    Returns:
        float32 of the same shape.
    """
    return (frames.float() / 255.0 - 0.5) / 0.5


def plan_cut(
    name: str,
    size: tuple[int, int],
    height: int,
    width: int,
    image: bool = False,
    u: Sequence[float] = _MIDDLE,
) -> Cut:
    """Say what a transform does to frames of a size. All frames of a clip are cut alike.

    Args:
        name: "resize_crop" scales until the asked size is covered, and takes the centre. "center" makes
            squares: it scales the short side, and takes the centre. "random_crop" takes a window of the asked
            size anywhere, and scales only frames that are too small. "rand_size_crop" takes one anywhere
            whose sides are random multiples of 8 between `height` and `width`, at most those of the frames.
        size: (height, width) of the frames.
        height: Asked height in pixels.
        width: Asked width in pixels.
        image: Whether they come from an image file.
        u: Uniform in [0, 1): row and column of the window, then its height and width.

    Raises:
        ValueError: There is no such transform, or it does not make this size.
    """
    if name not in TRANSFORMS:
        raise ValueError(f"transform={name!r}: use one of {', '.join(TRANSFORMS)}.")
    if height < 1 or width < 1:
        raise ValueError(f"height={height}, width={width}: sizes are positive numbers of pixels.")
    return TRANSFORMS[name](size, height, width, image, u)


def apply_cut(frames: Tensor, cut: Cut, image: bool = False, halve: bool = False) -> Tensor:
    """Scale frames and cut out the window.

    Args:
        frames: uint8, shape [T, H, W, C].
        cut: What to do.
        image: Scale bicubically with a low-pass filter instead of bilinearly.
        halve: Halve images that are more than twice too large first, as "center" does.

    Returns:
        Float in [-1, 1]. Shape [C, T, height, width].
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4:
        raise ValueError(
            f"frames are {frames.dtype} of shape {tuple(frames.shape)}; expected uint8 [T, H, W, C]."
        )
    if image:
        scale = _halve_and_scale if halve else _scale_image
        pictures = torch.stack([scale(frame, cut.scaled) for frame in frames])
        pictures = pictures[:, cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
    else:
        pictures = scale_window(frames, cut)
    return normalize(rearrange(pictures, "T H W C -> C T H W").contiguous())


def transform(
    name: str,
    frames: Tensor,
    height: int,
    width: int,
    image: bool = False,
    u: Sequence[float] = _MIDDLE,
) -> Tensor:
    """Scale and crop frames; arguments as for `plan_cut` and `apply_cut`.

    Returns:
        Float in [-1, 1]. Shape [C, T, height, width].
    """
    cut = plan_cut(name, tuple(frames.shape[1:3]), height, width, image, u)
    return apply_cut(frames, cut, image, halve=name == "center")


def resize_crop(frames: Tensor, height: int, width: int, image: bool = False) -> Tensor:
    """Scale frames until they cover a size, and cut out its centre; see `transform`."""
    return transform("resize_crop", frames, height, width, image)


def temporal_indices(total: int, num_frames: int, frame_interval: int, u: float) -> list[int]:
    """Choose the frames of a clip: `num_frames` of them, `frame_interval` apart, from a random start.

    A clip that is too short for the interval, but has enough frames, is covered from end to end.

    Args:
        total: Frames of the file.
        num_frames: Frames wanted, at least 1.
        frame_interval: Step from one to the next, at least 1.
        u: Uniform in [0, 1). 0 takes the first start, and every start is equally likely.

    Returns:
        Increasing frame numbers. Length `num_frames`.

    Raises:
        ValueError: There are fewer frames than wanted.
    """
    if not 1 <= num_frames <= total or frame_interval < 1:
        raise ValueError(
            f"{num_frames} frames with interval {frame_interval} of a clip of {total}; "
            f"ask for at most {total} frames, and an interval of at least 1."
        )
    starts = total - (num_frames - 1) * frame_interval
    if starts < 1:
        return [int(x) for x in np.linspace(0, total - 1, num_frames)]
    start = min(int(u * starts), starts - 1)
    return [start + i * frame_interval for i in range(num_frames)]


def scale_window(frames: Tensor, cut: Cut) -> Tensor:
    """Scale frames bilinearly without a low-pass filter, and compute the pixels of a window only.

    Equal to scaling whole frames and cutting, up to rounding, in an eighth of the time.

    Args:
        frames: Shape [T, H, W, C].
        cut: Scaled size and window.

    Returns:
        float32, shape [T, height, width, C].
    """
    rows, columns, channels = frames.shape[1:]
    above, below, down = _neighbours(rows, cut.scaled[0], cut.top, cut.height)
    before, after, right = _neighbours(columns, cut.scaled[1], cut.left, cut.width)
    places = np.concatenate([before, after])[:, None] * channels + np.arange(channels)
    right, down = right.repeat_interleave(channels), down[:, None]
    windows = torch.empty(len(frames), cut.height, cut.width, channels)
    for frame, window in zip(frames.numpy(), windows, strict=True):
        lines = frame.reshape(rows, -1)[np.concatenate([above, below])]
        corners = torch.from_numpy(np.take(lines, places.reshape(-1), axis=1)).float()
        sides = torch.lerp(*corners.chunk(2, dim=1), right)
        window.copy_(torch.lerp(*sides.chunk(2), down).view(window.shape))
    return windows


def central(x: Tensor, height: int, width: int) -> Tensor:
    """Cut out the centre. Shape [T, C, H, W] to [T, C, height, width].

    Raises:
        ValueError: The frames are smaller than that.
    """
    if x.shape[-2] < height or x.shape[-1] < width:
        raise ValueError(
            f"frames of {x.shape[-2]} x {x.shape[-1]} have no centre of {height} x {width}; scale them first."
        )
    top, left = round((x.shape[-2] - height) / 2), round((x.shape[-1] - width) / 2)
    return x[..., top : top + height, left : left + width]


def central_square(x: Tensor, height: int, width: int) -> Tensor:
    """Cut out the largest central square, and scale it bilinearly. [T, C, H, W] to [T, C, H', W']."""
    side = min(x.shape[-2:])
    return _bilinear(central(x, side, side), (height, width))


def flip(x: Tensor) -> Tensor:
    """Mirror left and right. Any shape that ends with the width."""
    return x.flip(-1)


def downsample_space(video: Tensor, ratio: float) -> Tensor:
    """Blur a video: scale every frame down by `ratio` and up again. Shape [B, C, T, H, W] is kept."""
    size = video.shape[-2:]
    frames = rearrange(video, "B C T H W -> (B T) C H W")
    frames = _bilinear(frames, (max(1, int(size[0] / ratio)), max(1, int(size[1] / ratio))))
    return rearrange(_bilinear(frames, tuple(size)), "(B T) C H W -> B C T H W", B=len(video))


def downsample_time(video: Tensor, ratio: float) -> Tensor:
    """Blur a video's motion: scale time down by `ratio` and up again. Shape [B, C, T, H, W] is kept."""
    size = tuple(video.shape[-3:])
    small = interpolate(
        video, size=(max(1, int(size[0] / ratio)), *size[1:]), mode="trilinear", align_corners=False
    )
    return interpolate(small, size=size, mode="trilinear", align_corners=False)


def _neighbours(size: int, scaled: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Return the two sources of each pixel of a part of a scaled axis, and the weight of the second."""
    step = torch.tensor(size / scaled, dtype=torch.float32)
    place = (step * (torch.arange(start, start + count).float() + 0.5) - 0.5).clamp(min=0)
    first = place.floor().long().clamp(max=size - 1)
    return first.numpy(), (first + 1).clamp(max=size - 1).numpy(), place - first


def _scale_image(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale a picture bicubically. uint8 [H, W, 3] to [H', W', 3]."""
    picture = Image.fromarray(frame.numpy()).resize(size[::-1], Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture))


def _halve_and_scale(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """Halve a picture while it is twice too large, then scale it bicubically. uint8 [H, W, 3].

    Source: Dhariwal and Nichol 2021, guided diffusion, preprocessing of ImageNet.
    """
    picture = Image.fromarray(frame.numpy())
    while min(picture.size) >= 2 * min(size):
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    return _scale_image(torch.from_numpy(np.array(picture)), size)


def _resize_crop(size: tuple[int, int], height: int, width: int, image: bool, u: Sequence[float]) -> Cut:
    scaled = _covering(*size, height, width)
    over = (scaled[0] - height, scaled[1] - width)
    top, left = (round(n / 2) for n in over) if image else (n // 2 for n in over)
    return Cut(scaled, top, left, height, width)


def _center(size: tuple[int, int], height: int, width: int, image: bool, u: Sequence[float]) -> Cut:
    if height != width:
        raise ValueError(
            f"transform='center' makes squares, got {height} x {width}; use transform='resize_crop'."
        )
    halved = size
    while image and min(halved) >= 2 * height:
        halved = (halved[0] // 2, halved[1] // 2)
    scaled = tuple(round(side * (height / min(halved))) for side in halved)
    over = (scaled[0] - height, scaled[1] - width)
    top, left = (n // 2 for n in over) if image else (round(n / 2) for n in over)
    return Cut(scaled, top, left, height, width)


def _random_crop(size: tuple[int, int], height: int, width: int, image: bool, u: Sequence[float]) -> Cut:
    if size[0] < height or size[1] < width:
        size = _covering(*size, height, width)
    return Cut(size, _draw(u[0], size[0] - height), _draw(u[1], size[1] - width), height, width)


def _rand_size_crop(size: tuple[int, int], height: int, width: int, image: bool, u: Sequence[float]) -> Cut:
    if not 8 <= height <= width:
        raise ValueError(
            f"transform='rand_size_crop' takes the smallest and the largest side, got {height} and {width}; "
            "give the smaller one first, at least 8."
        )
    sides = [min((height + _draw(x, width - height)) // 8 * 8, n) for x, n in zip(u[2:], size, strict=True)]
    return _random_crop(size, *sides, image, u)


TRANSFORMS: dict[str, Callable[[tuple[int, int], int, int, bool, Sequence[float]], Cut]] = {
    "resize_crop": _resize_crop,
    "center": _center,
    "random_crop": _random_crop,
    "rand_size_crop": _rand_size_crop,
}


def _draw(u: float, most: int) -> int:
    """Turn a uniform number into one of 0 to `most`."""
    return min(int(u * (most + 1)), most)


def _covering(rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
    """Return the size with the frame's proportions that just covers (height, width)."""
    vertical, horizontal = height / rows, width / columns
    if vertical > horizontal:
        return height, max(width, round(columns * vertical))
    return max(height, round(rows * horizontal)), width


def _bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(x, size=size, mode="bilinear", align_corners=False)
