"""FloLPIPS: LPIPS of frames, weighted by where their motion differs.

Source: Danier et al. 2022, "FloLPIPS: a bespoke video quality metric for frame interpolation", equations 2 to
4, with a choice of flow; published figures use PWC-Net, so values compare only within one choice.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.metrics.flow import Flow
from opensora.models.perceptual import PerceptualDistance

_STILL = 1e-9  # pixels; flows that differ less than this everywhere are equal


class FloLpips:
    """Perceptual distance of clips that counts where flows differ.

    Args:
        network: LPIPS, with maps over pixels.
        flow: Flow between two batches of frames.
    """

    pairs = True

    def __init__(self, network: PerceptualDistance, flow: Flow) -> None:
        self.network, self.flow = network, flow

    def __call__(self, reference: Tensor, other: Tensor) -> Tensor:
        """Compare every pair of neighbouring frames; each stands for its first frame.

        Args:
            reference: In [0, 1]. Shape [T, 3, H, W].
            other: Same shape.

        Returns:
            float64, shape [T - 1]; 0 where the first frames are equal. Where both clips move alike it is
            LPIPS.
        """
        moved = self.flow(reference[:-1], reference[1:]) - self.flow(other[:-1], other[1:])
        weight = moved.square().sum(1, keepdim=True).sqrt()  # [T - 1, 1, H, W]
        alike = weight.amax((1, 2, 3), keepdim=True) <= _STILL
        weight = torch.where(alike, torch.ones_like(weight), weight)
        total = torch.zeros(len(weight), dtype=torch.float64)
        for error in self.network.maps(2 * reference[:-1] - 1, 2 * other[:-1] - 1):  # [T - 1, h, w]
            at = F.interpolate(weight, size=error.shape[1:], mode="bilinear", align_corners=False)[:, 0]
            share = at / (at.sum((1, 2), keepdim=True) + 1e-12)
            total += (share * error).sum((1, 2)).double()
        return total
