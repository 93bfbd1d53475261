"""Long videos: clips that continue each other in latents, with the frames that references give.

A video of one clip is the simplest one.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opensora.engine.build import Components
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.engine.lengths import chunk_latents, covering_size, latent_length, total_length
from opensora.engine.output import file_path
from opensora.engine.prompts import Request
from opensora.engine.reference_files import ReferenceFiles
from opensora.engine.references import References
from opensora.layers.known_frames import chain, lay
from opensora.utils.files import write_text
from opensora.utils.logging import get_logger
from opensora.utils.random import Draws

Report = Callable[[int, int, Callable[[], Iterable[tuple[Request, Tensor]]]], None]
WAYS = ("auto", "frames", "reference")


@dataclass(frozen=True)
class Known:
    """Frames that are given to the clips of a batch.

    Args:
        latents: Shape [B, Z, T, H, W].
        mask: 0 keeps a frame, 1 makes it, between edits it. Shape [B, T].
        as_reference: Whether kept frames are a condition of the network, beside the noise; else they stand in
            its place.
    """

    latents: Tensor
    mask: Tensor
    as_reference: bool


class LongVideos:
    """Sample videos of one or several clips.

    Args:
        diffusion: The components.
        like: A request of the size and length of all.
        cfg: Keys of `configs/_base_/inference.py`.
    """

    def __init__(self, diffusion: LatentDiffusion, like: Request, cfg: Mapping[str, Any]) -> None:
        self.diffusion, self.cfg = diffusion, cfg
        self.loops, self.overlap = cfg["loop"], cfg["condition_frame_length"]
        self.references = References(diffusion.vae, cfg, like.num_frames, (like.height, like.width))
        scales = () if diffusion.guidance is None else diffusion.guidance.scales
        self.as_reference = as_reference(diffusion.model, scales, cfg)

    def sample(
        self,
        requests: Sequence[Request],
        features: Mapping[str, Tensor],
        report: Report | None = None,
    ) -> Tensor:
        """Sample the latents of some requests; clips after the first start with the last frames before them.

        Args:
            requests: Their number is B.
            features: By text, from `encode_texts`.
            report: Called with finished steps and steps, of all clips, and what gives each request with the
                latents that its clip is heading for.

        Returns:
            float32. Shape [B, Z, T, H, W] with T = L (N - c) + c for L clips of N frames that share c.
        """
        given = [self.references.resolve(request.guide) for request in requests]
        clips: list[Tensor] = []
        for loop in range(self.loops):
            known, own = self._known(given, clips, loop, requests[0])
            z = self._sample_clip(requests, features, known, loop, _part_of(report, loop, self.loops))
            if clips:  # frames that references give again are shown, instead of those before them
                tail = clips[-1][:, :, -self.overlap :]
                shown = own[:, None, : self.overlap, None, None].to(z.device)
                tail.copy_(torch.where(shown, z[:, :, : self.overlap], tail))
            clips.append(z)
        return join(clips, self.overlap)

    def watch(self, video: Iterable[Tensor], request: Request) -> Iterable[Tensor]:
        """Pass the parts of a long video on, and report how its clips drift, in a file beside it."""
        if self.loops == 1:
            return video
        path = file_path(request, self.cfg)
        lengths = [
            total_length(self.diffusion.vae, request.num_frames, i + 1, self.overlap)
            for i in range(self.loops)
        ]
        return through_drift(video, lengths, path.with_name(f"{path.stem}_drift.json"))

    def _known(
        self, given: Sequence[Any], clips: Sequence[Tensor], loop: int, like: Request
    ) -> tuple[Known | None, Tensor]:
        """Return the given frames of a clip, and which of them references give. Bool, shape [B, T]."""
        vae = self.diffusion.vae
        sides = covering_size(vae, like.height, like.width)
        empty = torch.zeros(vae.latent_channels, *vae.latent_shape(like.num_frames, *sides))
        rows, own = [], []
        for number, resolved in enumerate(given):
            encode = partial(self.references.encode, diffusion=self.diffusion)
            encoded = [encode(p) if e.loop == loop else empty for e, p in resolved]
            entries = [replace(e, reference=i) for i, (e, _) in enumerate(resolved)]
            own.append(lay(entries, encoded, empty, loop)[1] < 1)
            if clips:
                encoded.append(clips[-1][number].cpu())
                entries.insert(0, chain(loop, len(resolved), self.overlap, self.cfg["condition_frame_edit"]))
            rows.append(lay(entries, encoded, empty, loop))
        latents, mask = (torch.stack(parts) for parts in zip(*rows, strict=True))
        known = Known(latents, mask, self.as_reference) if (mask < 1).any() else None
        return known, torch.stack(own)

    def _sample_clip(
        self,
        requests: Sequence[Request],
        features: Mapping[str, Tensor],
        known: Known | None,
        loop: int,
        report: Report | None,
    ) -> Tensor:
        """Sample one clip of each request; without a reference a network gets none, whatever others have."""
        if known is None or not known.as_reference:
            return sample_requests(self.diffusion, requests, features, self.cfg["seed"], report, known, loop)
        some = (known.mask < 1).any(1)
        out = torch.empty_like(known.latents, device=self.diffusion.device)
        for rows, part in ((some, known), (~some, None)):
            chosen = rows.nonzero()[:, 0]
            if len(chosen):
                part = part and Known(known.latents[chosen], known.mask[chosen], True)
                batch = [requests[i] for i in chosen.tolist()]
                out[chosen.to(out.device)] = sample_requests(
                    self.diffusion, batch, features, self.cfg["seed"], report, part, loop
                )
        return out


def check_loops(vae: Any, num_frames: int, cfg: Mapping[str, Any]) -> int:
    """Return the frames of a video of `loop` clips of `num_frames` frames.

    Raises:
        ValueError: Clips cannot continue each other so.
    """
    overlap, edit = cfg["condition_frame_length"], cfg["condition_frame_edit"]
    if cfg["loop"] == 1:
        return num_frames
    if not 0 <= edit <= 1:
        raise ValueError(f"condition_frame_edit={edit}: use a number from 0, kept, to 1, made anew.")
    latents, whole = latent_length(vae, num_frames), chunk_latents(vae)
    allowed = [] if latents % whole else range(whole, latents, whole)
    if overlap not in allowed:
        choice = f"use {' or '.join(map(str, allowed[-3:]))}, or" if allowed else "use"
        raise ValueError(
            f"loop={cfg['loop']}, condition_frame_length={overlap}: a clip of {num_frames} frames has "
            f"{latents} latent frames and shares fewer with the next; this vae codes {whole} at once, so "
            f"both are multiples of {whole}; {choice} another num_frames."
        )
    return total_length(vae, num_frames, cfg["loop"], overlap)


def find_references(
    requests: Sequence[Request], parts: Components, cfg: Mapping[str, Any], folder: Path
) -> list[Request]:
    """Find the files of references, and check what is said about them; nothing large is read.

    Args:
        requests: What is to be made.
        parts: Model and autoencoder, which need no weights.
        cfg: Keys of `configs/_base_/inference.py`.
        folder: Where fetched files go.

    Raises:
        ValueError: A reference may not be read, or does not have the frames that are asked for.
        FileNotFoundError: A reference does not exist.
        ClipError: A reference cannot be read.
    """
    as_reference(parts.model, (), cfg)
    files = ReferenceFiles(cfg["references"], folder)
    found = [replace(request, guide=files.localize(request.guide)) for request in requests]
    if found:
        one = found[0]
        references = References(parts.vae, cfg, one.num_frames, (one.height, one.width))
        for guide in dict.fromkeys(request.guide for request in found):
            references.resolve(guide, say=True)
        if cfg["cond_type"] not in (None, "none") and not any(request.guide.files for request in found):
            get_logger().warning(
                "cond_type=%r does nothing: there are no references; give --reference-path", cfg["cond_type"]
            )
    return found


def as_reference(model: Any, scales: Iterable[str], cfg: Mapping[str, Any]) -> bool:
    """Return whether given frames are a condition of the network: it has learned one, and the config uses it.

    Args:
        model: The denoiser.
        scales: Conditions with a scale of guidance.
        cfg: `known_as` and `cond_type` of `configs/_base_/inference.py`.

    Raises:
        ValueError: The network has no such condition, or there is no such way.
    """
    if cfg["known_as"] not in WAYS:
        raise ValueError(f"known_as={cfg['known_as']!r}: use one of {', '.join(WAYS)}.")
    names = [name for name, part in model.conditions.items() if hasattr(part, "reference_video")]
    if cfg["known_as"] == "reference" and not names:
        raise ValueError("known_as='reference': this model has no FrameCondition; use 'frames'.")
    if cfg["known_as"] != "auto":
        return cfg["known_as"] == "reference"
    learned = [n for n in names if any(p.is_meta or bool(p.any()) for p in model.conditions[n].parameters())]
    return bool(learned) and (cfg["cond_type"] is not None or any(name in scales for name in learned))


def sample_requests(
    diffusion: LatentDiffusion,
    requests: Sequence[Request],
    features: Mapping[str, Tensor],
    seed: int,
    report: Report | None = None,
    known: Known | None = None,
    loop: int = 0,
) -> Tensor:
    """Sample the latents of some requests of one size and length, as one batch.

    Args:
        diffusion: The components.
        requests: Their number is B.
        features: By text, from `encode_texts`.
        seed: Names the noise, with the prompt, the number of the sample and that of the clip.
        report: As for `LongVideos.sample`.
        known: Frames that are given. Those that are kept come back as they are, bit by bit.
        loop: Number of the clip in a long video.

    Returns:
        float32 latents that decode to the asked size or a little more. Shape [B, Z, T, H, W].
    """
    batch: dict[str, Any] = {}
    batch["text_features"], batch["text_mask"] = _pad([features[r.text_in(loop)] for r in requests])
    if requests[0].negative is not None:
        batch["negative"], batch["negative_mask"] = _pad([features[r.negative] for r in requests])
    sizes = covering_size(diffusion.vae, requests[0].height, requests[0].width)
    batch |= sizes_of(requests, sizes)
    draws = Draws(seed, [r.key + loop for r in requests], [r.sample for r in requests])
    on_step = report and (lambda n, steps, end: report(n, steps, lambda: zip(requests, end(), strict=True)))
    if known is None:
        return diffusion.sample(batch, draws, on_step=on_step)
    latents, mask, kept = known.latents.to(diffusion.device), known.mask, known.mask == 0
    if known.as_reference:
        batch["reference"], batch["reference_mask"] = latents, kept
        mask = torch.where(kept, 1.0, mask)
    edits = mask if (mask < 1).any() else None
    z = diffusion.sample(batch, draws, frame_mask=edits, known=latents, on_step=on_step)
    return torch.where(kept[:, None, :, None, None].to(z.device), latents, z)


def sizes_of(requests: Sequence[Request], size: tuple[int, int]) -> dict[str, Tensor]:
    """Return the numbers that a model is told about clips. Shape [B] each.

    Args:
        requests: Their number is B.
        size: Height and width that are generated.
    """
    one = requests[0]
    values = {"fps": one.fps, "num_frames": one.num_frames, "height": size[0], "width": size[1]}
    return {name: torch.full((len(requests),), float(value)) for name, value in values.items()}


def join(clips: Sequence[Tensor], overlap: int) -> Tensor:
    """Join the clips of a long video: later ones lose their first frames, which are those before them.

    Args:
        clips: Each of shape [B, Z, N, H, W].
        overlap: Number of the shared frames.
    """
    return torch.cat([clips[0], *(clip[:, :, overlap:] for clip in clips[1:])], dim=2)


def through_drift(video: Iterable[Tensor], lengths: Sequence[int], path: Path) -> Iterator[Tensor]:
    """Pass the parts of a long video on; then log and write how its clips differ from the first.

    Args:
        video: Parts that follow each other in time. Shape [3, n, H, W], about [-1, 1].
        lengths: Frames after the first clip, after the second, and so on.
        path: The .json file.
    """
    rows = []
    for part in video:
        rows.append(frame_figures(part))
        yield part
    frames = torch.cat(rows)
    clips = []
    for start, stop in zip([0, *lengths], lengths, strict=False):
        figures = [round(value, 5) for value in frames[start:stop].mean(0).tolist()]
        clips.append(
            {"first_frame": start, "frames": stop - start, **dict(zip(FIGURES, figures, strict=True))}
        )
    drift = {name: round(clips[-1][name] - clips[0][name], 5) for name in FIGURES}
    write_text(json.dumps({"clips": clips, "last_minus_first": drift}, indent=1) + "\n", path)
    for number, clip in enumerate(clips):
        get_logger().info("clip %d: %s", number, ", ".join(f"{n} {clip[n]:.4f}" for n in FIGURES))


FIGURES = ("mean", "deviation", "sharpness")


def frame_figures(video: Tensor) -> Tensor:
    """Return mean, deviation and sharpness of each frame: how far pixels are from their neighbours' mean.

    Args:
        video: Shape [3, T, H, W].

    Returns:
        Shape [T, 3].
    """
    x = video.float().clamp(-1, 1)
    inner = x[..., 1:-1, 1:-1]
    around = (x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]) / 4
    flat = x.transpose(0, 1).flatten(1)
    edges = (inner - around).abs().transpose(0, 1).flatten(1).mean(1)
    return torch.stack([flat.mean(1), flat.std(1), edges], dim=1)


def _part_of(report: Report | None, loop: int, loops: int) -> Any:
    if report is None or loops == 1:
        return report
    return lambda done, steps, ends: report(loop * steps + done, loops * steps, ends)


def _pad(features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    padded = torch.nn.utils.rnn.pad_sequence(list(features), batch_first=True)
    lengths = torch.tensor([len(f) for f in features])
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]
