"""Published denoisers, autoencoders, discriminators and text encoders in our names: one table per type."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from opensora.utils.published_table import Component, as_tuple, no_effect, same, translate_key, when

_LOADER = "it selected a loader; from_pretrained takes files, folders and hub ids alike"
_KERNEL = "kernels are chosen at run time, see attention_backend"


@cache
def latent_statistics() -> dict[str, dict[str, Any]]:
    """Return mean and std of the latents of the v1.3 autoencoder, by published name."""
    return json.loads(Path(__file__).with_name("latent_statistics.json").read_text(encoding="utf-8"))


def _finish_model(out: dict[str, Any], values: Mapping[str, Any], version: str) -> None:
    conditions = out.setdefault("conditions", {})
    conditions.setdefault("text", {})["type"] = "TextCondition"
    conditions["size"] = {"type": "SizeCondition", "fields": ("fps",)}
    if version == "1.3":
        low, high = values["v2v_noise_min_weight"], values["v2v_noise_max_weight"]
        conditions["frames"] = {"type": "FrameCondition", "noise_range": (low, high)}
    out.update(final_layer="v1.3", shift_window=False, round_timestep=version == "1.2")
    out.pop("drop_path")


def _finish_video_vae(out: dict[str, Any], values: Mapping[str, Any], version: str) -> None:
    name = values["normalization"]
    if name is not None and name not in latent_statistics():
        raise ValueError(f"vae.normalization={name!r}: use None, or one of {', '.join(latent_statistics())}.")
    statistics = {"mean": None, "std": None} if name is None else latent_statistics()[name]
    out.update(latent_mean=statistics["mean"], latent_std=statistics["std"])
    if not values["use_tiled_conv3d"]:
        out.update(tile_size=None, tile_axis=None, num_tiles=None)
    if values["micro_batch_size"] is None:  # the published code looked at chunks only with it
        out["micro_frame_size"] = None


def _finish_stacked_vae(out: dict[str, Any], values: Mapping[str, Any], version: str) -> None:
    out["spatial"] = {"type": "ImageVAE", **(out["spatial"] if "spatial" in out else {})}
    out["temporal"] = {"type": "TemporalVAE", **(out["temporal"] if "temporal" in out else {})}
    # The published code takes this factor, whatever the image autoencoder's own file says.
    out["spatial"].update(micro_batch_size=values["micro_batch_size"], scaling_factor=0.18215)


def _spatial(published: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in _nested(published, _IMAGE_VAE).items() if key != "scaling_factor"}


def _temporal(published: Mapping[str, Any]) -> dict[str, Any]:
    return _nested(published, _TEMPORAL_VAE)


def _nested(published: Mapping[str, Any], table: Component) -> dict[str, Any]:
    out: dict[str, Any] = {"type": table.type}
    for key, value in published.items():
        if key != "type":
            translate_key(table, out, key, value, None)
    return out


def _frames_first(kernel: Any) -> Any:
    return None if kernel is None else (kernel[2], kernel[0], kernel[1])


_STDIT3 = Component(
    slot="model",
    type="",  # the presets have the same names
    keys={
        **same(
            "from_pretrained", "in_channels", "hidden_size", "depth", "num_heads", "mlp_ratio", "pred_sigma"
        ),
        **same("qk_norm", "skip_temporal", "input_sq_size"),
        "patch_size": ("patch_size", as_tuple),
        "kernel_size": ("window_size", _frames_first),
        "use_spatial_rope": "spatial_rope",
        "adapt_16ch": "adapt_channels",
        "freeze_y_embedder": ("freeze", when(("conditions.text.",))),
        "only_train_temporal": ("train_only", when(("temporal_blocks.",))),
        "skip_y_embedder": "conditions.text.projected",
        "caption_channels": "conditions.text.text_width",
        "model_max_length": "conditions.text.text_length",
        "drop_path": ("drop_path", no_effect("model.drop_path", 0.0)),
    },
    defaults={"v2v_noise_min_weight": 0.1, "v2v_noise_max_weight": 0.3, "drop_path": 0.0},
    dropped={
        "enable_flash_attn": _KERNEL,
        "enable_layernorm_kernel": _KERNEL,
        "enable_sequence_parallelism": "sp_size decides",
        "force_huggingface": _LOADER,
        "input_size": "the model takes any size",
        "use_cond": "nothing read it",
    },
    elsewhere={
        "class_dropout_prob": "condition_dropout",
        "v2v_noise_min_weight": "model.conditions.frames.noise_range",
        "v2v_noise_max_weight": "model.conditions.frames.noise_range",
    },
    finish=_finish_model,
)
_ENCODER_DROPPED = {
    "device": "components follow the run's device",
    "cache_dir": _LOADER,
    "local_files_only": _LOADER,
    "shardformer": "it selected a kernel",
}
_T5 = Component(
    slot="text_encoder",
    type="T5Encoder",
    keys={**same("from_pretrained", "dtype"), "model_max_length": "max_length"},
    defaults={"model_max_length": 120},
    dropped=_ENCODER_DROPPED,
)
_CLIP = Component(
    slot="text_encoder",
    type="CLIPTextEncoder",
    keys={**same("from_pretrained", "dtype"), "model_max_length": "max_length"},
    defaults={"model_max_length": 77},
    dropped=_ENCODER_DROPPED,
)
_VIDEO_VAE = Component(
    slot="vae",
    type="VideoVAE",
    keys={
        **same(
            "from_pretrained", "num_res_blocks", "micro_batch_size", "micro_batch_size_2d", "micro_frame_size"
        ),
        **same("temporal_overlap", "tile_size", "num_tiles"),
        "z_channels": "latent_channels",
        "ch": "channels",
        "ch_mult": ("channel_multipliers", as_tuple),
        "down_sampling_layer": ("temporal_down", as_tuple),
        "temporal_up_layers": ("temporal_up", as_tuple),
        "tiled_dim": "tile_axis",
    },
    defaults={
        **{"micro_batch_size": None, "micro_batch_size_2d": None, "micro_frame_size": None},
        **{"temporal_overlap": False, "normalization": None},
        **{"use_tiled_conv3d": False, "tile_size": 16, "tiled_dim": None, "num_tiles": None},
    },
    dropped={
        "force_huggingface": _LOADER,
        "dtype": "the dtype of the run decides",
        "double_z": "always so",
        "in_channels": "always 3",
        "out_ch": "always 3",
    },
    elsewhere={"normalization": "vae.latent_mean, vae.latent_std", "use_tiled_conv3d": "vae.tile_size"},
    finish=_finish_video_vae,
)
_IMAGE_VAE = Component(
    slot="vae",
    type="ImageVAE",
    keys={
        **same(
            "from_pretrained", "micro_batch_size", "layers_per_block", "latent_channels", "norm_num_groups"
        ),
        **same("scaling_factor"),
        "block_out_channels": ("block_out_channels", as_tuple),
    },
    dropped={
        **{
            "act_fn": "always SiLU",
            "down_block_types": "always convolutions",
            "up_block_types": "always convolutions",
        },
        **{"in_channels": "always 3", "out_channels": "always 3", "sample_size": "any size goes"},
        **dict.fromkeys(("cache_dir", "local_files_only", "subfolder", "force_huggingface"), _LOADER),
    },
)
_TEMPORAL_VAE = Component(
    slot="vae",
    type="TemporalVAE",
    keys={
        **same("from_pretrained", "num_res_blocks", "num_groups"),
        "in_out_channels": "in_channels",
        "latent_embed_dim": "latent_channels",
        "embed_dim": "embed_channels",
        "filters": "channels",
        "channel_multipliers": ("channel_multipliers", as_tuple),
        "temporal_downsample": ("temporal_down", as_tuple),
    },
)
_STACKED_VAE = Component(
    slot="vae",
    type="StackedVAE",
    keys={
        **same("from_pretrained", "micro_frame_size"),
        "shift": ("shift", as_tuple),
        "scale": ("scale", as_tuple),
        "spatial": ("spatial", _spatial),
        "temporal": ("temporal", _temporal),
    },
    defaults={"micro_batch_size": 4, "micro_frame_size": 17},
    dropped={
        **{"cal_loss": "training asks for what its losses need"},
        **dict.fromkeys(("local_files_only", "force_huggingface"), _LOADER),
    },
    elsewhere={"micro_batch_size": "vae.spatial.micro_batch_size", "freeze_vae_2d": "frozen"},
    finish=_finish_stacked_vae,
)


def _discriminator(in_channels: int, **ours: int) -> Component:
    def finish(out: dict[str, Any], values: Mapping[str, Any], version: str) -> None:
        out.update(ours)
        out.pop("use_actnorm", None)

    return Component(
        slot="discriminator",
        type="PatchDiscriminator",
        keys={
            **same("from_pretrained"),
            "input_nc": "in_channels",
            "ndf": "channels",
            "n_layers": "num_layers",
            "use_actnorm": ("use_actnorm", no_effect("discriminator.use_actnorm", False)),
        },
        defaults={"input_nc": in_channels, "ndf": 64, "n_layers": 3},
        finish=finish,
    )


MODELS: dict[str, Component] = {
    **dict.fromkeys(("STDiT3-XL/2", "STDiT3-3B/2", "STDiT3"), _STDIT3),
    "t5": _T5,
    "clip": _CLIP,
    "OpenSoraVAE_V1_3": _VIDEO_VAE,
    "OpenSoraVAE_V1_2": _STACKED_VAE,
    "VideoAutoencoderKL": _IMAGE_VAE,
    **dict.fromkeys(("VAE_Temporal_SD", "VAE_Temporal"), _TEMPORAL_VAE),
    # Two published names that differ in case only, and in the network.
    "N_LAYER_DISCRIMINATOR_3D": _discriminator(1, dims=3, kernel_size=3, time_halvings=2),
    "N_Layer_DISCRIMINATOR_3D": _discriminator(3, dims=3, kernel_size=4, time_halvings=1),
    "NLayerDiscriminator": _discriminator(3, dims=2, kernel_size=4),
}
