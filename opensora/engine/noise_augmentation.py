"""NoiseAugmentation: degraded clips, from which the model learns to restore the clean ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from opensora.datasets.transforms import downsample_space, downsample_time

BLURS = {"downsample_spatial": downsample_space, "downsample_temporal": downsample_time}
KINDS = (*BLURS, "gaussian_pixel", "gaussian_feature")  # the order in which they are applied


class NoiseAugmentation:
    """Blur clips in space or time, or add noise to pixels or latents; each kind with its own probability.

    Args:
        kinds: For each kind `probability` in [0, 1], and `strength`: of a blur the factors to choose from,
            numbers from 1; of noise its largest share in (0, 1], the share is uniform below it.

    Raises:
        ValueError: A kind is unknown, or a number is out of range.

    Source: Open-Sora 1.3.
    """

    def __init__(self, kinds: Mapping[str, Mapping[str, Any]]) -> None:
        self.kinds: dict[str, tuple[float, tuple[float, ...]]] = {}
        for name, kind in kinds.items():
            if name not in KINDS or set(kind) != {"probability", "strength"}:
                raise ValueError(
                    f"noise_augmentation[{name!r}]={dict(kind)}: use {', '.join(KINDS)}, each with "
                    "probability and strength."
                )
            probability, strength = kind["probability"], kind["strength"]
            values = tuple(strength) if isinstance(strength, Sequence) else (strength,)
            if name in BLURS:
                right = len(values) > 0 and all(value >= 1 for value in values)
            else:
                right = len(values) == 1 and 0 <= values[0] <= 1
            if not 0 <= probability <= 1 or not right:
                raise ValueError(
                    f"noise_augmentation[{name!r}]={dict(kind)}: probability is in [0, 1]; strength is a "
                    "tuple of factors from 1 for a blur, one number in [0, 1] for noise."
                )
            self.kinds[name] = (probability, values)

    @property
    def needs_pixels(self) -> bool:
        """Whether latents alone do not do."""
        return any(name != "gaussian_feature" for name in self.kinds)

    def pixels(self, video: Tensor, draws: Any) -> tuple[Tensor, Tensor]:
        """Degrade clips.

        Args:
            video: In [-1, 1]. Shape [B, 3, T, H, W].
            draws: Random numbers of the samples.

        Returns:
            The degraded clips, and which ones were. Shapes [B, 3, T, H, W] and [B].
        """
        changed = torch.zeros(len(video), dtype=torch.bool)
        for name, blur in BLURS.items():
            chosen, u = self._choose(name, draws)
            changed |= chosen
            for row in chosen.nonzero().flatten().tolist():
                factors = self.kinds[name][1]
                one = blur(video[row : row + 1], factors[int(float(u[row]) * len(factors))])
                video = torch.cat((video[:row], one, video[row + 1 :]))
        noised, chosen = self._add_noise("gaussian_pixel", video, draws)
        return noised, changed | chosen

    def latents(self, z: Tensor, draws: Any) -> tuple[Tensor, Tensor]:
        """Add noise to latents. Arguments and result as for `pixels`, shape [B, Z, T, H, W]."""
        return self._add_noise("gaussian_feature", z, draws)

    def _choose(self, name: str, draws: Any) -> tuple[Tensor, Tensor]:
        """Return which samples are degraded, and a uniform number for how much. Shapes [B]."""
        u = draws.uniform(f"augment_{name}", 0, (len(draws), 2))
        return u[:, 0] < self.kinds.get(name, (0.0, ()))[0], u[:, 1]

    def _add_noise(self, name: str, x: Tensor, draws: Any) -> tuple[Tensor, Tensor]:
        chosen, u = self._choose(name, draws)
        if not chosen.any():
            return x, chosen
        share = torch.where(chosen, u * self.kinds[name][1][0], 0.0).to(x)[:, None, None, None, None]
        noise = draws.normal(f"augment_{name}_noise", 0, tuple(x.shape)).to(x)
        return torch.where(share > 0, (1 - share) * x + share * noise, x), chosen
