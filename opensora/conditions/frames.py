"""Reference frames: an image or clip whose frames are given, as channels beside the noisy latents."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from opensora.layers import known_frames
from opensora.layers.embeddings import PatchEmbed3D
from opensora.layers.interfaces import Injection
from opensora.layers.known_frames import KnownFrames, give_first, given_frames, of_class
from opensora.registry import CONDITIONS

CLASSES = (*known_frames.CLASSES, "other")
NOISY = ("v2v_head_noisy", "other_noisy")  # their reference is encoded from a noisy video


@CONDITIONS.register_module()
class FrameCondition(nn.Module):
    """Embed reference latents and the mask of given frames, and add both to the patches.

    The network still denoises every frame; given frames attend to the null caption. Both embedders start at
    zero. A dropped sample loses its reference and keeps its mask.

    Args:
        hidden_size: Width of the network; filled in by the network.
        patch_size: Patches of the network; filled in by the network.
        in_channels: Latent channels; filled in by the network.
        always_inject: Whether the embedders' biases are added when no reference is given, as published
            training does. Published text-to-video sampling leaves them out.
        classes: For training: weight of each class of given frames, such as `dict(i2v_head=5, none=2)`; None
            gives no references.
        noise_range: Share of noise in the reference video of noisy classes, lowest and highest.
    """

    def __init__(
        self,
        hidden_size: int,
        patch_size: tuple[int, int, int],
        in_channels: int,
        always_inject: bool = False,
        classes: Mapping[str, float] | None = None,
        noise_range: tuple[float, float] = (0.1, 0.3),
    ) -> None:
        super().__init__()
        unknown = [name for name in classes or {} if name not in CLASSES + NOISY]
        if unknown:
            raise ValueError(
                f"FrameCondition classes: unknown {unknown}; choose from {', '.join(CLASSES + NOISY)}."
            )
        self.always_inject = always_inject
        self.classes = dict(classes) if classes else None
        self.noise_range = tuple(noise_range)
        self.reference_embedder = PatchEmbed3D(patch_size, in_channels, hidden_size)
        self.mask_embedder = PatchEmbed3D(patch_size, in_channels, hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start from no effect."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    @property
    def needs_pixels(self) -> bool:
        """Whether a reference may be encoded from a noisy video, so that latents are not enough."""
        return any(name in NOISY for name in self.classes or {})

    @property
    def draws_references(self) -> bool:
        """Whether training takes references from the clips: other samples of what these are encoded to."""
        return self.classes is not None

    def reference_video(self, batch: Mapping[str, Any], draws: Any) -> Tensor | None:
        """Return the video to encode as the reference when it is not the clip itself, or None.

        Samples of a noisy class get `r noise + (1 - r) video` with r uniform in `noise_range`.
        """
        names = self._drawn(draws, batch["video"].shape[2])
        noisy = torch.tensor([name in NOISY for name in names])
        if not noisy.any():
            return None
        video, (low, high) = batch["video"], self.noise_range
        share = low + (high - low) * draws.uniform("reference_share", 0, (len(names), 1, 1, 1, 1))
        share = torch.where(noisy[:, None, None, None, None], share, 0.0).to(video)
        return torch.lerp(video, draws.normal("reference_noise", 0, video.shape).to(video), share)

    def prepare(self, batch: Mapping[str, Any], z: Tensor | None, draws: Any) -> dict[str, Tensor]:
        """Take the reference from the batch, or in training draw which frames are given.

        Args:
            batch: `reference` [B, Z, T, H, W] and `reference_mask` [B, T] (1 = given) when they are given;
                `reference_latents` when the reference differs from the clip; `given_latents` [B], first
                frames that are given in any case.
            z: Latents of the clip; training takes the reference from them.
            draws: Random numbers of the samples.

        Returns:
            `reference`, zero outside the given frames, and `reference_mask`; empty without a reference.
        """
        if "reference" in batch:
            reference, mask = batch["reference"], batch["reference_mask"].float()
        elif self.classes is not None and z is not None:
            names = self._drawn(draws, z.shape[2])
            spans = draws.uniform("reference_span", 0, (len(names), 2))
            rows = [_given(name, z.shape[2], *span) for name, span in zip(names, spans.tolist(), strict=True)]
            mask = torch.stack(rows).to(z.device)
            reference = batch["reference_latents"] if "reference_latents" in batch else z
            if "given_latents" in batch:  # the clip has begun before, and that is never noisy
                count = batch["given_latents"]
                mask = give_first(mask.bool(), count).float()
                begun = give_first(torch.zeros_like(mask, dtype=torch.bool), count)
                reference = torch.where(begun[:, None, :, None, None], z, reference.to(z))
        else:
            return {}
        return {"reference": reference * mask[:, None, :, None, None].to(reference), "reference_mask": mask}

    def forward(self, cond: Mapping[str, Tensor], drop: Tensor | None) -> Injection:
        """Return `channels` [B, N, D] (or broadcastable to it) and `null_frames` [B, T]."""
        weight = self.reference_embedder.proj.weight
        if "reference" not in cond:
            if not self.always_inject:
                return Injection()
            return Injection(
                channels=(self.reference_embedder.proj.bias + self.mask_embedder.proj.bias)[None, None]
            )
        reference, mask = cond["reference"].to(weight.dtype), cond["reference_mask"]
        if drop is not None:
            reference = torch.where(drop[:, None, None, None, None], torch.zeros_like(reference), reference)
        wide = mask[:, None, :, None, None].to(weight.dtype).expand_as(reference)
        return Injection(
            channels=self.reference_embedder(reference) + self.mask_embedder(wide), null_frames=mask.bool()
        )

    def _drawn(self, draws: Any, num_frames: int) -> list[str]:
        names = list(self.classes or {"none": 1.0})
        picks = draws.choice("reference_class", 0, list((self.classes or {"none": 1.0}).values()))
        return ["none"] * len(picks) if num_frames == 1 else [names[i] for i in picks]


def entries_of(name: str, num_frames: int, u: float, side: float) -> tuple[KnownFrames, ...]:
    """Return the latent frames of a class in training.

    Args:
        name: One of `CLASSES` or `NOISY`.
        num_frames: Latent frames of the clip.
        u: Uniform in [0, 1): length of class "other".
        side: Uniform in [0, 1): whether that is a head or a tail.
    """
    kind, half = re.sub("_noisy$", "", name), num_frames // 2
    if kind != "other":
        return of_class(kind, half if kind == "v2v_head" else num_frames - half)
    length = min(int(u * max(num_frames - 2, 1)) + 1, num_frames - 1)  # two frames at least stay
    start = 0 if side < 0.5 else num_frames - length
    return (KnownFrames(source=start, target=start, length=length),)


def _given(name: str, num_frames: int, u: float, side: float) -> Tensor:
    """Return the mask of given latent frames of a class; at least one frame is left to generate.

    Shape [T].
    """
    mask = given_frames(entries_of(name, num_frames, u, side), num_frames).float()
    return mask if mask.sum() < num_frames else torch.zeros(num_frames)
