"""Rotary position embedding, along one axis or along three.

Source: Su et al. 2021, "RoFormer", section 3.4.2. Pairs are interleaved: (x0, x1), (x2, x3), ...
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensora.layers.windows import WindowPlan


@dataclass
class RotaryTable:
    """Cosines and sines of tokens.

    Args:
        cos: Shape [N, R]: R pairs of each head are turned, the channels behind them stay.
        sin: Same shape.
        phases: `cos + i sin` where they are float32, for CPUs and GPUs that run one operation at a time.
            Cosines and sines are then views of it.
    """

    cos: Tensor
    sin: Tensor
    phases: Tensor | None = None

    def __post_init__(self) -> None:
        if self.phases is None and self.cos.dtype == torch.float32:
            self.phases = torch.complex(self.cos, self.sin)
            self.cos, self.sin = self.phases.real, self.phases.imag


def join_tables(plan: WindowPlan, tables: Sequence[RotaryTable]) -> RotaryTable:
    """Return the table of all tokens of a grid, in the order of `windows.token_order`.

    Args:
        plan: How the grid is cut.
        tables: For each group of the plan the table of one window.
    """
    counts = [group.num_windows for group in plan.groups]
    cos, sin = (
        torch.cat([getattr(table, name).repeat(n, 1) for n, table in zip(counts, tables, strict=True)])
        for name in ("cos", "sin")
    )
    return RotaryTable(cos, sin)


class RotaryEmbedding(nn.Module):
    """Frequencies of a rotary embedding; a frozen parameter, because published files hold it.

    Args:
        dim: Channels that one axis turns; of an odd number the last stays.
        theta: Base of the wavelengths.
    """

    def __init__(self, dim: int, theta: float = 10000.0) -> None:
        super().__init__()
        if dim < 2:
            raise ValueError(
                f"rotary dimension {dim}: it must be at least 2; change hidden_size or num_heads."
            )
        self.theta, self.dim = theta, dim
        self.freqs = nn.Parameter(torch.empty(dim // 2), requires_grad=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the frequencies to theta^(-2i/dim)."""
        # On the CPU, also under torch.device("meta"): there arange would import the compiler, for a second.
        even = 2 * torch.arange(self.freqs.shape[0], dtype=torch.float32, device="cpu")
        with torch.no_grad():
            self.freqs.copy_(self.theta ** (-even / self.dim))

    def table(self, num_positions: int, compat_bf16: bool = False) -> RotaryTable:
        """Make the table of a sequence, with positions 0, 1, 2, ...

        Args:
            num_positions: Length of the sequence.
            compat_bf16: Compute in bfloat16, as the published code did.

        Returns:
            Tables of shape [num_positions, dim / 2].
        """
        return _table(self._angles(num_positions, 1.0, compat_bf16))

    def axial_table(
        self, size: tuple[int, int, int], scale: float, head_dim: int, compat_bf16: bool = False
    ) -> RotaryTable:
        """Make the table of a window: a head is cut in three as by `torch.chunk`, for time, height and width.

        Args:
            size: Frames, rows and columns of the window; positions start at 0 in each window.
            scale: Rows and columns are divided by it; frames are not.
            head_dim: Channels of a head: a multiple of 6, or 4 more, so that no pair is cut.
            compat_bf16: Compute in bfloat16, as the published code did.

        Returns:
            Tables of shape [T * H * W, head_dim / 2].

        Raises:
            ValueError: A part of the head is odd or smaller than the rotary dimension.
        """
        first = -(-head_dim // 3)
        parts = (first // 2, first // 2, head_dim // 2 - first)  # pairs of channels
        if first % 2 or head_dim % 2 or parts[2] < self.freqs.shape[0]:
            raise ValueError(
                f"3D rotary embedding: head_dim {head_dim} must be a multiple of 6, or 4 more, and at least "
                f"{6 * self.freqs.shape[0]}; change hidden_size or num_heads."
            )
        angles = []
        for axis, (length, pairs) in enumerate(zip(size, parts, strict=True)):
            part = self._angles(length, scale if axis else 1.0, compat_bf16)
            part = F.pad(part, (0, pairs - part.shape[1]))  # angle 0 turns nothing
            shape = [1, 1, 1, pairs]
            shape[axis] = length
            angles.append(part.view(shape).expand(*size, pairs))
        return _table(torch.cat(angles, dim=-1).flatten(0, 2))

    def _angles(self, length: int, scale: float, compat_bf16: bool) -> Tensor:
        dtype = torch.bfloat16 if compat_bf16 else torch.float32
        positions = torch.arange(length, device=self.freqs.device, dtype=dtype) / scale
        return positions[:, None] * self.freqs.to(dtype)  # [length, dim / 2]


def apply_rotary(x: Tensor, table: RotaryTable) -> Tensor:
    """Turn the first channels of each head.

    Args:
        x: Shape [..., N, head_dim].
        table: Tables of shape [N, R], 2 R <= head_dim. A float32 table is applied in float32.

    Returns:
        Same shape and dtype as `x`.
    """
    pairs = table.cos.shape[-1]
    head = x[..., : 2 * pairs].to(torch.promote_types(x.dtype, table.cos.dtype)).unflatten(-1, (pairs, 2))
    if table.phases is not None and not torch.compiler.is_compiling():
        turned = torch.view_as_real(torch.view_as_complex(head) * table.phases)
    else:
        even, odd = head.unbind(-1)
        cos, sin = table.cos, table.sin
        turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    turned = turned.flatten(-2).to(x.dtype)
    return turned if 2 * pairs == x.shape[-1] else torch.cat((turned, x[..., 2 * pairs :]), dim=-1)


def _table(angles: Tensor) -> RotaryTable:
    return RotaryTable(angles.cos(), angles.sin())
