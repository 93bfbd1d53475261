"""TemporalVAE: a causal autoencoder along time only, for the latents of a 2D autoencoder; 4x fewer frames.

Source: Yu et al. 2023 (MAGVIT-2) for the layout; Open-Sora 1.2 (its published weights load unchanged).
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from opensora.layers.causal_conv3d import CausalConv3d
from opensora.layers.checks import check_length, check_video
from opensora.layers.interfaces import Posterior, Reconstruction
from opensora.layers.vae_blocks import draw_latents, norm_conv, residual
from opensora.registry import MODELS
from opensora.utils.random import Draws, ReplayDraws


@MODELS.register_module()
class TemporalVAE(nn.Module):
    """Temporal autoencoder. Its "video" is what another autoencoder made of one.

    A clip is filled up in front with zero frames to a multiple of the stride, so every length is legal.

    Args:
        in_channels: Channels of its video.
        latent_channels: Channels inside, before `quant_conv` and after `post_quant_conv`.
        embed_channels: Channels of the latents.
        channels: Width of level 0.
        num_res_blocks: Residual blocks per level.
        channel_multipliers: Width of each level in `channels`.
        temporal_down: For every level but the last, whether time is halved after it.
        num_groups: Groups of the group norms.
        initial_logvar: As for `VideoVAE`.

    Raises:
        ValueError: `temporal_down` does not fit the number of levels.
    """

    def __init__(
        self,
        in_channels: int = 4,
        latent_channels: int = 4,
        embed_channels: int = 4,
        channels: int = 128,
        num_res_blocks: int = 4,
        channel_multipliers: Sequence[int] = (1, 2, 2, 4),
        temporal_down: Sequence[bool] = (False, True, True),
        num_groups: int = 32,
        initial_logvar: float = 0.0,
    ) -> None:
        super().__init__()
        if len(temporal_down) != len(channel_multipliers) - 1:
            raise ValueError(
                f"temporal_down={tuple(temporal_down)}: expected {len(channel_multipliers) - 1} entries,"
                " one for each of channel_multipliers but the last."
            )
        self.in_channels = in_channels
        self.latent_channels = embed_channels  # the contract's word for the channels of `encode`'s result
        self.stride = (2 ** sum(map(bool, temporal_down)), 1, 1)
        self.latent_mean = 0.0
        self.latent_std = 1.0
        widths = [channels * multiplier for multiplier in channel_multipliers]
        self.encoder = _Encoder(
            in_channels, 2 * latent_channels, widths, num_res_blocks, temporal_down, num_groups
        )
        self.quant_conv = CausalConv3d(2 * latent_channels, 2 * embed_channels, 1)
        with torch.no_grad():
            self.quant_conv.conv.bias[embed_channels:] += initial_logvar
        self.post_quant_conv = CausalConv3d(embed_channels, latent_channels, 1)
        self.decoder = _Decoder(
            in_channels, latent_channels, widths, num_res_blocks, temporal_down, num_groups
        )

    @property
    def last_layer(self) -> Tensor:
        """The weight that makes its video."""
        return self.decoder.conv_out.conv.weight

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the size (T, H, W) of the latents of a clip; height and width stay.

        Raises:
            ValueError: The clip has no frames.
        """
        check_length(num_frames)
        return -(-num_frames // self.stride[0]), height, width

    def legal_length(self, num_frames: int) -> int:
        """Return `num_frames`: every length comes back.

        Raises:
            ValueError: It is below 1.
        """
        check_length(num_frames)
        return num_frames

    def posterior(self, video: Tensor) -> Posterior:
        """Return the distribution of the latents.

        Args:
            video: Shape [B, C, T, H, W].

        Returns:
            float32 moments. Shape [B, Z, T', H, W].
        """
        check_video("video", video, self.in_channels)
        fill = -video.shape[2] % self.stride[0]
        x = F.pad(video, (0, 0, 0, 0, fill, 0)).to(self.quant_conv.conv.weight.dtype)
        mean, logvar = self.quant_conv(self.encoder(x)).float().chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))

    def normalize(self, z: Tensor) -> Tensor:
        """Return `z`: this autoencoder has no statistics of its own."""
        return z

    def denormalize(self, z: Tensor) -> Tensor:
        """Return `z`."""
        return z

    def encode(self, video: Tensor, draws: Draws | ReplayDraws | None = None) -> Tensor:
        """Return latents.

        Args:
            video: Shape [B, C, T, H, W].
            draws: Makes the noise of a sample ("posterior"); None takes the mean of the posterior.

        Returns:
            float32. Shape [B, Z, T', H, W].
        """
        return draw_latents(self.posterior(video), draws)

    def decode(self, z: Tensor, num_frames: int | None = None) -> Tensor:
        """Return the video of latents; surplus frames are dropped in front, where encoding filled up.

        Args:
            z: Shape [B, Z, T', H, W].
            num_frames: Length of the clip that was encoded. None drops nothing.

        Returns:
            float32. Shape [B, C, T, H, W].

        Raises:
            ValueError: A clip of `num_frames` has another number of latent frames.
        """
        check_video("z", z, self.latent_channels)
        stride, frames = self.stride[0], z.shape[2]
        if num_frames is None:
            num_frames = stride * frames
        if not stride * (frames - 1) < num_frames <= stride * frames:
            raise ValueError(
                f"num_frames={num_frames}: {frames} latent frames are a clip of {stride * (frames - 1) + 1}"
                f" to {stride * frames} frames."
            )
        x = self.decoder(self.post_quant_conv(z.to(self.quant_conv.conv.weight.dtype)))
        return x[:, :, stride * frames - num_frames :].float()

    def decode_stream(self, z: Tensor, num_frames: int | None = None) -> Iterator[Tensor]:
        """Yield `decode` in one part: its norms see all frames."""
        yield self.decode(z, num_frames)

    def forward(self, video: Tensor, draws: Draws | ReplayDraws | None = None) -> Reconstruction:
        """Encode and decode. Arguments as for `encode`."""
        posterior = self.posterior(video)
        z = draw_latents(posterior, draws)
        return Reconstruction(self.decode(z, video.shape[2]), z, posterior.kl())


class _ResBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, bias=False)
        self.norm2 = nn.GroupNorm(num_groups, out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, bias=False)
        same = in_channels == out_channels
        self.conv3 = None if same else CausalConv3d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return residual(x, self.norm1, self.conv1, self.norm2, self.conv2, self.conv3)


def _res_blocks(in_channels: int, out_channels: int, count: int, num_groups: int) -> nn.Sequential:
    widths = [in_channels] + [out_channels] * count
    return nn.Sequential(*(_ResBlock(a, b, num_groups) for a, b in zip(widths[:-1], widths[1:], strict=True)))


class _Encoder(nn.Module):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        num_res_blocks: int,
        temporal_down: Sequence[bool],
        num_groups: int,
    ) -> None:
        super().__init__()
        self.conv_in = CausalConv3d(in_channels, widths[0], bias=False)
        inputs = [widths[0], *widths[:-1]]
        pairs = list(zip(inputs, widths, strict=True))
        self.block_res_blocks = nn.ModuleList(
            [_res_blocks(a, b, num_res_blocks, num_groups) for a, b in pairs]
        )
        self.conv_blocks = nn.ModuleList(
            # one zero frame in front: the clip is a multiple of the stride, so frames pair up from the end
            CausalConv3d(width, width, 3, stride=(2, 1, 1), front=1) if down else nn.Identity()
            for width, down in zip(widths[:-1], temporal_down, strict=True)
        )
        self.res_blocks = _res_blocks(widths[-1], widths[-1], num_res_blocks, num_groups)
        self.norm1 = nn.GroupNorm(num_groups, widths[-1])
        self.conv2 = CausalConv3d(widths[-1], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for i, blocks in enumerate(self.block_res_blocks):
            x = blocks(x)
            if i < len(self.conv_blocks):
                x = self.conv_blocks[i](x)
        return norm_conv(self.res_blocks(x), self.norm1, self.conv2.conv)


class _Decoder(nn.Module):
    def __init__(
        self,
        out_channels: int,
        in_channels: int,
        widths: Sequence[int],
        num_res_blocks: int,
        temporal_down: Sequence[bool],
        num_groups: int,
    ) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(in_channels, widths[-1])
        self.res_blocks = _res_blocks(widths[-1], widths[-1], num_res_blocks, num_groups)
        inputs = [*widths[1:], widths[-1]]
        pairs = list(zip(inputs, widths, strict=True))
        self.block_res_blocks = nn.ModuleList(
            [_res_blocks(a, b, num_res_blocks, num_groups) for a, b in pairs]
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, 2 * width) if down else nn.Identity()
            for width, down in zip(widths[1:], temporal_down, strict=True)
        )
        self.norm1 = nn.GroupNorm(num_groups, widths[0])
        self.conv_out = CausalConv3d(widths[0], out_channels)
        self.temporal_down = tuple(temporal_down)

    def forward(self, z: Tensor) -> Tensor:
        x = self.res_blocks(self.conv1(z))
        for i in reversed(range(len(self.block_res_blocks))):
            x = self.block_res_blocks[i](x)
            if i > 0:
                x = self.conv_blocks[i - 1](x)
                if self.temporal_down[i - 1]:
                    x = rearrange(x, "B (C two) T H W -> B C (T two) H W", two=2)
        return norm_conv(x, self.norm1, self.conv_out.conv)
