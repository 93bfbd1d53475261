"""Convolutions of frames whose channels lie side by side: the plain one, and minimal filtering along time.

Minimal filtering makes four frames of a convolution of length 3 from six 2D convolutions, not twelve.

Source: Winograd 1980; Lavin and Gray 2016, for convolutions in networks.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 4  # frames of the output at once
_TAPS = 3
# Polynomials are multiplied by their values at these points and at infinity. With 3/4 and 3/2 in place of the
# usual 1 and 2 the rounding error is a third smaller, about twice that of the plain sum.
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)


def _matrices() -> tuple[Tensor, Tensor, Tensor]:
    """Return the maps of six frames, of three taps, and of six products to four frames."""
    points = torch.tensor(_POINTS, dtype=torch.float64, device="cpu")
    count = len(points)
    frames = torch.zeros(count + 1, count + 1, dtype=torch.float64, device="cpu")
    taps = torch.zeros(count + 1, _TAPS, dtype=torch.float64, device="cpu")
    for i in range(count + 1):
        others = points[torch.arange(count, device="cpu") != i]
        # Coefficients of the polynomial whose roots are the others, lowest power first.
        polynomial = torch.ones(1, dtype=torch.float64, device="cpu")
        for root in others:
            polynomial = F.pad(polynomial, (1, 0)) - root * F.pad(polynomial, (0, 1))
        frames[i, : len(polynomial)] = polynomial
        if i < count:
            taps[i] = points[i] ** torch.arange(_TAPS, device="cpu") / (points[i] - others).prod()
    taps[-1, -1] = 1.0
    products = F.pad(points ** torch.arange(TILE, device="cpu")[:, None], (0, 1))
    products[-1, -1] = 1.0
    return frames.float(), taps.float(), products.float()


_FRAMES, _WEIGHTS, _PRODUCTS = _matrices()


class FrameConvolution:
    """A plain convolution of frames; zeros in front are not multiplied.

    Args:
        weight: Shape [C', C, kT, kH, kW].
        bias: Shape [C'].
        stride: Step along T, H and W.
        padding: Zeros on both sides, for H and W.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: tuple[int, ...]
    ) -> None:
        # torch runs small float32 convolutions in 3D by a slow path; two dimensions have a fast one. Sums of
        # taps in lower precision would be rounded once more each.
        split = weight.dtype not in (torch.bfloat16, torch.float16) or weight.shape[2] == 1
        self.taps = _images_of_taps(weight) if split else ()
        self.weight = weight if split else weight.contiguous(memory_format=torch.channels_last_3d)
        self.bias = bias
        self.stride = tuple(stride)
        self.padding = padding

    def __call__(self, frames: Tensor, missing: int) -> Tensor:
        """Return [T', H', W', C'] of frames [T, H, W, C] and `missing` zero frames before them."""
        count = (len(frames) + missing - self.weight.shape[2]) // self.stride[0] + 1
        if not self.taps and count == 1 and missing:
            return self._images(frames, self.weight[:, :, missing:])
        if not self.taps:
            if missing:
                frames = torch.cat([frames.new_zeros(missing, *frames.shape[1:]), frames])
            return self._images(frames, self.weight)
        out = None
        for tap, kernel in reversed(list(enumerate(self.taps))):
            first = max(0, -((tap - missing) // self.stride[0]))  # output that meets a frame by this tap
            if first >= count:
                continue
            seen = frames[first * self.stride[0] + tap - missing :: self.stride[0]][: count - first]
            bias = self.bias if out is None else None
            part = F.conv2d(seen.permute(0, 3, 1, 2), kernel, bias, self.stride[1:], self.padding)
            part = part.permute(0, 2, 3, 1)
            if out is None:
                out = part
            else:
                out[first:].add_(part)
        return out

    def _images(self, frames: Tensor, weight: Tensor) -> Tensor:
        video = frames.permute(3, 0, 1, 2)[None]
        images = F.conv3d(video, weight, self.bias, self.stride, (0, *self.padding))
        return images[0].permute(1, 2, 3, 0)


class TimeFilter:
    """A float32 convolution of stride 1 whose kernel is three frames long, without a recorded gradient.

    Args:
        weight: Shape [C', C, 3, kH, kW].
        padding: Zeros on both sides, for H and W.
    """

    def __init__(self, weight: Tensor, padding: tuple[int, int]) -> None:
        taps = weight.permute(2, 0, 3, 4, 1)
        kernels = _WEIGHTS @ taps.reshape(_TAPS, -1)
        self.kernels = kernels.view(-1, *taps.shape[1:]).permute(0, 1, 4, 2, 3).unbind(0)
        self.padding = padding
        self.inputs = self.products = weight.new_empty(0, 0)

    def __call__(self, frames: Tensor, missing: int, out: Tensor) -> None:
        """Convolve. Calls of one filter are for frames of one size, and the first is the longest.

        Args:
            frames: Those that the outputs see, without the zero frames in front. Shape
                [T + 2 - missing, H, W, C].
            missing: Number of zero frames in front, 0 to 2.
            out: Takes the result; T is a multiple of `TILE`. Shape [T, H', W', C'].
        """
        tiles = len(out) // TILE
        count, size = len(self.kernels), frames.shape[1:]
        if not len(self.inputs):  # kept between calls: fresh memory costs as much as a transform
            self.inputs = frames.new_empty(count, tiles, *size)
            self.products = out.new_empty(count, tiles, *out.shape[1:])
        inputs, products = self.inputs[:, :tiles], self.products[:, :tiles]
        for i in range(tiles):
            start, stop = TILE * i - missing, TILE * i - missing + count
            seen = frames[max(start, 0) : stop]
            torch.mm(_FRAMES[:, count - len(seen) :], seen.flatten(1), out=inputs[:, i].flatten(1))
        for kernel, given, product in zip(self.kernels, inputs, products, strict=True):
            # Frames with the channels side by side are what [N, C, H, W] in channels-last memory is.
            images = F.conv2d(given.permute(0, 3, 1, 2), kernel, padding=self.padding)
            product.copy_(images.permute(0, 2, 3, 1))
        for i in range(tiles):
            torch.mm(_PRODUCTS, products[:, i].flatten(1), out=out[TILE * i : TILE * (i + 1)].flatten(1))


def _images_of_taps(weight: Tensor) -> tuple[Tensor, ...]:
    """Return the taps in time, [C', C, kH, kW] each, with the channels side by side."""
    return weight.permute(2, 0, 3, 4, 1).contiguous().permute(0, 1, 4, 2, 3).unbind(0)
