"""LatentDiffusion: the four components of a run, and the one path from a batch to a loss or to a video.

Training, evaluation, feature extraction and sampling all call `encode`, so they cannot drift apart.

Source: Rombach et al. 2022, "Latent diffusion".
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opensora.acceleration.heartbeat import phase
from opensora.acceleration.parallel import parallel_state
from opensora.datasets.video_io import through_sheet, write_image, write_video
from opensora.engine.build import Components, build_components
from opensora.engine.features import encode_moments, latents_of
from opensora.engine.latent_window import LatentWindow
from opensora.engine.noise_augmentation import NoiseAugmentation
from opensora.engine.offload import Offload
from opensora.layers.known_frames import give_first
from opensora.schedulers.guidance import Guidance
from opensora.utils.random import Draws

SIZES = ("fps", "height", "width", "num_frames")


class LatentDiffusion:
    """Encode batches, compute losses, sample and decode.

    Args:
        components: The built components; `vae` and `text_encoder` may be None when batches hold features.
        condition_dropout: Probability of dropping each set of conditions together, in training:
            `{("text",): 0.05, ("text", "frames"): 0.05}`.
        sample_posterior: Whether latents are samples of the autoencoder's posterior, or its mean.
        seed: Names the random numbers of training, with epoch and sample.
        noise_augmentation: Degrades the clips that the model is trained to restore, see `NoiseAugmentation`.
        window: Trains on parts of longer clips.

    Raises:
        ValueError: A setting is wrong, or two of them exclude each other.
    """

    def __init__(
        self,
        components: Components,
        *,
        condition_dropout: Mapping[tuple[str, ...], float] | None = None,
        sample_posterior: bool = False,
        seed: int = 0,
        noise_augmentation: Mapping[str, Any] | None = None,
        window: LatentWindow | None = None,
    ) -> None:
        self.model = components.model
        self.forward_model = self.model  # what losses call; an engine puts its wrapper here
        self.vae = components.vae
        self.text_encoder = components.text_encoder
        self.scheduler = components.scheduler
        self.frame_mask = components.frame_mask
        self.guidance = components.guidance
        self.condition_dropout = _check_dropout(condition_dropout or {}, self.model)
        self.sample_posterior = sample_posterior
        self.seed = seed
        self.placed: torch.device | None = None  # where a training computes; weights may wait elsewhere
        self.offload: Offload | None = None  # brings networks when they are used; without it all are here
        self.augmentation = NoiseAugmentation(noise_augmentation) if noise_augmentation else None
        self.window = window
        if self.window is not None and self.augmentation is not None and self.augmentation.needs_pixels:
            raise ValueError(
                "latent_window cuts latents, and noise_augmentation degrades whole clips of pixels; use its "
                "gaussian_feature alone, or one of the two."
            )
        if self.window is not None and self.vae is not None:
            self.window.check(self.vae)
        for frozen in (self.vae, self.text_encoder):
            if frozen is not None:
                frozen.eval().requires_grad_(False)

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any], components: Components | None = None) -> "LatentDiffusion":
        """Build the components of a config, or take these, with its other keys as far as it has them."""
        names = ("condition_dropout", "sample_posterior", "seed", "noise_augmentation")
        settings = {key: cfg[key] for key in names if key in cfg}
        if "latent_window" in cfg and cfg["latent_window"]:  # a wrong one ends before networks are built
            settings["window"] = LatentWindow.from_config(cfg["latent_window"])
        return cls(components or build_components(cfg), **settings)

    @property
    def device(self) -> torch.device:
        """Where the denoiser computes."""
        if self.offload is not None:
            return self.offload.device
        return self.placed or next(self.model.parameters()).device

    def using(self, name: str) -> AbstractContextManager[None]:
        """Have the network of that name in memory within a `with` block: "model" or "vae"."""
        return nullcontext() if self.offload is None else self.offload.use(self, name)

    def trainable(self) -> dict[str, nn.Module]:
        """Return the modules that training updates, by name."""
        return {"model": self.model}

    def check_shapes(self, shapes: Iterable[Any]) -> None:
        """Check that windows can be cut out of some clips.

        Args:
            shapes: Each with `num_frames`.

        Raises:
            ValueError: No clip is long enough.
        """
        if self.window is not None:
            self.window.check_lengths(self.vae, [shape.num_frames for shape in shapes])

    def use(self, modules: Mapping[str, Callable[..., Tensor]]) -> None:
        """Compute losses through these wrappers of the trainable modules, by name."""
        self.forward_model = modules["model"]

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the frozen components to a device; the autoencoder computes in `dtype`."""
        self.placed = device
        if self.vae is not None and next(self.vae.parameters()).is_meta:  # batches hold features
            for name, value in self.vae.named_buffers(recurse=False):
                setattr(self.vae, name, value.to(device, dtype))
        elif self.vae is not None:
            self.vae.to(device, dtype)
        if self.text_encoder is not None:
            self.text_encoder.to(device)

    @torch.no_grad()
    def encode(
        self,
        batch: Mapping[str, Any],
        draws: Any = None,
        given: set[str] | None = None,
        beginning: bool = False,
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Turn a batch into latents and the inputs of the conditions.

        What is encoded already is left as it is: `latents` or `moments`, `text_features`, `negative`.

        Args:
            batch: Keys of `opensora.datasets`; for negative prompts also `negative_text`.
            draws: Random numbers of the samples; training passes them, sampling does not.
            given: Names of conditions; those that the batch has nothing for are taken out of it.
            beginning: With a `latent_window`: take the beginning of every clip.

        Returns:
            Latents [B, Z, T, H, W], or None without a video; and `cond`: every tensor has B rows, `fps`,
            `height`, `width` and `num_frames` stay on the CPU. In training with windows `given_latents`
            there, on the CPU too, says how many first latent frames of each are given.
        """
        batch = dict(batch)
        conditions = self.model.conditions
        posterior_draws = draws if self.sample_posterior else None
        again = draws if any(getattr(c, "draws_references", False) for c in conditions.values()) else None
        if {"latents", "moments"}.isdisjoint(batch) and "video" in batch:
            if again is not None and self.sample_posterior:
                batch["moments"] = self._moments(batch["video"], draws)
            else:
                batch["latents"] = self._encode_video(batch["video"], posterior_draws)
            for condition in conditions.values() if again is not None else ():
                other = getattr(condition, "reference_video", lambda *_: None)(batch, draws)
                if other is not None:
                    twin = posterior_draws and posterior_draws.other("reference")
                    batch["reference_latents"] = self._encode_video(other, twin)
        if "latents" not in batch and "moments" in batch:
            moments = batch["moments"].to(self.device)
            batch["latents"] = latents_of(self.vae, moments, posterior_draws)
            if again is not None and self.sample_posterior and "reference_latents" not in batch:
                batch["reference_latents"] = latents_of(self.vae, moments, draws.other("reference"))
        for source, features, mask in (
            ("text", "text_features", "text_mask"),
            ("negative_text", "negative", "negative_mask"),
        ):
            if features not in batch and source in batch and self.text_encoder is not None:
                batch[features], batch[mask] = self.text_encoder.encode(list(batch[source]))
        if self.window is not None and "latents" in batch:
            batch = self.window.cut(batch, self.vae, None if beginning else draws)
        z = batch.get("latents")
        z = None if z is None else z.to(self.device)
        cond: dict[str, Tensor] = {}
        for name, condition in conditions.items():
            inputs = condition.prepare(batch, z, draws)
            cond |= {key: value.to(self.device) for key, value in inputs.items()}
            if not inputs and given is not None:
                given.discard(name)
        cond |= {key: torch.as_tensor(batch[key], dtype=torch.float32).cpu() for key in SIZES if key in batch}
        if "given_latents" in batch:
            cond["given_latents"] = batch["given_latents"]
        return z, cond

    def losses(self, batch: Mapping[str, Any], step: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the loss of a batch: the mean over its samples.

        Args:
            batch: A training batch; `sample` and `epoch` name its random numbers.
            step: Global step; not used by this task.

        Yields:
            ("model", {"loss": scalar, "per_sample": [B]}).
        """
        draws = Draws(self.seed, batch["sample"].tolist(), batch["epoch"].tolist())
        z, cond = self.encode(batch, draws)
        degraded = self._degrade(batch, z, draws)
        mask = self._draw_mask(z, cond.pop("given_latents", None), draws)
        phase("forward")
        per_sample = self.scheduler.training_loss(
            self.forward_model,
            z if degraded is None else degraded,
            cond,
            frame_mask=None if mask is None else mask.to(z.device),
            drop=self._draw_drops(draws, z.device),
            draws=draws,
            clean=None if degraded is None else z,
        )
        yield "model", {"loss": per_sample.mean(), "per_sample": per_sample.detach()}

    @torch.no_grad()
    def evaluate(self, batch: Mapping[str, Any], num_times: int, draws: Draws) -> dict[str, float]:
        """Return a batch's mean loss at fixed times, evenly spaced in (0, 1), without drops or masks."""
        z, cond = self.encode(batch, draws, beginning=True)
        values = {}
        for i in range(1, num_times + 1):
            t = torch.full((z.shape[0],), i / (num_times + 1))
            loss = self.scheduler.training_loss(self.forward_model, z, cond, draws=draws, t=t)
            values[f"loss_t{float(t[0]):.2f}"] = float(loss.mean())
        return {"loss": sum(values.values()) / num_times, **values}

    @torch.no_grad()
    def show(self, batch: Mapping[str, Any], path: Path) -> None:
        """Save a sample for the first caption of a batch, with a contact sheet."""
        one = {k: v[:1] for k, v in batch.items() if k in (*SIZES, "text", "text_features", "text_mask")}
        if self.window is not None:
            one["num_frames"] = self.window.length(self.vae, one["num_frames"])
        z = self.sample(one, Draws(0, [0]))
        if parallel_state().data_rank:  # who only took part
            return
        length = int(one["num_frames"][0])
        video = self.decode_stream(z[0], length)
        if not parallel_state().is_main:  # it decodes with its group, and another writes
            deque(video, maxlen=0)
            return
        if length == 1:
            write_image(next(video), path.with_suffix(".png"))
        else:
            video = through_sheet(video, length, path.with_suffix(".png"))
            write_video(video, path.with_suffix(".mp4"), float(one["fps"][0]))

    @torch.no_grad()
    def sample(
        self,
        batch: Mapping[str, Any],
        draws: Any,
        *,
        frame_mask: Tensor | None = None,
        known: Tensor | None = None,
        on_step: Callable[[int, int, Callable[[], Tensor]], None] | None = None,
    ) -> Tensor:
        """Generate latents for a batch of prompts.

        Args:
            batch: A prompt is a batch: `text` or its features, `fps`, `num_frames`, `height`, `width` [B].
            draws: Random numbers, one stream per sample: (seed, request, k) name a video.
            frame_mask: See `RectifiedFlow.sample`. Shape [B, T].
            known: Latents of frames whose mask is below 1. Shape [B, Z, T, H, W].
            on_step: Called with (finished steps, steps, estimate), see `RectifiedFlow.sample`.

        Returns:
            float32 latents. Shape [B, Z, T, H, W].
        """
        given = set(self.model.conditions)
        _, cond = self.encode(batch, given=given)
        guidance = (
            Guidance({}) if self.guidance is None else self.guidance.only(given, set(self.model.conditions))
        )
        length, height, width = (int(cond[name][0]) for name in ("num_frames", "height", "width"))
        shape = (len(draws), self.vae.latent_channels, *self.vae.latent_shape(length, height, width))
        noise = draws.normal("noise", 0, shape).to(self.device)
        with self.using("model"):
            return self.scheduler.sample(
                self.model,
                noise,
                cond,
                guidance,
                known=known,
                frame_mask=frame_mask,
                draws=draws,
                on_step=on_step,
            )

    @torch.no_grad()
    def decode(self, z: Tensor, num_frames: int) -> Tensor:
        """Decode latents to a video, one clip at a time, so that a clip does not depend on its neighbours.

        Args:
            z: Shape [B, Z, T, H, W].
            num_frames: Frames of the video.

        Returns:
            float32 on the CPU, about [-1, 1]. Shape [B, 3, num_frames, H, W].
        """
        return torch.stack([torch.cat(list(self.decode_stream(one, num_frames)), dim=1) for one in z])

    @torch.no_grad()
    def decode_stream(self, z: Tensor, num_frames: int) -> Iterator[Tensor]:
        """Yield the parts of a clip's video one after the other; memory need not grow with its length.

        Args:
            z: Shape [Z, T, H, W].
            num_frames: Frames of the video.

        Yields:
            float32 on the CPU, about [-1, 1]. Shape [3, n, H, W].
        """
        with self.using("vae"):
            weight = next(self.vae.parameters())
            for part in self.vae.decode_stream(z[None].to(weight), num_frames):
                yield part[0].float().cpu()

    def _encode_video(self, video: Tensor, draws: Any) -> Tensor:
        rows = [None] * len(video) if draws is None else draws.rows()
        with self.using("vae"):
            weight = next(self.vae.parameters())
            clips = zip(video, rows, strict=True)
            return torch.cat([self.vae.encode(clip[None].to(weight), row) for clip, row in clips])

    def _moments(self, video: Tensor, draws: Draws) -> Tensor:
        with self.using("vae"):
            clips = zip(video, draws.rows(), strict=True)
            return torch.stack([encode_moments(self.vae, clip, row) for clip, row in clips])

    @torch.no_grad()
    def _degrade(self, batch: Mapping[str, Any], z: Tensor, draws: Draws) -> Tensor | None:
        """Return the latents of degraded clips, None where nothing is degraded; images never are."""
        if self.augmentation is None or int(batch["num_frames"][0]) == 1:
            return None
        if self.augmentation.needs_pixels and "video" not in batch:
            raise ValueError(
                "noise_augmentation degrades pixels, and this data holds latents; use gaussian_feature "
                "alone, or None."
            )
        noisy = z
        if self.augmentation.needs_pixels:
            video, changed = self.augmentation.pixels(batch["video"].to(self.device), draws)
            if changed.any():
                noisy = self._encode_video(video, draws if self.sample_posterior else None).to(z)
        noisy, _ = self.augmentation.latents(noisy, draws)
        return None if noisy is z else noisy

    def _draw_mask(self, z: Tensor, given: Tensor | None, draws: Draws) -> Tensor | None:
        mask = None if self.frame_mask is None else self.frame_mask.draw(z, draws)
        conditions = self.model.conditions.values()
        if given is None or any(getattr(c, "draws_references", False) for c in conditions):
            return mask  # such a condition gives the first frames of windows
        known = torch.zeros(len(z), z.shape[2], dtype=torch.bool) if mask is None else mask == 0
        return (~give_first(known, given)).float()

    def _draw_drops(self, draws: Draws, device: torch.device) -> dict[str, Tensor]:
        if not self.condition_dropout:
            return {}
        sets = [*self.condition_dropout, ()]
        weights = list(self.condition_dropout.values())
        picks = draws.choice("condition_dropout", 0, [*weights, max(0.0, 1 - sum(weights))])
        names = {name for chosen in sets for name in chosen}
        return {n: torch.tensor([n in sets[pick] for pick in picks], device=device) for n in sorted(names)}


def _check_dropout(table: Mapping[tuple[str, ...], float], model: nn.Module) -> dict[tuple[str, ...], float]:
    conditions = list(getattr(model, "conditions", {}))
    for names, probability in table.items():
        unknown = [name for name in names if name not in conditions]
        if isinstance(names, str) or unknown or not 0 <= probability <= 1:
            raise ValueError(
                f"condition_dropout[{names!r}]={probability}: keys are tuples of conditions of the model "
                f"({', '.join(conditions)}), values probabilities in [0, 1]."
            )
    if sum(table.values()) > 1 + 1e-6:
        raise ValueError(f"condition_dropout adds up to {sum(table.values()):g}; at most 1 is possible.")
    return dict(table)
