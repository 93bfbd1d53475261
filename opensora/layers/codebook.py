"""Codebook: latents rounded to the nearest of a set of vectors, which follow the mean of what they stand for.

Source: van den Oord et al. 2017 (VQ-VAE), appendix A.1, for the moving average; Dhariwal et al. 2020
(Jukebox), section 3, and Yan et al. 2021 (VideoGPT) for restarts.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from opensora.utils.random import Draws

_SMOOTHING = 1e-7


class Codebook(nn.Module):
    """Vectors that learn without gradients: from what a step rounds to them, on all processes together.

    The first training batch fills it. A vector that stands for less than one latent per step, on average, is
    moved to a latent of the step.

    Args:
        num_codes: Number of vectors.
        channels: Their length.
        decay: Of the moving averages, per step.
    """

    def __init__(self, num_codes: int, channels: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("vectors", torch.randn(num_codes, channels))
        self.register_buffer("sums", torch.zeros(num_codes, channels))
        self.register_buffer("counts", torch.ones(num_codes))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._seen: tuple[Tensor, Tensor] | None = None  # counts and sums since the last step
        self._first: Tensor | None = None  # latents of the first batch of the step

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Round latents.

        Args:
            z: Shape [B, D, T, H, W].

        Returns:
            The vectors, with the gradient of `z`; the latents' squared distance to them, a sum per sample
            [B]; and the perplexity of the batch: how many codes are in even use.
        """
        flat = z.detach().movedim(1, -1).flatten(0, -2).to(self.vectors.dtype)
        learning = self.training and torch.is_grad_enabled()
        if learning and not int(self.steps) and self._first is None:
            self._fill(flat)
        codes = self.codes(z)
        rounded = self.look_up(codes).to(z.dtype)
        used = torch.bincount(codes.flatten(), minlength=len(self.vectors)).to(self.vectors.dtype)
        if learning:
            self._take(flat, codes.flatten(), used)
        share = used / used.sum()
        perplexity = torch.exp(-torch.special.xlogy(share, share).sum())
        distance = (z - rounded).float().square().flatten(1).sum(1)
        return z + (rounded - z).detach(), distance, perplexity

    def codes(self, z: Tensor) -> Tensor:
        """Return the numbers of the nearest vectors. Shape [B, D, T, H, W] to [B, T, H, W]."""
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            x = z.movedim(1, -1).to(self.vectors.dtype)
            flat = x.flatten(0, -2)
            distances = self.vectors.square().sum(1) - 2 * flat @ self.vectors.t()
            return distances.argmin(1).view(x.shape[:-1])

    def look_up(self, codes: Tensor) -> Tensor:
        """Return vectors by number. Shape [B, T, H, W] to [B, D, T, H, W]."""
        return F.embedding(codes, self.vectors).movedim(-1, 1)

    @torch.no_grad()
    def after_step(self, skipped: bool = False) -> None:
        """Move the vectors. Called by all processes after each step.

        Args:
            skipped: Whether the step was given up; then nothing moves.
        """
        seen, first = self._seen, self._first
        self._seen = self._first = None
        if seen is None:
            return
        counts, sums = seen
        if dist.is_initialized():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        if skipped or not bool(sums.isfinite().all()):
            return
        self.steps.add_(1)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        total = self.counts.sum()
        smooth = (self.counts + _SMOOTHING) / (total + len(self.counts) * _SMOOTHING) * total
        self.vectors.copy_(self.sums / smooth[:, None])
        idle = (self.counts < 1)[:, None]
        fresh = self._pick(first)
        self.vectors.copy_(torch.where(idle, fresh, self.vectors))
        self.sums.copy_(torch.where(idle, fresh, self.sums))
        self.counts.copy_(torch.where(idle[:, 0], 1.0, self.counts))

    def _take(self, flat: Tensor, codes: Tensor, used: Tensor) -> None:
        sums = torch.zeros_like(self.sums).index_add_(0, codes, flat)
        self._seen = (used, sums) if self._seen is None else (self._seen[0] + used, self._seen[1] + sums)
        self._first = flat if self._first is None else self._first

    def _fill(self, flat: Tensor) -> None:
        self.vectors.copy_(self._pick(flat))
        self.sums.copy_(self.vectors)

    def _pick(self, flat: Tensor) -> Tensor:
        """Return as many latents of the first process as there are vectors, moved a little."""
        draws, shape = Draws(0, [int(self.steps)]), self.vectors.shape
        places = (draws.uniform("restart", 0, (1, shape[0]))[0] * len(flat)).long().clamp(max=len(flat) - 1)
        noise = draws.normal("restart noise", 0, (1, *shape))[0] * 0.01 / shape[1] ** 0.5
        picked = flat[places.to(flat.device)] + noise.to(flat)
        if dist.is_initialized():
            dist.broadcast(picked, 0)
        return picked
