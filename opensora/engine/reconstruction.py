"""Reconstruction: a clip or image of any length and size through an autoencoder, a piece at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opensora.acceleration.parallel import init_distributed
from opensora.datasets.manifest import read_manifest
from opensora.datasets.resolutions import frame_count
from opensora.datasets.transforms import normalize, resize_crop
from opensora.datasets.video_io import is_image, is_video, probe, read_clip, read_image
from opensora.engine.build import build_components, names_weights, parse_dtype
from opensora.engine.lengths import covering_size, next_legal_length
from opensora.utils.logging import get_logger

_PIECE = 16  # frames read at once


@dataclass(frozen=True)
class Original:
    """A file, and which part of it is reconstructed.

    Args:
        path: Video or image.
        num_frames: Frames that are taken.
        frame_interval: Step from one to the next.
        size: (height, width) that frames are scaled and cropped to; None keeps theirs.
    """

    path: Path
    num_frames: int
    frame_interval: int = 1
    size: tuple[int, int] | None = None

    @classmethod
    def of(
        cls,
        path: str | Path,
        num_frames: int | None = None,
        frame_interval: int = 1,
        size: tuple[int, int] | None = None,
    ) -> "Original":
        """Look into a file. `num_frames` None takes all; an image has one.

        Raises:
            ClipError: The file cannot be read.
            ValueError: It is shorter than asked.
        """
        there = -(-probe(str(path)).num_frames // frame_interval)
        if num_frames is not None and there > 1 and num_frames > there:
            raise ValueError(
                f"{path}: {there} frames at frame_interval={frame_interval}, num_frames={num_frames} asked; "
                "ask for fewer, or None for all."
            )
        wanted = there if num_frames is None else min(num_frames, there)
        return cls(Path(path), wanted, frame_interval, size)

    def read(self, start: int, stop: int) -> Tensor:
        """Return frames in [-1, 1]. Shape [3, T, H, W]."""
        image = is_image(str(self.path))
        numbers = range(start * self.frame_interval, stop * self.frame_interval, self.frame_interval)
        frames = read_image(str(self.path)) if image else read_clip(str(self.path), numbers)
        if self.size is not None:
            return resize_crop(frames, *self.size, image=image)
        return normalize(frames).permute(3, 0, 1, 2)

    def pieces(self) -> Iterator[Tensor]:
        """Yield all frames, some at a time. Shapes [3, T, H, W]."""
        for start in range(0, self.num_frames, _PIECE):
            yield self.read(start, min(start + _PIECE, self.num_frames))


@torch.no_grad()
def reconstruct(vae: Any, original: Original, z: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Encode and decode a clip, and yield it beside its reconstruction, part by part.

    Every frame and pixel comes back: a length or size that the autoencoder does not give back is filled up by
    the last frame, row or column, and cut afterwards. Of a long clip only the latents are kept whole.

    Args:
        vae: An autoencoder.
        original: What is encoded.
        z: Its latents, where `encode` has made them already.

    Yields:
        Original and reconstruction, on the CPU, about [-1, 1]. Shapes [3, T, H, W].
    """
    start = 0
    for part in vae.decode_stream(encode(vae, original) if z is None else z, original.num_frames):
        stop = start + part.shape[2]
        truth = original.read(start, stop)
        yield truth, part[0, :, :, : truth.shape[2], : truth.shape[3]].float().cpu()
        start = stop


@torch.no_grad()
def encode(vae: Any, original: Original) -> Tensor:
    """Return the latents of a clip, filled up to what comes back whole: the posterior's mean.

    The clip is read and encoded in the pieces that the autoencoder treats as independent, or carries on from;
    one that sees the whole clip gets it whole.

    Args:
        vae: An autoencoder.
        original: What is encoded.

    Returns:
        Shape [1, Z, T', H', W'].
    """
    length = original.num_frames
    if vae.legal_length(length) != length:
        length = next_legal_length(vae, length)
    if getattr(vae, "streams", False):
        parts = (_filled(vae, original, i, min(i + _PIECE, length)) for i in range(0, length, _PIECE))
        return torch.cat(list(vae.encode_stream(parts)), dim=2)
    chunk = getattr(vae, "micro_frame_size", None) or length
    shared = int(getattr(vae, "temporal_overlap", False))
    starts = range(0, max(1, length - shared), max(1, chunk - shared)) if chunk < length else (0,)
    pieces = (_filled(vae, original, i, min(i + chunk, length)) for i in starts)
    return torch.cat([vae.encode(piece) for piece in pieces], dim=2)


def _filled(vae: Any, original: Original, start: int, stop: int) -> Tensor:
    """Read frames that may lie beyond the end, at a size that the autoencoder gives back."""
    last = original.num_frames - 1
    frames = original.read(min(start, last), min(stop, last + 1))
    height, width = covering_size(vae, *frames.shape[2:])
    beyond = stop - start - frames.shape[1]
    edges = (0, width - frames.shape[3], 0, height - frames.shape[2], 0, beyond)
    weight = next(vae.parameters())
    return F.pad(frames[None], edges, mode="replicate").to(weight)


class LatentStatistics:
    """Mean and deviation of latents, over all values and per channel.

    Args:
        channels: Latent channels.
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.sums = torch.zeros(2, channels, dtype=torch.float64)

    def add(self, z: Tensor) -> None:
        """Count the latents of a clip. Shape [B, Z, T, H, W]."""
        values = z.detach().cpu().double().transpose(0, 1).flatten(1)
        self.count += values.shape[1]
        self.sums += torch.stack((values.sum(1), values.square().sum(1)))

    def per_channel(self) -> dict[str, list[float]]:
        """Return `latent_mean` and `latent_std` for a config."""
        mean, square = self.sums / self.count
        deviation = (square - mean**2).clamp(min=0).sqrt()
        rows = {"latent_mean": mean, "latent_std": deviation}
        return {name: [round(float(x), 5) for x in row] for name, row in rows.items()}

    def line(self) -> str:
        """Return what was counted: mean and deviation of all, and of each channel as lists for a config."""
        mean, square = (self.sums / self.count).mean(1)
        lists = ", ".join(f"{name}={values}" for name, values in self.per_channel().items())
        return f"mean {mean:.4f}, deviation {(square - mean**2).clamp(min=0).sqrt():.4f}; {lists}"


def find_originals(cfg: Mapping[str, Any]) -> dict[str, Original]:
    """Return what a config reconstructs, by the name of its outputs.

    Args:
        cfg: `dataset.data_path` (a table, a folder or a single file), `dataset.num_frames` and
            `dataset.image_size` (None keeps a file's own), `dataset.frame_interval`, `num_samples`.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ClipError: A file cannot be read.
        ValueError: The path is None or a folder without clips, or a clip is too short.
    """
    data = cfg["dataset"]
    if data["data_path"] is None:
        raise ValueError("dataset.data_path=None: give a table, a folder or a file with --data-path.")
    paths = _paths(Path(data["data_path"]))[: cfg["num_samples"]]
    stems = [path.stem for path in paths]
    names = [s if stems.count(s) == 1 else f"{s}-{i:03d}" for i, s in enumerate(stems)]
    size = None if data["image_size"] is None else tuple(data["image_size"])
    length = None if data["num_frames"] is None else frame_count(data["num_frames"])
    interval = data["frame_interval"]
    return {name: Original.of(path, length, interval, size) for name, path in zip(names, paths, strict=True)}


def load_autoencoder(cfg: Mapping[str, Any]) -> Any:
    """Build the autoencoder of a config with its weights, ready to run.

    Raises:
        ValueError: Its config names no weights.
    """
    if isinstance(cfg["vae"], Mapping) and not names_weights(cfg["vae"]):
        raise ValueError(
            "vae.from_pretrained=None: without weights there is only noise; give --ckpt-path with a run "
            "folder, a weights file or a hub name."
        )
    vae = build_components({"vae": cfg["vae"]}).vae
    device = init_distributed(None if cfg["device"] == "auto" else cfg["device"]).device
    if getattr(vae, "micro_frame_size", None):
        text = "chunks of %d frames know nothing of each other: python -m eval.seams says how large seams are"
        get_logger().info(text, vae.micro_frame_size)
    return vae.to(device, parse_dtype(cfg["dtype"])).eval().requires_grad_(False)


def _paths(place: Path) -> list[Path]:
    if place.is_file() and (is_image(str(place)) or is_video(str(place))):
        return [place]
    if place.is_dir():
        found = [p for p in sorted(place.iterdir()) if is_image(str(p)) or is_video(str(p))]
        if not found:
            raise ValueError(f"{place}: no videos or images in this folder; give one that has some.")
        return found
    return [Path(path) for path in read_manifest(place, probe=True).path]
