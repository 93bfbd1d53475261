"""Encoder and decoder of a causal video autoencoder: residual blocks, one attention, resampling by 2.

Module names are those of the published Open-Sora 1.3 weights.

Source: Rombach et al. 2022 (latent diffusion) for the layout of blocks; Open-Sora 1.3 for its causal 3D form.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from opensora.layers.attention import attention
from opensora.layers.causal_conv3d import (
    BareCausalConv3d,
    CausalConv3d,
    Downsample2D,
    Downsample3D,
    Upsample2D,
)
from opensora.layers.interfaces import Posterior
from opensora.layers.norms import make_norm
from opensora.layers.slabs import in_slabs, slab_conv, slab_refine, slab_upsample
from opensora.layers.streaming import is_first
from opensora.utils.random import Draws, ReplayDraws

ATTENTIONS = ("raster", "frame", "none")


@dataclass(frozen=True)
class Style:
    """How the layers of an autoencoder treat time.

    Args:
        norm: "clip", "frame" or "pixel", see `layers.norms`.
        attention: "raster": a token sees those before it in time, rows and columns; "frame": all of its
            frame; "none": there is no attention.
        repeat_first: Whether copies of the first frame stand before a video, not zeros.

    Raises:
        ValueError: The attention is unknown.
    """

    norm: str = "clip"
    attention: str = "raster"
    repeat_first: bool = False

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention={self.attention!r}: use one of {', '.join(ATTENTIONS)}.")

    @property
    def streams(self) -> bool:
        """Whether no layer sees later frames, and none needs all of the past."""
        return self.norm != "clip" and self.attention != "raster"

    def conv(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> CausalConv3d:
        """Return a causal convolution."""
        return CausalConv3d(in_channels, out_channels, kernel_size, repeat_first=self.repeat_first)


def silu(x: Tensor) -> Tensor:
    """Apply SiLU to a tensor that nobody else holds; in place when no gradient is recorded."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def add(own: Tensor, other: Tensor) -> Tensor:
    """Add to a tensor that nobody else holds; in place when no gradient is recorded."""
    return own + other if torch.is_grad_enabled() else own.add_(other)


def norm_conv(x: Tensor, norm: nn.Module, conv: BareCausalConv3d) -> Tensor:
    """Return `conv(silu(norm(x)))`."""
    return slab_conv(x, conv, norm) if in_slabs(x) else conv(silu(norm(x)))


def residual(
    x: Tensor,
    norm1: nn.Module,
    conv1: CausalConv3d,
    norm2: nn.Module,
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


def fold(owner: nn.Module, x: Tensor, patch: Sequence[int], repeat_first: bool = False) -> Tensor:
    """Return patches of pixels as channels; what fills no patch is cut off.

    A layer's first patch in time ends with the first frame, so nothing sees later frames.

    Args:
        owner: The layer, of which a stream remembers that it began.
        x: Shape [B, C, T, H, W].
        patch: Frames, rows and columns of a patch.
        repeat_first: Whether copies of the first frame stand before it, not zeros.

    Returns:
        Shape [B, C t h w, T', H // h, W // w], with T' = 1 + (T - 1) // t at the beginning of a video.
    """
    if max(patch) == 1:
        return x
    before = patch[0] - 1 if is_first(owner) else 0
    if repeat_first:
        x = torch.cat((x[:, :, :1].expand(-1, -1, before, -1, -1), x), dim=2)
    else:
        x = F.pad(x, (0, 0, 0, 0, before, 0))
    time, height, width = (size // side * side for size, side in zip(x.shape[2:], patch, strict=True))
    names = dict(zip("thw", patch, strict=True))
    x = x[:, :, :time, :height, :width]
    return rearrange(x, "B C (T t) (H h) (W w) -> B (C t h w) T H W", **names)


def unfold(x: Tensor, patch: Sequence[int]) -> Tensor:
    """Undo `fold`, but for frames before the first. Shape [B, C t h w, T, H, W] to [B, C, T t, H h, W w]."""
    names = dict(zip("thw", patch, strict=True))
    return rearrange(x, "B (C t h w) T H W -> B C (T t) (H h) (W w)", **names)


class ResBlock(nn.Module):
    """Two normalised causal convolutions beside a shortcut.

    Args:
        in_channels: Channels of the input, a multiple of 32.
        out_channels: Channels of the output, a multiple of 32.
        style: How layers treat time.
    """

    def __init__(self, in_channels: int, out_channels: int, style: Style = Style()) -> None:
        super().__init__()
        self.norm1 = make_norm(style.norm, in_channels)
        self.conv1 = style.conv(in_channels, out_channels)
        self.norm2 = make_norm(style.norm, out_channels)
        self.conv2 = style.conv(out_channels, out_channels)
        self.nin_shortcut = style.conv(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """Shape [B, C, T, H, W] to [B, C', T, H, W]."""
        return residual(x, self.norm1, self.conv1, self.norm2, self.conv2, self.nin_shortcut)


class CausalAttention(nn.Module):
    """Self attention with one head; a token sees those before it in raster order, or those of its frame.

    Raster order is time, rows, columns, so inside a frame a pixel does not see those below it: published
    weights need that.

    Args:
        channels: Channels of input and output, and size of the head.
        style: How layers treat time.
    """

    def __init__(self, channels: int, style: Style = Style()) -> None:
        super().__init__()
        self.in_frames = style.attention == "frame"
        self.norm = make_norm(style.norm, channels)
        self.q = CausalConv3d(channels, channels, 1)
        self.k = CausalConv3d(channels, channels, 1)
        self.v = CausalConv3d(channels, channels, 1)
        self.proj_out = CausalConv3d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape [B, C, T, H, W]."""
        h = self.norm(x)
        pattern = "(B T) 1 (H W) C" if self.in_frames else "B 1 (T H W) C"
        # Kernels that do without the N x N scores want the channels side by side.
        q, k, v = (
            rearrange(project(h), f"B C T H W -> {pattern}").contiguous()
            for project in (self.q, self.k, self.v)
        )
        h = attention(q, k, v, causal=not self.in_frames, backend="sdpa")
        h = rearrange(h, f"{pattern} -> B C T H W", T=x.shape[2], H=x.shape[3])
        return add(self.proj_out(h), x)


class PostNormBlock(nn.Module):
    """Residual block of the 3D upsampler: convolution first, then the norm.

    Args:
        channels: Channels of input and output, a multiple of 32.
        norm: Kind of the norms.
    """

    def __init__(self, channels: int, norm: str = "clip") -> None:
        super().__init__()
        self.conv1 = CausalConv3d(channels, channels)
        self.norm1 = make_norm(norm, channels, 1e-5)
        self.conv2 = CausalConv3d(channels, channels)
        self.norm2 = make_norm(norm, channels, 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Shape [B, C, T, H, W]."""
        h = self.norm2(self.conv2(silu(self.norm1(self.conv1(x)))))
        return silu(add(h, x))


class Upsample3D(nn.Module):
    """Double time, height and width, then refine.

    Args:
        channels: Channels of input and output, a multiple of 32.
        norm: Kind of the norms.
    """

    def __init__(self, channels: int, norm: str = "clip") -> None:
        super().__init__()
        self.conv3d = PostNormBlock(channels, norm)

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
    """Blocks of one resolution, then changes of resolution by name."""

    def __init__(self, blocks: Sequence[nn.Module], resamples: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.resamples = list(resamples)
        for name, module in resamples.items():
            self.add_module(name, module)

    def layers(self) -> list[nn.Module]:
        # The network runs layers, not levels, so that a level's input is not kept until its end.
        return [*self.block, *(self.get_submodule(name) for name in self.resamples)]


class _Middle(nn.Module):
    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, style)
        self.attn_1 = nn.Identity() if style.attention == "none" else CausalAttention(channels, style)
        self.block_2 = ResBlock(channels, channels, style)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


def _res_blocks(width: int, to: int, count: int, style: Style) -> list[nn.Module]:
    widths = [width] + [to] * count
    return [ResBlock(a, b, style) for a, b in zip(widths[:-1], widths[1:], strict=True)]


def patch_code(patch: Sequence[int], count: int) -> Tensor:
    """Return the orthonormal linear code of patches that loses least of a typical video.

    Typical is that neighbours are alike: values that are n places apart correlate with 0.9^n, or 0.95^n in
    time, and colours with 0.2. The code is made of the strongest eigenvectors of these correlations.

    Args:
        patch: Frames, rows and columns.
        count: Numbers per patch.

    Returns:
        Shape [count, 3 t h w], channels first.

    Raises:
        ValueError: A patch has fewer values than that.

    Source: Karhunen-Loeve transform of a separable first-order Markov process (Jain 1989, section 5.6).
    """
    if count > 3 * math.prod(patch):
        raise ValueError(
            f"latent_channels={count}: patches of {tuple(patch)} have {3 * math.prod(patch)} values."
        )
    color = torch.tensor([[1, 1, 1], [1, -1, 0], [1, 1, -2]], dtype=torch.float64)
    values, vectors = [torch.tensor([1.4, 0.8, 0.8])], [F.normalize(color).T]
    for size, alike in zip(patch, (0.95, 0.9, 0.9), strict=True):
        place = torch.arange(size, dtype=torch.float64)
        found = torch.linalg.eigh(alike ** (place[:, None] - place).abs())
        values.append(found[0])
        vectors.append(found[1] * found[1][0].sign())  # a solver is free to turn them round
    strength = torch.einsum("a,b,c,d->abcd", *(value.double() for value in values)).flatten()
    code = torch.einsum("ia,jb,kc,ld->abcdijkl", *vectors).flatten(4).flatten(0, 3)
    return code[strength.argsort(descending=True, stable=True)[:count]].float()


def _shortcut(inputs: int, outputs: int, conv_out: nn.Module) -> CausalConv3d:
    """Return a linear map beside a network, whose last layer starts at 0: it learns what the map misses."""
    nn.init.zeros_(conv_out.weight)
    shortcut = CausalConv3d(inputs, outputs, 1)
    nn.init.zeros_(shortcut.conv.weight)
    nn.init.zeros_(shortcut.conv.bias)
    return shortcut


class Encoder(nn.Module):
    """From pixels to the moments of the latents, level by level.

    Args:
        out_channels: Channels of the output, mean and logarithm of the variance together.
        channels: Channels before level 0.
        widths: Channels of each level.
        num_res_blocks: Residual blocks per level.
        resamples: For each level the layers behind its blocks, by name.
        style: How layers treat time.
        patch_size: Frames, rows and columns that are folded into channels first.
        shortcut: Whether a linear map of each patch is added to the output. There is one level then.
    """

    def __init__(
        self,
        out_channels: int,
        channels: int,
        widths: Sequence[int],
        num_res_blocks: int,
        resamples: Sequence[Mapping[str, nn.Module]],
        style: Style,
        patch_size: Sequence[int] = (1, 1, 1),
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size = tuple(patch_size)
        self.conv_in = style.conv(3 * math.prod(patch_size), channels)
        self.down = nn.ModuleList(
            _Level(_res_blocks(width, to, num_res_blocks, style), layers)
            for width, to, layers in zip([channels, *widths[:-1]], widths, resamples, strict=True)
        )
        self.mid = _Middle(widths[-1], style)
        self.norm_out = make_norm(style.norm, widths[-1])
        self.conv_out = style.conv(widths[-1], out_channels)
        self.shortcut = None
        if shortcut:
            code = patch_code(patch_size, out_channels // 2)
            self.shortcut = _shortcut(code.shape[1], out_channels, self.conv_out.conv)
            self.shortcut.conv.weight.data[: len(code)] = code[..., None, None, None]  # mean, not variance

    def forward(self, x: Tensor) -> Tensor:
        """Shape [B, 3, T, H, W] to [B, 2Z, T', H', W']."""
        patches = fold(self, x, self.patch_size, self.shortcut is not None)
        x = self.conv_in(patches)
        for layer in chain.from_iterable(level.layers() for level in self.down):
            x = layer(x)
        x = norm_conv(self.mid(x), self.norm_out, self.conv_out.conv)
        return (x if self.shortcut is None else add(x, self.shortcut(patches))).contiguous()


class Decoder(nn.Module):
    """From latents to pixels, level by level from the last to the first.

    Args:
        in_channels: Channels of the latents.
        widths: Channels of each level.
        num_res_blocks: Residual blocks per level, of which the decoder has one more.
        resamples: For each level the layers behind its blocks, by name.
        surplus: Frames that are dropped at the beginning of a video.
        style: How layers treat time.
        patch_size: Frames, rows and columns that are unfolded from channels last.
        shortcut: Whether a linear map of each place is added to its patch. There is one level then.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        num_res_blocks: int,
        resamples: Sequence[Mapping[str, nn.Module]],
        surplus: int,
        style: Style,
        patch_size: Sequence[int] = (1, 1, 1),
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.conv_in = style.conv(in_channels, widths[-1])
        self.mid = _Middle(widths[-1], style)
        self.up = nn.ModuleList(
            _Level(_res_blocks(width, to, num_res_blocks + 1, style), layers)
            for width, to, layers in zip([*widths[1:], widths[-1]], widths, resamples, strict=True)
        )
        self.norm_out = make_norm(style.norm, widths[0])
        pixels = 3 * math.prod(patch_size)
        self.conv_out = BareCausalConv3d(widths[0], pixels, repeat_first=style.repeat_first)
        self.shortcut = None
        if shortcut:
            self.shortcut = _shortcut(in_channels, pixels, self.conv_out)
            self.shortcut.conv.weight.data[:] = patch_code(patch_size, in_channels).T[..., None, None, None]
        self.surplus, self.patch_size = surplus, tuple(patch_size)

    def forward(self, z: Tensor) -> Tensor:
        """Shape [B, Z, T', H', W'] to [B, 3, T, H, W]."""
        x = self.mid(self.conv_in(z))
        for layer in chain.from_iterable(level.layers() for level in reversed(self.up)):
            x = layer(x)
        x = norm_conv(x, self.norm_out, self.conv_out)
        x = unfold(x if self.shortcut is None else add(x, self.shortcut(z)), self.patch_size)
        return x[:, :, self.surplus if is_first(self) else 0 :].contiguous()


class VideoEncoder(Encoder):
    """The encoder of 1.3. Every level but the last halves height and width, some time as well.

    Args:
        out_channels: Channels of the output, mean and logarithm of the variance together.
        channels: Width of level 0.
        channel_multipliers: Width of each level in `channels`.
        num_res_blocks: Residual blocks per level.
        temporal_down: Levels that halve time.
        style: How layers treat time.
        patch_size: Frames, rows and columns that are folded into channels first.
        shortcut: Whether a linear map of each patch is added to the output.
    """

    def __init__(
        self,
        out_channels: int,
        channels: int,
        channel_multipliers: Sequence[int],
        num_res_blocks: int,
        temporal_down: Sequence[int],
        style: Style = Style(),
        patch_size: Sequence[int] = (1, 1, 1),
        shortcut: bool = False,
    ) -> None:
        widths = [channels * multiplier for multiplier in channel_multipliers]
        resamples = [
            {"downsample": Downsample3D(width) if i in temporal_down else Downsample2D(width)}
            for i, width in enumerate(widths[:-1])
        ]
        levels = [*resamples, {}]
        super().__init__(out_channels, channels, widths, num_res_blocks, levels, style, patch_size, shortcut)


class VideoDecoder(Decoder):
    """The decoder of 1.3. Every level but level 0 doubles height and width, some time as well.

    The frames before the first one are dropped: t latent frames give s(t - 1) + 1 frames, with s the stride
    in time.

    Args:
        in_channels: Channels of the latents.
        channels: Width of level 0.
        channel_multipliers: Width of each level in `channels`.
        num_res_blocks: Residual blocks per level, of which the decoder has one more.
        temporal_up: Levels that double time.
        style: How layers treat time.
        patch_size: Frames, rows and columns that are unfolded from channels last.
        shortcut: Whether a linear map of each patch is added to the output.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        channel_multipliers: Sequence[int],
        num_res_blocks: int,
        temporal_up: Sequence[int],
        style: Style = Style(),
        patch_size: Sequence[int] = (1, 1, 1),
        shortcut: bool = False,
    ) -> None:
        widths = [channels * multiplier for multiplier in channel_multipliers]
        resamples = [
            {"upsample": Upsample3D(width, style.norm) if i in temporal_up else Upsample2D(width)}
            for i, width in enumerate(widths)
        ]
        surplus = patch_size[0] * 2 ** len(temporal_up) - 1
        levels = [{}, *resamples[1:]]
        super().__init__(in_channels, widths, num_res_blocks, levels, surplus, style, patch_size, shortcut)
