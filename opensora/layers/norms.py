"""Norms of video autoencoders: over a whole clip, over each frame, or over the channels of each place.

A norm over the clip sees later frames. The other two do not, and the last one sees no neighbours either.
"""

from einops import rearrange
from torch import Tensor, nn

GROUPS = 32
NORMS = ("clip", "frame", "pixel")


class FrameNorm(nn.GroupNorm):
    """Group norm with statistics of each frame of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise. Shape [B, C, T, H, W]."""
        images = super().forward(rearrange(x, "B C T H W -> (B T) C H W"))
        return rearrange(images, "(B T) C H W -> B C T H W", B=x.shape[0])


class PixelNorm(nn.LayerNorm):
    """Layer norm over the channels of each place.

    Source: Ba et al. 2016.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise. Shape [B, C, T, H, W]."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def make_norm(kind: str, channels: int, eps: float = 1e-6) -> nn.Module:
    """Return a norm: "clip" (32 groups), "frame" (the same for each frame) or "pixel".

    Raises:
        ValueError: Another kind, or the groups do not divide the channels.
    """
    if kind not in NORMS:
        raise ValueError(f"norm={kind!r}: use one of {', '.join(NORMS)}.")
    if kind == "pixel":
        return PixelNorm(channels, eps=eps)
    return (nn.GroupNorm if kind == "clip" else FrameNorm)(GROUPS, channels, eps=eps)
