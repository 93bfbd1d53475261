"""Golden manifests (keys and shapes of full-size models) and discriminators."""

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opensora.registry import MODELS, build
from opensora.utils.published_config import translate_component
from opensora.utils.weights import published_state_dict

Case = dict[str, Any]

DISCRIMINATORS = {  # the published names differ in the kernel and in how often time is halved
    "N_LAYER_DISCRIMINATOR_3D v1.3": {"dims": 3, "kernel_size": 3, "time_halvings": 2},
    "N_Layer_DISCRIMINATOR_3D": {"dims": 3, "kernel_size": 4, "time_halvings": 1},
    "NLayerDiscriminator 2-D": {"dims": 2, "kernel_size": 4},
}


def run_manifest(case: Case, inputs: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Any]:
    """Build a full-size model on the meta device and list its published keys and shapes."""
    model = build_published(case["name"])
    if model is None:
        return {"shapes": {}}
    shapes = {
        key: "x".join(map(str, value.shape)) or "scalar" for key, value in published_state_dict(model).items()
    }
    count = sum(parameter.numel() for parameter in model.parameters())
    if count != case["num_parameters"]:
        raise ValueError(f"{count} parameters, expected {case['num_parameters']}")
    buffers = sorted(set(shapes) - set(published_names(model, dict(model.named_parameters()))))
    if buffers != sorted(case["buffers_in_state_dict"]):
        raise ValueError(f"buffers {buffers}, expected {case['buffers_in_state_dict']}")
    return {"shapes": shapes}


def published_names(model: nn.Module, tensors: dict[str, Tensor]) -> list[str]:
    """Return the published names of parameters."""
    ours = model.state_dict(keep_vars=True)
    pairs = zip(ours, published_state_dict(model), strict=True)
    return [published for name, published in pairs if name in tensors]


def build_published(name: str) -> nn.Module | None:
    """Build the model that a manifest's title describes."""
    with torch.device("meta"):
        if name.startswith("STDiT3"):
            return build_stdit3(name)
        if name.startswith("OpenSoraVAE_V1_3"):
            return build(MODELS, translate_component({"type": "OpenSoraVAE_V1_3", "z_channels": 16}))
        if name.startswith("OpenSoraVAE_V1_2"):
            return build(MODELS, translate_component({"type": "OpenSoraVAE_V1_2"}))
        if name.startswith("VAE_Temporal_SD"):
            return build(MODELS, translate_component({"type": "VAE_Temporal_SD"}))
        for prefix, settings in DISCRIMINATORS.items():
            if name.startswith(prefix):
                layers = re.search(r"n_layers (\d+)", name)
                return build(
                    MODELS,
                    {"type": "PatchDiscriminator", "num_layers": int(layers[1]) if layers else 3, **settings},
                )
    return None


def build_stdit3(name: str) -> nn.Module:
    """Read the options in a title such as "STDiT3-XL/2 v1.3 (kernel 8,8,-1; ...)"."""
    version = "1.2" if "v1.2" in name else "1.3"
    channels = int(re.search(r"(\d+) latent channels", name)[1])
    config: dict[str, Any] = {"type": name.split()[0]}
    if "kernel 8,8,-1" in name:
        config |= {"kernel_size": (8, 8, -1), "use_spatial_rope": "spatial rope" in name}
    config |= {"skip_temporal": True} if "skip_temporal" in name else {}
    config |= {"qk_norm": False} if "no qk norm" in name else {"qk_norm": True}
    config |= {"pred_sigma": False} if "pred_sigma False" in name else {}
    cfg = translate_component(config, version=version)
    cfg["conditions"]["text"] |= {"text_width": 4096, "text_length": 300}
    return build(MODELS, cfg, in_channels=channels)


def run_discriminator(case: Case, inputs: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The 3D patch discriminator, with running or with batch statistics."""
    config = case["config"]
    model = build(
        MODELS,
        {
            "type": "PatchDiscriminator",
            "in_channels": config["input_nc"],
            "channels": config["ndf"],
            "num_layers": config["n_layers"],
        },
    )
    model.load_state_dict(weights, strict=True)
    return {"out": model.train(case["args"]["training"])(inputs["x"])}


def not_buildable(case: Case, output: str, expected: dict) -> np.ndarray | None:
    """The reference's own class raises when it is built."""
    return (
        np.ones(len(expected), dtype=bool)
        if "the reference cannot build this class" in case["name"]
        else None
    )


def no_config_names_it(case: Case) -> str:
    """Our own check: the name is refused with a message, not built silently as something else."""
    try:
        translate_component({"type": "DISCRIMINATOR_3D"})
    except ValueError as error:
        return f"the published type is refused ({error})"
    raise AssertionError("DISCRIMINATOR_3D is translated; compare its keys instead of excusing them")


KINDS = {"manifest": run_manifest, "disc3d": run_discriminator}

DEVIATIONS = [
    {
        "name": "stylegan_discriminator_cannot_be_built",
        "reason": "The reference's class raises in its constructor and no published weights exist for it.",
        "kinds": {"manifest"},
        "excused": not_buildable,
        "check": no_config_names_it,
    }
]
