"""Parts of transformer blocks: norm, MLP, modulation, final layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensora.layers.fused import NORM_EPS, mlp, modulated_norm


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32.

    Args:
        dim: Size of the last axis.

    Source: Zhang and Sennrich 2019, equation 4.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise. Shape and dtype stay."""
        if x.dtype == torch.float32:
            return F.rms_norm(x, (x.shape[-1],), self.weight, NORM_EPS)
        # Half precision rounds before the weight, as the published models do.
        return F.rms_norm(x.float(), (x.shape[-1],), None, NORM_EPS).to(x.dtype) * self.weight


class Mlp(nn.Module):
    """Linear, tanh-GELU, Linear.

    Args:
        in_dim: Input width.
        hidden_dim: Width between.
        out_dim: Output width; the input width by default.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, out_dim or in_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_dim] to [..., out_dim]."""
        return mlp(x, self.fc1, self.fc2)


class FinalLayer(nn.Module):
    """Modulated norm and the projection to patches.

    Known frames of published models are modulated twice, first with `t` and then, normalised again, with time
    0. Released weights were trained that way, so it is kept.

    Args:
        hidden_size: Model width D.
        num_patch: Values per channel in a patch.
        out_channels: Channels per value.
        twice: Whether known frames are modulated twice ("v1.3"), or once with time 0.
    """

    def __init__(self, hidden_size: int, num_patch: int, out_channels: int, twice: bool = True) -> None:
        super().__init__()
        self.twice = twice
        self.linear = nn.Linear(hidden_size, num_patch * out_channels)
        self.scale_shift_table = nn.Parameter(torch.empty(2, hidden_size))
        nn.init.normal_(self.scale_shift_table, std=hidden_size**-0.5)

    def forward(
        self, x: Tensor, t: Tensor, t_zero: Tensor | None = None, known: Tensor | None = None
    ) -> Tensor:
        """Turn tokens into patches.

        Args:
            x: Tokens. Shape [B, T, S, D].
            t: Time embedding. Shape [B, D].
            t_zero: Embedding of time 0; needed with `known`. Shape [B, D].
            known: Frames that are given. Bool, shape [B, T].

        Returns:
            Shape [B, T, S, num_patch * out_channels].
        """
        h = modulated_norm(x, *self._modulation(t))
        if known is not None:
            source = h if self.twice else x
            zero = modulated_norm(source, *self._modulation(t_zero))
            h = torch.where(known[:, :, None, None], zero, h)
        return self.linear(h)

    def _modulation(self, t: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = (self.scale_shift_table + t[:, None]).chunk(2, dim=1)  # [B, 1, D] each
        return shift[:, None], scale[:, None]
