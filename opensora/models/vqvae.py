"""VQVAE: a video autoencoder whose latents are vectors of a codebook, with axial attention.

Source: Yan et al. 2021 (VideoGPT), appendix A; Ho et al. 2019 for axial attention.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from opensora.layers.attention import SelfAttention
from opensora.layers.autoencoder import Pieces, Statistics, VideoAutoencoder
from opensora.layers.causal_conv3d import CausalConv3d
from opensora.layers.checks import check_length, check_video
from opensora.layers.codebook import Codebook
from opensora.layers.interfaces import Reconstruction
from opensora.layers.norms import make_norm
from opensora.layers.streaming import is_first
from opensora.layers.windows import plan_windows
from opensora.registry import MODELS

_AXES = ((1, 1, -1), (1, -1, 1), (-1, 1, 1))  # windows along width, height and time

Steps = tuple[int, int, int]


@MODELS.register_module()
class VQVAE(VideoAutoencoder):
    """Autoencoder with discrete latents.

    As published a clip is filled up in front with copies of its first frame to a multiple of the stride, and
    every layer sees all of it. The causal form treats the first frame alone, as `VideoVAE` does, attends
    inside frames only, and is causal as a whole.

    Args:
        latent_channels: Length of the codebook's vectors.
        num_codes: Number of them.
        channels: Width of the network.
        num_res_layers: Residual blocks of encoder and decoder each.
        downsample: Strides of frames, rows and columns, powers of 2; the last two equal.
        num_heads: Heads of the attention.
        causal: The causal form.
        norm: "batch", as published; "frame" or "pixel" (see `VideoVAE`), which the causal form needs.
        decay: Of the codebook's moving averages, per step.
        commitment: Weight of the distance of latents to their vectors.
        micro_batch_size: As for `VideoVAE`.
        micro_frame_size: As for `VideoVAE`; for the causal form.
        spatial_tile: As for `VideoVAE`.
        spatial_overlap: As for `VideoVAE`.
        latent_mean: As for `VideoVAE`.
        latent_std: As for `VideoVAE`.

    Raises:
        ValueError: Settings do not fit each other.
    """

    def __init__(
        self,
        latent_channels: int = 256,
        num_codes: int = 2048,
        channels: int = 240,
        num_res_layers: int = 4,
        downsample: Sequence[int] = (4, 4, 4),
        num_heads: int = 2,
        causal: bool = False,
        norm: str = "batch",
        decay: float = 0.99,
        commitment: float = 0.25,
        micro_batch_size: int | None = None,
        micro_frame_size: int | None = None,
        spatial_tile: int | None = None,
        spatial_overlap: int = 8,
        latent_mean: Statistics | None = None,
        latent_std: Statistics | None = None,
    ) -> None:
        if any(n < 1 or n & (n - 1) for n in downsample) or downsample[1] != downsample[2]:
            raise ValueError(
                f"downsample={tuple(downsample)}: use powers of 2, and one for height and width."
            )
        if causal and norm not in ("frame", "pixel"):
            raise ValueError(f"causal=True, norm={norm!r}: it sees later frames; use 'pixel' or 'frame'.")
        if not causal and micro_frame_size is not None:
            raise ValueError("micro_frame_size: only the causal form runs in chunks; set it to None.")
        pieces = Pieces(micro_batch_size, micro_frame_size, False, spatial_tile, spatial_overlap)
        super().__init__(latent_channels, tuple(downsample), causal, pieces, latent_mean, latent_std)
        self.commitment = commitment
        halvings = [n.bit_length() - 1 for n in downsample]
        strides = [tuple(2 if i < n else 1 for n in halvings) for i in range(max(halvings))]
        block = dict(channels=channels, num_heads=num_heads, causal=causal, norm=norm)
        self.encoder = _Encoder(latent_channels, strides, num_res_layers, block)
        self.codebook = Codebook(num_codes, latent_channels, decay)
        self.decoder = _Decoder(latent_channels, strides[::-1], num_res_layers, block)

    @property
    def last_layer(self) -> Tensor:
        """The weight that makes pixels."""
        return self.decoder.ups[-1].weight

    def legal_length(self, num_frames: int) -> int:
        """Return the largest length, not above `num_frames`, that comes back: any, unless it is causal.

        Raises:
            ValueError: It is below 1.
        """
        check_length(num_frames)
        return super().legal_length(num_frames) if self.streams else num_frames

    def encode(self, video: Tensor, draws: Any = None) -> Tensor:
        """Return normalised latents, which are vectors of the codebook.

        Args:
            video: Shape [B, 3, T, H, W], in [-1, 1].
            draws: Not used: nothing is drawn.

        Returns:
            float32. Shape [B, Z, T', H', W'].
        """
        return self.normalize(self._latents(self._encoded(video)))

    def encode_codes(self, video: Tensor) -> Tensor:
        """Return the numbers of the latents' vectors. Shape [B, 3, T, H, W] to int64 [B, T', H', W']."""
        return self.codebook.codes(self._encoded(video))

    def decode_codes(self, codes: Tensor, num_frames: int | None = None) -> Tensor:
        """Return the video of codes; see `decode`. Shape [B, T', H', W'] to [B, 3, T, H, W]."""
        return self.decode(self.normalize(self.codebook.look_up(codes)), num_frames)

    def decode_stream(self, z: Any, num_frames: int | None = None) -> Iterator[Tensor]:
        """Yield the parts of `decode`; one part, unless it is causal. See `VideoAutoencoder`."""
        if self.streams:
            yield from super().decode_stream(z, num_frames)
            return
        check_video("z", z, self.latent_channels)
        longest = self.stride[0] * z.shape[2]
        num_frames = longest if num_frames is None else num_frames
        if not longest - self.stride[0] < num_frames <= longest:
            raise ValueError(
                f"num_frames={num_frames}: {z.shape[2]} latent frames are a clip of "
                f"{longest - self.stride[0] + 1} to {longest} frames."
            )
        video = self._run(self._decode, self.denormalize(z), (1, self.stride[1]), None)
        yield video[:, :, longest - num_frames :].to(torch.promote_types(video.dtype, torch.float32))

    def forward(self, video: Tensor, draws: Any = None) -> Reconstruction:
        """Encode and decode, with the distance to the codebook as regularizer, and its perplexity."""
        z, distance, perplexity = self.codebook(self._encoded(video))
        frames = None if self.streams else video.shape[2]
        z = self.normalize(z)
        report = {"perplexity": perplexity}
        return Reconstruction(self.decode(z, frames), z, self.commitment * distance, report=report)

    def _encode(self, video: Tensor) -> Tensor:
        fill = 0 if self.streams else -video.shape[2] % self.stride[0]
        return self.encoder(torch.cat((video[:, :, :1].expand(-1, -1, fill, -1, -1), video), dim=2))

    def _latents(self, encoded: Tensor) -> Tensor:
        return self.codebook.look_up(self.codebook.codes(encoded))

    def _latent_length(self, num_frames: int) -> int:
        return super()._latent_length(num_frames) if self.streams else -(-num_frames // self.stride[0])


class _Encoder(nn.Module):
    def __init__(
        self,
        out_channels: int,
        strides: Sequence[tuple[int, ...]],
        num_res_layers: int,
        block: dict[str, Any],
    ) -> None:
        super().__init__()
        channels, causal = block["channels"], block["causal"]
        self.downs = nn.ModuleList(
            _conv(channels if i else 3, channels, stride, causal) for i, stride in enumerate(strides)
        )
        self.conv_last = _conv(channels if strides else 3, channels, (1, 1, 1), causal)
        self.res = nn.Sequential(*(_ResBlock(**block) for _ in range(num_res_layers)))
        self.norm = _norm(block["norm"], channels)
        self.conv_out = nn.Conv3d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        for down in self.downs:
            x = F.relu(down(x))
        return self.conv_out(F.relu(self.norm(self.res(self.conv_last(x)))))


class _Decoder(nn.Module):
    def __init__(
        self, in_channels: int, strides: Sequence[Steps], num_res_layers: int, block: dict[str, Any]
    ) -> None:
        super().__init__()
        channels = block["channels"]
        self.conv_in = nn.Conv3d(in_channels, channels, 1)
        self.res = nn.Sequential(*(_ResBlock(**block) for _ in range(num_res_layers)))
        self.norm = _norm(block["norm"], channels)
        up = _CausalUp if block["causal"] else _Up
        strides = [*strides] or [(1, 1, 1)]
        self.ups = nn.ModuleList(
            up(channels, channels if i + 1 < len(strides) else 3, stride) for i, stride in enumerate(strides)
        )
        self.surplus = 2 ** sum(stride[0] == 2 for stride in strides) - 1 if block["causal"] else 0

    def forward(self, z: Tensor) -> Tensor:
        x = F.relu(self.norm(self.res(self.conv_in(z))))
        for i, up in enumerate(self.ups):
            x = up(F.relu(x) if i else x)
        return x[:, :, self.surplus if is_first(self) else 0 :]


class _Up(nn.ConvTranspose3d):
    def __init__(self, in_channels: int, out_channels: int, stride: Steps) -> None:
        super().__init__(in_channels, out_channels, tuple(s + 2 for s in stride), stride, 1)


class _CausalUp(CausalConv3d):
    def __init__(self, in_channels: int, out_channels: int, stride: Steps) -> None:
        super().__init__(in_channels, out_channels)
        self.stride = stride

    @property
    def weight(self) -> Tensor:
        return self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        for axis, factor in enumerate(self.stride, start=2):
            x = x if factor == 1 else x.repeat_interleave(factor, dim=axis)
        return super().forward(x)


class _ResBlock(nn.Module):
    """Two convolutions and attention along the axes, beside a shortcut."""

    def __init__(self, channels: int, num_heads: int, causal: bool, norm: str) -> None:
        super().__init__()
        half = channels // 2
        self.norm1, self.norm2, self.norm3 = (_norm(norm, n) for n in (channels, half, channels))
        self.conv1 = _conv(channels, half, (1, 1, 1), causal, bias=False)
        self.conv2 = nn.Conv3d(half, channels, 1, bias=False)
        self.windows = _AXES[:2] if causal else _AXES
        self.attention = nn.ModuleList(
            SelfAttention(channels, num_heads, qkv_bias=False) for _ in self.windows
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.relu(self.norm1(x)))
        h = F.relu(self.norm3(self.conv2(F.relu(self.norm2(h)))))
        grid = tuple(h.shape[2:])
        h = rearrange(h, "B C T H W -> B (T H W) C")
        h = sum(
            attend(h, plan_windows(grid, window))
            for attend, window in zip(self.attention, self.windows, strict=True)
        )
        return x + rearrange(h, "B (T H W) C -> B C T H W", T=grid[0], H=grid[1])


def _norm(kind: str, channels: int) -> nn.Module:
    return nn.BatchNorm3d(channels) if kind == "batch" else make_norm(kind, channels)


def _conv(in_channels: int, out_channels: int, stride: Steps, causal: bool, bias: bool = True) -> nn.Module:
    """A kernel of 4 where it halves and of 3 elsewhere: with one value on both sides, sizes halve or stay."""
    kernel = tuple(s + 2 for s in stride)
    if not causal:
        return nn.Conv3d(in_channels, out_channels, kernel, stride, 1, bias=bias)
    layer = CausalConv3d(in_channels, out_channels, kernel, stride, bias)
    layer.conv.pads = (layer.conv.pads[0], (1, 1), (1, 1))
    return layer
