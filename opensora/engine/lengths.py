"""Lengths and sizes: what an autoencoder gives back, and which frames each of its latents stands for."""

from typing import Any, NamedTuple

from opensora.datasets.resolutions import frame_count
from opensora.utils.logging import get_logger


def choose_length(vae: Any, num_frames: int | str, seconds: float | None, fps: float) -> int:
    """Turn what was asked for into a number of frames that the autoencoder gives back.

    A name such as "4s" and a duration are brought to a legal length, and that is logged; a bare number must
    be legal.

    Args:
        vae: Says which lengths are legal.
        num_frames: Number, or published name such as "4s".
        seconds: Duration; wins over `num_frames`.
        fps: Frames per second of the file.

    Raises:
        ValueError: The number is not legal; the message names its neighbours.
    """
    if seconds is not None:
        asked = max(1, round(seconds * fps))
        lower = vae.legal_length(asked)
        upper = next_legal_length(vae, asked)
        length = lower if asked - lower <= upper - asked else upper
        get_logger().info("%g seconds at %g fps: %d frames", seconds, fps, length)
        return length
    if isinstance(num_frames, float) and not num_frames.is_integer():
        raise ValueError(f"num_frames={num_frames}: use a whole number.")
    asked = frame_count(num_frames)
    legal = vae.legal_length(asked)
    if legal == asked:
        return asked
    if isinstance(num_frames, str) and not num_frames.isdigit():
        get_logger().info(
            "%s is %d frames, cut to %d, the longest that this vae gives back", num_frames, asked, legal
        )
        return legal
    raise ValueError(
        f"num_frames={asked}: this vae gives back {legal} or {next_legal_length(vae, asked)} frames, not "
        f"{asked}; use one of them, or --seconds."
    )


def covering_size(vae: Any, height: int, width: int) -> tuple[int, int]:
    """Return the smallest size, from the asked one up, whose latents decode to at least the asked pixels.

    Autoencoders round down sizes between their multiples; what is too much is cut from the decoded video.
    """
    sides = [height, width]
    for axis in (0, 1):
        asked = sides[axis]
        while vae.latent_shape(1, *sides)[axis + 1] * vae.stride[axis + 1] < asked:
            sides[axis] += 1
    return sides[0], sides[1]


def total_length(vae: Any, num_frames: int, loops: int, overlap: int) -> int:
    """Return the frames of a long video: `loops` clips whose latents overlap by `overlap` frames.

    Args:
        vae: Says how many latents a clip has.
        num_frames: Frames of one clip.
        loops: Number of clips.
        overlap: Latent frames that a clip shares with the one before.
    """
    if loops == 1:
        return num_frames
    latents = latent_length(vae, num_frames)
    return longest_clip(vae, loops * (latents - overlap) + overlap)


def latent_length(vae: Any, num_frames: int) -> int:
    """Return the number of latent frames of a clip."""
    return vae.latent_shape(num_frames, *vae.stride[1:])[0]


def longest_clip(vae: Any, latents: int) -> int:
    """Return the frames that some latent frames decode to."""
    length = vae.stride[0] * latents
    while latent_length(vae, length) > latents:
        length -= 1
    return vae.legal_length(length)


class Chunk(NamedTuple):
    """A piece of a clip that the autoencoder codes by itself: frames [start, stop), latents [first, last)."""

    start: int
    stop: int
    first: int
    last: int


def chunks(vae: Any, num_frames: int) -> list[Chunk]:
    """Return the pieces of a clip. Neighbours may share a frame, and never share a latent."""
    size = getattr(vae, "micro_frame_size", None) or num_frames
    shared = int(size < num_frames and getattr(vae, "temporal_overlap", False))
    found, first = [], 0
    for start in range(0, num_frames - shared, size - shared):
        stop = min(start + size, num_frames)
        last = first + latent_length(vae, stop - start)
        found.append(Chunk(start, stop, first, last))
        first = last
    return found


def chunk_latents(vae: Any) -> int:
    """Return the latents of a whole piece; 1 if clips are coded in one.

    Latents keep their meaning only at the same place within a piece.
    """
    size = getattr(vae, "micro_frame_size", None)
    return 1 if size is None else latent_length(vae, size)


def latent_spans(vae: Any, num_frames: int) -> list[tuple[int, int]]:
    """Return the frames that each latent stands for: first frame, and frame behind the last."""
    spans: list[tuple[int, int]] = []
    for chunk in chunks(vae, num_frames):
        ends = [chunk.stop - vae.stride[0] * i for i in reversed(range(chunk.last - chunk.first))]
        spans += zip([chunk.start, *ends], ends, strict=False)
    return spans


def next_legal_length(vae: Any, num_frames: int) -> int:
    """Return the smallest number of frames above `num_frames` that an autoencoder gives back."""
    longer = num_frames + 1
    while vae.legal_length(longer) <= num_frames:
        longer += 1
    return vae.legal_length(longer)
