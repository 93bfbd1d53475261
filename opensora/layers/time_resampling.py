"""Layers that halve or double time, chosen by name in the config of `CausalVideoVAE`.

Source: Open-Sora-Plan 1.0.0 for the blocks and their names.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensora.layers.causal_conv3d import BareCausalConv3d, Downsample2D, Upsample2D
from opensora.layers.streaming import is_first, past_frames

_MIX = 2.0  # share of the plain path at first, before the sigmoid


class TimeDownsample2x(nn.Module):
    """Halve time by the mean of three frames; two copies of the first frame stand before a video.

    Args:
        channels: Channels of input and output.
        upsample: Not used.
    """

    def __init__(self, channels: int, upsample: str = "hold") -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Shape [B, C, T, H, W] to [B, C, (T + 1) // 2, H, W]."""
        past, _ = past_frames(self, x, 2, 1, repeat_first=True)
        return F.avg_pool3d(torch.cat((past, x), dim=2), (3, 1, 1), (2, 1, 1))


class TimeUpsample2x(nn.Module):
    """Double time, except the first frame of a video.

    Args:
        channels: Channels of input and output.
        upsample: "hold" repeats frames; "linear" mixes neighbours, as published, and so needs the next one.
    """

    def __init__(self, channels: int, upsample: str = "hold") -> None:
        super().__init__()
        self.linear = upsample == "linear"

    def forward(self, x: Tensor) -> Tensor:
        """Shape [B, C, T, H, W] to [B, C, 2T - 1, H, W], or 2T frames behind the beginning of a video."""
        first = int(is_first(self))
        head, rest = x[:, :, :first], x[:, :, first:]
        if rest.shape[2] and self.linear:
            rest = F.interpolate(rest, scale_factor=(2, 1, 1), mode="trilinear")
        elif rest.shape[2]:
            rest = rest.repeat_interleave(2, dim=2)
        return torch.cat((head, rest), dim=2)


class TimeDownsampleRes2x(TimeDownsample2x):
    """A mixture of the mean and a causal convolution of stride 2, with a learned share."""

    def __init__(self, channels: int, upsample: str = "hold") -> None:
        super().__init__(channels)
        self.conv = BareCausalConv3d(channels, channels, 3, (2, 1, 1), repeat_first=True)
        self.mix_factor = nn.Parameter(torch.tensor([_MIX]))

    def forward(self, x: Tensor) -> Tensor:
        """See `TimeDownsample2x`."""
        return torch.lerp(self.conv(x), super().forward(x), self.mix_factor.sigmoid())


class TimeUpsampleRes2x(TimeUpsample2x):
    """A mixture of the doubled frames and a causal convolution of them, with a learned share."""

    def __init__(self, channels: int, upsample: str = "hold") -> None:
        super().__init__(channels, upsample)
        self.conv = BareCausalConv3d(channels, channels, 3, repeat_first=True)
        self.mix_factor = nn.Parameter(torch.tensor([_MIX]))

    def forward(self, x: Tensor) -> Tensor:
        """See `TimeUpsample2x`."""
        x = super().forward(x)
        return torch.lerp(self.conv(x), x, self.mix_factor.sigmoid())


_SPACE = {"SpatialDownsample2x": Downsample2D, "SpatialUpsample2x": Upsample2D}
_TIME = (TimeDownsample2x, TimeUpsample2x, TimeDownsampleRes2x, TimeUpsampleRes2x)
BLOCKS = {**_SPACE, **{block.__name__: block for block in _TIME}}


def make_resample(name: str, channels: int, time_upsample: str) -> nn.Module:
    """Return the block of a name.

    Raises:
        ValueError: There is no such block.
    """
    if name not in BLOCKS:
        raise ValueError(f"block {name!r}: use one of {', '.join(sorted(BLOCKS))}, or '' for none.")
    return BLOCKS[name](channels) if name in _SPACE else BLOCKS[name](channels, time_upsample)
