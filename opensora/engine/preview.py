"""Previews: what videos look like while they are sampled."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from opensora.datasets.video_io import contact_sheet
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.engine.prompts import Request

_FRAMES = 4
_LONGEST_SIDE = 256  # in pixels


class Previews:
    """Every few steps, show a few frames of the video that sampling is heading for.

    Each is decoded alone from one latent frame, as an image: a few percent of the work of decoding a video,
    and not the same.

    Args:
        diffusion: Decodes them.
        every: Steps between two previews.
        show: Called with the request and its frames, float, about [-1, 1], shape [3, n, H, W].

    Raises:
        ValueError: `every` is no whole number from 1.
    """

    def __init__(
        self, diffusion: LatentDiffusion, every: int, show: Callable[[Request, Tensor], object]
    ) -> None:
        check_preview(every)
        self.diffusion, self.every, self.show = diffusion, every, show

    def __call__(self, done: int, steps: int, ends: Callable[[], Iterable[tuple[Request, Tensor]]]) -> None:
        """Show previews if it is time, but not after the last step; see `LongVideos.sample`."""
        if done % self.every == 0 and done < steps:
            for request, z in ends():
                self.show(request, self.frames(z))

    def frames(self, z: Tensor) -> Tensor:
        """Decode up to four evenly spaced frames of latents [Z, T, H, W]; small. Shape [3, n, H, W]."""
        places = torch.linspace(0, z.shape[1] - 1, min(_FRAMES, z.shape[1])).round().long()
        frames = self.diffusion.decode(z[:, places].transpose(0, 1)[:, :, None], 1)[:, :, 0]  # [n, 3, H, W]
        shrink = _LONGEST_SIDE / max(frames.shape[2:])
        if shrink < 1:
            frames = torch.nn.functional.interpolate(frames, scale_factor=shrink, mode="area")
        return frames.transpose(0, 1)


def write_preview(frames: Tensor, path: Path) -> None:
    """Write a preview as one image; it replaces the one before as a whole. Shape [3, n, H, W]."""
    contact_sheet(frames, path, columns=_FRAMES, rows=1)


def check_preview(every: int) -> None:
    """Refuse what is no number of steps.

    Raises:
        ValueError: `every` is no whole number from 1.
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"preview={every!r}: use a whole number of steps from 1, or None.")
