"""References: images and videos whose frames are given, from files and addresses to latents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from opensora.datasets.transforms import apply_cut, plan_cut
from opensora.datasets.video_io import is_image, probe, read_clip, read_image
from opensora.engine.guides import Guide, Sentence
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.engine.lengths import chunk_latents, chunks, covering_size, latent_length, latent_spans
from opensora.engine.output import file_fps
from opensora.layers.known_frames import KnownFrames, chain, lay, of_class
from opensora.utils.logging import get_logger


@dataclass(frozen=True)
class Piece:
    """Frames of a file that are encoded as one clip, and the latents of it that are used.

    Args:
        path: File.
        frames: Numbers of its frames.
        start: First latent.
        stop: Latent behind the last.
    """

    path: str
    frames: tuple[int, ...]
    start: int
    stop: int


class References:
    """Find, read and encode reference files for clips of one length and size.

    Args:
        vae: The autoencoder; without weights it can say what goes where.
        cfg: Keys of `configs/_base_/inference.py`.
        num_frames: Frames of a clip.
        size: Height and width in pixels.
    """

    def __init__(self, vae: Any, cfg: Mapping[str, Any], num_frames: int, size: tuple[int, int]) -> None:
        self.vae, self.cfg, self.num_frames, self.size = vae, cfg, num_frames, size
        self.latents = latent_length(vae, num_frames)
        self._files: dict[str, _File] = {}
        self._encoded: dict[Piece, Tensor] = {}

    def resolve(self, guide: Guide, say: bool = False) -> list[tuple[KnownFrames, Piece]]:
        """Say which latents go where: for each entry its place in a clip, and what to encode for it.

        Args:
            guide: What is given.
            say: Whether to log which frames times became, and what gives none.

        Raises:
            ValueError: An entry lies outside of its reference or of the clip.
            ClipError: A file cannot be read.
        """
        files = [self._look(path) for path in guide.references]
        entries: Sequence[KnownFrames | Sentence] = guide.entries
        if guide.cond_type is not None:
            length = min(self.cfg["condition_frame_length"], files[0].latents, self.latents)
            entries = of_class(guide.cond_type, length, self.cfg["loop"], len(files))
        resolved = []
        for entry in entries:
            if entry.loop >= self.cfg["loop"]:
                raise ValueError(
                    f"mask strategy {entry}: loops are numbered from 0, and loop={self.cfg['loop']}."
                )
            target, piece = (self._by_time if isinstance(entry, Sentence) else self._by_number)(entry, files)
            length = piece.stop - piece.start
            if say and not length:
                get_logger().warning("mask strategy %s gives no frame", entry)
            elif say and isinstance(entry, Sentence):
                spans = latent_spans(self.vae, self.num_frames)[target : target + length]
                get_logger().info("%s: frames %d to %d of the clip", entry, spans[0][0], spans[-1][1] - 1)
            resolved.append((KnownFrames(entry.loop, 0, 0, target, length, entry.edit), piece))
        return resolved

    @torch.no_grad()
    def encode(self, piece: Piece, diffusion: LatentDiffusion) -> Tensor:
        """Encode what a piece uses, chunk by chunk, to the mean of its distribution.

        Args:
            piece: What to encode; the result is kept.
            diffusion: Has the weights of the autoencoder.

        Returns:
            float32 on the CPU. Shape [Z, stop - start, H, W].
        """
        if piece not in self._encoded:
            parts = []
            with diffusion.using("vae"):
                weight = next(diffusion.vae.parameters())
                for start, stop, first, last in chunks(self.vae, len(piece.frames)):
                    if first < piece.stop and piece.start < last:
                        video = self.read(piece.path, piece.frames[start:stop])
                        z = diffusion.vae.encode(video[None].to(weight))[0].float().cpu()
                        parts.append(z[:, max(0, piece.start - first) : piece.stop - first])
            self._encoded[piece] = torch.cat(parts, dim=1) if parts else self._nothing()
        return self._encoded[piece]

    def read(self, path: str, frames: Sequence[int]) -> Tensor:
        """Read frames of a file at the size that is generated.

        Returns:
            float32 in [-1, 1]. Shape [3, T, H, W].
        """
        still = is_image(path)
        pictures = read_image(path) if still else read_clip(path, frames)
        cut = plan_cut("resize_crop", tuple(pictures.shape[1:3]), *self.size, image=still)
        video = apply_cut(pictures, cut, image=still)
        if still:
            video = video.expand(-1, len(frames), -1, -1)
        height, width = covering_size(self.vae, *self.size)
        return pad(video, (0, width - self.size[1], 0, height - self.size[0]), mode="replicate")

    def _nothing(self) -> Tensor:
        sides = self.vae.latent_shape(1, *covering_size(self.vae, *self.size))[1:]
        return torch.zeros(self.vae.latent_channels, 0, *sides)

    def assume(self, path: str, num_frames: int, fps: float) -> "_File":
        """Take a file for one of so many frames, without looking at it."""
        frames = self.vae.legal_length(num_frames)
        whole = [c for c in chunks(self.vae, frames) if c.last - c.first == chunk_latents(self.vae)]
        frames = whole[-1].stop if whole and chunk_latents(self.vae) > 1 else frames
        self._files[path] = _File(path, num_frames, frames, latent_length(self.vae, frames), fps)
        return self._files[path]

    def known_masks(self, guide: Guide) -> list[list[float]]:
        """Return the edit ratio of each latent frame of each clip: 0 is given, 1 is made anew.

        Errors as of `resolve`.
        """
        entries = [entry for entry, _ in self.resolve(guide)]
        clip, masks = torch.zeros(1, self.latents, 1, 1), []
        for loop in range(self.cfg["loop"]):
            before = [chain(loop, 0, self.cfg["condition_frame_length"])] if loop else []
            masks.append(lay([*before, *entries], [clip], clip, loop)[1].tolist())
        return masks

    def _look(self, path: str) -> "_File":
        if path not in self._files:
            info = probe(path)
            self.assume(path, info.num_frames, info.fps)
        return self._files[path]

    def _by_number(self, entry: KnownFrames, files: Sequence["_File"]) -> tuple[int, Piece]:
        file = _listed(entry, entry.reference, files)
        source, target, length = entry.span(file.latents, self.latents, self.cfg["align"])
        return target, Piece(file.path, tuple(range(file.frames)), source, source + length)

    def _by_time(self, entry: Sentence, files: Sequence["_File"]) -> tuple[int, Piece]:
        """Turn times into latents: those whose frames all are given, else the one at that place.

        Frames are encoded at the place in their chunk that they will have in the clip, with the frames of
        the file around them, or copies of its first or last one.
        """
        file = _listed(entry, int(entry.path), files) if entry.names_number else self._look(entry.path)
        rate, still = file_fps(self.cfg), is_image(file.path)
        first, stop = (0, 1) if still else (t.frame(file.fps, file.total) for t in (entry.start, entry.stop))
        length = 1 if still else max(1, round((stop - first) * rate / file.fps))
        behind = self.num_frames
        place = behind - length if entry.place is None else entry.place.frame(rate, behind)
        if not 0 <= first < stop <= file.total or not 0 <= place < behind:
            raise ValueError(
                f"mask strategy {entry}: it takes frames {first} to {stop} of {file.total}, to frame "
                f"{place} of {behind}; both must lie within."
            )
        spans = latent_spans(self.vae, behind)
        inside = [i for i, (a, b) in enumerate(spans) if place <= a and b <= place + length]
        inside = inside or [next(i for i, (a, b) in enumerate(spans) if a <= place < b)]
        around = [c for c in chunks(self.vae, behind) if c.first <= inside[-1] and inside[0] < c.last]
        times = range(around[0].start, around[-1].stop)
        numbers = (first + round((frame - place) * file.fps / rate) for frame in times)
        frames = tuple(min(max(number, 0), file.total - 1) for number in numbers)
        before = around[0].first
        return inside[0], Piece(file.path, frames, inside[0] - before, inside[-1] + 1 - before)


@dataclass(frozen=True)
class _File:
    """A reference file: all its frames, those in whole chunks, their latents, and frames per second."""

    path: str
    total: int
    frames: int
    latents: int
    fps: float


def _listed(entry: KnownFrames | Sentence, number: int, files: Sequence[_File]) -> _File:
    if number >= len(files):
        raise ValueError(
            f"mask strategy {entry}: it names reference {number}, and there are {len(files)}, from 0 on."
        )
    return files[number]
