"""Published config files (Open-Sora 1.2 and 1.3) in our form: whole files.

`COMPONENTS` of `published_components` translates the parts. Here are the keys around them: `_MOVED` says
where a key went, `_DROPPED` why it could go. What has no counterpart is an error.
"""

import copy
import difflib
from collections.abc import Mapping
from typing import Any

from opensora.utils.config_defaults import base_configs
from opensora.utils.published_components import COMPONENTS, translate_component
from opensora.utils.published_conditioning import (
    SAMPLING,
    set_frames_given,
    set_noise,
    translate_dropout,
    translate_guidance,
)
from opensora.utils.published_table import put, unknown_key

_SLOTS = ("model", "vae", "text_encoder", "scheduler", "dataset", "discriminator")
_V12_TYPES = ("OpenSoraVAE_V1_2", "VideoAutoencoderKL", "VAE_Temporal_SD", "VAE_Temporal")
_VAE_TYPES = (*_V12_TYPES, "OpenSoraVAE_V1_3")

# The files of configs/_base_ behind each kind of config, without the autoencoder's.
_PARTS = ("stdit3", "rectified_flow", "t5")
_BASES = {
    "autoencoder training": ("runtime", "video", "autoencoder"),
    "reconstruction": ("reconstruction", "video", "autoencoder"),
    "batch search": ("runtime", "batch_search", "video", *_PARTS),
    "feature training": ("runtime", "features", "stdit3", "rectified_flow"),
    "training": ("runtime", "video", *_PARTS),
    "evaluation": ("evaluation", "video", *_PARTS),
    "extraction": ("extraction", "video", *_PARTS),
    "inference": ("inference", *_PARTS),
}
_TRAINING = ("training", "feature training", "batch search", "autoencoder training")

# What the published scripts took when a file did not say, where our `_base_` files say something else.
_RUN_ABSENT = {
    **{"seed": 1024, "dtype": "bf16", "grad_clip": 0.0, "num_workers": 4, "epochs": 1000, "log_every": 1},
    **{"ckpt_every": 0, "weight_decay": 0.0, "adam_eps": 1e-8, "grad_checkpoint": False},
}
_ABSENT: dict[str, dict[str, Any]] = {
    **dict.fromkeys(_TRAINING, {**_RUN_ABSENT, "lr": 1e-4, "ema_decay": 0.9999}),
    "feature training": {
        **{**_RUN_ABSENT, "lr": 1e-4, "ema_decay": 0.9999},
        **{"vae_out_channels": 4, "text_encoder_output_dim": 4096, "text_encoder_model_max_length": 300},
    },
    "autoencoder training": {**_RUN_ABSENT, "lr": 1e-5, "ema_decay": None},
    "reconstruction": {"seed": 1024, "num_workers": 4, "batch_size": 1},
    "evaluation": {"seed": 1024, "num_workers": 4},
    "extraction": {"seed": 1024, "num_workers": 4},
    "inference": {"seed": 1024, "dtype": "bf16"},
}

# Published key: our key, dotted. A key that stays where it was is not listed.
_MOVED = {
    "lr": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "adam_eps": "optimizer.eps",
    "use_cosine_scheduler": "lr_schedule.cosine",
    "grad_checkpoint": "activation_checkpoint",
    "vae_out_channels": "model.in_channels",
    "text_encoder_output_dim": "model.conditions.text.text_width",
    "text_encoder_model_max_length": "model.conditions.text.text_length",
    "model_max_length": "model.conditions.text.text_length",
    "perceptual_loss_weight": "loss.perceptual_weight",
    "kl_loss_weight": "loss.kl_weight",
    "logvar_init": "loss.logvar_init",
    "use_real_rec_loss": "loss.real_reconstruction",
    "use_z_rec_loss": "loss.latent_reconstruction",
    "use_image_identity_loss": "loss.image_identity",
    "discriminator_start": "gan.start",
    "discriminator_factor": "gan.discriminator_weight",
    "generator_factor": "gan.generator_weight",
    "discriminator_loss_type": "gan.loss",
    "generator_loss_type": "gan.generator_loss",
    "mixed_image_ratio": "mixed_frames.image_ratio",
    "use_sdedit": "scheduler.renoise_reference",
}
_LOSS_KEYS = {"perceptual_loss_weight": 1.0, "kl_loss_weight": 1e-6, "logvar_init": 0.0}
_GAN_KEYS = {
    "disc_start": ("start", 2001),
    "disc_factor": ("discriminator_weight", 1.0),
    "disc_weight": ("generator_weight", 0.5),
    "disc_loss_type": ("loss", "hinge"),
}
_DROPPED = {
    "multi_resolution": "sizes always reach the model",
    "num_bucket_build_workers": "the plan of an epoch is made in one process",
    "warmup": "nothing read it (warmup_steps was meant); the published runs had no warm-up",
    "load_video_features": "the dataset's type says so",
    "load_text_features": "the dataset's type says so",
    "is_init_image": "nothing read it",
    "log_time": "scripts report their times",
    "bin_size": "files are cut by size: shard_mib",
    "lecam_loss_weight": "the published loop ignored it",
    "gradient_penalty_loss_weight": "the published loop ignored it",
    "prompt_generator": "give prompt or prompt_path",
}
_SPECIAL = (
    *("warmup_steps", "mask_ratios", "mask_types", "drop_condition", "noise_augmentation", "noise_prob"),
    *(
        "noise_strength",
        "noise_disable_threshold",
        "image_cfg_scale",
        "vae_loss_config",
        "gan_loss_confg",
        "base",
    ),
    *("use_oscillation_guidance_for_text", "use_oscillation_guidance_for_image", "mixed_strategy"),
    *("deflicker", "super_resolution", "watermark"),
)


def is_published(values: Mapping[str, Any]) -> bool:
    """Return whether a config file uses a published `type`."""
    for slot in _SLOTS:
        part = values[slot] if slot in values else None
        kind = part["type"] if isinstance(part, Mapping) and "type" in part else None
        if isinstance(kind, str) and kind in COMPONENTS and not kind.startswith("STDiT3"):
            return True
    return False


def translate_config(published: Mapping[str, Any], notes: list[str] | None = None) -> dict[str, Any]:
    """Translate the values of a published config file.

    Keys that the file does not set take what the published scripts took, or else the values of our `_base_`
    files.

    Args:
        published: Top-level values of the file.
        notes: Takes one line per translation.

    Returns:
        A whole config in our form.

    Raises:
        ValueError: A key or type has no counterpart.
    """
    notes = [] if notes is None else notes
    kind, version = _kind(published), _version(published)
    notes.append(f"read as a {kind} config of Open-Sora {version}")
    out: dict[str, Any] = {}
    for name in bases_of(published):
        out.update(copy.deepcopy(base_configs()[name]))
    given = {**_ABSENT[kind], **published}
    for slot in _SLOTS:
        if slot in published and published[slot] is not None:
            _translate_slot(out, slot, published[slot], notes, version)
        elif slot in published and slot in out:
            out[slot] = None
    if "scheduler" not in published and "scheduler" in out:
        out["scheduler"] = {**out["scheduler"], **translate_component({"type": "rflow"}, None, version)}
    for key, value in given.items():
        if key not in _SLOTS and key not in _SPECIAL:
            _move(out, key, value, kind, notes if key in published else [])
    _schedule(out, published, kind, version, notes)
    if "model" in out:
        _diffusion(out, published, kind, version, notes)
    else:
        _autoencoder(out, published, kind, version, notes)
    if "postprocess" in out:
        _postprocess(out, published, notes)
    return out


def bases_of(published: Mapping[str, Any]) -> list[str]:
    """Return the files of `configs/_base_` that the translation of a published config builds on, by name."""
    kind, version = _kind(published), _version(published)
    return [*_BASES[kind], *([] if kind == "feature training" else [_vae_base(version)])]


def _kind(published: Mapping[str, Any]) -> str:
    types = {slot: published[slot]["type"] for slot in ("model", "dataset") if slot in published}
    trains = "epochs" in published or "lr" in published
    if "model" in types and types["model"] in _VAE_TYPES:
        return "autoencoder training" if trains else "reconstruction"
    if "base" in published or "base_step_time" in published:
        return "batch search"
    if "dataset" in types and types["dataset"] == "BatchFeatureDataset":
        return "feature training"
    if "num_eval_timesteps" in published:
        return "evaluation"
    if "bin_size" in published:
        return "extraction"
    return "training" if trains or "dataset" in types else "inference"


def _version(published: Mapping[str, Any]) -> str:
    for slot in ("vae", "model"):
        part = published[slot] if slot in published else None
        if part is not None and part["type"] in _VAE_TYPES:
            return "1.2" if part["type"] in _V12_TYPES else "1.3"
    channels = (
        published["vae_out_channels"] if "vae_out_channels" in published else 4
    )  # the published default
    return "1.2" if channels == 4 else "1.3"


def _vae_base(version: str) -> str:
    return {"1.2": "stacked_vae", "1.3": "video_vae"}[version]


def _translate_slot(
    out: dict[str, Any], slot: str, part: Mapping[str, Any], notes: list[str], version: str
) -> None:
    new = translate_component(part, notes, version)
    ours = COMPONENTS[part["type"]].slot
    base = out[ours] if ours == "model" else _defaults(ours, new["type"])
    merged = _merge(base, new)
    if ours == "model":
        names = [name for name in base["conditions"] if name in new["conditions"]]
        merged["conditions"] = {name: merged["conditions"][name] for name in names}
    if ours != slot:
        notes.append(f"{slot} -> {ours}")
    out[ours] = merged


def _defaults(slot: str, kind: str) -> dict[str, Any]:
    """Return the config of a component of this type in our `_base_` files, or what every one can take."""
    for values in base_configs().values():
        if slot in values and values[slot] is not None and values[slot]["type"] == kind:
            return copy.deepcopy(values[slot])
    parts = [base_configs()["stacked_vae"]["vae"][name] for name in ("spatial", "temporal")]
    own = [dict(part) for part in parts if part["type"] == kind]
    return {"from_pretrained": None, "ignore_keys": (), **(own[0] if own else {})}


def _merge(base: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in new.items():
        old = merged[key] if key in merged else None
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _move(out: dict[str, Any], key: str, value: Any, kind: str, notes: list[str]) -> None:
    """Set a key that is called something else, or the same, at the top level here."""
    source = f"{key}={value!r}"
    known = {name for names in base_configs().values() for name in names}
    if key in _DROPPED:
        notes.append(f"{source} -> dropped: {_DROPPED[key]}")
        return
    path = _MOVED[key] if key in _MOVED else key
    top = path.split(".")[0]
    if top not in known:
        raise unknown_key("", key, value, [*_MOVED, *_DROPPED, *_SPECIAL, *known])
    if path.startswith("model.") and kind != "feature training":
        notes.append(f"{source} -> dropped: vae and text encoder say so")
        return
    if top not in out or (key in ("num_frames", "image_size") and "dataset" in out):
        reason = (
            "the dataset says so"
            if top in ("num_frames", "image_size")
            else f"nothing reads it in a {kind} config"
        )
        notes.append(f"{source} -> dropped: {reason}")
        return
    if path != key:
        notes.append(f"{source} -> {path}")
    put(out, path, tuple(value) if isinstance(value, list) and key == "image_size" else value)


def _schedule(
    out: dict[str, Any], published: Mapping[str, Any], kind: str, version: str, notes: list[str]
) -> None:
    if "lr_schedule" not in out:
        return
    steps = published["warmup_steps"] if "warmup_steps" in published else None
    if "warmup_steps" in published:
        notes.append(f"warmup_steps={steps!r} -> lr_schedule.warmup_steps={steps or 0!r}")
    initial = 1e-6 if version == "1.3" and kind != "autoencoder training" else 0.0
    out["lr_schedule"].update(warmup_steps=steps or 0, initial_lr=initial)


def _diffusion(
    out: dict[str, Any], published: Mapping[str, Any], kind: str, version: str, notes: list[str]
) -> None:
    frames = out["model"]["conditions"]["frames"] if version == "1.3" else None
    training = kind != "inference"
    # As published; references at inference take the mean, and feature files hold what was stored.
    out["sample_posterior"] = training and kind != "feature training"
    if frames is not None and training:
        frames["always_inject"] = True
        notes.append(
            "training -> model.conditions.frames.always_inject=True: published training adds the biases"
        )
    if out["text_encoder"] is not None:
        dtype = out["dtype"] if training else "fp32"
        notes.append(f"text_encoder.dtype={dtype!r}: what the published script built it with")
        out["text_encoder"]["dtype"] = dtype
    if not training:
        # Published scripts for inference did so whatever the config said.
        out["clean_prompts"], out["score_format"] = True, {"1.2": "numbers", "1.3": "words"}[version]
        notes.append(f"inference -> clean_prompts=True, score_format={out['score_format']!r}")
    if not training and out["dtype"] == "bf16":
        out["model"]["compat_bf16"] = out["scheduler"]["compat_bf16"] = True
        notes.append("inference in bf16 -> model.compat_bf16=True, scheduler.compat_bf16=True")
    dataset = published["dataset"] if "dataset" in published else {}
    if "dummy_text_feature" in dataset and dataset["dummy_text_feature"]:
        out["model"]["conditions"]["text"]["projected"] = False
        notes.append(
            "dataset.dummy_text_feature -> model.conditions.text.projected=False: captions are encoded"
        )
    set_frames_given(out, frames, published, notes)
    out["condition_dropout"] = translate_dropout(published, frames, notes)
    set_noise(out, published, notes)
    _guidance(out, published, kind, version, notes)
    if "base" in published and "base" in out:
        resolution, length = published["base"]
        out["base"] = (resolution, int(length))


def _guidance(
    out: dict[str, Any], published: Mapping[str, Any], kind: str, version: str, notes: list[str]
) -> None:
    if version == "1.2":
        del out["guidance"]["scales"]["frames"]
    scheduler = published["scheduler"] if "scheduler" in published else {}
    given = {key: part[key] for part in (scheduler, published) for key in SAMPLING if key in part}
    if kind != "inference" and not given:
        return  # training does not sample: the values of _base_ stand
    conditioned = (
        version == "1.3" and "cond_type" in published and published["cond_type"] not in (None, "none")
    )
    new = translate_guidance({"image_cfg_scale": 7.5, **given}, conditioned)
    out["guidance"].update(new)
    notes.append(f"{', '.join(f'{key}={value!r}' for key, value in given.items())} -> guidance={new!r}")


def _autoencoder(
    out: dict[str, Any], published: Mapping[str, Any], kind: str, version: str, notes: list[str]
) -> None:
    loss, training = out["loss"], kind == "autoencoder training"
    source = published["vae_loss_config"] if "vae_loss_config" in published else {}
    absent = {**_LOSS_KEYS, "perceptual_loss_weight": 1.0 if version == "1.3" else 0.1}
    for key, default in absent.items():
        if key not in published:
            put(out, _MOVED[key], source[key] if key in source else default)
    _check_names("vae_loss_config", source, absent)
    if source:
        notes.append(f"vae_loss_config={dict(source)!r} -> loss")
    if training and version == "1.2" and "use_real_rec_loss" not in published:
        loss["real_reconstruction"] = False
    gan = published["gan_loss_confg"] if "gan_loss_confg" in published else None
    if gan is not None and out["discriminator"] is not None:
        _check_names("gan_loss_confg", gan, _GAN_KEYS)
        for key, (name, default) in _GAN_KEYS.items():
            out["gan"][name] = gan[key] if key in gan else default
        notes.append(f"gan_loss_confg={dict(gan)!r} -> gan")
    elif gan is not None:
        notes.append("gan_loss_confg -> dropped: nothing reads it without a discriminator")
    if out["discriminator"] is not None and version == "1.2" and "discriminator_start" not in published:
        out["gan"]["start"] = 0  # published: -1, which is at once
    strategy = published["mixed_strategy"] if "mixed_strategy" in published else None
    names = {None: None, "mixed_video_image": "image", "mixed_video_random": "random"}
    if strategy not in names:
        raise ValueError(f"mixed_strategy={strategy!r}: use None, mixed_video_image or mixed_video_random.")
    if strategy is not None:
        out["mixed_frames"]["strategy"] = names[strategy]
        notes.append(f"mixed_strategy={strategy!r} -> mixed_frames.strategy={names[strategy]!r}")
    if "freeze_vae_2d" in published["model"] and published["model"]["freeze_vae_2d"]:
        out["frozen"] = ("spatial_vae.",)
        notes.append("model.freeze_vae_2d=True -> frozen=('spatial_vae.',)")


def _check_names(where: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, list(known), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(known)}."
            raise ValueError(f"{where}.{key}={given[key]!r}: there is no such key{hint}")


def _postprocess(out: dict[str, Any], published: Mapping[str, Any], notes: list[str]) -> None:
    """Translate the three switches; the published scripts ran them in this order."""
    steps = {"deflicker": "Deflicker", "super_resolution": "SuperResolution", "watermark": "Watermark"}
    for key, kind in steps.items():
        if key in published and published[key]:
            if key == "super_resolution":
                raise ValueError(
                    f"super_resolution={published[key]!r}: write postprocess=[dict(type={kind!r})] instead."
                )
            out["postprocess"] = [*out["postprocess"], {"type": kind}]
            notes.append(f"{key}={published[key]!r} -> postprocess: dict(type={kind!r})")
