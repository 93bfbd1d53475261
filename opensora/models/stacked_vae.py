"""StackedVAE: a 2D autoencoder for frames, then a temporal one for its latents.

Source: Open-Sora 1.2 (its published weights load unchanged).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opensora.layers.autoencoder import Pieces
from opensora.layers.checks import check_length, check_video
from opensora.layers.interfaces import Posterior, Reconstruction
from opensora.layers.vae_blocks import draw_latents
from opensora.registry import MODELS, build
from opensora.utils.random import Draws, ReplayDraws


@MODELS.register_module()
class StackedVAE(nn.Module):
    """Two autoencoders in a row. Long clips pass the temporal one in chunks that know nothing of each other.

    Args:
        spatial: Config of the frame-wise autoencoder.
        temporal: Config of the temporal one.
        micro_frame_size: Frames per chunk of the temporal one; None codes a clip in one piece.
        shift: Mean of each latent channel.
        scale: Standard deviation of each latent channel.

    Raises:
        ValueError: The parts or the statistics do not fit each other.
    """

    def __init__(
        self,
        spatial: Mapping[str, Any] | nn.Module,
        temporal: Mapping[str, Any] | nn.Module,
        micro_frame_size: int | None = 17,
        shift: Sequence[float] = (-0.10, 0.34, 0.27, 0.98),
        scale: Sequence[float] = (3.85, 2.32, 2.33, 3.06),
    ) -> None:
        super().__init__()
        self.spatial_vae = build(MODELS, spatial)
        self.temporal_vae = build(MODELS, temporal)
        self.latent_channels = self.temporal_vae.latent_channels
        if self.spatial_vae.latent_channels != self.temporal_vae.in_channels:
            raise ValueError(
                f"spatial latents have {self.spatial_vae.latent_channels} channels, the temporal autoencoder"
                f" takes {self.temporal_vae.in_channels}; set temporal.in_channels to the former."
            )
        for name, values in (("shift", shift), ("scale", scale)):
            if len(values) != self.latent_channels:
                raise ValueError(
                    f"{name}={tuple(values)}: expected {self.latent_channels} numbers, one per channel."
                )
        self.stride = tuple(
            a * b for a, b in zip(self.spatial_vae.stride, self.temporal_vae.stride, strict=True)
        )
        self.pieces = Pieces(frames=micro_frame_size)
        # Parts of the published state dict, so buffers.
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32).reshape(1, -1, 1, 1, 1))
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float32).reshape(1, -1, 1, 1, 1))

    @property
    def micro_frame_size(self) -> int | None:
        """Frames of a chunk that knows nothing of its neighbours; None is all of them."""
        return self.pieces.frames

    @property
    def latent_mean(self) -> Tensor:
        """Mean of each latent channel. Shape [1, Z, 1, 1, 1]."""
        return self.shift

    @property
    def latent_std(self) -> Tensor:
        """Standard deviation of each latent channel. Shape [1, Z, 1, 1, 1]."""
        return self.scale

    @property
    def last_layer(self) -> Tensor:
        """The weight that makes the latents of frames, which every stage trains."""
        return self.temporal_vae.last_layer

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the size (T, H, W) of the latents of a clip.

        Raises:
            ValueError: The clip has no frames, or is smaller than the stride.
        """
        _, height, width = self.spatial_vae.latent_shape(num_frames, height, width)
        frames = sum(self.temporal_vae.latent_shape(size, 1, 1)[0] for size in self._chunk_sizes(num_frames))
        return frames, height, width

    def legal_length(self, num_frames: int) -> int:
        """Return `num_frames`: every length comes back.

        Raises:
            ValueError: It is below 1.
        """
        check_length(num_frames)
        return num_frames

    def posterior(self, video: Tensor, draws: Draws | ReplayDraws | None = None) -> Posterior:
        """Return the distribution of the latents, not normalised.

        Args:
            video: Shape [B, 3, T, H, W], in [-1, 1].
            draws: Makes the noise of a sample of the frames' latents ("spatial_posterior"); None takes
                their mean.

        Returns:
            float32 moments. Shape [B, Z, T', H', W'].
        """
        return self._posterior(self._latents_of_frames(video, draws))

    def _latents_of_frames(self, video: Tensor, draws: Draws | ReplayDraws | None) -> Tensor:
        frames = self.spatial_vae.posterior(video)
        x = frames.mean
        if draws is not None:
            x = frames.sample(draws.normal("spatial_posterior", 0, x.shape))
        return self.spatial_vae.normalize(x)

    def _posterior(self, latents: Tensor) -> Posterior:
        parts = [
            self.temporal_vae.posterior(x) for x in latents.split(self._chunk_sizes(latents.shape[2]), 2)
        ]
        return Posterior(
            torch.cat([p.mean for p in parts], dim=2), torch.cat([p.logvar for p in parts], dim=2)
        )

    def normalize(self, z: Tensor) -> Tensor:
        """Subtract `shift` and divide by `scale`. Shape [B, Z, T, H, W]."""
        return ((z.float() - self.shift.float()) / self.scale.float()).to(z.dtype)

    def denormalize(self, z: Tensor) -> Tensor:
        """Undo `normalize`. Shape [B, Z, T, H, W]."""
        return (z.float() * self.scale.float() + self.shift.float()).to(z.dtype)

    def encode(self, video: Tensor, draws: Draws | ReplayDraws | None = None) -> Tensor:
        """Return normalised latents.

        Args:
            video: Shape [B, 3, T, H, W], in [-1, 1].
            draws: Makes the noise of samples ("spatial_posterior", "posterior"); None takes the means.

        Returns:
            float32. Shape [B, Z, T', H', W'].
        """
        return self.normalize(draw_latents(self.posterior(video, draws), draws))

    def decode(self, z: Tensor, num_frames: int) -> Tensor:
        """Return the video of normalised latents.

        Args:
            z: Shape [B, Z, T', H', W'].
            num_frames: Length of the clip that was encoded.

        Returns:
            float32, not clamped. Shape [B, 3, num_frames, H, W].

        Raises:
            ValueError: A clip of `num_frames` has another number of latent frames.
        """
        return torch.cat(list(self.decode_stream(z, num_frames)), dim=2)

    def decode_stream(self, z: Tensor, num_frames: int) -> Iterator[Tensor]:
        """Yield the parts of `decode` one after the other, a few frames at a time; arguments as there."""
        for frames in self._decode_latents(z, num_frames):
            yield from self.spatial_vae.decode_stream(frames)

    def _decode_latents(self, z: Tensor, num_frames: int) -> Iterator[Tensor]:
        check_video("z", z, self.latent_channels)
        check_length(num_frames)
        sizes = self._chunk_sizes(num_frames)
        latent_sizes = [self.temporal_vae.latent_shape(size, 1, 1)[0] for size in sizes]
        if sum(latent_sizes) != z.shape[2]:
            raise ValueError(
                f"num_frames={num_frames}: such a clip has {sum(latent_sizes)} latent frames, z has"
                f" {z.shape[2]}; give the length of the clip that z was made for."
            )
        chunks = self.denormalize(z).split(latent_sizes, dim=2)
        for chunk, size in zip(chunks, sizes, strict=True):
            yield self.temporal_vae.decode(chunk, size)

    def forward(
        self, video: Tensor, draws: Draws | ReplayDraws | None = None, pixels: bool = True
    ) -> Reconstruction:
        """Encode and decode. Arguments as for `encode`.

        Args:
            video: Shape [B, 3, T, H, W].
            draws: As for `encode`.
            pixels: False leaves out the video, for training that compares latents only.
        """
        latents = self._latents_of_frames(video, draws)
        posterior = self._posterior(latents)
        z = self.normalize(draw_latents(posterior, draws))
        decoded = torch.cat(list(self._decode_latents(z, video.shape[2])), dim=2)
        out = self.spatial_vae.decode(decoded) if pixels else None
        return Reconstruction(out, z, posterior.kl(), latents, decoded)

    def _chunk_sizes(self, num_frames: int) -> list[int]:
        chunk = self.micro_frame_size or num_frames
        return [min(chunk, num_frames - start) for start in range(0, num_frames, chunk)]
