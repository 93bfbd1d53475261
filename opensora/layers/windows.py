"""Windows over a (T, H, W) grid of tokens, without padding and without masks.

Each axis is cut into windows of a fixed size. What does not fill a window becomes a smaller window of its
own. Shifted windows (Swin) are the same with other cutting points: a cyclic shift whose wrapped parts must
not see each other equals cuts at `k - k//2, 2k - k//2, ...`. So every window holds real tokens only, every
kernel applies, and no output is displaced.

Source: Liu et al. 2021, "Swin Transformer", section 3.2, for the shift by half a window.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from einops import rearrange
from torch import Tensor

Order = tuple[Tensor, Tensor]  # for each new place the old one, and the other way round; int64, shape [N]


@dataclass(frozen=True)
class WindowGroup:
    """A block of the grid that is tiled by equal windows.

    Args:
        start: First frame, row and column of the block.
        count: Number of windows along each axis.
        size: Size of each window along each axis.
    """

    start: tuple[int, int, int]
    count: tuple[int, int, int]
    size: tuple[int, int, int]

    @property
    def num_windows(self) -> int:
        """Windows in the block."""
        return self.count[0] * self.count[1] * self.count[2]

    @property
    def num_tokens(self) -> int:
        """Tokens in one window."""
        return self.size[0] * self.size[1] * self.size[2]


@dataclass(frozen=True)
class WindowPlan:
    """How a grid is cut: groups of equal windows that cover each token once.

    Args:
        grid: Frames, rows and columns of the token grid.
        groups: At most three per axis (a cut first window, whole windows, a cut last one), so at most 27.
    """

    grid: tuple[int, int, int]
    groups: tuple[WindowGroup, ...]
    tokens = None  # this process has all of them, see `sequence.LocalPlan`

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """For each group its number of windows and the tokens in one, in the order of `token_order`."""
        return tuple((group.num_windows, group.num_tokens) for group in self.groups)

    def order(self, device: torch.device) -> Order | None:
        """Return `token_order` of this plan."""
        return token_order(self, device)


@lru_cache(maxsize=256)
def plan_windows(
    grid: tuple[int, int, int], window: tuple[int, int, int] = (-1, -1, -1), shift: bool = False
) -> WindowPlan:
    """Cut a grid into windows.

    Full attention is the window (-1, -1, -1), spatial attention (1, -1, -1), temporal attention (-1, 1, 1).

    Args:
        grid: Frames, rows and columns of the token grid.
        window: Window size along each axis; -1 is the whole axis.
        shift: Whether the cutting points move by half a window. Axes with -1 do not move.

    Returns:
        The plan; the same object for the same arguments.

    Raises:
        ValueError: A window size is neither positive nor -1.
    """
    for size in window:
        if size != -1 and size < 1:
            raise ValueError(
                f"window_size={window}: sizes are at least 1, or -1 for the whole axis; change {size}."
            )
    axes = [_cut(size, k, shift) for size, k in zip(grid, window, strict=True)]
    groups = [WindowGroup(*zip(*spans, strict=True)) for spans in product(*axes)]
    return WindowPlan(tuple(grid), tuple(groups))


@lru_cache(maxsize=256)
def token_order(plan: WindowPlan, device: torch.device) -> Order | None:
    """Return the order in which the tokens of each window follow each other, group by group, and its inverse.

    Args:
        plan: How the grid is cut.
        device: Where the tables are made; the same tensors for the same arguments.

    Returns:
        For each new place the old one, and the other way round, int64 [T * H * W] each; None when tokens
        stay where they are.
    """
    with torch.inference_mode(False):  # the tables outlive the mode, and training reads them too
        places = torch.arange(math.prod(plan.grid), device="cpu").view(plan.grid)
        order = torch.cat([_windows(places, group).flatten() for group in plan.groups])
        if torch.equal(order, places.flatten()):
            return None
        return order.to(device), order.argsort().to(device)


def _windows(places: Tensor, group: WindowGroup) -> Tensor:
    """Take a group's windows out of a grid. Shape [T, H, W] to [windows, tokens]."""
    (t, h, w), (nt, nh, nw), (kt, kh, kw) = group.start, group.count, group.size
    block = places[t : t + nt * kt, h : h + nh * kh, w : w + nw * kw]
    return rearrange(block, "(nt kt) (nh kh) (nw kw) -> (nt nh nw) (kt kh kw)", kt=kt, kh=kh, kw=kw)


def _cut(size: int, window: int, shift: bool) -> list[tuple[int, int, int]]:
    """Return (start, count, length) of the runs of equal windows along one axis."""
    if window == -1:
        return [(0, 1, size)]
    first = min(window - window // 2, size) if shift else 0
    runs = [(0, 1, first)] if first else []
    whole, rest = divmod(size - first, window)
    if whole:
        runs.append((first, whole, window))
    if rest:
        runs.append((size - rest, 1, rest))
    return runs
