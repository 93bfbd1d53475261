"""Autoencoding: train an autoencoder to give back what it was given."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opensora.acceleration.heartbeat import phase
from opensora.acceleration.parallel import parallel_state
from opensora.datasets.video_io import contact_sheet
from opensora.engine.build import build_components
from opensora.utils.random import Draws


class Autoencoding:
    """Reconstruction and bottleneck losses of an autoencoder.

    Args:
        vae: The autoencoder.
        loss: `l1_weight`, `mse_weight` of the pixels' error, `kl_weight` of the bottleneck per latent value.
        mixed_frames: `strategy` None, "image" (some clips keep their first frame only, share `image_ratio`)
            or "random" (a random length); drawn per batch, equal on all processes.
        frozen: Prefixes of parameter names that are not trained.
        seed: Names the random numbers, with epoch and sample.
    """

    def __init__(
        self,
        vae: nn.Module,
        *,
        loss: Mapping[str, float],
        mixed_frames: Mapping[str, Any] | None = None,
        frozen: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.vae = self.forward_vae = vae
        self.loss, self.seed = dict(loss), seed
        self.mixed = dict(mixed_frames or {"strategy": None, "image_ratio": 0.0})
        if self.mixed["strategy"] not in (None, "image", "random"):
            raise ValueError(
                f"mixed_frames.strategy={self.mixed['strategy']!r}: use None, 'image' or 'random'."
            )
        names = [name for name, _ in vae.named_parameters()]
        for prefix in frozen:
            if not any(name.startswith(prefix) for name in names):
                raise ValueError(
                    f"frozen: no parameter starts with {prefix!r}; the first parts of names are "
                    f"{', '.join(sorted({name.split('.')[0] for name in names}))}."
                )
        for name, parameter in vae.named_parameters():
            if name.startswith(tuple(frozen)):
                parameter.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> "Autoencoding":
        """Build the autoencoder of a config and take its losses.

        Raises:
            ValueError: The config asks for a loss that is not there.
        """
        loss = dict(cfg["loss"])
        possible = {"perceptual_weight": 0, "logvar_init": 0, "real_reconstruction": True}
        possible |= {"latent_reconstruction": False, "image_identity": False, "discriminator": None}
        asked = {**loss, "discriminator": cfg["discriminator"]}
        absent = [f"{name}={value!r}" for name, value in possible.items() if asked[name] != value]
        if absent:
            raise ValueError(
                f"loss: this version trains on pixels and the bottleneck alone; set {', '.join(absent)}."
            )
        weights = {name: loss[name] for name in ("l1_weight", "mse_weight", "kl_weight")}
        vae = build_components({"vae": cfg["vae"]}).vae
        return cls(
            vae, loss=weights, mixed_frames=cfg["mixed_frames"], frozen=cfg["frozen"], seed=cfg["seed"]
        )

    @property
    def device(self) -> torch.device:
        """Where the autoencoder is."""
        return next(self.vae.parameters()).device

    def trainable(self) -> dict[str, nn.Module]:
        """Return the modules that training updates, by name."""
        return {"vae": self.vae}

    def use(self, modules: Mapping[str, Callable[..., Any]]) -> None:
        """Compute losses through these wrappers of the trainable modules, by name."""
        self.forward_vae = modules["vae"]

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Nothing here is frozen as a whole; the engine has moved the autoencoder."""

    @torch.no_grad()
    def evaluate(self, batch: Mapping[str, Any], num_times: int, draws: Draws) -> dict[str, float]:
        """Return error and PSNR of the reconstruction from the posterior's mean."""
        video = batch["video"].to(self.device)
        out, target = _common(self.vae(video.to(next(self.vae.parameters()))).video, video)
        error = out - target
        return {"l1": float(error.abs().mean()), "psnr": float(-10 * torch.log10(error.square().mean() / 4))}

    @torch.no_grad()
    def show(self, batch: Mapping[str, Any], path: Path) -> None:
        """Save the first clip above its reconstruction."""
        video = batch["video"][:1].to(self.device)
        out, target = _common(self.vae(video.to(next(self.vae.parameters()))).video, video)
        if parallel_state().is_main:
            contact_sheet(torch.cat((target, out), dim=3)[0].cpu(), path.with_suffix(".png"))

    def losses(self, batch: Mapping[str, Any], step: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the loss of a batch.

        Args:
            batch: `video` [B, 3, T, H, W], `sample`, `epoch`.
            step: Global step; it names the draw of the batch's length.

        Yields:
            ("vae", {"loss", "l1", "psnr", "kl"}).

        Source: Kingma and Welling 2014; Open-Sora 1.3 report for the mixture of images and clips.
        """
        draws = Draws(self.seed, batch["sample"].tolist(), batch["epoch"].tolist())
        video = self._cut(batch["video"].to(self.device), step)
        phase("forward")
        out = self.forward_vae(video, draws)
        decoded, target = _common(out.video, video)
        error = decoded - target
        l1, mse = error.abs().mean(), error.square().mean()
        kl = out.regularizer.float().mean() / out.z[0].numel()
        loss = self.loss["l1_weight"] * l1 + self.loss["mse_weight"] * mse + self.loss["kl_weight"] * kl
        psnr = -10 * torch.log10(mse.detach() / 4)  # values span [-1, 1]
        yield "vae", {"loss": loss, "l1": l1.detach(), "psnr": psnr, "kl": kl.detach()}

    def _cut(self, video: Tensor, step: int) -> Tensor:
        draws, frames = Draws(self.seed, [step]), video.shape[2]
        u = float(draws.uniform("mixed_frames", 0, (1,)))
        if self.mixed["strategy"] == "image" and u < self.mixed["image_ratio"]:
            return video[:, :, :1]
        if self.mixed["strategy"] == "random":
            return video[:, :, : self.vae.legal_length(int(u * frames) + 1)]
        return video


def _common(out: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
    """Cut a reconstruction and its video, of sizes that are no multiples of the stride, to what both have."""
    frames, height, width = (min(a, b) for a, b in zip(out.shape[2:], video.shape[2:], strict=True))
    out, video = (x[:, :, :frames, :height, :width].float() for x in (out, video))
    return out, video
