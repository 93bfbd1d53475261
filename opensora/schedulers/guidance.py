"""Classifier-free guidance over any number of conditions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from opensora.layers.sampling_cache import BranchCache, SamplingCache


@dataclass(frozen=True)
class GuidanceScale:
    """How strongly one condition is followed, step by step and frame by frame.

    Args:
        scale: Weight; 1 follows the condition without amplifying it.
        oscillate_from: From this step on, odd steps use 1; None never does.
        ramp_from: With a number, the weight falls over the steps from `scale` to it, and rises in each step
            over the frames from it to that step's weight. For reference images: late frames are held less.
        interval: Two shares of the steps, such as (0.15, 1.0): only steps from the first to the second use
            the weight, others use 1. Guidance in the first steps makes colours too strong. Of n steps number
            i, from 0, lies at i / n, so the first one has no guidance if the interval begins above 0.

    Raises:
        ValueError: The interval is not two shares in [0, 1], in order.

    Source: Open-Sora 1.3 report, inference; Kynkäänniemi et al. 2024, section 3, for the interval.
    """

    scale: float
    oscillate_from: int | None = None
    ramp_from: float | None = None
    interval: Sequence[float] | None = None

    def __post_init__(self) -> None:
        shares = (0, 1) if self.interval is None else self.interval
        numbers = isinstance(shares, Sequence) and all(isinstance(share, int | float) for share in shares)
        if not numbers or len(shares) != 2 or not 0 <= shares[0] < shares[1] <= 1:
            raise ValueError(
                f"guidance interval={self.interval!r}: two shares of the steps in [0, 1], the smaller one "
                "first, such as (0.15, 1.0); None guides in all steps."
            )

    def at(self, step: int, num_steps: int, num_frames: int) -> float | Tensor:
        """Return the weight of a step: a number, or one per latent frame. Shape [T]."""
        if self.interval is not None and not self.interval[0] <= step / num_steps < self.interval[1]:
            return 1.0
        oscillates = self.oscillate_from is not None and step >= self.oscillate_from
        scale = 1.0 if oscillates and step % 2 else float(self.scale)
        if self.ramp_from is None or scale <= self.ramp_from:
            return scale
        upper = torch.linspace(scale, self.ramp_from, num_steps)[step].item()
        return torch.linspace(self.ramp_from, upper, num_frames)


class Guidance:
    """Combine a network's answers with fewer and fewer conditions dropped.

    `v = v_0 + sum_i s_i (v_i - v_{i-1})`, where `v_i` keeps the first `i` conditions and `v_0` none. All
    branches go through the network in one batch. A branch whose weight in the sum is 0 is not computed.

    Args:
        scales: For each condition, outermost first, a number or the fields of `GuidanceScale`; for example
            `dict(frames=2.0, text=7.5)`. Conditions that are not named are never dropped.
        rescale: Share (0 to 1) by which the result is brought back to the spread of the fully conditioned
            answer.
        dynamic_threshold: `dict(quantile=0.95, base=6.0)` clips each sample at that quantile of its
            magnitudes and brings it within `base`; None does not.

    Source: Ho and Salimans 2022; Brooks et al. 2023 (InstructPix2Pix), equation 3, for two conditions; Lin et
        al. 2024, section 3.4, for the rescale; Saharia et al. 2022 (Imagen), section 2.3, for the threshold.
    """

    def __init__(
        self,
        scales: Mapping[str, Any],
        rescale: float = 0.0,
        dynamic_threshold: Mapping[str, float] | None = None,
    ) -> None:
        self.scales = {
            name: GuidanceScale(**s)
            if isinstance(s, Mapping)
            else s
            if callable(getattr(s, "at", None))
            else GuidanceScale(float(s))
            for name, s in scales.items()
        }
        self.rescale = rescale
        self.dynamic_threshold = dynamic_threshold

    def only(self, given: set[str], known: set[str]) -> "Guidance":
        """Return the guidance without scales of conditions that a batch has nothing for.

        Args:
            given: Names of conditions that the batch has inputs for.
            known: Names of all conditions of the network.

        Raises:
            ValueError: A scale names no condition of the network.
        """
        unknown = [name for name in self.scales if name not in known]
        if unknown:
            raise ValueError(
                f"guidance.scales names {', '.join(unknown)}; the model has the conditions "
                f"{', '.join(sorted(known)) or 'none'}. Rename or remove the scale."
            )
        scales = {name: scale for name, scale in self.scales.items() if name in given}
        return Guidance(scales, self.rescale, self.dynamic_threshold)

    def __call__(
        self,
        model: Callable[..., Tensor],
        x: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        step: int,
        num_steps: int,
        known: Tensor | None = None,
        cache: SamplingCache | None = None,
    ) -> Tensor:
        """Return the guided velocity.

        Args:
            model: A denoiser.
            x: Noisy latents. Shape [B, C, T, H, W].
            t: Time. Shape [B].
            cond: Prepared inputs of the conditions; every tensor has B rows.
            step: Number of this step, from 0.
            num_steps: Number of steps of the run.
            known: Frames that are given. Bool, shape [B, T].
            cache: What the steps of this run share; None computes it in every step.

        Returns:
            float32, shape [B, C, T, H, W].
        """
        weights = [scale.at(step, num_steps, x.shape[2]) for scale in self.scales.values()]
        levels = _levels(weights)
        kept = None if cache is None else cache.at(step, levels)
        answers = self._branches(model, x, t, cond, known, levels, kept)
        v = answers[0]
        for i, level in enumerate(levels[1:], start=1):
            v = v + _per_frame(weights[level - 1], x) * (answers[i] - answers[i - 1])
        if self.rescale and len(levels) > 1:
            v = rescale_spread(v, answers[-1], self.rescale)
        if self.dynamic_threshold is not None:
            v = clip_dynamically(v, **self.dynamic_threshold)
        return v

    def _branches(
        self,
        model: Callable[..., Tensor],
        x: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        known: Tensor | None,
        levels: list[int],
        cache: BranchCache | None,
    ) -> list[Tensor]:
        """Run the network once; one answer per level, a level keeps the first so many conditions."""
        repeat = partial(_repeat, count=len(levels))

        def inputs() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            first = torch.tensor(levels, device=x.device).repeat_interleave(x.shape[0])
            drop = {name: first <= i for i, name in enumerate(self.scales) if min(levels) <= i}
            return {name: repeat(value) for name, value in cond.items()}, drop

        every, drop = inputs() if cache is None else cache.keep("inputs", inputs)
        extra = {} if cache is None else {"cache": cache}
        known = None if known is None else repeat(known)
        out = model(repeat(x), repeat(t), every, drop, known=known, **extra)
        return list(out[:, : x.shape[1]].chunk(len(levels)))


def rescale_spread(v: Tensor, v_cond: Tensor, share: float) -> Tensor:
    """Bring the standard deviation of each sample towards that of the conditioned answer.

    v (share std(v_cond) / std(v) + 1 - share), over all but the batch.

    Source: Lin et al. 2024, section 3.4.
    """
    dims = tuple(range(1, v.ndim))
    ratio = v_cond.std(dim=dims, keepdim=True) / v.std(dim=dims, keepdim=True)
    return v * (share * ratio + (1 - share))


def clip_dynamically(v: Tensor, quantile: float, base: float) -> Tensor:
    """Clip each sample at a quantile of its magnitudes (at least `base`) and scale that to `base`.

    Source: Saharia et al. 2022 (Imagen), section 2.3.
    """
    flat = v.abs().flatten(1)
    rank = quantile * (flat.shape[1] - 1)  # as torch.quantile, which refuses large tensors
    lower = int(rank)
    values = flat.sort(dim=1).values
    edge = torch.lerp(values[:, lower], values[:, min(lower + 1, flat.shape[1] - 1)], rank - lower)
    edge = edge.clamp(min=base).view(-1, *[1] * (v.ndim - 1))
    return v.clamp(-edge, edge) / edge * base


def _levels(weights: list[float | Tensor]) -> list[int]:
    """Numbers of conditions kept by the branches whose coefficient is not 0, ascending."""
    ladder = [1.0, *weights, 0.0]
    levels = []
    for i, (lower, upper) in enumerate(zip(ladder, ladder[1:], strict=False)):
        equal = not isinstance(lower, Tensor) and not isinstance(upper, Tensor) and lower == upper
        if not equal:
            levels.append(i)
    return levels


def _per_frame(weight: float | Tensor, x: Tensor) -> float | Tensor:
    return weight.to(x.device).view(1, 1, -1, 1, 1) if isinstance(weight, Tensor) else weight


def _repeat(value: Any, count: int) -> Any:
    return torch.cat([value] * count) if isinstance(value, Tensor) and count > 1 else value
