"""Limits: what a model has learned and what fits into the machine, known before anything is tried."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from opensora.engine.build import Components, parse_dtype
from opensora.engine.lengths import covering_size
from opensora.engine.prompts import Request

GIB = 2**30
_PER_TOKEN = 14  # values of the width of the network that a block holds at once, per token
_PER_PIXEL = 4  # values of the widest layer that an autoencoder holds at once, per pixel of a chunk
_SPARE = 0.9  # share of the memory that one may count on


def marks(parts: Components, cfg: Mapping[str, Any], request: Request, guided: bool) -> dict[str, str]:
    """Say what goes beyond the model or the machine, by group of controls.

    Args:
        parts: The components; networks may be on the meta device.
        cfg: Config of the wish.
        request: What would be made.
        guided: Whether frames are given.
    """
    found: dict[str, list[str]] = {"shape": [], "frames": []}
    learned = cfg["trained"]
    sized = cfg["image_size"] is not None
    for key, value in (
        ("num_frames", request.num_frames),
        ("resolutions", None if sized else cfg["resolution"]),
        ("aspect_ratios", None if sized else cfg["aspect_ratio"]),
    ):
        known = learned[key]
        if known is not None and value is not None and value not in known:
            what = {"num_frames": "frames", "resolutions": "resolution", "aspect_ratios": "ratio"}[key]
            names = ", ".join(map(str, known))
            found["shape"].append(f"This model was not trained for {what} {value}; it learned {names}.")
    if guided and learned["given_frames"] is False:
        found["frames"].append("This model was not trained with given frames; expect little of them.")
    needed, there = memory(parts, cfg, request), machine_memory(cfg["device"])
    if needed > _SPARE * there:
        found["shape"].append(
            f"Needs about {needed / GIB:.1f} GiB of memory, and this machine has {there / GIB:.1f} GiB: "
            "choose a smaller resolution or fewer frames."
        )
    return {group: " ".join(lines) for group, lines in found.items() if lines}


def memory(parts: Components, cfg: Mapping[str, Any], request: Request) -> float:
    """Estimate the bytes that making a request takes at its peak, above those of an idle process.

    Weights are exact; what networks hold while they compute is a rule of thumb (docs/demo.md).
    """
    size = torch.finfo(parse_dtype(cfg["dtype"])).bits // 8
    height, width = covering_size(parts.vae, request.height, request.width)
    latent = parts.vae.latent_shape(request.num_frames, height, width)
    patch = getattr(parts.model, "patch_size", (1, 1, 1))
    tokens = math.prod(-(-n // p) for n, p in zip(latent, patch, strict=True))
    batch = 1 if parts.guidance is None else 1 + len(parts.guidance.scales)
    denoise = tokens * batch * getattr(parts.model, "hidden_size", 1152) * _PER_TOKEN * size
    chunk = getattr(parts.vae, "micro_frame_size", None) or request.num_frames
    pixels = min(chunk, request.num_frames) * height * width
    decode = pixels * _PER_PIXEL * (_widest(parts.vae) * size)
    weights = [sum(p.numel() for p in part.parameters()) * size for part in (parts.model, parts.vae)]
    if cfg["offload"]:
        return max(weights[0] + denoise, weights[1] + decode)
    return sum(weights) + max(denoise, decode)


def machine_memory(device: str) -> float:
    """Return the bytes of memory where networks compute."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.mem_get_info()[1]
    limits = [math.inf]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(file).read_text().strip() if Path(file).is_file() else "max"
        limits += [float(text)] if text.isdigit() else []
    info = Path("/proc/meminfo")
    if info.is_file():
        limits.append(int(info.read_text().split("MemTotal:")[1].split()[0]) * 1024)
    return min(limits)


def _widest(vae: nn.Module) -> int:
    """Return the channels of the layers that work on whole frames: those that give the pixels."""
    widths = [m.in_channels for m in vae.modules() if getattr(m, "out_channels", None) == 3]
    return max(widths, default=128)
