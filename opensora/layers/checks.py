"""Checks of what users hand to an autoencoder."""

from torch import Tensor


def check_video(name: str, video: Tensor, channels: int) -> None:
    """Check that a tensor is a batch of videos, or of latents, with so many channels.

    Raises:
        ValueError: It has another number of axes or channels, or no frames.
    """
    if video.ndim != 5 or video.shape[1] != channels or video.shape[2] == 0:
        raise ValueError(
            f"{name} has shape {tuple(video.shape)}; expected [B, {channels}, T, H, W] with T >= 1."
            " Give an image as a video of one frame."
        )


def check_length(num_frames: int) -> None:
    """Check a number of frames.

    Raises:
        ValueError: It is below 1.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames={num_frames}: a video has at least 1 frame.")


def check_count(name: str, value: int | None, purpose: str) -> None:
    """Check a setting that is a whole number from 1, or None to do without.

    Raises:
        ValueError: It is neither.
    """
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(
            f"{name}={value!r}: expected a whole number from 1, or None to do without {purpose}."
        )
