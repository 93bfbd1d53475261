"""Times in [0, 1]: how training draws them, and how they move with resolution and length."""

import math
from typing import Any

import torch
from torch import Tensor

DISTRIBUTIONS = ("uniform", "logit-normal")
FRAME_FACTORS = ("stride4", "chunk17", "latent", None)
BASE_PIXELS = 512 * 512


def draw_times(
    draws: Any, batch: int, distribution: str, loc: float, scale: float, num_discrete: int | None
) -> Tensor:
    """Draw one time per sample.

    Args:
        draws: Random numbers of the samples; used are "t" (normal or uniform).
        batch: Number of samples B.
        distribution: "uniform", or "logit-normal": sigmoid(loc + scale n).
        loc: Mean of the logit.
        scale: Standard deviation of the logit.
        num_discrete: With a number, times are multiples of 1 / num_discrete, below 1.

    Returns:
        Times in [0, 1]. float32, shape [B].

    Source: Esser et al. 2024 (SD3), section 3.1.
    """
    if distribution == "logit-normal":
        return torch.sigmoid(loc + scale * draws.normal("t", 0, (batch,)))
    t = draws.uniform("t", 0, (batch,))
    return t if num_discrete is None else torch.floor(t * num_discrete) / num_discrete


def frame_factor(num_frames: Tensor, rule: str | None, latent_frames: int) -> Tensor:
    """Say how many latent steps a clip counts for in the time shift, per sample.

    Args:
        num_frames: Pixel frames. Shape [B].
        rule: "stride4" (published 1.3): (n - 1) // 4, at least 1. "chunk17" (published 1.2): n // 17 * 5, and
            below 17 frames ceil(n / 4). "latent": the autoencoder's latent length. None: length does not
            count.
        latent_frames: Frames of the latents at hand.

    Returns:
        Whole numbers, at least 1; 1 for images. Shape [B].
    """
    if rule is None:
        return torch.ones_like(num_frames)
    if rule == "latent":
        return torch.full_like(num_frames, latent_frames)
    n = num_frames
    if rule == "stride4":
        return torch.clamp(torch.div(n - 1, 4, rounding_mode="floor"), min=1)
    chunked = torch.div(n, 17, rounding_mode="floor") * 5
    return torch.where(n >= 17, chunked, torch.ceil(n / 4))


def shift_times(
    t: Tensor,
    height: Tensor,
    width: Tensor,
    num_frames: Tensor,
    *,
    rule: str | None,
    scale: float = 1.0,
    latent_frames: int = 1,
    compat_bf16: bool = False,
) -> Tensor:
    """Move times towards noise for larger and longer videos.

    t' = a t / (1 + (a - 1) t), with a = sqrt(height width / 512^2) sqrt(frame factor) scale.

    Args:
        t: Time in [0, 1]. Shape [..., B].
        height: Pixel rows. Shape [B].
        width: Pixel columns. Shape [B].
        num_frames: Pixel frames; 1 for images. Shape [B].
        rule: See `frame_factor`. Under "stride4" `scale` applies to videos only, as published.
        scale: Extra factor.
        latent_frames: For the rule "latent".
        compat_bf16: Round sizes and ratios to bfloat16, as published runs did.

    Returns:
        Shifted time in [0, 1]. Shape [..., B], dtype of `t`.

    Source: Esser et al. 2024 (SD3), section 5.3.2; Open-Sora 1.2 report for the factor of length.
    """
    dtype = torch.bfloat16 if compat_bf16 else t.dtype
    height, width, frames = (x.to(device=t.device, dtype=dtype) for x in (height, width, num_frames))
    space = torch.sqrt(height * width / BASE_PIXELS)
    time = torch.sqrt(frame_factor(frames, rule, latent_frames))
    ratio = space * time
    scaled = ratio * scale
    ratio = torch.where(frames == 1, ratio, scaled) if rule == "stride4" else scaled
    ratio = ratio.to(t.dtype)
    return ratio * t / (1 + (ratio - 1) * t)


def redraw_above(t: Tensor, threshold: float, draws: Any, num_frames: Tensor) -> Tensor:
    """Redraw times of videos above a threshold uniformly in [threshold, 1]. Shape [B]."""
    u = threshold + (1 - threshold) * draws.uniform("t_above", 0, tuple(t.shape)).to(t)
    return torch.where((t > threshold) & (num_frames.to(t.device) > 1), u, t)


def sampling_times(num_steps: int, num_discrete: int | None = None) -> Tensor:
    """Return the times of a sampling run before any shift: 1, 1 - 1/n, ..., 1/n.

    Args:
        num_steps: Number of steps n.
        num_discrete: With a number, times are rounded to multiples of 1 / num_discrete.

    Returns:
        float64, so that `1000 t` is exact enough for the networks' embedding. Shape [n].
    """
    times = [1 - i / num_steps for i in range(num_steps)]
    if num_discrete is not None:
        times = [round(x * num_discrete) / num_discrete for x in times]
    if any(math.isnan(x) for x in times):
        raise ValueError(f"num_sampling_steps={num_steps} gives times {times}; use at least 1.")
    return torch.tensor(times, dtype=torch.float64)
