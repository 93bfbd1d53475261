"""Encoder and decoder of a causal video autoencoder: residual blocks, one attention, resampling by 2.

Module names are those of the published Open-Sora 1.3 weights.

Source: Rombach et al. 2022 (latent diffusion) for the layout of blocks; Open-Sora 1.3 for its causal 3D form.
"""

from collections.abc import Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from opensora.layers.causal_conv3d import (
    BareCausalConv3d,
    CausalConv3d,
    Downsample2D,
    Downsample3D,
    Upsample2D,
)
from opensora.layers.interfaces import Posterior
from opensora.layers.slabs import in_slabs, slab_conv, slab_refine, slab_upsample
from opensora.utils.random import Draws, ReplayDraws

_GROUPS = 32


def silu(x: Tensor) -> Tensor:
    """Apply SiLU to a tensor that nobody else holds; in place when no gradient is recorded."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def add(own: Tensor, other: Tensor) -> Tensor:
    """Add to a tensor that nobody else holds; in place when no gradient is recorded."""
    return own + other if torch.is_grad_enabled() else own.add_(other)


def norm_conv(x: Tensor, norm: nn.GroupNorm, conv: BareCausalConv3d) -> Tensor:
    """Return `conv(silu(norm(x)))`."""
    return slab_conv(x, conv, norm) if in_slabs(x) else conv(silu(norm(x)))


def residual(
    x: Tensor,
    norm1: nn.GroupNorm,
    conv1: CausalConv3d,
    norm2: nn.GroupNorm,
    conv2: CausalConv3d,
    shortcut: CausalConv3d | None,
) -> Tensor:
    """Return the sum of a shortcut, None for `x` itself, and two convolutions behind their norms."""
    if in_slabs(x):
        h = slab_conv(x, conv1.conv, norm1)
        return slab_conv(h, conv2.conv, norm2, (x, shortcut and shortcut.conv), out=h)
    # In one expression, so that each activation is freed as soon as the next exists.
    h = conv2(silu(norm2(conv1(silu(norm1(x))))))
    return add(h, x if shortcut is None else shortcut(x))


def draw_latents(posterior: Posterior, draws: Draws | ReplayDraws | None) -> Tensor:
    """Return a sample of the posterior with the noise named "posterior", or its mean without `draws`."""
    if draws is None:
        return posterior.mean
    return posterior.sample(draws.normal("posterior", 0, posterior.mean.shape))


class ResBlock(nn.Module):
    """Two normalised causal convolutions beside a shortcut.

    Args:
        in_channels: Channels of the input, a multiple of 32.
        out_channels: Channels of the output, a multiple of 32.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_GROUPS, in_channels, eps=1e-6)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = nn.GroupNorm(_GROUPS, out_channels, eps=1e-6)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        self.nin_shortcut = (
            CausalConv3d(in_channels, out_channels, 1) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shape [B, C, T, H, W] to [B, C', T, H, W]."""
        return residual(x, self.norm1, self.conv1, self.norm2, self.conv2, self.nin_shortcut)


class CausalAttention(nn.Module):
    """Self attention with one head over all tokens; each sees those before it in raster order.

    The order is time, rows, columns, so inside a frame a pixel does not see those below it: published weights
    need that.

    Args:
        channels: Channels of input and output, and size of the head.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, channels, eps=1e-6)
        self.q = CausalConv3d(channels, channels, 1)
        self.k = CausalConv3d(channels, channels, 1)
        self.v = CausalConv3d(channels, channels, 1)
        self.proj_out = CausalConv3d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape [B, C, T, H, W]."""
        h = self.norm(x)
        # Kernels that do without the N x N scores want the channels side by side.
        q, k, v = (
            rearrange(project(h), "B C T H W -> B 1 (T H W) C").contiguous()
            for project in (self.q, self.k, self.v)
        )
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = rearrange(h, "B 1 (T H W) C -> B C T H W", T=x.shape[2], H=x.shape[3])
        return add(self.proj_out(h), x)


class PostNormBlock(nn.Module):
    """Residual block of the 3D upsampler: convolution first, then the norm.

    Args:
        channels: Channels of input and output, a multiple of 32.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(channels, channels)
        self.norm1 = nn.GroupNorm(_GROUPS, channels, eps=1e-5)
        self.conv2 = CausalConv3d(channels, channels)
        self.norm2 = nn.GroupNorm(_GROUPS, channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Shape [B, C, T, H, W]."""
        h = self.norm2(self.conv2(silu(self.norm1(self.conv1(x)))))
        return silu(add(h, x))


class Upsample3D(nn.Module):
    """Double time, height and width, then refine.

    Args:
        channels: Channels of input and output, a multiple of 32.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv3d = PostNormBlock(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Shape [B, C, T, H, W] to [B, C, 2T, 2H, 2W]."""
        if in_slabs(x):
            block = self.conv3d
            h = slab_upsample(x, block.conv1.conv)
            h = slab_conv(h, block.conv2.conv, block.norm1, out=h)
            return slab_refine(h, block.norm2, x)
        x = repeat(x, "B C T H W -> B C (T t) (H h) (W w)", t=2, h=2, w=2)
        return add(self.conv3d(x), x)


class _Level(nn.Module):
    """Blocks of one resolution, then a change of resolution named `name`."""

    def __init__(self, blocks: Sequence[nn.Module], name: str, resample: nn.Module | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.resample = [] if resample is None else [name]
        if resample is not None:
            self.add_module(name, resample)

    def layers(self) -> list[nn.Module]:
        # The network runs layers, not levels, so that a level's input is not kept until its end.
        return [*self.block, *(self.get_submodule(name) for name in self.resample)]


class _Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = CausalAttention(channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class VideoEncoder(nn.Module):
    """From pixels to the moments of the latents.

    Every level but the last halves height and width, those in `temporal_down` time as well.

    Args:
        out_channels: Channels of the output, mean and logarithm of the variance together.
        channels: Width of level 0.
        channel_multipliers: Width of each level in `channels`.
        num_res_blocks: Residual blocks per level.
        temporal_down: Levels that halve time.
    """

    def __init__(
        self,
        out_channels: int,
        channels: int,
        channel_multipliers: Sequence[int],
        num_res_blocks: int,
        temporal_down: Sequence[int],
    ) -> None:
        super().__init__()
        self.conv_in = CausalConv3d(3, channels)
        self.down = nn.ModuleList()
        width, last = channels, len(channel_multipliers) - 1
        for i, multiplier in enumerate(channel_multipliers):
            widths = [width] + [channels * multiplier] * num_res_blocks
            blocks = [ResBlock(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)]
            width = widths[-1]
            resample = (
                None if i == last else Downsample3D(width) if i in temporal_down else Downsample2D(width)
            )
            self.down.append(_Level(blocks, "downsample", resample))
        self.mid = _Middle(width)
        self.norm_out = nn.GroupNorm(_GROUPS, width, eps=1e-6)
        self.conv_out = CausalConv3d(width, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Shape [B, 3, T, H, W] to [B, 2Z, T', H', W']."""
        x = self.conv_in(x)
        for layer in chain.from_iterable(level.layers() for level in self.down):
            x = layer(x)
        return norm_conv(self.mid(x), self.norm_out, self.conv_out.conv).contiguous()


class VideoDecoder(nn.Module):
    """From latents to pixels.

    Every level but level 0 doubles height and width, those in `temporal_up` time as well. The frames before
    the first one are dropped: t latent frames give s(t - 1) + 1 frames, with s the stride in time.

    Args:
        in_channels: Channels of the latents.
        channels: Width of level 0.
        channel_multipliers: Width of each level in `channels`.
        num_res_blocks: Residual blocks per level, of which the decoder has one more.
        temporal_up: Levels that double time.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        channel_multipliers: Sequence[int],
        num_res_blocks: int,
        temporal_up: Sequence[int],
    ) -> None:
        super().__init__()
        width = channels * channel_multipliers[-1]
        self.conv_in = CausalConv3d(in_channels, width)
        self.mid = _Middle(width)
        levels: list[nn.Module] = []
        for i, multiplier in reversed(list(enumerate(channel_multipliers))):
            widths = [width] + [channels * multiplier] * (num_res_blocks + 1)
            blocks = [ResBlock(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)]
            width = widths[-1]
            resample = None if i == 0 else Upsample3D(width) if i in temporal_up else Upsample2D(width)
            levels.insert(0, _Level(blocks, "upsample", resample))
        self.up = nn.ModuleList(levels)
        self.norm_out = nn.GroupNorm(_GROUPS, width, eps=1e-6)
        self.conv_out = BareCausalConv3d(width, 3)
        self.surplus = 2 ** len(temporal_up) - 1

    def forward(self, z: Tensor) -> Tensor:
        """Shape [B, Z, T', H', W'] to [B, 3, T, H, W]."""
        x = self.mid(self.conv_in(z))
        for layer in chain.from_iterable(level.layers() for level in reversed(self.up)):
            x = layer(x)
        return norm_conv(x, self.norm_out, self.conv_out)[:, :, self.surplus :].contiguous()
