"""CausalVideoVAE: a 2D autoencoder grown into time. An image is a first frame; blocks are chosen by name.

Source: Open-Sora-Plan 1.0.0.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from opensora.layers.autoencoder import GaussianAutoencoder, Pieces, Statistics
from opensora.layers.causal_conv3d import CausalConv3d
from opensora.layers.time_resampling import make_resample
from opensora.layers.vae_blocks import Decoder, Encoder, Style
from opensora.registry import MODELS
from opensora.utils.weights import read_state_dict

_NAMES = (  # of diffusers' AutoencoderKL, and ours
    (r"\.(?:down|up)_blocks\.(\d+)\.resnets\.", r".LEVEL.\1.block."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".LEVEL.\1.downsample."),
    (r"\.up_blocks\.(\d+)\.upsamplers\.0\.", r".LEVEL.\1.upsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.group_norm\.", ".norm."),
    (r"\.(?:to_q|query)\.", ".q."),
    (r"\.(?:to_k|key)\.", ".k."),
    (r"\.(?:to_v|value)\.", ".v."),
    (r"\.(?:to_out\.0|proj_attn)\.", ".proj_out."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
)


@MODELS.register_module()
class CausalVideoVAE(GaussianAutoencoder):
    """Causal autoencoder whose spatial layers are those of a 2D autoencoder.

    With `norm="frame"` (or "pixel"), `attention="frame"` (or "none") and `time_upsample="hold"` it is causal
    as a whole. Released weights were trained with `norm="clip"` and `time_upsample="linear"`, which see later
    frames.

    Args:
        latent_channels: Channels of the latents.
        channels: Width of level 0, a multiple of 32.
        channel_multipliers: Width of each level in `channels`.
        num_res_blocks: Residual blocks per level of the encoder; the decoder has one more.
        spatial_down: For each level the block that halves height and width, "" for none.
        time_down: For each level the block that halves time, behind the spatial one.
        spatial_up: For each level of the decoder the block that doubles height and width.
        time_up: For each level of the decoder the block that doubles time.
        norm: As for `VideoVAE`.
        attention: As for `VideoVAE`.
        time_upsample: "hold" or "linear", see `TimeUpsample2x`.
        image_weights: A diffusers AutoencoderKL, file or folder, that a new model starts from.
        inflation: Where the weights of 2D convolutions go: "tail" (the current frame), "centre" or "mean".
        micro_batch_size: As for `VideoVAE`.
        micro_frame_size: As for `VideoVAE`.
        temporal_overlap: As for `VideoVAE`.
        spatial_tile: As for `VideoVAE`.
        spatial_overlap: As for `VideoVAE`.
        latent_mean: As for `VideoVAE`.
        latent_std: As for `VideoVAE`.
        initial_logvar: As for `VideoVAE`.

    Raises:
        ValueError: Blocks, levels or settings do not fit each other.
    """

    def __init__(
        self,
        latent_channels: int = 4,
        channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        spatial_down: Sequence[str] = (*3 * ("SpatialDownsample2x",), ""),
        time_down: Sequence[str] = ("TimeDownsample2x", "TimeDownsample2x", "", ""),
        spatial_up: Sequence[str] = ("", *3 * ("SpatialUpsample2x",)),
        time_up: Sequence[str] = ("", "", "TimeUpsample2x", "TimeUpsample2x"),
        norm: str = "frame",
        attention: str = "frame",
        time_upsample: str = "hold",
        image_weights: str | None = None,
        inflation: str = "tail",
        micro_batch_size: int | None = 1,
        micro_frame_size: int | None = 17,
        temporal_overlap: bool = False,
        spatial_tile: int | None = None,
        spatial_overlap: int = 8,
        latent_mean: Statistics | None = None,
        latent_std: Statistics | None = None,
        initial_logvar: float = 0.0,
    ) -> None:
        widths = [channels * multiplier for multiplier in channel_multipliers]
        tables = {"spatial_down": spatial_down, "time_down": time_down}
        tables |= {"spatial_up": spatial_up, "time_up": time_up}
        steps = {name: sum(map(bool, table)) for name, table in tables.items()}
        if any(len(table) != len(widths) for table in tables.values()) or (
            steps["spatial_down"] != steps["spatial_up"] or steps["time_down"] != steps["time_up"]
        ):
            raise ValueError(
                f"blocks {tables}: expected {len(widths)} names each, one per level, as many ups as downs."
            )
        if time_upsample not in ("hold", "linear"):
            raise ValueError(f"time_upsample={time_upsample!r}: use 'hold' or 'linear'.")
        style = Style(norm, attention, repeat_first=True)
        stride = 2 ** steps["spatial_down"]
        super().__init__(
            latent_channels,
            (2 ** steps["time_down"], stride, stride),
            style.streams and time_upsample == "hold",
            Pieces(micro_batch_size, micro_frame_size, temporal_overlap, spatial_tile, spatial_overlap),
            latent_mean,
            latent_std,
        )

        def resamples(way: str) -> list[dict[str, nn.Module]]:
            sides = {f"{way}sample": tables[f"spatial_{way}"], f"time_{way}sample": tables[f"time_{way}"]}
            return [
                {
                    name: make_resample(table[i], width, time_upsample)
                    for name, table in sides.items()
                    if table[i]
                }
                for i, width in enumerate(widths)
            ]

        self.encoder = Encoder(
            2 * latent_channels, channels, widths, num_res_blocks, resamples("down"), style
        )
        self.quant_conv = CausalConv3d(2 * latent_channels, 2 * latent_channels, 1)
        with torch.no_grad():
            self.quant_conv.conv.bias[latent_channels:] += initial_logvar
        self.post_quant_conv = CausalConv3d(latent_channels, latent_channels, 1)
        self.decoder = Decoder(latent_channels, widths, num_res_blocks, resamples("up"), 0, style)
        if image_weights is not None and not self.last_layer.is_meta:
            inflate(self, read_state_dict(image_weights), inflation)

    def _encode(self, video: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(video))

    def _decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))


@torch.no_grad()
def inflate(vae: CausalVideoVAE, images: Mapping[str, Tensor], how: str = "tail") -> None:
    """Take over the weights of a 2D autoencoder; images then come back as from that one.

    Before a video stand copies of its first frame, so for an image all taps in time meet the same values and
    only their sum counts. "tail" also treats every frame of a clip as the 2D one would; "centre" puts out the
    frame before.

    Args:
        vae: What is filled. Layers that the 2D autoencoder does not have keep their weights.
        images: Names and weights of diffusers' AutoencoderKL.
        how: "tail", "centre" or "mean".

    Raises:
        ValueError: The choice is unknown, or names or shapes do not fit.
    """
    if how not in ("tail", "centre", "mean"):
        raise ValueError(f"inflation={how!r}: use 'tail', 'centre' or 'mean'.")
    own = vae.state_dict()
    for name, value in images.items():
        ours = _our_name(name, len(vae.decoder.up) - 1)
        ours = ours if ours in own else re.sub(r"\.(weight|bias)$", r".conv.\1", ours)
        target = own.get(ours)
        if target is not None and target.ndim > value.ndim:  # linear maps of channels are convolutions here
            value = value.reshape(*value.shape, *[1] * (4 - value.ndim))
        if target is None or (*target.shape[:2], *target.shape[-2:]) != (*value.shape[:2], *value.shape[-2:]):
            place = "anything here" if target is None else f"{ours} {tuple(target.shape)}"
            raise ValueError(
                f"image_weights: {name} {tuple(value.shape)} does not fit {place}; widths, levels and "
                "latent_channels must be those of the image autoencoder."
            )
        if target.ndim < 5:
            target.copy_(value)
            continue
        taps = target.shape[2]
        target.zero_()
        if how == "mean":
            target.add_(value[:, :, None] / taps)
        else:
            target[:, :, taps - 1 if how == "tail" else taps // 2] = value


def _our_name(name: str, last: int) -> str:
    ours = f".{name}"
    for pattern, replacement in _NAMES:
        ours = re.sub(pattern, replacement, ours)
    ours = ours.removeprefix(".")
    if ours.startswith("decoder"):
        return re.sub(r"LEVEL\.(\d+)", lambda found: f"up.{last - int(found[1])}", ours)
    return ours.replace("LEVEL.", "down.")
