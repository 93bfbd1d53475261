"""Frame masks: which latent frames are given clean and which are generated."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from opensora.layers.known_frames import KnownFrames, given_frames
from opensora.registry import SCHEDULERS

NAMES = (
    "identity",
    "random",
    "interpolate",
    "quarter_random",
    "quarter_head",
    "quarter_tail",
    "quarter_head_tail",
    "image_random",
    "image_head",
    "image_tail",
    "image_head_tail",
)


@SCHEDULERS.register_module()
class FrameMask:
    """Draw training masks. Images, and clips too short for a mask, are generated whole.

    Args:
        ratios: Probability of each kind of mask; what is missing to 1 is "identity" (everything generated).
            `random` gives each frame with one probability between 0.1 and 0.9, `interpolate` every second
            frame; `quarter_*` gives runs of up to a quarter of the clip, `image_*` single frames, at the
            head, the tail, both, or anywhere.

    Source: Open-Sora 1.1 and 1.2 reports, mask strategy; Tay et al. 2022 (UL2) for mixing denoisers.
    """

    def __init__(self, ratios: Mapping[str, float]) -> None:
        unknown = [name for name in ratios if name not in NAMES]
        if unknown:
            raise ValueError(
                f"FrameMask ratios: unknown {', '.join(unknown)}; choose from {', '.join(NAMES)}."
            )
        bad = {name: p for name, p in ratios.items() if not 0 <= p <= 1}
        total = math.fsum(ratios.values())
        if bad or total > 1 + 1e-6 or ("identity" in ratios and abs(total - 1) > 1e-6):
            raise ValueError(
                f"FrameMask ratios: {bad or f'they add up to {total:g}'}; each lies in [0, 1] and all add up "
                f"to "
                f"1 (less is filled with 'identity')."
            )
        self.ratios = {
            **ratios,
            "identity": ratios["identity"] if "identity" in ratios else max(0.0, 1 - total),
        }

    def draw(self, z: Tensor, draws: Any) -> Tensor:
        """Draw a mask for each sample.

        Args:
            z: Latents; only their frames count. Shape [B, Z, T, H, W].
            draws: Random numbers of the samples.

        Returns:
            1 = generated, 0 = given; at least one frame of each sample is generated. float32, shape [B, T].
        """
        batch, frames = z.shape[0], z.shape[2]
        if frames == 1:
            return torch.ones(batch, 1)
        names = list(self.ratios)
        picks = draws.choice("mask_kind", 0, list(self.ratios.values()))
        numbers = draws.uniform("mask_span", 0, (batch, 2)).tolist()
        coins = draws.uniform("mask_frames", 0, (batch, frames))
        rows = [
            _given(names[k], frames, *pair, coin) for k, pair, coin in zip(picks, numbers, coins, strict=True)
        ]
        given = torch.stack(rows)
        given[given.all(1), -1] = False
        return (~given).float()


def _given(name: str, frames: int, u: float, w: float, coins: Tensor) -> Tensor:
    """Return the given frames of one kind of mask; `u` sets lengths, `w` positions. Bool, shape [T]."""
    if name == "random":
        return coins < 0.1 + 0.8 * u
    return given_frames(_entries(name, frames, u, w), frames)


def _entries(name: str, frames: int, u: float, w: float) -> list[KnownFrames]:
    if name == "identity":
        return []
    if name == "interpolate":
        return [KnownFrames(source=i, target=i) for i in range(int(w * 2), frames, 2)]
    family, _, place = name.partition("_")
    longest = frames // 4 if family == "quarter" else 1
    length = min(int(u * longest) + 1, longest)  # 0 where a quarter of the clip is less than a frame
    start = {"head": 0, "head_tail": 0, "tail": frames - length, "random": int(w * (frames - length + 1))}
    starts = {start[place], frames - length} if place == "head_tail" else {start[place]}
    return [KnownFrames(source=i, target=i, length=length) for i in starts if length]
