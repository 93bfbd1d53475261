"""Perceptual distance of two clips by features of a small ImageNet network that ships inside a package.

It orders clips by how alike they look. Its values are not comparable with published LPIPS figures.

Source: Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric", equation
1, with EfficientNet-Lite0 and equal weights.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from opensora.models.perceptual import PerceptualDistance as ImageDistance


class PerceptualDistance(nn.Module):
    """Mean over frames of the distance between normalised features, at 128 x 128 pixels.

    Raises:
        ImportError: The packages with the network and its weights are not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.images = ImageDistance("efficientnet")

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare two clips frame by frame.

        Args:
            a: In [-1, 1]. Shape [3, T, H, W].
            b: Same shape.

        Returns:
            The distance, 0 for equal clips; a scalar.

        Raises:
            ValueError: The shapes differ.
        """
        if a.shape != b.shape:
            raise ValueError(f"clips of shape {tuple(a.shape)} and {tuple(b.shape)}: bring them to one size.")
        return self.images(*(_images(clip) for clip in (a, b))).mean()


def _images(clip: Tensor) -> Tensor:
    x = clip.clamp(-1, 1).transpose(0, 1)
    return F.interpolate(x, size=(128, 128), mode="bilinear", align_corners=False)
