"""Patch discriminators for adversarial training of autoencoders.

Source: Isola et al. 2017, "Image-to-image translation with conditional adversarial networks", section 3.2.2.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from opensora.registry import MODELS


@MODELS.register_module()
class PatchDiscriminator(nn.Module):
    """Tell real from decoded patches. Works on frames (dims=2) or on clips (dims=3).

    A clip too short for the kernels, an image for example, stands still at its end until it is long enough.
    Height and width must be `least_side` at least.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the first layer.
        num_layers: Layers that halve the size, the first included.
        dims: 2 for frames [B, C, H, W], 3 for clips [B, C, T, H, W].
        kernel_size: 3 or 4.
        time_halvings: How many of the layers halve time too (dims=3).
    """

    def __init__(
        self,
        in_channels: int = 3,
        channels: int = 64,
        num_layers: int = 3,
        dims: int = 3,
        kernel_size: int = 3,
        time_halvings: int = 2,
    ) -> None:
        super().__init__()
        if dims not in (2, 3):
            raise ValueError(f"PatchDiscriminator dims={dims}: use 2 for frames or 3 for clips.")
        if kernel_size not in (3, 4):
            raise ValueError(f"PatchDiscriminator kernel_size={kernel_size}: use 3 or 4.")
        self.dims = dims
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)

        def stride(layer: int) -> tuple[int, ...]:
            space = 2 if layer < num_layers else 1
            time = 2 if layer < min(time_halvings, num_layers) else 1
            return (space, space) if dims == 2 else (time, space, space)

        layers: list[nn.Module] = [conv(in_channels, channels, kernel_size, stride(0), 1), nn.LeakyReLU(0.2)]
        width = channels
        for layer in range(1, num_layers + 1):
            wider = min(2**layer, 8) * channels
            layers += [
                conv(width, wider, kernel_size, stride(layer), 1, bias=False),
                norm(wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        self.main = nn.Sequential(*layers, conv(width, 1, kernel_size, 1, 1))
        steps = [stride(layer)[0] for layer in range(num_layers + 1)] if dims == 3 else []
        sides = [stride(layer)[-1] for layer in range(num_layers + 1)]
        self.least_frames = _least_input(1, kernel_size, [*steps, 1])
        # A map of one place has no variance for the last norm.
        self.least_side = _least_input(max(2, kernel_size - 2), kernel_size, sides)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as published: convolutions N(0, 0.02), norms N(1, 0.02)."""
        for module in self.main:
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                nn.init.normal_(module.weight, 1.0, 0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return a score for each patch, with one channel."""
        missing = self.least_frames - x.shape[2] if self.dims == 3 else 0
        if missing > 0:
            x = F.pad(x, (0, 0, 0, 0, 0, missing), mode="replicate")
        return self.main(x)

    def check_size(self, height: int, width: int) -> None:
        """Check that images are large enough.

        Raises:
            ValueError: A side is below `least_side`.
        """
        if min(height, width) < self.least_side:
            raise ValueError(
                f"clips of {height} x {width} pixels: too small for a PatchDiscriminator of {self.dims} "
                f"dimensions with these layers, which needs {self.least_side} x {self.least_side}; use "
                "larger clips, or a smaller discriminator.num_layers."
            )


def _least_input(output: int, kernel_size: int, steps: Sequence[int]) -> int:
    """Return the least length that convolutions with these steps, padded by 1, turn into `output`."""
    for step in reversed(steps):
        output = (output - 1) * step + max(1, kernel_size - 2)
    return output
