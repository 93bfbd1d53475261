"""Rectified flow: straight paths from noise to data.

Source: Liu et al. 2022, "Flow straight and fast"; Open-Sora 1.2 and 1.3 reports.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from opensora.layers.sampling_cache import SamplingCache
from opensora.registry import SCHEDULERS
from opensora.schedulers.timesteps import (
    DISTRIBUTIONS,
    FRAME_FACTORS,
    draw_times,
    redraw_above,
    sampling_times,
    shift_times,
)


@SCHEDULERS.register_module()
class RectifiedFlow:
    """Train on `v = x_0 - noise` and sample with Euler steps.

    Args:
        num_sampling_steps: Euler steps of a sampling run.
        num_timesteps: Steps of the discrete time.
        time_distribution: How training draws times, "uniform" or "logit-normal".
        time_loc: Mean of the logit-normal distribution.
        time_scale: Its standard deviation.
        discrete_time: Whether times are multiples of 1 / num_timesteps; with "uniform" only.
        shift_time: Whether times move with resolution and length, in training and sampling alike.
        shift_scale: Extra factor of that shift.
        frame_factor: How length counts in it: "stride4" (1.3), "chunk17" (1.2), "latent" (own stages), or
            None.
        uniform_over_threshold: In training, shifted times of videos above it are redrawn uniformly; None does
            not.
        reference_weight: Loss weight of frames that are given as references; the total weight stays the same.
        clean_above: With augmented latents, times above it start from the clean ones; None never does.
        time_weights: Loss weight of each of equally many times from 0 up, for example 1000 numbers; None is
            1.
        renoise_reference: Whether sampling sets given reference frames to the reference, noised to the
            current time, before each step (SDEdit start).
        compat_bf16: Round the shift to bfloat16, as published runs did.
        reuse_conditions: Whether a sampling run computes once what its steps share: tokens of captions and
            their keys and values in every block, embedded times. It takes memory (docs/performance.md).
    """

    def __init__(
        self,
        num_sampling_steps: int = 30,
        num_timesteps: int = 1000,
        time_distribution: str = "uniform",
        time_loc: float = 0.0,
        time_scale: float = 1.0,
        discrete_time: bool = False,
        shift_time: bool = False,
        shift_scale: float = 1.0,
        frame_factor: str | None = "stride4",
        uniform_over_threshold: float | None = None,
        reference_weight: float = 1.0,
        clean_above: float | None = None,
        time_weights: Sequence[float] | None = None,
        renoise_reference: bool = False,
        compat_bf16: bool = False,
        reuse_conditions: bool = True,
    ) -> None:
        if time_distribution not in DISTRIBUTIONS:
            raise ValueError(
                f"time_distribution={time_distribution!r}: use one of {', '.join(DISTRIBUTIONS)}."
            )
        if discrete_time and time_distribution != "uniform":
            raise ValueError(
                f"discrete_time=True needs time_distribution='uniform'; it is {time_distribution!r}. Change "
                f"one."
            )
        if frame_factor not in FRAME_FACTORS:
            raise ValueError(f"frame_factor={frame_factor!r}: use one of {FRAME_FACTORS}.")
        if num_sampling_steps < 1:
            raise ValueError(f"num_sampling_steps={num_sampling_steps}: use at least 1.")
        self.num_sampling_steps = num_sampling_steps
        self.num_discrete = num_timesteps if discrete_time else None
        self.time_distribution, self.time_loc, self.time_scale = time_distribution, time_loc, time_scale
        self.shift_time, self.shift_scale, self.frame_factor = shift_time, shift_scale, frame_factor
        self.uniform_over_threshold = uniform_over_threshold
        self.reference_weight, self.clean_above = reference_weight, clean_above
        self.time_weights = None if time_weights is None else torch.as_tensor(time_weights)
        self.renoise_reference = renoise_reference
        self.compat_bf16 = compat_bf16
        self.reuse_conditions = reuse_conditions

    def interpolate(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return `(1 - t) x_0 + t noise`.

        Args:
            x0: Data. Shape [B, C, T, H, W].
            noise: Same shape.
            t: Time per sample [B], or per frame [B, T].
        """
        t = t.to(x0).view(t.shape[0], 1, -1, 1, 1)
        return (1 - t) * x0 + t * noise

    def shift(self, t: Tensor, cond: Mapping[str, Tensor], latent_frames: int) -> Tensor:
        """Move times with the sizes in `cond`, if the config says so. Shape [..., B] in and out."""
        if not self.shift_time:
            return t
        sizes = (cond[name] for name in ("height", "width", "num_frames"))
        return shift_times(
            t,
            *sizes,
            rule=self.frame_factor,
            scale=self.shift_scale,
            latent_frames=latent_frames,
            compat_bf16=self.compat_bf16,
        )

    def draw_times(self, cond: Mapping[str, Tensor], latent_frames: int, draws: Any, batch: int) -> Tensor:
        """Draw training times, shifted. Shape [B], in [0, 1]."""
        t = draw_times(
            draws, batch, self.time_distribution, self.time_loc, self.time_scale, self.num_discrete
        )
        t = self.shift(t, cond, latent_frames)
        if self.uniform_over_threshold is not None:
            t = redraw_above(t, self.uniform_over_threshold, draws, cond["num_frames"])
        return t

    def training_loss(
        self,
        model: Callable[..., Tensor],
        x0: Tensor,
        cond: Mapping[str, Tensor],
        *,
        frame_mask: Tensor | None = None,
        drop: Mapping[str, Tensor] | None = None,
        draws: Any,
        t: Tensor | None = None,
        clean: Tensor | None = None,
    ) -> Tensor:
        """Return the mean squared error of the velocity, per sample.

        Args:
            model: A denoiser.
            x0: Latents that noise is added to. Shape [B, C, T, H, W].
            cond: Prepared inputs and sizes; `reference_mask` [B, T] weights given frames by
                `reference_weight`.
            frame_mask: 1 = noised and trained, 0 = given clean, at time 0 and without loss. Shape [B, T].
            drop: By condition name, samples that do without it. Bool, shape [B].
            draws: Random numbers of the samples: "t" and "noise".
            t: Fixed times instead of drawn ones, for evaluation. Shape [B].
            clean: Latents that the velocity points to, when `x0` is an augmented form of them. Shape as `x0`.

        Returns:
            float32, shape [B].

        Source: Liu et al. 2022, equation 1.
        """
        if t is None:
            t = self.draw_times(cond, x0.shape[2], draws, x0.shape[0])
        t = t.to(x0.device)
        noise = draws.normal("noise", 0, tuple(x0.shape)).to(x0)
        target = (x0 if clean is None else clean) - noise
        if clean is not None and self.clean_above is not None:
            x0 = torch.where((t > self.clean_above)[:, None, None, None, None], clean, x0)
        x_t, known = self.interpolate(x0, noise, t), None
        if frame_mask is not None:
            known = frame_mask == 0
            x_t = torch.where(known[:, None, :, None, None], x0, x_t)
        v = model(x_t, t, cond, drop or {}, known=known)[:, : x0.shape[1]]
        error = (v.float() - target.float()) ** 2
        if "reference_mask" in cond and self.reference_weight != 1:
            error = error * self._reference_weights(cond["reference_mask"]).to(error)
        if self.time_weights is not None:
            last = self.time_weights.shape[0] - 1
            index = (t.cpu() * (last + 1)).round().long().clamp(max=last)
            error = error * self.time_weights[index].to(error).view(-1, 1, 1, 1, 1)
        return mean_over_frames(error, frame_mask)

    @torch.no_grad()
    def sample(
        self,
        model: Callable[..., Tensor],
        noise: Tensor,
        cond: Mapping[str, Tensor],
        guidance: Callable[..., Tensor],
        *,
        known: Tensor | None = None,
        frame_mask: Tensor | None = None,
        draws: Any = None,
        on_step: Callable[[int, int, Callable[[], Tensor]], None] | None = None,
    ) -> Tensor:
        """Follow the flow from noise to data.

        Args:
            model: A denoiser.
            noise: Shape [B, C, T, H, W].
            cond: Prepared inputs and sizes.
            guidance: `(model, x, t, cond, step, num_steps, known, cache) -> v`; `cache` where the model
                takes one.
            known: Latents of frames whose mask is below 1. Shape as `noise`.
            frame_mask: Value m: 1 generates a frame from noise, 0 keeps it, between noises it when t falls to
                m and generates it from there (editing). float, shape [B, T], best on the CPU.
            draws: Random numbers: "edit" for frames with 0 < m < 1, "reference" for `renoise_reference`.
            on_step: Called with (finished steps, steps, estimate), for progress; `estimate()` returns the
                latents that the flow points to now, shape as `noise`.

        Returns:
            Latents. float32, shape as `noise`.

        Source: Liu et al. 2022, algorithm 1; Meng et al. 2022 (SDEdit).
        """
        steps = self.num_sampling_steps
        times = self._times(cond, noise)  # [steps + 1, B]
        active = _active(frame_mask, times[:-1])  # [steps, B, T] or None
        z = noise.float()
        if frame_mask is not None and known is not None:
            z = torch.where((frame_mask < 1).to(z.device)[:, None, :, None, None], known.to(z), z)
        shared = self.reuse_conditions and getattr(model, "takes_cache", False)
        extra = {"cache": SamplingCache(times[:-1])} if shared else {}
        for i in range(steps):
            t = times[i].to(z.device)
            if active is not None:
                z = self._start_edits(z, t, active, frame_mask.cpu() >= 1, i, draws)
            if self.renoise_reference and "reference" in cond:
                fresh = draws.normal("reference", i, tuple(z.shape)).to(z)
                given = cond["reference_mask"].bool()[:, None, :, None, None]
                z = torch.where(given, self.interpolate(cond["reference"].to(z), fresh, t), z)
            still = None if active is None else ~active[i].to(z.device)
            v = guidance(model, z, t, cond, i, steps, known=still, **extra)
            step = v.float() * (times[i] - times[i + 1]).to(z).view(-1, 1, 1, 1, 1)
            z = z + (step if still is None else step.masked_fill(still[:, None, :, None, None], 0.0))
            if on_step is not None:  # x_0 = x_t + t v, from the new point too
                on_step(i + 1, steps, partial(self._estimate, z, v, times[i + 1], still))
        return z

    def _estimate(self, z: Tensor, v: Tensor, t: Tensor, still: Tensor | None) -> Tensor:
        """Follow the velocity to time 0, where frames move. Shapes [B, C, T, H, W], [B], [B, T]."""
        x0 = z + v.float() * t.to(z).view(-1, 1, 1, 1, 1)
        return x0 if still is None else torch.where(still[:, None, :, None, None], z, x0)

    def _times(self, cond: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """Times of all steps and the final 0, on the CPU. float64, shape [steps + 1, B]."""
        times = sampling_times(self.num_sampling_steps, self.num_discrete)[:, None].expand(-1, noise.shape[0])
        if self.shift_time:
            sizes = {name: cond[name].cpu() for name in ("height", "width", "num_frames")}
            times = self.shift(times, sizes, noise.shape[2])
        return torch.cat((times, torch.zeros_like(times[:1])))

    def _start_edits(
        self, z: Tensor, t: Tensor, active: Tensor, generated: Tensor, step: int, draws: Any
    ) -> Tensor:
        """Noise frames that become active in this step; those generated from the start are noise already."""
        before = active[step - 1] if step else generated
        fresh = active[step] & ~before
        if not bool(fresh.any()):
            return z
        noise = draws.normal("edit", step, tuple(z.shape)).to(z)
        return torch.where(fresh.to(z.device)[:, None, :, None, None], self.interpolate(z, noise, t), z)

    def _reference_weights(self, mask: Tensor) -> Tensor:
        """Weights of frames whose sum over frames is their number. Shape [B, 1, T, 1, 1]."""
        given = mask.sum(1, keepdim=True)
        frames, w = mask.shape[1], self.reference_weight
        others = (frames - given * w) / (frames - given)
        return torch.where(mask.bool(), torch.full_like(others, w), others)[:, None, :, None, None]


def mean_over_frames(x: Tensor, frame_mask: Tensor | None = None) -> Tensor:
    """Average over all but the batch, over frames whose mask is not 0 only.

    Args:
        x: Shape [B, C, T, H, W].
        frame_mask: Shape [B, T].

    Returns:
        Shape [B].
    """
    if frame_mask is None:
        return x.flatten(1).mean(1)
    used = (frame_mask != 0).to(x)
    return (x.mean((1, 3, 4)) * used).sum(1) / used.sum(1)


def _active(frame_mask: Tensor | None, times: Tensor) -> Tensor | None:
    """Which frames each step changes.

    A mask of 1 is active in every step, whatever rounding does to t = 1.
    """
    if frame_mask is None:
        return None
    mask = frame_mask.cpu().to(times)[None]
    return (mask >= times[:, :, None]) | (mask >= 1)
