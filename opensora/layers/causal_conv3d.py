"""Causal 3D convolution, its exact evaluation in tiles, and resampling of single frames.

A causal convolution pads time with zeros in front only, so a frame never depends on later ones. Memory is
saved in two ways that do not change the result: convolutions run in tiles, and 2D layers take a few frames at
a time. Both are set once for a whole network (`set_tiling`, `set_micro_batch_2d`).

Source: Yu et al. 2023 (MAGVIT-2), section 3.2, for causal convolution in video autoencoders.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from opensora.layers.checks import check_count
from opensora.layers.slabs import in_slabs, slab_conv, slab_downsample, slab_upsample
from opensora.layers.streaming import past_frames

Pads = Sequence[tuple[int, int]]  # zeros before and after, for T, H and W
_NO_PADS = ((0, 0), (0, 0), (0, 0))


def tiled_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1, 1),
    padding: Pads = _NO_PADS,
    tile_size: int | None = None,
    axis: int | None = None,
    num_tiles: int | None = None,
) -> Tensor:
    """Convolve in tiles along one axis; the result is that of one convolution.

    Each tile takes the neighbours it needs from its input, and zeros only where the video ends.

    Args:
        x: Shape [B, C, T, H, W].
        weight: Shape [C', C, kT, kH, kW].
        bias: Shape [C'].
        stride: Step along T, H and W.
        padding: Zeros before and after, for T, H and W.
        tile_size: Length of a tile on the padded axis, at least 1. A shorter axis stays in one piece.
            None: no tiles, unless `num_tiles` is given.
        axis: 2, 3 or 4 for T, H or W; None is the longest one after padding.
        num_tiles: Number of tiles; wins over `tile_size`.

    Returns:
        Shape [B, C', T', H', W'].

    Raises:
        ValueError: The padded input is smaller than the kernel.
    """
    padded = [size + before + after for size, (before, after) in zip(x.shape[2:], padding, strict=True)]
    if any(size < kernel for size, kernel in zip(padded, weight.shape[2:], strict=True)):
        raise ValueError(
            f"convolution: input {tuple(x.shape)} is {tuple(padded)} with padding, smaller than the kernel"
            f" {tuple(weight.shape[2:])}; use a longer or larger video."
        )
    dim = padded.index(max(padded)) if axis is None else axis - 2
    length = (padded[dim] - weight.shape[dim + 2]) // stride[dim] + 1
    count = num_tiles or (padded[dim] // tile_size if tile_size else 1)
    count = max(1, min(count, length))

    if count == 1:
        return _padded_conv3d(x, weight, bias, stride, padding)

    def tile(first: int, last: int) -> Tensor:
        start = first * stride[dim] - padding[dim][0]  # on the axis without padding, so it may be outside
        stop = (last - 1) * stride[dim] + weight.shape[dim + 2] - padding[dim][0]
        size, width = x.shape[dim + 2], stop - start
        before, after = min(max(-start, 0), width), min(max(stop - size, 0), width)
        pads = [*padding[:dim], (before, after), *padding[dim + 1 :]]
        piece = x.narrow(dim + 2, min(max(start, 0), size), width - before - after)
        return _padded_conv3d(piece, weight, bias, stride, pads)

    edges = [i * (length // count) + min(i, length % count) for i in range(count + 1)]
    return _join((tile(first, last) for first, last in pairwise(edges)), dim + 2, length)


def _padded_conv3d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Pads
) -> Tensor:
    # The kernel pads equal sides itself, which saves a copy of the input.
    own = [before if before == after else 0 for before, after in padding]
    rest = [(0, 0) if before == after else (before, after) for before, after in padding]
    if any(map(any, rest)):
        x = F.pad(x, [n for pair in reversed(rest) for n in pair])
    return F.conv3d(x, weight, bias, tuple(stride), tuple(own))


def _join(pieces: Iterator[Tensor], axis: int, length: int) -> Tensor:
    piece = next(pieces)
    done = piece.shape[axis]
    if done == length:
        return piece
    if torch.is_grad_enabled():
        return torch.cat([piece, *pieces], dim=axis)
    # Without gradients each piece is written into the result, so they are never all there beside it.
    out = piece.new_empty([*piece.shape[:axis], length, *piece.shape[axis + 1 :]])
    out.narrow(axis, 0, done).copy_(piece)
    for piece in pieces:
        out.narrow(axis, done, piece.shape[axis]).copy_(piece)
        done += piece.shape[axis]
    return out


class BareCausalConv3d(nn.Conv3d):
    """Causal convolution whose parameters have no prefix.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: One odd size, or one for each of T, H and W.
        stride: One step, or one for each of T, H and W.
        bias: Whether there is a bias.
        front: Frames before the first; None is the kernel's length less one.
        repeat_first: Whether these are copies of the first frame; else they are 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int] = 3,
        stride: int | tuple[int, int, int] = 1,
        bias: bool = True,
        front: int | None = None,
        repeat_first: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, bias=bias)
        time, height, width = self.kernel_size
        front = time - 1 if front is None else front
        self.pads = ((front, 0), (height // 2, height // 2), (width // 2, width // 2))
        self.repeat_first = repeat_first
        self.tiling: tuple[int | None, int | None, int | None] = (None, None, None)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve. Shape [B, C, T, H, W] to [B, C', T', H', W']."""
        if in_slabs(x) and x.shape[2] + self.pads[0][0] >= self.kernel_size[0]:
            return slab_conv(x, self)
        past, zeros = self.past(x)
        weight, pads = self.weight, ((zeros, 0), *self.pads[1:])
        if past is None and x.shape[2] == 1 and zeros == self.kernel_size[0] - 1:
            # An image meets only the last tap in time: a third of the work.
            weight, pads = weight[:, :, -1:], ((0, 0), *pads[1:])
        elif past is not None:
            x = torch.cat((past, x), dim=2)
        return tiled_conv3d(x, weight, self.bias, self.stride, pads, *self.tiling)

    def past(self, x: Tensor) -> tuple[Tensor | None, int]:
        """Return the frames before those of `x`, and how many zero frames stand before them."""
        keep = max(0, self.kernel_size[0] - self.stride[0])
        return past_frames(self, x, self.pads[0][0], keep, self.repeat_first)


class CausalConv3d(nn.Module):
    """Causal convolution, its parameters under `conv`. Arguments as for `BareCausalConv3d`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int] = 3,
        stride: int | tuple[int, int, int] = 1,
        bias: bool = True,
        front: int | None = None,
        repeat_first: bool = False,
    ) -> None:
        super().__init__()
        self.conv = BareCausalConv3d(
            in_channels, out_channels, kernel_size, stride, bias, front, repeat_first
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve. Shape [B, C, T, H, W] to [B, C', T', H', W']."""
        return self.conv(x)


def frame_wise(
    function: Callable[[Tensor], Tensor], video: Tensor, micro_batch_size: int | None = None
) -> Tensor:
    """Apply a function of images to every frame.

    Args:
        function: Takes and returns images, shape [N, C, H, W] to [N, C', H', W'].
        video: Shape [B, C, T, H, W].
        micro_batch_size: Frames per call; None is all at once.

    Returns:
        Shape [B, C', T, H', W'].
    """
    images = rearrange(video, "B C T H W -> (B T) C H W")
    parts = images.split(micro_batch_size or len(images))
    images = _join((function(part) for part in parts), 0, len(images))
    return rearrange(images, "(B T) C H W -> B C T H W", B=video.shape[0])


class Downsample2D(nn.Module):
    """Halve height and width of every frame; an odd size loses its last row or column. Time stays.

    Args:
        channels: Channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)
        self.micro_batch_size: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Resample. Shape [B, C, T, H, W] to [B, C, T, H // 2, W // 2]."""
        if in_slabs(x):
            return slab_downsample(x, self.conv)
        return frame_wise(lambda images: self.conv(F.pad(images, (0, 1, 0, 1))), x, self.micro_batch_size)


class Upsample2D(nn.Module):
    """Double height and width of every frame. Time stays.

    Args:
        channels: Channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.micro_batch_size: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Resample. Shape [B, C, T, H, W] to [B, C, T, 2H, 2W]."""
        if in_slabs(x):
            return slab_upsample(x, self.conv)
        return frame_wise(
            lambda images: self.conv(F.interpolate(images, scale_factor=2)), x, self.micro_batch_size
        )


class Downsample3D(nn.Module):
    """Halve time, height and width; odd sizes are rounded up.

    Args:
        channels: Channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Resample. Shape [B, C, T, H, W] to [B, C, (T + 1) // 2, (H + 1) // 2, (W + 1) // 2]."""
        return self.conv(x)


def set_tiling(
    module: nn.Module, tile_size: int | None = None, axis: int | None = None, num_tiles: int | None = None
) -> None:
    """Let every causal convolution in `module` run in tiles. Arguments as for `tiled_conv3d`.

    Raises:
        ValueError: A size is below 1, or `axis` is not a video axis.
    """
    if axis not in (None, 2, 3, 4):
        raise ValueError(
            f"tile_axis={axis!r}: expected 2 (time), 3 (height), 4 (width), or None for the longest."
        )
    for name, value in (("tile_size", tile_size), ("num_tiles", num_tiles)):
        check_count(name, value, "tiles")
    for part in module.modules():
        if isinstance(part, BareCausalConv3d):
            part.tiling = (tile_size, axis, num_tiles)


def set_micro_batch_2d(module: nn.Module, micro_batch_size: int | None) -> None:
    """Let every frame-wise layer in `module` take so many frames at a time; None is all at once.

    Raises:
        ValueError: The size is below 1.
    """
    check_count("micro_batch_size_2d", micro_batch_size, "micro batches")
    for part in module.modules():
        if isinstance(part, Downsample2D | Upsample2D):
            part.micro_batch_size = micro_batch_size
