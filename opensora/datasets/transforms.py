"""From decoded frames to a video of the asked length and size.

Videos are resized bilinearly without a low-pass filter, images bicubically with one. Released weights were
trained so. Offsets of crops are rounded as there too; the two kinds differ by a pixel where a difference is
odd.
"""

from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

_CHUNK = 8  # frames in float32 at once: a long clip in full size would not fit into memory


def normalize(frames: Tensor) -> Tensor:
    """Map bytes to [-1, 1].

    Args:
        frames: uint8 or float in [0, 255]. Any shape.

    Returns:
        float32 of the same shape.
    """
    return (frames.float() / 255.0 - 0.5) / 0.5


def resize_crop(frames: Tensor, height: int, width: int, image: bool = False) -> Tensor:
    """Scale frames until they cover a size, and cut out its centre.

    Args:
        frames: uint8, shape [T, H, W, C].
        height: Height in pixels.
        width: Width in pixels.
        image: Whether they come from an image file: bicubic with a low-pass filter instead of bilinear.

    Returns:
        Float in [-1, 1]. Shape [C, T, height, width].
    """
    _check(frames, height, width)
    if image:
        pictures = [fill_image(frame, height, width) for frame in frames]
        return normalize(rearrange(torch.stack(pictures), "T H W C -> C T H W"))
    return _by_chunks(frames, lambda x: fill(x, height, width))


def center_crop(frames: Tensor, height: int, width: int, image: bool = False) -> Tensor:
    """Scale the short side of frames to a square's side, and cut out the central square.

    Arguments and result as for `resize_crop`.

    Raises:
        ValueError: `height` and `width` differ.
    """
    _check(frames, height, width)
    if height != width:
        raise ValueError(
            f"transform='center' makes squares, got {height} x {width}; use transform='resize_crop'."
        )
    if image:
        pictures = [center_image(frame, height) for frame in frames]
        return normalize(rearrange(torch.stack(pictures), "T H W C -> C T H W"))
    return _by_chunks(frames, lambda x: central(short_side(x, height), height, width))


TRANSFORMS: dict[str, Callable[[Tensor, int, int, bool], Tensor]] = {
    "resize_crop": resize_crop,
    "center": center_crop,
}


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


def fill(x: Tensor, height: int, width: int) -> Tensor:
    """Scale bilinearly until a size is covered, and cut out its centre.

    Args:
        x: Float, shape [T, C, H, W].
        height: Height in pixels.
        width: Width in pixels.

    Returns:
        Shape [T, C, height, width].
    """
    size = _covering(x.shape[-2], x.shape[-1], height, width)
    x = _bilinear(x, size)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return x[..., top : top + height, left : left + width]


def short_side(x: Tensor, size: int) -> Tensor:
    """Scale the short side to `size` bilinearly. Shape [T, C, H, W] to [T, C, H', W']."""
    height, width = x.shape[-2:]
    scale = size / min(height, width)
    return _bilinear(x, (round(height * scale), round(width * scale)))


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


def fill_image(frame: Tensor, height: int, width: int) -> Tensor:
    """Scale an image bicubically until a size is covered, and cut out its centre.

    Args:
        frame: uint8, shape [H, W, 3].
        height: Height in pixels.
        width: Width in pixels.

    Returns:
        uint8, shape [height, width, 3].
    """
    size = _covering(frame.shape[0], frame.shape[1], height, width)
    picture = Image.fromarray(frame.numpy()).resize(size[::-1], Image.Resampling.BICUBIC)
    top, left = round((size[0] - height) / 2), round((size[1] - width) / 2)
    return torch.from_numpy(np.array(picture))[top : top + height, left : left + width]


def center_image(frame: Tensor, size: int) -> Tensor:
    """Scale the short side of an image to `size`, and cut out the central square.

    While the image is twice too large it is halved, then it is scaled bicubically.

    Args:
        frame: uint8, shape [H, W, 3].
        size: Side of the square in pixels.

    Returns:
        uint8, shape [size, size, 3].

    Source: Dhariwal and Nichol 2021, guided diffusion, preprocessing of ImageNet.
    """
    picture = Image.fromarray(frame.numpy())
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize(
        (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC
    )
    top, left = (picture.height - size) // 2, (picture.width - size) // 2
    return torch.from_numpy(np.array(picture))[top : top + size, left : left + size]


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


def _check(frames: Tensor, height: int, width: int) -> None:
    if frames.dtype != torch.uint8 or frames.ndim != 4:
        raise ValueError(
            f"frames are {frames.dtype} of shape {tuple(frames.shape)}; expected uint8 [T, H, W, C]."
        )
    if height < 1 or width < 1:
        raise ValueError(f"height={height}, width={width}: sizes are positive numbers of pixels.")


def _by_chunks(frames: Tensor, transform: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `transform` ([T, C, H, W] in [0, 1] to the same) to a few frames at a time, and normalize."""
    parts = []
    for start in range(0, len(frames), _CHUNK):
        x = rearrange(frames[start : start + _CHUNK], "T H W C -> T C H W").float() / 255.0
        parts.append((transform(x) - 0.5) / 0.5)
    return rearrange(torch.cat(parts), "T C H W -> C T H W").contiguous()


def _covering(rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
    """Return the size with the frame's proportions that just covers (height, width)."""
    vertical, horizontal = height / rows, width / columns
    if vertical > horizontal:
        return height, max(width, round(columns * vertical))
    return max(height, round(rows * horizontal)), width


def _bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(x, size=size, mode="bilinear", align_corners=False)
