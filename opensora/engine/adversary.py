"""Adversary: the discriminator that an autoencoder is trained against.

Source: Esser et al. 2021 (VQGAN), equation 7, for the weight of the adversarial loss; Lim and Ye 2017 for the
hinge loss; Goodfellow et al. 2014 for the other ones.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

_LARGEST = 1e4  # of the adaptive weight


class Adversary:
    """Both sides of adversarial training.

    Before step `start` the discriminator is neither called nor changed.

    Args:
        discriminator: Scores patches of frames or clips, see `PatchDiscriminator`.
        cfg: `start`, `generator_weight`, `discriminator_weight`, `loss` ("hinge", "vanilla" or
            "non-saturating", of the discriminator; the last two are one), `generator_loss` ("hinge" or
            "non-saturating"), `adaptive`.

    Raises:
        ValueError: A loss is unknown.
    """

    def __init__(self, discriminator: nn.Module, cfg: Mapping[str, Any]) -> None:
        for name, allowed in (
            ("loss", ("hinge", "vanilla", "non-saturating")),
            ("generator_loss", ("hinge", "non-saturating")),
        ):
            if cfg[name] not in allowed:
                raise ValueError(f"gan.{name}={cfg[name]!r}: use one of {', '.join(allowed)}.")
        self.discriminator, self.cfg = discriminator, dict(cfg)

    def plays(self, step: int) -> bool:
        """Return whether the discriminator takes part in a step."""
        return step >= self.cfg["start"]

    def generator_loss(
        self, video: Tensor, errors: Tensor, last_layer: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the autoencoder's loss for being found out, and values to log.

        Args:
            video: Decoded. Shape [B, 3, T, H, W].
            errors: The reconstruction loss that the weight follows; a scalar.
            last_layer: The parameter at which both gradients are compared.
        """
        scores = self._scores(self.discriminator, video)
        loss = -scores.mean() if self.cfg["generator_loss"] == "hinge" else F.softplus(-scores).mean()
        weight = loss.new_ones(())
        if self.cfg["adaptive"]:
            weight = adaptive_weight(errors, loss, last_layer)
        weighted = self.cfg["discriminator_weight"] * self.cfg["generator_weight"] * weight * loss
        return weighted, {"generator": loss.detach(), "adaptive_weight": weight}

    def discriminator_loss(
        self, discriminate: Callable[[Tensor], Tensor], real: Tensor, decoded: Tensor
    ) -> dict[str, Tensor]:
        """Return the discriminator's loss and values to log.

        Args:
            discriminate: Calls the discriminator.
            real: Shape [B, 3, T, H, W].
            decoded: Same shape.
        """
        yes, no = (self._scores(discriminate, video.detach()) for video in (real, decoded))
        if self.cfg["loss"] == "hinge":
            loss = 0.5 * (F.relu(1 - yes).mean() + F.relu(1 + no).mean())
        else:
            loss = 0.5 * (F.softplus(-yes).mean() + F.softplus(no).mean())
        values = {"score_real": yes.detach().mean(), "score_decoded": no.detach().mean()}
        return {"loss": self.cfg["discriminator_weight"] * loss, **values}

    def _scores(self, discriminate: Callable[[Tensor], Tensor], video: Tensor) -> Tensor:
        if self.discriminator.dims == 2:
            video = rearrange(video, "B C T H W -> (B T) C H W")
        return discriminate(video).float()


def adaptive_weight(errors: Tensor, generator: Tensor, last_layer: Tensor) -> Tensor:
    """Return how many times larger the gradient of `errors` is than that of `generator`, at most 10,000.

    Each micro-batch has its own weight, so it does not depend on the number of processes.
    """
    ours, theirs = (
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float().norm()
        for loss in (errors, generator)
    )
    return (ours / (theirs + 1e-4)).clamp(0, _LARGEST).detach()
