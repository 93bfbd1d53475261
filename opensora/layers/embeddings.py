"""Embeddings of patches, times, sizes and positions."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class PatchEmbed3D(nn.Module):
    """Cut a video into patches and project each; sizes that do not divide are padded with zeros on the right.

    Args:
        patch_size: Frames, rows and columns of a patch.
        in_channels: Channels of the video.
        dim: Width of a token.
    """

    def __init__(self, patch_size: tuple[int, int, int], in_channels: int, dim: int) -> None:
        super().__init__()
        self.patch_size = tuple(patch_size)
        self.proj = nn.Conv3d(in_channels, dim, kernel_size=self.patch_size, stride=self.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, T, H, W] to [B, N, D], tokens in (T, H, W) order."""
        pad = [-size % patch for size, patch in zip(x.shape[2:], self.patch_size, strict=True)]
        if any(pad):
            x = F.pad(x, (0, pad[2], 0, pad[1], 0, pad[0]))
        t, h, w = self.patch_size
        # A convolution whose stride is its kernel is one matrix product.
        x = rearrange(x, "B C (T t) (H h) (W w) -> B (T H W) (C t h w)", t=t, h=h, w=w)
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


def unpatchify(x: Tensor, patch_size: tuple[int, int, int], size: tuple[int, int, int]) -> Tensor:
    """Put patches back in place and crop what was padded.

    Args:
        x: Shape [B, T, H * W, t * h * w * C], channels last in a patch.
        patch_size: Frames, rows and columns of a patch.
        size: Frames, rows and columns of the video.

    Returns:
        Shape [B, C, *size].
    """
    t, h, w = patch_size
    rows = math.ceil(size[1] / h)
    x = rearrange(x, "B T (H W) (t h w C) -> B C (T t) (H h) (W w)", H=rows, t=t, h=h, w=w)
    return x[:, :, : size[0], : size[1], : size[2]]


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Embed numbers as cosines and sines: `concat(cos(t f), sin(t f))`, `f_i = max_period^(-i / half)`.

    Args:
        t: Any numbers. Shape [N].
        dim: Width; an odd one gets a last column of zeros.
        max_period: Longest wavelength over 2 pi.

    Returns:
        float32, shape [N, dim].

    Source: Ho et al. 2020, appendix B, with cosines first.
    """
    half = dim // 2
    freqs = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[:, None].float() * freqs
    return F.pad(torch.cat((angles.cos(), angles.sin()), dim=-1), (0, dim % 2))


class TimestepEmbedder(nn.Module):
    """A number to a vector: sines of width 256, then Linear, SiLU, Linear.

    Args:
        hidden_size: Width of the vector.
    """

    def __init__(self, hidden_size: int, width: int = 256) -> None:
        super().__init__()
        self.width = width
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, t: Tensor) -> Tensor:
        """Map [N] to [N, D] in the dtype of the weights."""
        return self.mlp(timestep_embedding(t, self.width).to(self.mlp[0].weight.dtype))


class SizeEmbedder(TimestepEmbedder):
    """Numbers such as fps or height to vectors, by the same network as times."""

    def forward(self, size: Tensor) -> Tensor:
        """Map [B] to [B, D], or d numbers a sample, [B, d], to [B, d * D]."""
        return super().forward(size.flatten()).view(size.shape[0], -1)


def position_embedding_2d(
    dim: int,
    size: tuple[int, int],
    scale: float = 1.0,
    base_size: int | None = None,
    *,
    device: torch.device | None = None,
    compat_bf16: bool = False,
) -> Tensor:
    """Make the sine-cosine table of a grid.

    The first half of the channels tells the column, the second the row.

    Args:
        dim: Width, divisible by 4.
        size: Rows and columns.
        scale: Positions are divided by it.
        base_size: With it, positions are also multiplied by `base_size / size`, so that grids of all shapes
            span the same range.
        device: Where the table is made.
        compat_bf16: Round the frequencies to bfloat16, as the published code did.

    Returns:
        float32, shape [1, rows * columns, dim].

    Raises:
        ValueError: `dim` is not divisible by 4.
    """
    if dim % 4:
        raise ValueError(f"position embedding of width {dim}: it must be divisible by 4; change hidden_size.")
    quarter = dim // 4
    freqs = 1.0 / (
        10000.0 ** (torch.arange(0, 2 * quarter, 2, dtype=torch.float32, device=device) / (2 * quarter))
    )
    if compat_bf16:
        freqs = freqs.bfloat16().float()
    halves = []
    for length in size:
        positions = torch.arange(length, dtype=torch.float32, device=device) / scale
        if base_size is not None:
            positions = positions * (base_size / length)
        angles = positions[:, None] * freqs
        halves.append(torch.cat((angles.sin(), angles.cos()), dim=-1))  # [length, dim / 2]
    rows, columns = halves
    table = torch.cat((columns[None].expand(size[0], -1, -1), rows[:, None].expand(-1, size[1], -1)), dim=-1)
    return table.reshape(1, -1, dim)
