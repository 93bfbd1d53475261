"""VideoVAE: one causal network from pixels to latents and back, 4x in time and 8x in height and width.

Source: Open-Sora 1.3 (its published weights load unchanged); Rombach et al. 2022 for the layout.
"""

from collections.abc import Sequence

import torch

from opensora.layers.autoencoder import GaussianAutoencoder, Pieces, Statistics
from opensora.layers.causal_conv3d import set_micro_batch_2d, set_tiling
from opensora.layers.vae_blocks import Style, VideoDecoder, VideoEncoder
from opensora.registry import MODELS


@MODELS.register_module()
class VideoVAE(GaussianAutoencoder):
    """Causal video autoencoder.

    As published (`norm="clip"`, `attention="raster"`) layers see the whole clip; long clips are coded in
    chunks of frames that know nothing of each other. With `norm="pixel"` or "frame" and `attention="frame"`
    or "none" it is causal as a whole: chunks continue each other, so they give what one piece gives.

    Memory settings (`micro_batch_size`, `micro_batch_size_2d`, tiles) leave results as they are. On the CPU
    without gradients only the first has an effect: layers take a few frames at a time anyway. Chunks do
    change results: the denoiser must be trained and used with the same `micro_frame_size` and
    `temporal_overlap`.

    Args:
        latent_channels: Channels of the latents.
        channels: Width of level 0, a multiple of 32.
        channel_multipliers: Width of each level in `channels`; all levels but one halve height and width.
        num_res_blocks: Residual blocks per level of the encoder; the decoder has one more.
        temporal_down: Levels of the encoder that halve time.
        temporal_up: Levels of the decoder that double time; as many.
        micro_batch_size: Clips per call of encoder or decoder; None is the whole batch.
        micro_batch_size_2d: Frames per call of a 2D layer; None is all.
        micro_frame_size: Frames per chunk, 4k + 1 for a stride of 4; None codes a clip in one piece.
        temporal_overlap: Neighbouring chunks share one frame; decoding averages its two versions.
        spatial_tile: Height and width of a spatial tile in latent cells; None is no tiles.
        spatial_overlap: Cells that neighbouring tiles share; the result changes over within them.
        tile_size: Length of a convolution's tile; None is no tiles.
        tile_axis: Axis of the tiles: 2 time, 3 height, 4 width, None the longest.
        num_tiles: Number of tiles; wins over `tile_size`.
        latent_mean: Mean of each latent channel, subtracted by `encode`. Either Z numbers, or Z lists of P
            numbers, one for each of P latent frames, which repeat along time. None is 0.
        latent_std: Standard deviation, likewise. None is 1.
        norm: "clip": over 32 groups of channels and the whole clip, as published; "frame": each frame by
            itself; "pixel": over the channels of each place.
        attention: "raster": as published; "frame": inside each frame; "none".
        initial_logvar: Added to the posterior's log variance before training. -5 starts nearly deterministic,
            which small models learn faster from.
        patch_size: Frames, rows and columns of pixels that are folded into channels before the first layer
            and unfolded behind the last: several times faster than levels, for small models.
        patch_shortcut: Whether linear maps of patches to latents and back stand beside the networks, which
            then learn only what such maps miss. They start as the best linear code of a typical video, so
            that a new model gives back a rough picture. Needs a `patch_size`, and one level.

    Raises:
        ValueError: The levels, patches or statistics do not fit each other.
    """

    def __init__(
        self,
        latent_channels: int = 16,
        channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        temporal_down: Sequence[int] = (1, 2),
        temporal_up: Sequence[int] = (2, 3),
        micro_batch_size: int | None = 1,
        micro_batch_size_2d: int | None = 4,
        micro_frame_size: int | None = 17,
        temporal_overlap: bool = True,
        spatial_tile: int | None = None,
        spatial_overlap: int = 8,
        tile_size: int | None = None,
        tile_axis: int | None = None,
        num_tiles: int | None = None,
        latent_mean: Statistics | None = None,
        latent_std: Statistics | None = None,
        norm: str = "clip",
        attention: str = "raster",
        initial_logvar: float = 0.0,
        patch_size: Sequence[int] = (1, 1, 1),
        patch_shortcut: bool = False,
    ) -> None:
        levels = len(channel_multipliers) - 1
        _check_levels("temporal_down", temporal_down, range(levels), temporal_up)
        _check_levels("temporal_up", temporal_up, range(1, levels + 1), temporal_down)
        if len(patch_size) != 3 or min(patch_size) < 1 or patch_size[1] != patch_size[2]:
            raise ValueError(
                f"patch_size={tuple(patch_size)}: expected frames, rows and columns, the last two equal."
            )
        if patch_shortcut and (levels or max(patch_size) == 1):
            raise ValueError(
                f"patch_shortcut=True with patch_size={tuple(patch_size)} and {levels + 1} levels: it needs "
                "larger patches and channel_multipliers of one level."
            )
        style = Style(norm, attention)
        side = patch_size[1] * 2**levels
        super().__init__(
            latent_channels,
            (patch_size[0] * 2 ** len(temporal_down), side, side),
            style.streams,
            Pieces(micro_batch_size, micro_frame_size, temporal_overlap, spatial_tile, spatial_overlap),
            latent_mean,
            latent_std,
        )
        self.levels, self.temporal_down, self.patch_side = levels, tuple(temporal_down), patch_size[1]
        widths = channels, channel_multipliers, num_res_blocks
        patches = style, patch_size, patch_shortcut
        self.encoder = VideoEncoder(2 * latent_channels, *widths, temporal_down, *patches)
        self.decoder = VideoDecoder(latent_channels, *widths, temporal_up, *patches)
        with torch.no_grad():
            self.encoder.conv_out.conv.bias[latent_channels:] += initial_logvar
        set_tiling(self, tile_size, tile_axis, num_tiles)
        set_micro_batch_2d(self, micro_batch_size_2d)

    def _latent_side(self, size: int) -> int:
        size //= self.patch_side
        for level in range(self.levels):  # 2D levels round down, causal 3D ones up
            size = (size + 1) // 2 if level in self.temporal_down else size // 2
        return size


def _check_levels(name: str, levels: Sequence[int], allowed: range, other: Sequence[int]) -> None:
    if not set(levels) <= set(allowed) or len(set(levels)) != len(levels) or len(levels) != len(other):
        raise ValueError(
            f"{name}={tuple(levels)}: expected different levels from {allowed.start} to {allowed.stop - 1},"
            f" as many as on the other side ({len(other)})."
        )
