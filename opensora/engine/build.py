"""From a config to components: checks first, then builds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from opensora.acceleration.engine import Engine, build_engine
from opensora.engine.checkpoint import list_checkpoints, weights_file
from opensora.registry import CONDITIONS, MODELS, SCHEDULERS, bind, build, fill_in
from opensora.schedulers.guidance import Guidance
from opensora.utils.meta_device import meta_device

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Components:
    """What a run is made of, named like the config keys.

    A component that the config does not have is None.
    """

    model: nn.Module | None = None
    vae: nn.Module | None = None
    text_encoder: nn.Module | None = None
    scheduler: Any = None
    frame_mask: Any = None
    guidance: Guidance | None = None


def build_components(cfg: Mapping[str, Any]) -> Components:
    """Build every component of a config.

    All configs are bound to their constructors before a large one is built, so a misspelled key costs
    nothing. Facts that one component needs of another are filled in: the latent channels for the denoiser,
    the width and length of caption features for the caption condition.

    Args:
        cfg: A config with `model`, and as far as it has them `vae`, `text_encoder`, `scheduler`,
            `frame_mask`, `guidance`. Under `meta_device()` nothing is allocated.

    Raises:
        TypeError: A component's config does not fit its constructor.
        KeyError: A type is not registered.
        ValueError: A component refuses a value.
    """
    guidance = _part(cfg, "guidance")
    small = {  # these hold no weights yet, so building them is the check
        "scheduler": build(SCHEDULERS, _part(cfg, "scheduler")),
        "frame_mask": build(SCHEDULERS, _part(cfg, "frame_mask")),
        "text_encoder": build(MODELS, _part(cfg, "text_encoder")),
        "guidance": Guidance(**guidance) if isinstance(guidance, Mapping) else guidance,
    }
    networks = _network_configs(cfg, small["text_encoder"])
    return Components(**{name: build(MODELS, part) for name, part in networks.items()}, **small)


def build_network(cfg: Mapping[str, Any], name: str, text_encoder: Any) -> nn.Module:
    """Build the denoiser ("model") or the autoencoder ("vae") of a config alone."""
    return build(MODELS, _network_configs(cfg, text_encoder)[name])


def resolve_run(part: Any, name: str, averaged: bool) -> Any:
    """Turn a run or checkpoint folder in `from_pretrained` into the weights file in it.

    Args:
        part: Config of a component; anything else comes back as it is. Weights of parts in it are found too,
            and left out where those of the whole come in their place.
        name: What the component is called in checkpoints, "model" or "vae".
        averaged: Whether averaged weights are taken where there are some.

    Raises:
        FileNotFoundError: The checkpoint holds no such weights.
    """
    if not isinstance(part, Mapping):
        return part
    path = part["from_pretrained"] if "from_pretrained" in part else None
    whole = path is not None and not ("ignore_keys" in part and part["ignore_keys"])
    parts = {key: value for key, value in part.items() if isinstance(value, Mapping)}
    inner = {k: without_weights(v) if whole else resolve_run(v, name, averaged) for k, v in parts.items()}
    part = {**part, **inner}
    if path is None or not (list_checkpoints(Path(path)) or (Path(path) / "state.json").exists()):
        return part
    return {**part, "from_pretrained": str(weights_file(path, name, averaged))}


def parse_dtype(name: str) -> torch.dtype:
    """Turn "fp32", "bf16" or "fp16" into a torch dtype.

    Raises:
        ValueError: Another name.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype={name!r}: use one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def build_run_engine(
    cfg: Mapping[str, Any], modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> Engine:
    """Build the engine that the config of a training names; see `build_engine` for errors."""
    return build_engine(
        cfg["plugin"],
        cfg["dtype"],
        modules,
        optimizers,
        reduce_bucket_mib=4 * cfg["reduce_bucket_size_in_m"],  # of float32
        offload=cfg["offload"],
        overlap=cfg["overlap_communication"],
    )


def _network_configs(cfg: Mapping[str, Any], text_encoder: Any) -> dict[str, Any]:
    averaged = cfg["ema"] if "ema" in cfg else True
    vae = resolve_run(_part(cfg, "vae"), "vae", averaged)
    model = resolve_run(_part(cfg, "model"), "model", averaged)
    if isinstance(model, Mapping):
        model = _complete_model(model, _latent_channels(vae), text_encoder)
    return {"vae": vae, "model": model}


def names_weights(part: Mapping[str, Any]) -> bool:
    """Return whether a component, or every component in it, names weights."""
    inner = [value for value in part.values() if isinstance(value, Mapping) and "type" in value]
    own = "from_pretrained" in part and part["from_pretrained"] is not None
    return own or (bool(inner) and all(map(names_weights, inner)))


def without_weights(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a component without the names of weights in it and its parts."""
    values = {k: without_weights(v) if isinstance(v, Mapping) else v for k, v in part.items()}
    return {**values, "from_pretrained": None} if "from_pretrained" in values else values


def _part(cfg: Mapping[str, Any], name: str) -> Any:
    return cfg[name] if name in cfg else None


def _latent_channels(vae: Any) -> int | None:
    """Ask the autoencoder, on the meta device: a composed one knows its channels only when it is built."""
    if not isinstance(vae, Mapping):
        return getattr(vae, "latent_channels", None)
    with meta_device():
        return build(MODELS, without_weights(vae)).latent_channels


def _complete_model(cfg: Mapping[str, Any], latent_channels: int | None, text_encoder: Any) -> Any:
    """Fill in what the denoiser must know of the autoencoder and the text encoder, and bind it."""
    completed = dict(cfg) if latent_channels is None else fill_in(MODELS, cfg, in_channels=latent_channels)
    texts = {}
    if text_encoder is not None:
        texts = {"text_width": text_encoder.width, "text_length": text_encoder.max_length}
    if "conditions" in completed:
        conditions = {
            name: fill_in(CONDITIONS, part, **texts) for name, part in completed["conditions"].items()
        }
        for part in conditions.values():  # the network fills in the rest
            bind(CONDITIONS, fill_in(CONDITIONS, part, hidden_size=0, patch_size=(1, 1, 1), in_channels=0))
        completed["conditions"] = conditions
    bind(MODELS, completed)
    return completed
