"""PSNR and SSIM of frames.

Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity".
"""

import torch
from torch import Tensor

PSNR_CAP = 100.0  # dB, of frames that are the same
_BORDER = 5  # half of the Gaussian window of 11 pixels; closer to the edge it would see mirrored pixels


def psnr(reference: Tensor, other: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each frame, in dB; 100 for equal frames.

    Args:
        reference: In [0, 1]. Shape [T, 3, H, W].
        other: Same shape.

    Returns:
        float64, shape [T].
    """
    mse = (reference.double() - other.double()).square().flatten(1).mean(1)
    return torch.where(mse < 1e-10, PSNR_CAP, -10 * torch.log10(mse.clamp(min=1e-10)))


def ssim(reference: Tensor, other: Tensor) -> Tensor:
    """Return the structural similarity of each frame: window 11, deviation 1.5, whole windows only.

    Args:
        reference: In [0, 1], sides of at least 11 pixels. Shape [T, 3, H, W].
        other: Same shape.

    Returns:
        float64, shape [T]; 1 for equal frames.

    Raises:
        ValueError: The frames are too small.
        ImportError: torchmetrics is not installed.
    """
    if min(reference.shape[2:]) < 2 * _BORDER + 1:
        height, width = reference.shape[2:]
        raise ValueError(f"ssim: frames of {height} x {width} are too small; sides of 11 pixels are needed.")
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise ImportError(
            "ssim needs torchmetrics; run pip install -r requirements/requirements-eval.txt."
        ) from error
    # torchmetrics averages over mirrored borders too; the published figures are of whole windows.
    _, full = structural_similarity_index_measure(
        other.double(), reference.double(), data_range=1.0, reduction="none", return_full_image=True
    )
    return full[..., _BORDER:-_BORDER, _BORDER:-_BORDER].flatten(1).mean(1)
