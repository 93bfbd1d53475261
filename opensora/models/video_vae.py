"""VideoVAE: one causal network from pixels to latents and back, 4x in time and 8x in height and width.

Source: Open-Sora 1.3 (its published weights load unchanged); Rombach et al. 2022 for the layout.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from opensora.acceleration.collectives import spread
from opensora.layers.causal_conv3d import set_micro_batch_2d, set_tiling
from opensora.layers.checks import check_count, check_length, check_video
from opensora.layers.interfaces import Posterior, Reconstruction
from opensora.layers.vae_blocks import VideoDecoder, VideoEncoder, draw_latents
from opensora.registry import MODELS
from opensora.utils.random import Draws, ReplayDraws

Statistics = Sequence[float] | Sequence[Sequence[float]]


@MODELS.register_module()
class VideoVAE(nn.Module):
    """Causal video autoencoder. Long clips are coded in chunks of frames that know nothing of each other.

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
        tile_size: Length of a convolution's tile; None is no tiles.
        tile_axis: Axis of the tiles: 2 time, 3 height, 4 width, None the longest.
        num_tiles: Number of tiles; wins over `tile_size`.
        latent_mean: Mean of each latent channel, subtracted by `encode`. Either Z numbers, or Z lists of P
            numbers, one for each of P latent frames, which repeat along time. None is 0.
        latent_std: Standard deviation, likewise. None is 1.
        initial_logvar: Added to the posterior's log variance before training. -5 starts nearly deterministic,
            which small models learn faster from.

    Raises:
        ValueError: The levels or the statistics do not fit each other.
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
        tile_size: int | None = None,
        tile_axis: int | None = None,
        num_tiles: int | None = None,
        latent_mean: Statistics | None = None,
        latent_std: Statistics | None = None,
        initial_logvar: float = 0.0,
    ) -> None:
        super().__init__()
        self.levels = len(channel_multipliers) - 1
        _check_levels("temporal_down", temporal_down, range(self.levels), temporal_up)
        _check_levels("temporal_up", temporal_up, range(1, self.levels + 1), temporal_down)
        check_count("micro_batch_size", micro_batch_size, "micro batches")
        check_count("micro_frame_size", micro_frame_size, "chunks")
        if temporal_overlap and micro_frame_size == 1:
            raise ValueError(
                "micro_frame_size=1 with temporal_overlap: chunks that share a frame need 2 at least."
            )
        self.latent_channels = latent_channels
        self.temporal_down = tuple(temporal_down)
        self.stride = (2 ** len(temporal_down), 2**self.levels, 2**self.levels)
        self.micro_batch_size = micro_batch_size
        self.micro_frame_size = micro_frame_size
        self.temporal_overlap = temporal_overlap
        # Plain tensors, not buffers: they stay fp32 on the host when the weights are cast or made on "meta".
        self.latent_mean = _statistics("latent_mean", latent_mean, latent_channels, 0.0)
        self.latent_std = _statistics("latent_std", latent_std, latent_channels, 1.0)
        if self.latent_mean.shape != self.latent_std.shape and None not in (latent_mean, latent_std):
            raise ValueError(
                f"latent_mean is {tuple(self.latent_mean.shape)}, latent_std {tuple(self.latent_std.shape)}"
                " (channels, latent frames); give both the same shape."
            )
        self.period = max(self.latent_mean.shape[1], self.latent_std.shape[1])
        self.encoder = VideoEncoder(
            2 * latent_channels, channels, channel_multipliers, num_res_blocks, temporal_down
        )
        self.decoder = VideoDecoder(
            latent_channels, channels, channel_multipliers, num_res_blocks, temporal_up
        )
        with torch.no_grad():
            self.encoder.conv_out.conv.bias[latent_channels:] += initial_logvar
        set_tiling(self, tile_size, tile_axis, num_tiles)
        set_micro_batch_2d(self, micro_batch_size_2d)

    @property
    def last_layer(self) -> Tensor:
        """The weight that makes pixels."""
        return self.decoder.conv_out.weight

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the size (T, H, W) of the latents of a clip. True for every size that `encode` accepts.

        Args:
            num_frames: Frames of the clip.
            height: Rows in pixels, at least 2.
            width: Columns in pixels, at least 2.

        Raises:
            ValueError: The clip has no frames, or is too small for the network.
        """
        check_length(num_frames)
        sides = self._latent_side("height", height), self._latent_side("width", width)
        return self._latent_frames(num_frames), *sides

    def legal_length(self, num_frames: int) -> int:
        """Return the largest number of frames, not above `num_frames`, that comes back from `decode`.

        In one piece these are 1 + 4k (for a stride of 4); in chunks 1 and whole chunks. Statistics per latent
        frame allow only those whose latents they fit.

        Raises:
            ValueError: `num_frames` is below 1, or `micro_frame_size` is such that no chunk comes back whole.
        """
        check_length(num_frames)
        chunk, stride = self.micro_frame_size, self.stride[0]
        if chunk is not None and (chunk - 1) % stride:
            near = (chunk - 1) // stride * stride + 1
            raise ValueError(
                f"micro_frame_size={chunk}: a chunk of that length does not come back whole;"
                f" use {stride}k + 1, for example {near} or {near + stride}."
            )
        shared = int(chunk is None or self.temporal_overlap)
        step = stride if chunk is None else chunk - shared
        longest = (num_frames - shared) // step * step + shared
        fits = (n for n in range(longest, 1, -step) if self._latent_frames(n) % self.period == 0)
        return next(fits, 1)

    def posterior(self, video: Tensor) -> Posterior:
        """Return the distribution of the latents, not normalised.

        Args:
            video: Shape [B, 3, T, H, W], in [-1, 1].

        Returns:
            float32 moments. Shape [B, Z, T', H', W'].

        Raises:
            ValueError: The shape is not that of a video that the network can take.
        """
        check_video("video", video, 3)
        self.latent_shape(*video.shape[2:])
        chunks = self._chunks(video.shape[2])
        video = video.to(self.encoder.conv_in.conv.weight.dtype)

        def encode(clips: Tensor) -> Tensor:
            parts = [clips[:, :, start:stop] for start, stop in chunks]
            return torch.cat(list(spread(self.encoder, parts)), dim=2)

        mean, logvar = self._batched(encode, video).float().chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))

    def normalize(self, z: Tensor) -> Tensor:
        """Subtract `latent_mean` and divide by `latent_std`. Shape [B, Z, T, H, W].

        Raises:
            ValueError: The statistics are per latent frame, and the length is no multiple of theirs.
        """
        mean, std = self._tables(z)
        return ((z.float() - mean) / std).to(z.dtype)

    def denormalize(self, z: Tensor) -> Tensor:
        """Undo `normalize`. Shape [B, Z, T, H, W]."""
        mean, std = self._tables(z)
        return (z.float() * std + mean).to(z.dtype)

    def encode(self, video: Tensor, draws: Draws | ReplayDraws | None = None) -> Tensor:
        """Return normalised latents.

        Args:
            video: Shape [B, 3, T, H, W], in [-1, 1].
            draws: Makes the noise of a sample ("posterior"); None takes the mean of the posterior.

        Returns:
            float32. Shape [B, Z, T', H', W'].

        Raises:
            ValueError: The network cannot take the size, or the statistics do not fit the length.
        """
        check_video("video", video, 3)
        self._check_period(self.latent_shape(*video.shape[2:])[0])
        return self.normalize(draw_latents(self.posterior(video), draws))

    def decode(self, z: Tensor, num_frames: int | None = None) -> Tensor:
        """Return the video of normalised latents.

        Args:
            z: Shape [B, Z, T', H', W'].
            num_frames: Length of the result; what is beyond it is cut. None is all.

        Returns:
            float32, not clamped. Shape [B, 3, T, H, W].

        Raises:
            ValueError: The latents give fewer frames than `num_frames`.
        """
        return torch.cat(list(self.decode_stream(z, num_frames)), dim=2)

    def decode_stream(self, z: Tensor, num_frames: int | None = None) -> Iterator[Tensor]:
        """Yield the parts of `decode` one after the other, a chunk at a time; arguments as there."""
        check_video("z", z, self.latent_channels)
        chunk = self._latent_length(self.micro_frame_size) if self.micro_frame_size else z.shape[2]
        produced = self._decoded_length(z.shape[2], chunk)
        if num_frames is not None and not 1 <= num_frames <= produced:
            raise ValueError(
                f"num_frames={num_frames}: {z.shape[2]} latent frames give {produced} frames;"
                f" ask for 1 to {produced}."
            )
        z = self.denormalize(z).to(self.decoder.conv_in.conv.weight.dtype)
        left, last = produced if num_frames is None else num_frames, None
        chunks = z.split(chunk, dim=2)
        for number, video in enumerate(spread(partial(self._batched, self.decoder), chunks), 1):
            if last is not None:  # two chunks have made this frame
                video = torch.cat((0.5 * (last + video[:, :, :1]), video[:, :, 1:]), dim=2)
            if self.temporal_overlap and number < len(chunks) and video.shape[2] <= left:
                video, last = video[:, :, :-1], video[:, :, -1:]
            video = video[:, :, :left]
            left -= video.shape[2]
            if video.shape[2]:
                yield video.float()
            if not left:
                return

    def forward(self, video: Tensor, draws: Draws | ReplayDraws | None = None) -> Reconstruction:
        """Encode and decode, with the divergence of the posterior from the standard normal as regularizer.

        Args:
            video: Shape [B, 3, T, H, W]; T a legal length, else the reconstruction is shorter.
            draws: As for `encode`.
        """
        posterior = self.posterior(video)
        z = self.normalize(draw_latents(posterior, draws))
        return Reconstruction(self.decode(z), z, posterior.kl())

    def _chunks(self, num_frames: int) -> list[tuple[int, int]]:
        chunk = self.micro_frame_size
        if chunk is None or num_frames == 1:
            return [(0, num_frames)]
        shared = int(self.temporal_overlap)
        starts = range(0, num_frames - shared, chunk - shared)
        return [(start, min(start + chunk, num_frames)) for start in starts]

    def _latent_frames(self, num_frames: int) -> int:
        return sum(self._latent_length(stop - start) for start, stop in self._chunks(num_frames))

    def _latent_length(self, num_frames: int) -> int:
        return (num_frames - 1) // self.stride[0] + 1

    def _decoded_length(self, latent_frames: int, chunk: int) -> int:
        sizes = [min(chunk, latent_frames - start) for start in range(0, latent_frames, chunk)]
        shared = (len(sizes) - 1) * int(self.temporal_overlap)
        return sum((size - 1) * self.stride[0] + 1 for size in sizes) - shared

    def _latent_side(self, name: str, size: int) -> int:
        side = size
        for level in range(self.levels):  # 2D levels round down, causal 3D ones up
            side = (side + 1) // 2 if level in self.temporal_down else side // 2
        if side < 1:
            raise ValueError(
                f"{name}={size}: too small for {self.levels} halvings; use {self.stride[1]} pixels or more."
            )
        return side

    def _batched(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        parts = [function(part) for part in x.split(self.micro_batch_size or len(x))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _check_period(self, frames: int) -> None:
        if frames > 1 and frames % self.period:
            raise ValueError(
                f"{frames} latent frames: latent_mean and latent_std are given for groups of"
                f" {self.period}; the length must be 1 or a multiple of it. Use a legal length of the clip,"
                " or one statistic per channel."
            )

    def _tables(self, z: Tensor) -> list[Tensor]:
        frames = z.shape[2]
        self._check_period(frames)
        tables = []
        for table in (self.latent_mean, self.latent_std):
            table = table[:, :1] if frames == 1 else table.repeat(1, frames // table.shape[1])
            tables.append(table[None, :, :, None, None].to(z.device))  # [1, Z, T or 1, 1, 1]
        return tables


def _statistics(name: str, values: Statistics | None, channels: int, default: float) -> Tensor:
    if values is None:
        return torch.full((channels, 1), default, dtype=torch.float32, device="cpu")
    lengths = {len(v) if isinstance(v, Sequence) else 0 for v in values}
    if len(values) != channels or len(lengths) != 1:
        raise ValueError(
            f"{name} has {len(values)} entries of lengths {sorted(lengths)} (0 is a number); expected"
            f" {channels} numbers, one per latent channel, or {channels} lists of one length."
        )
    return torch.tensor(values, dtype=torch.float32, device="cpu").reshape(channels, -1)


def _check_levels(name: str, levels: Sequence[int], allowed: range, other: Sequence[int]) -> None:
    if not set(levels) <= set(allowed) or len(set(levels)) != len(levels) or len(levels) != len(other):
        raise ValueError(
            f"{name}={tuple(levels)}: expected different levels from {allowed.start} to {allowed.stop - 1},"
            f" as many as on the other side ({len(other)})."
        )
