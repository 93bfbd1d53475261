"""What conditions hand to a network, and what an autoencoder returns."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Injection:
    """The ways in which a condition enters a network. A field that a condition does not use is None.

    Args:
        vector: Added to the time embedding. Shape [B, D].
        context: Tokens for cross attention. Shape [B, L, D].
        context_mask: Which of them are real, True = real; None when all are. Shape [B, L].
        channels: Added to the patches. Shape [B, N, D].
        null_context: The null caption's tokens, under the same `context_mask`. Shape [B, L, D].
        null_frames: Frames that attend to `null_context` instead of `context`. Bool, shape [B, T].
    """

    vector: Tensor | None = None
    context: Tensor | None = None
    context_mask: Tensor | None = None
    channels: Tensor | None = None
    null_context: Tensor | None = None
    null_frames: Tensor | None = None


@dataclass
class Posterior:
    """A diagonal Gaussian over latents, not normalised.

    Args:
        mean: Shape [B, Z, T, H, W].
        logvar: Logarithm of the variance, within [-30, 20]. Same shape.
    """

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return `mean + std * noise`. Shape [B, Z, T, H, W]."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean)

    def kl(self) -> Tensor:
        """Divergence from the standard normal, summed over all but the batch. Shape [B]."""
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1.0 - self.logvar).flatten(1).sum(1)


@dataclass
class Reconstruction:
    """What an autoencoder's `forward` returns.

    Args:
        video: The decoded video. Shape [B, 3, T, H, W]. None if it was not asked for.
        z: The latents it was decoded from, as the encoder gave them. Shape [B, Z, T', H', W'].
        regularizer: The bottleneck's loss per sample: KL divergence or codebook loss. Shape [B].
        latents: Of an autoencoder of two parts, what the outer one made of the video. Shape
            [B, Z, T, H', W'].
        decoded_latents: The same as the inner part gave it back.
        report: Scalars to log, by name.
    """

    video: Tensor | None
    z: Tensor
    regularizer: Tensor
    latents: Tensor | None = None
    decoded_latents: Tensor | None = None
    report: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


def inject(conditions: nn.ModuleDict, cond: Mapping[str, Tensor], drop: Mapping[str, Tensor]) -> Injection:
    """Run every condition and join what they inject.

    Args:
        conditions: The network's conditions by name.
        cond: Prepared inputs of all conditions, as `Condition.prepare` returned them.
        drop: For a condition's name, which samples do without it. Bool, shape [B].

    Returns:
        Vectors and channels are summed; at most one condition may give a context, and one the null frames.

    Raises:
        ValueError: Two conditions give a context, or two give null frames.
    """
    total = Injection()
    for name, condition in conditions.items():
        part = condition(cond, drop.get(name))
        for field in ("vector", "channels"):
            old, new = getattr(total, field), getattr(part, field)
            setattr(total, field, new if old is None else old if new is None else old + new)
        for field in ("context", "context_mask", "null_context", "null_frames"):
            new = getattr(part, field)
            if new is not None and getattr(total, field) is not None:
                raise ValueError(
                    f"condition {name!r}: {field} is given by another condition already; one may give it."
                )
            if new is not None:
                setattr(total, field, new)
    return total
