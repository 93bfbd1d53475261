"""ImageVAE: a 2D autoencoder from diffusers, applied to every frame.

Source: Rombach et al. 2022 (latent diffusion); Podell et al. 2023 (SDXL) for the layout of published weights.
"""

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from opensora.layers.causal_conv3d import frame_wise
from opensora.layers.checks import check_count, check_length, check_video
from opensora.layers.interfaces import Posterior, Reconstruction
from opensora.layers.vae_blocks import draw_latents
from opensora.registry import MODELS
from opensora.utils.random import Draws, ReplayDraws


@MODELS.register_module()
class ImageVAE(nn.Module):
    """Frame-wise autoencoder with the module and parameter names of diffusers' AutoencoderKL under `module`.

    Args:
        block_out_channels: Width of each level; every level but one halves height and width.
        layers_per_block: Residual blocks per level of the encoder.
        latent_channels: Channels of the latents.
        norm_num_groups: Groups of the group norms.
        scaling_factor: Latents are multiplied by it; the published 1.2 weights need 0.18215.
        micro_batch_size: Frames per call; None is all at once.
        initial_logvar: As for `VideoVAE`.

    Raises:
        ImportError: diffusers is not installed.
    """

    renames = tuple(
        (f"{part}.", f"module.{part}.") for part in ("encoder", "decoder", "quant_conv", "post_quant_conv")
    )

    def __init__(
        self,
        block_out_channels: Sequence[int] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        scaling_factor: float = 0.18215,
        micro_batch_size: int | None = 4,
        initial_logvar: float = 0.0,
    ) -> None:
        super().__init__()
        # A package beside diffusers asks for a kernel at its import that nothing here uses.
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        try:
            from diffusers import AutoencoderKL
        except ImportError as error:
            raise ImportError("ImageVAE needs the package diffusers: pip install diffusers") from error
        check_count("micro_batch_size", micro_batch_size, "micro batches")
        levels = len(block_out_channels)
        self.latent_channels = latent_channels
        self.stride = (1, 2 ** (levels - 1), 2 ** (levels - 1))
        self.latent_mean = 0.0
        self.latent_std = 1.0 / scaling_factor
        self.scaling_factor = scaling_factor
        self.micro_batch_size = micro_batch_size
        self.module = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            scaling_factor=scaling_factor,
        )
        with torch.no_grad():
            self.module.quant_conv.bias[latent_channels:] += initial_logvar

    @property
    def last_layer(self) -> Tensor:
        """The weight that makes pixels."""
        return self.module.decoder.conv_out.weight

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the size (T, H, W) of the latents: as many frames, sides over the stride, rounded down.

        Raises:
            ValueError: The clip has no frames, or is smaller than the stride.
        """
        check_length(num_frames)
        for name, size in (("height", height), ("width", width)):
            if size < self.stride[1]:
                raise ValueError(
                    f"{name}={size}: too small for the autoencoder; use {self.stride[1]} pixels or more."
                )
        return num_frames, height // self.stride[1], width // self.stride[2]

    def legal_length(self, num_frames: int) -> int:
        """Return `num_frames`: every length comes back.

        Raises:
            ValueError: It is below 1.
        """
        check_length(num_frames)
        return num_frames

    def posterior(self, video: Tensor) -> Posterior:
        """Return the distribution of the latents, not normalised.

        Args:
            video: Shape [B, 3, T, H, W], in [-1, 1].

        Returns:
            float32 moments. Shape [B, Z, T, H', W'].

        Raises:
            ValueError: The shape is not that of a video that the network can take.
        """
        check_video("video", video, 3)
        self.latent_shape(*video.shape[2:])

        def moments(images: Tensor) -> Tensor:
            return self.module.encode(images.to(self.module.dtype)).latent_dist.parameters

        mean, logvar = frame_wise(moments, video, self.micro_batch_size).float().chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))

    def normalize(self, z: Tensor) -> Tensor:
        """Multiply by the scaling factor."""
        return z * self.scaling_factor

    def denormalize(self, z: Tensor) -> Tensor:
        """Undo `normalize`."""
        return z / self.scaling_factor

    def encode(self, video: Tensor, draws: Draws | ReplayDraws | None = None) -> Tensor:
        """Return normalised latents.

        Args:
            video: Shape [B, 3, T, H, W], in [-1, 1].
            draws: Makes the noise of a sample ("posterior"); None takes the mean of the posterior.

        Returns:
            float32. Shape [B, Z, T, H', W'].
        """
        return self.normalize(draw_latents(self.posterior(video), draws))

    def decode(self, z: Tensor, num_frames: int | None = None) -> Tensor:
        """Return the video of normalised latents.

        Args:
            z: Shape [B, Z, T, H', W'].
            num_frames: Length of the result; what is beyond it is cut. None is all.

        Returns:
            float32, not clamped. Shape [B, 3, T, H, W].

        Raises:
            ValueError: There are fewer latent frames than `num_frames`.
        """
        return torch.cat(list(self.decode_stream(z, num_frames)), dim=2)

    def decode_stream(self, z: Tensor, num_frames: int | None = None) -> Iterator[Tensor]:
        """Yield the parts of `decode` one after the other, a few frames at a time; arguments as there."""
        check_video("z", z, self.latent_channels)
        if num_frames is not None and not 1 <= num_frames <= z.shape[2]:
            raise ValueError(
                f"num_frames={num_frames}: {z.shape[2]} latent frames give as many frames; ask for no more."
            )

        def images(latents: Tensor) -> Tensor:
            return self.module.decode(latents.to(self.module.dtype)).sample

        z = self.denormalize(z[:, :, :num_frames])
        for part in z.split(self.micro_batch_size or z.shape[2], dim=2):
            yield frame_wise(images, part, self.micro_batch_size).float()

    def forward(self, video: Tensor, draws: Draws | ReplayDraws | None = None) -> Reconstruction:
        """Encode and decode. Arguments as for `encode`."""
        posterior = self.posterior(video)
        z = self.normalize(draw_latents(posterior, draws))
        return Reconstruction(self.decode(z), z, posterior.kl())
