"""An inference run from a config: check, build, generate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from opensora.acceleration.parallel import init_distributed
from opensora.datasets.resolutions import image_size
from opensora.engine.build import parse_dtype
from opensora.engine.generation import choose_length, generate
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.engine.prompts import make_requests, read_prompts
from opensora.layers.attention import set_attention_backend
from opensora.registry import LOADING_KEYS, MODELS, build
from opensora.utils.logging import get_logger

# Keys that this version cannot serve yet, and their neutral values.
_NEUTRAL = {
    "sp_size": 1,
    "loop": 1,
    "reference_path": None,
    "mask_strategy": None,
    "cond_type": None,
    "csv_reference_column_name": None,
    "llm_refine": False,
    "aes": None,
    "flow": None,
    "camera_motion": None,
}


def infer(cfg: Mapping[str, Any]) -> list[Path]:
    """Make every video or image that a config asks for.

    Sizes, lengths, prompts and file names are checked before a network is built.

    Args:
        cfg: Keys of `configs/_base_/inference.py` and of the components.

    Returns:
        The files.

    Raises:
        ValueError: A setting is wrong.
        FileNotFoundError: Weights or a prompt file are missing.
    """
    dtype = parse_dtype(cfg["dtype"])
    for key, neutral in _NEUTRAL.items():
        if cfg[key] != neutral:
            raise ValueError(
                f"{key}={cfg[key]!r}: this version makes videos from text alone; set it to {neutral!r}."
            )
    if cfg["batch_size"] < 1 or cfg["num_sample"] < 1:
        raise ValueError(f"batch_size={cfg['batch_size']}, num_sample={cfg['num_sample']}: use at least 1.")
    read_prompts(cfg["prompt"], cfg["prompt_path"], 0, None)
    size = cfg["image_size"] or image_size(cfg["resolution"], cfg["aspect_ratio"])
    with torch.device("meta"):
        vae = build(MODELS, {key: value for key, value in cfg["vae"].items() if key not in LOADING_KEYS})
    length = choose_length(vae, cfg["num_frames"], cfg["seconds"], cfg["fps"])
    requests = make_requests(cfg, tuple(size), length)

    device = init_distributed(None if cfg["device"] == "auto" else cfg["device"]).device
    diffusion = LatentDiffusion.from_config(cfg)
    diffusion.model.to(device, dtype).eval().requires_grad_(False)
    diffusion.place(device, dtype)
    set_attention_backend(diffusion.model, cfg["attention_backend"])
    get_logger().info("%d to make: %d frames of %d x %d", len(requests), length, *size)
    return list(generate(diffusion, requests, cfg))
