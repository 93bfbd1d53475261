"""Autoencoding: train an autoencoder to give back what it was given."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from opensora.acceleration.heartbeat import phase
from opensora.acceleration.parallel import all_reduce_mean, parallel_state
from opensora.datasets.video_io import contact_sheet
from opensora.engine.adversary import Adversary
from opensora.engine.build import build_components
from opensora.layers.interfaces import Reconstruction
from opensora.registry import MODELS, build
from opensora.utils.logging import get_logger
from opensora.utils.random import Draws


class LogVariance(nn.Module):
    """Weighs a reconstruction error by a variance that is learned: `error / exp(logvar) + logvar`.

    Args:
        start: Where the logarithm of the variance starts.

    Source: Dai and Wipf 2019, "Diagnosing and enhancing VAE models".
    """

    def __init__(self, start: float) -> None:
        super().__init__()
        self.logvar = nn.Parameter(torch.tensor(float(start)))

    def forward(self, error: Tensor) -> Tensor:
        """Return the weighed error. A scalar."""
        return error / self.logvar.float().exp() + self.logvar.float()


class Autoencoding:
    """Reconstruction, bottleneck and adversarial losses of an autoencoder.

    Args:
        vae: The autoencoder.
        loss: Weights and choices, the keys of `loss` in `configs/_base_/autoencoder.py`.
        perceptual: Distance of images [N, 3, H, W] per image; None if `perceptual_weight` is 0.
        adversary: Discriminator and its losses, or None.
        mixed_frames: `strategy` None, "image" (some clips keep their first frame only, share `image_ratio`)
            or "random" (a random length); drawn per batch, equal on all processes.
        frozen: Prefixes of parameter names that are not trained.
        seed: Names the random numbers, with epoch and sample.

    Raises:
        ValueError: Settings are wrong, or ask for what the autoencoder does not have.
    """

    def __init__(
        self,
        vae: nn.Module,
        *,
        loss: Mapping[str, Any],
        perceptual: nn.Module | None = None,
        adversary: Adversary | None = None,
        mixed_frames: Mapping[str, Any] | None = None,
        frozen: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.vae, self.loss, self.seed = vae, dict(loss), seed
        self.perceptual, self.adversary = perceptual, adversary
        self.variance = LogVariance(loss["logvar_init"])
        self.mixed = dict(mixed_frames or {"strategy": None, "image_ratio": 0.0})
        self.dtype = torch.float32
        self.placed: torch.device | None = None  # where a training computes; weights may wait elsewhere
        if self.mixed["strategy"] not in (None, "image", "random"):
            raise ValueError(
                f"mixed_frames.strategy={self.mixed['strategy']!r}: use None, 'image' or 'random'."
            )
        _freeze(vae, frozen)
        self._check()
        self.calls: dict[str, Callable[..., Any]] = dict(self.trainable())

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> "Autoencoding":
        """Build the autoencoder of a config, its losses and its discriminator.

        Raises:
            ValueError: See the class.
            ImportError: The package with the weights of the perceptual loss is not installed.
        """
        perceptual = build(MODELS, cfg["perceptual"]) if cfg["loss"]["perceptual_weight"] else None
        if perceptual is not None:
            get_logger().info("perceptual loss: %s", perceptual.source)
        discriminator = build(MODELS, cfg["discriminator"])
        adversary = None if discriminator is None else Adversary(discriminator, cfg["gan"])
        return cls(
            build_components({"vae": cfg["vae"]}).vae,
            loss=cfg["loss"],
            perceptual=perceptual,
            adversary=adversary,
            mixed_frames=cfg["mixed_frames"],
            frozen=cfg["frozen"],
            seed=cfg["seed"],
        )

    @property
    def device(self) -> torch.device:
        """Where the autoencoder computes."""
        return self.placed or next(self.vae.parameters()).device

    def trainable(self) -> dict[str, nn.Module]:
        """Return the modules that training updates, by name."""
        modules: dict[str, nn.Module] = {"vae": self.vae}
        if self.adversary is not None:
            modules["discriminator"] = self.adversary.discriminator
        if self.loss["learned_logvar"]:
            modules["variance"] = self.variance
        return modules

    def check_shapes(self, shapes: Iterable[Any]) -> None:
        """Check that the discriminator can look at what becomes of clips.

        Args:
            shapes: Each with `num_frames`, `height` and `width`.

        Raises:
            ValueError: Clips are too small for it, or for the autoencoder.
        """
        for shape in shapes if self.adversary is not None else ():
            cells = self.vae.latent_shape(shape.num_frames, shape.height, shape.width)[1:]
            decoded = (n * step for n, step in zip(cells, self.vae.stride[1:], strict=True))
            self.adversary.discriminator.check_size(*map(min, (shape.height, shape.width), decoded))

    def use(self, modules: Mapping[str, Callable[..., Any]]) -> None:
        """Compute losses through these wrappers of the trainable modules, by name."""
        self.calls = dict(modules)

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move what is not trained to a device, and compute in `dtype`."""
        self.dtype, self.placed = dtype, device
        self.variance.to(device)
        if self.perceptual is not None:
            self.perceptual.to(device)

    @torch.no_grad()
    def evaluate(self, batch: Mapping[str, Any], num_times: int, draws: Draws) -> dict[str, float]:
        """Return error and PSNR of the reconstruction from the posterior's mean."""
        out, target = self._reconstruct(batch["video"])
        error = out - target
        return {"l1": float(error.abs().mean()), "psnr": float(-10 * torch.log10(error.square().mean() / 4))}

    @torch.no_grad()
    def show(self, batch: Mapping[str, Any], path: Path) -> None:
        """Save the first clip above its reconstruction."""
        out, target = self._reconstruct(batch["video"][:1])
        if parallel_state().is_main:
            contact_sheet(torch.cat((target, out), dim=3)[0].cpu(), path.with_suffix(".png"))

    def losses(self, batch: Mapping[str, Any], step: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the losses of a batch.

        Args:
            batch: `video` [B, 3, T, H, W], `sample`, `epoch`.
            step: Global step; it names the draw of the batch's length, and says whether the discriminator
                takes part.

        Yields:
            ("vae", {"loss", "l1", "psnr", "kl", ...}), then ("discriminator", ...) from its first step on,
            and ("variance", ...) if that is learned.

        Source: Kingma and Welling 2014; Open-Sora 1.3 report for the mixture of images and clips.
        """
        draws = Draws(self.seed, batch["sample"].tolist(), batch["epoch"].tolist())
        video = self._cut(batch["video"].to(self.device), step)
        phase("forward")
        pixels = bool(self.loss["real_reconstruction"])
        # Stages that compare latents only need not decode them to pixels.
        out = self.calls["vae"](video, draws) if pixels else self.calls["vae"](video, draws, pixels=False)
        errors, values = self._errors(out, video)
        with torch.no_grad():
            scale, offset = self.variance.logvar.float().exp(), self.variance.logvar.float()
        loss = errors / scale + offset
        if pixels:
            kl = out.regularizer.float().mean() / out.z[0].numel()
            loss = loss + self.loss["kl_weight"] * kl
            values["kl"] = kl.detach()
        plays = self.adversary is not None and self.adversary.plays(step)
        if plays:
            decoded, target = _common(out.video, video)
            with self._autocast():
                found = self.adversary.generator_loss(decoded, errors / scale, self.vae.last_layer)
            loss, values = loss + found[0], values | found[1]
        yield "vae", {"loss": loss, **values, **out.report}
        if plays:
            yield (
                "discriminator",
                self.adversary.discriminator_loss(self.calls["discriminator"], target, decoded),
            )
        if self.loss["learned_logvar"]:
            logvar = self.variance.logvar.detach().float().clone()
            yield "variance", {"loss": self.calls["variance"](errors.detach()), "logvar": logvar}

    @torch.no_grad()
    def after_step(self, skipped: bool = False) -> None:
        """Let what learns without gradients learn, and keep statistics equal on all processes.

        Args:
            skipped: Whether the step was given up, so that its batches must leave nothing behind.
        """
        for module in self.vae.modules():
            if hasattr(module, "after_step"):
                module.after_step(skipped)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for statistic in (module.running_mean, module.running_var):
                    statistic.copy_(all_reduce_mean(statistic))

    def _errors(self, out: Reconstruction, video: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of reconstruction errors, and values to log."""
        total, values = video.new_zeros(()), {}
        if self.loss["real_reconstruction"]:
            decoded, target = _common(out.video, video)
            error = decoded - target
            l1, mse = error.abs().mean(), error.square().mean()
            total = total + self.loss["l1_weight"] * l1 + self.loss["mse_weight"] * mse
            # values span [-1, 1]
            values |= {"l1": l1.detach(), "psnr": -10 * torch.log10(mse.detach() / 4)}
            if self.perceptual is not None:
                images = (rearrange(x, "B C T H W -> (B T) C H W") for x in (decoded, target))
                with self._autocast():
                    distance = self.perceptual(*images).mean()
                total = total + self.loss["perceptual_weight"] * distance
                values["perceptual"] = distance.detach()
        if self.loss["latent_reconstruction"]:
            # As a target the latents are fixed: else making them small would be the easy way.
            error = (out.decoded_latents - out.latents.detach()).abs().mean()
            total, values = total + error, values | {"latent_l1": error.detach()}
        if self.loss["image_identity"] and video.shape[2] == 1:
            error = (self.vae.denormalize(out.z) - out.latents).abs().mean()
            total, values = total + error, values | {"identity_l1": error.detach()}
        return total, values

    def _check(self) -> None:
        stacked = self.loss["latent_reconstruction"] or self.loss["image_identity"]
        if stacked and not hasattr(self.vae, "temporal_vae"):
            raise ValueError(
                "loss.latent_reconstruction and loss.image_identity compare the two parts of a StackedVAE; "
                f"{type(self.vae).__name__} has one, set them to False."
            )
        if not self.loss["real_reconstruction"] and (not stacked or self.adversary is not None):
            raise ValueError(
                "loss.real_reconstruction=False: nothing else is compared, or a discriminator looks at the "
                "pixels; set it to True."
            )
        if self.adversary is None:
            return
        if self.adversary.cfg["adaptive"] and not self.vae.last_layer.requires_grad:
            raise ValueError(
                "gan.adaptive=True compares gradients at the decoder's last layer, which `frozen` freezes; "
                "set gan.adaptive=False, or train that layer."
            )

    def _reconstruct(self, video: Tensor) -> tuple[Tensor, Tensor]:
        video, training = video.to(self.device), self.vae.training
        self.vae.eval()
        try:
            return _common(self.vae(video.to(next(self.vae.parameters()).dtype)).video, video)
        finally:
            self.vae.train(training)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _cut(self, video: Tensor, step: int) -> Tensor:
        draws, frames = Draws(self.seed, [step]), video.shape[2]
        u = float(draws.uniform("mixed_frames", 0, (1,)))
        if self.mixed["strategy"] == "image" and u < self.mixed["image_ratio"]:
            return video[:, :, :1]
        if self.mixed["strategy"] == "random":
            return video[:, :, : self.vae.legal_length(int(u * frames) + 1)]
        return video


def _freeze(vae: nn.Module, prefixes: Sequence[str]) -> None:
    names = [name for name, _ in vae.named_parameters()]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(
                f"frozen: no parameter starts with {prefix!r}; the first parts of names are "
                f"{', '.join(sorted({name.split('.')[0] for name in names}))}."
            )
    for name, parameter in vae.named_parameters():
        if name.startswith(tuple(prefixes)):
            parameter.requires_grad_(False)


def _common(out: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
    """Cut a reconstruction and its video, of sizes that are no multiples of the stride, to what both have."""
    frames, height, width = (min(a, b) for a, b in zip(out.shape[2:], video.shape[2:], strict=True))
    out, video = (x[:, :, :frames, :height, :width].float() for x in (out, video))
    return out, video
