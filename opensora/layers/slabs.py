"""Layers of a causal autoencoder on the CPU without gradients, a few frames at a time to stay in cache.

Videos keep their channels side by side in memory, [B, T, H, W, C]. A slab of frames is normalised, activated,
convolved and added to the shortcut before the next one is touched. Results are those of the plain layers, up
to rounding.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensora.layers.frame_convolution import TILE, FrameConvolution, TimeFilter
from opensora.layers.norms import FrameNorm, PixelNorm
from opensora.layers.streaming import past_frames

_SLAB_BYTES = 2 << 20  # of the frames of one slab, unless four of them are more
# Which of three taps make up each of two, at even places (values 2i - 1, 2i and 2i + 1) and at odd ones.
_SUMS = [[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]
_MIN_CHANNELS = 16  # below them, minimal filtering costs more than it saves


def in_slabs(x: Tensor) -> bool:
    """Return whether a layer's input takes the way through slabs: on the CPU, without a gradient.

    Nor under autocast, which would run minimal filtering in lower precision.
    """
    lean = x.device.type == "cpu" and not torch.is_grad_enabled()
    return lean and not torch.is_autocast_enabled("cpu")


def slab_conv(
    x: Tensor,
    conv: nn.Conv3d,
    norm: nn.Module | None = None,
    shortcut: tuple[Tensor, nn.Conv3d | None] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Convolve causally, the input normalised and activated before, a shortcut added behind.

    Args:
        x: Shape [B, C, T, H, W].
        conv: A `BareCausalConv3d`.
        norm: The input is `silu(norm(x))`, one of `layers.norms`; None: it is `x`.
        shortcut: A video of the output's size that is added, through a convolution of size 1 if there is one.
        out: Takes the result; may be `x` if `norm` is given and the sizes are equal.

    Returns:
        In channels-last memory. Shape [B, C', T', H', W'].
    """
    x = _channels_last(x)
    past, zeros = conv.past(x)
    front = zeros + (0 if past is None else past.shape[2])
    sizes = [
        (size + before + after - kernel) // stride + 1
        for size, (before, after), kernel, stride in zip(
            x.shape[2:], ((front, 0), *conv.pads[1:]), conv.kernel_size, conv.stride, strict=True
        )
    ]
    if out is None or out.shape[2] != sizes[0]:
        out = _empty(x, conv.out_channels, *sizes)
    step, kernel = conv.stride[0], conv.kernel_size[0]
    apply, edges = _plan(conv, x, sizes[0])
    before = [None] * len(x) if past is None else _channels_last(past)
    for video, target, earlier, *rest in zip(
        x, out, before, *([shortcut[0]] if shortcut else []), strict=True
    ):
        frames = _Frames(_frames(video), norm, None if earlier is None else _frames(earlier))
        to = _frames(target)
        for first, last in edges:
            start = first * step - zeros
            given = frames.take(max(start, 0), (last - 1) * step + kernel - zeros)
            apply(given, max(-start, 0), to[first:last])
            if shortcut:
                _add(to[first:last], _frames(rest[0])[first:last], shortcut[1])
    return out


def slab_downsample(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Convolve every frame with a kernel of 3 and a stride of 2, zeros below and at the right.

    Args:
        x: Shape [B, C, T, H, W].
        conv: Weights and bias.

    Returns:
        Shape [B, C', T, H // 2, W // 2].
    """
    x = _channels_last(x)
    length, height, width = x.shape[2:]
    out = _empty(x, conv.out_channels, length, height // 2, width // 2)
    weight = conv.weight.contiguous(memory_format=torch.channels_last)
    count = _slab_length(x)
    padded = x.new_zeros(count, height + 1, width + 1, x.shape[1])
    for video, target in zip(x, out, strict=True):
        for slab, to in zip(_frames(video).split(count), _frames(target).split(count), strict=True):
            padded[: len(slab), :height, :width] = slab
            images = F.conv2d(padded[: len(slab)].permute(0, 3, 1, 2), weight, conv.bias, 2)
            to.copy_(images.permute(0, 2, 3, 1))
    return out


def slab_upsample(x: Tensor, conv: nn.Conv2d | nn.Conv3d) -> Tensor:
    """Repeat values twice along the axes of the kernel, then convolve with zero padding, causal in time.

    It is computed before the repetition: two neighbouring taps that meet the same value are one tap, their
    sum. Every second output has its own sums, so a kernel of 3 becomes two of 2. In time they share a tap.

    Args:
        x: Shape [B, C, T, H, W].
        conv: Weights and bias, a kernel of 3.

    Returns:
        Shape [B, C', 2T, 2H, 2W], or [B, C', T, 2H, 2W] for a 2D convolution.
    """
    x = _channels_last(x)
    length, height, width = x.shape[2:]
    times = conv.weight.ndim - 3
    weight = conv.weight if times == 2 else conv.weight[:, :, None]
    kernels = _summed_taps(weight)
    bias = None if conv.bias is None else conv.bias.repeat(4)
    out = _empty(x, conv.out_channels, times * length, 2 * height, 2 * width)
    outer = FrameConvolution(kernels[:, :, ::2], bias, (1, 1, 1), (0, 0))
    inner = FrameConvolution(kernels[:, :, 1:2], None, (1, 1, 1), (0, 0)) if times == 2 else None
    count = max(4, _slab_length(x) // 4)
    past = past_frames(conv, x, 1, 1)[0] if times == 2 else None
    before = [None] * len(x) if past is None else past
    for video, target, earlier in zip(x, out, before, strict=True):
        frames = _frames(video)
        to = _frames(target).view(length, times, height, 2, width, 2, conv.out_channels)
        padded = x.new_zeros(count + 1, height + 2, width + 2, x.shape[1])
        if earlier is not None:
            padded[0, 1:-1, 1:-1] = _frames(earlier)[-1]
        for first in range(0, length, count):
            last = min(first + count, length)
            if first:
                padded[:1] = padded[count : count + 1]
            given = padded[: last - first + 1]
            given[1:, 1:-1, 1:-1] = frames[first:last]
            if times == 2:
                _double_time(given, outer, inner, to[first:last])
            else:
                for quarter, part in _quarters(outer(given[1:], 0), to[first:last]):
                    part[:, 0].copy_(quarter)
    return out


def slab_refine(h: Tensor, norm: nn.Module, x: Tensor) -> Tensor:
    """Replace `h` by `silu(norm(h) + u) + u`, where `u` repeats the values of `x` twice along T, H and W.

    Args:
        h: In channels-last memory. Shape [B, C, 2T, 2H, 2W].
        norm: Norm of `h`.
        x: Shape [B, C, T, H, W].
    """
    for video, source in zip(h, _channels_last(x), strict=True):
        frames, given = _frames(video), _frames(source)
        affine = _affine(frames, norm)
        count = max(1, _slab_length(h) // 2)
        for first in range(0, len(given), count):
            u = given[first : first + count, None, :, None, :, None]
            slab = frames[2 * first : 2 * (first + count)]
            value = _normed(slab, norm, affine)
            blocks = value.view(len(u), 2, u.shape[2], 2, u.shape[4], 2, -1)
            blocks.add_(u)
            F.silu(blocks, inplace=True).add_(u)
            slab.copy_(value)
    return h


def _summed_taps(weight: Tensor) -> Tensor:
    """Return the kernels of the four results per value. [C', C, kT, 3, 3] to [4 C', C, kT, 2, 2]."""
    sums = torch.tensor(_SUMS, dtype=weight.dtype, device=weight.device).flatten(0, 1)
    pairs = torch.kron(sums, sums) @ weight.permute(3, 4, 2, 0, 1).reshape(9, -1)  # [(a p) (b q), kT C' C]
    made = pairs.view(2, 2, 2, 2, weight.shape[2], *weight.shape[:2])  # a p b q t o c
    made = made.permute(4, 0, 2, 5, 1, 3, 6).flatten(1, 3)  # t (a b o) p q c
    return made.permute(1, 4, 0, 2, 3)


def _double_time(frames: Tensor, outer: FrameConvolution, inner: FrameConvolution, to: Tensor) -> None:
    """Convolve frames, of which the first is the one before; `to` has shape [T, 2, H, 2, W, 2, C']."""
    # Outputs 2t and 2t + 1 see x[t - 1] through tap 0 and x[t] through tap 2; tap 1 meets one or the other.
    both = outer(frames, 0)
    one = inner(frames, 0)
    for (shared, part), (middle, _) in zip(_quarters(both, to), _quarters(one, to), strict=True):
        torch.add(shared, middle[:-1], out=part[:, 0])
        torch.add(shared, middle[1:], out=part[:, 1])


def _quarters(frames: Tensor, to: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Pair the results for even and odd rows and columns, side by side in the channels, with their places."""
    height, width, channels = to.shape[2], to.shape[4], to.shape[6]
    pairs = []
    for i, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        part = frames[:, row : row + height, column : column + width, i * channels : (i + 1) * channels]
        pairs.append((part, to[:, :, :, row, :, column]))
    return pairs


def _plan(
    conv: nn.Conv3d, x: Tensor, length: int
) -> tuple[Callable[[Tensor, int, Tensor], None], list[tuple[int, int]]]:
    """Return what convolves frames, and where the slabs of its outputs begin and end."""
    (front, _), *sides = conv.pads
    padding = tuple(before for before, _ in sides)
    filtered = (
        x.dtype == torch.float32
        and conv.kernel_size[0] == 3
        and front == 2
        and set(conv.stride) == {1}
        and min(conv.in_channels, conv.out_channels) >= _MIN_CHANNELS
    )
    size = x[0, :, 0].numel() * x.element_size() * conv.stride[0]
    count = max(1, _SLAB_BYTES // (TILE * size)) * TILE
    time_filter = TimeFilter(conv.weight, padding) if filtered and length >= TILE else None
    # Kernels are arranged anew for every part of a video, so only those that are used.
    direct = None
    if time_filter is None or length % TILE:
        direct = FrameConvolution(conv.weight, conv.bias, conv.stride, padding)

    def apply(frames: Tensor, missing: int, to: Tensor) -> None:
        if time_filter is None or len(to) % TILE:
            to.copy_(direct(frames, missing))
            return
        time_filter(frames, missing, to)
        if conv.bias is not None:
            to.add_(conv.bias)

    # What is over four frames comes first: there a part of the kernel meets zeros.
    start = length % TILE if time_filter is not None else 0
    edges = [(0, start)] if start else []
    edges += [(i, min(i + count, length)) for i in range(start, length, count)]
    return apply, edges


class _Frames:
    """Frames of one video after the norm and SiLU, made as they are asked for. Shape [T, H, W, C].

    Those that are asked for again are kept, so the video may be overwritten behind them. Numbers of frames
    begin at the earlier ones, which do not enter the statistics.
    """

    def __init__(self, frames: Tensor, norm: nn.Module | None, earlier: Tensor | None = None) -> None:
        self.source, self.norm = frames, norm
        self.earlier = frames[:0] if earlier is None else earlier
        self.affine = None if norm is None else _affine(frames, norm)
        self.last = self.spare = frames[:0]
        self.stop = 0

    def take(self, start: int, stop: int) -> Tensor:
        if self.norm is None:
            parts = self._parts(start, stop)
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        frames = self.spare
        if len(frames) != stop - start:
            frames = self.source.new_empty(stop - start, *self.source.shape[1:])
        kept = max(0, self.stop - start)
        frames[:kept] = self.last[len(self.last) - kept :]
        for part in self._parts(start + kept, stop):
            _normalise(part, self.norm, self.affine, frames[kept : kept + len(part)])
            kept += len(part)
        self.last, self.spare, self.stop = frames, self.last, stop
        return frames

    def _parts(self, start: int, stop: int) -> list[Tensor]:
        count = len(self.earlier)
        if start >= count:
            return [self.source[start - count : stop - count]]
        parts = [self.earlier[start:stop], self.source[: max(stop - count, 0)]]
        return [part for part in parts if len(part)]


def _affine(frames: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return scale and shift of every channel, so that `frames * scale + shift` is the norm of the video.

    None for a norm that sees no more than a frame.
    """
    if isinstance(norm, FrameNorm | PixelNorm):
        return None
    means, squares, count = 0.0, 0.0, 0
    for slab in frames.split(_slab_length(_video(frames))):
        mean, variance = torch.batch_norm_update_stats(_video(_precise(slab)), None, None, 0.0)
        mean, variance, size = mean.double(), variance.double(), slab[..., 0].numel()
        means, squares, count = means + size * mean, squares + size * (variance + mean.square()), count + size
    mean, square = ((x / count).view(norm.num_groups, -1).mean(1) for x in (means, squares))
    deviation = (square - mean.square() + norm.eps).sqrt()
    each = norm.num_channels // norm.num_groups
    scale = norm.weight / deviation.repeat_interleave(each)
    shift = norm.bias - mean.repeat_interleave(each) * scale
    dtype = _precise(frames[:0]).dtype
    return scale.to(dtype), shift.to(dtype)


def _normalise(frames: Tensor, norm: nn.Module, affine: tuple[Tensor, Tensor] | None, out: Tensor) -> None:
    if affine is not None and frames.dtype == affine[0].dtype:
        F.silu(torch.addcmul(affine[1], frames, affine[0], out=out), inplace=True)
    else:
        out.copy_(F.silu(_normed(frames, norm, affine), inplace=True))


def _normed(frames: Tensor, norm: nn.Module, affine: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return the norm of frames [T, H, W, C] of a video, in float32 or wider."""
    x = _precise(frames)
    if affine is not None:
        return torch.addcmul(affine[1], x, affine[0])
    weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
    if isinstance(norm, PixelNorm):
        return F.layer_norm(x, weight.shape, weight, bias, norm.eps)
    groups = x.unflatten(-1, (norm.num_groups, -1))
    variance, mean = torch.var_mean(groups, dim=(1, 2, 4), correction=0)  # [T, groups]
    each = norm.num_channels // norm.num_groups
    scale = (variance + norm.eps).rsqrt().repeat_interleave(each, 1) * weight
    shift = bias - mean.repeat_interleave(each, 1) * scale
    return torch.addcmul(shift[:, None, None], x, scale[:, None, None])


def _precise(x: Tensor) -> Tensor:
    """Return float32 for less, and anything else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _add(to: Tensor, frames: Tensor, conv: nn.Conv3d | None) -> None:
    if conv is None:
        to.add_(frames)
        return
    weight = conv.weight.view(conv.out_channels, conv.in_channels)
    to.view(-1, conv.out_channels).addmm_(frames.reshape(-1, conv.in_channels), weight.t())
    if conv.bias is not None:
        to.add_(conv.bias)


def _slab_length(x: Tensor) -> int:
    """Return the number of frames in a slab of videos [B, C, T, H, W]."""
    return max(1, _SLAB_BYTES // (x[0, :, 0].numel() * x.element_size()))


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def _empty(x: Tensor, *sizes: int) -> Tensor:
    return torch.empty(len(x), *sizes, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)


def _frames(video: Tensor) -> Tensor:
    """From [C, T, H, W] to [T, H, W, C], which is contiguous."""
    return video.permute(1, 2, 3, 0)


def _video(frames: Tensor) -> Tensor:
    """From [T, H, W, C] to [1, C, T, H, W]."""
    return frames.permute(3, 0, 1, 2)[None]
