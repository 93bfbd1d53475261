"""Sequence parallelism: which tokens of a video each process of a sequence group holds.

Tokens have the shape [B, T, S, D]: frames, and positions in a frame. A layout shares out whole frames or
whole positions, so that all but self attention works on a process's own tokens alone. There are two ways:

- **Axis switch**: blocks that see one frame at a time hold frames, blocks that see windows through all frames
  hold the positions of whole windows. Nothing but the tokens moves, once between two kinds of blocks.
- **Ulysses**: a process holds the same positions all the time. In self attention queries, keys and values
  move, so that each process has all tokens of some heads, and the result moves back.

Source: Jacobs et al. 2023, "DeepSpeed Ulysses"; Zhao et al. 2024, "DSP: dynamic sequence parallelism".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opensora.acceleration.collectives import even_sizes, exchange, gather_parts, take_part
from opensora.acceleration.parallel import parallel_state
from opensora.layers.fused import reorder
from opensora.layers.rope import RotaryTable
from opensora.layers.windows import Order, WindowGroup, WindowPlan, token_order

MODES = ("auto", "ulysses", "axis")
_MOST_UNEVEN = 1.5  # times an even share: "auto" lets no process hold more in the axis switch


@dataclass(frozen=True, eq=False)
class Layout:
    """How frames or positions are shared out to the processes of a sequence group.

    Args:
        dim: 1 shares out frames, 2 positions.
        sizes: How many each process holds.
        order: For positions: the order in which they are shared out, and its inverse; None is as they are.
    """

    dim: int
    sizes: tuple[int, ...]
    order: Order | None = None

    def tokens(self, grid: tuple[int, int, int], rank: int, device: torch.device) -> Tensor:
        """Return the numbers of a process's tokens, in the order in which it holds them. int64 [N]."""
        frames, positions = grid[0], grid[1] * grid[2]
        numbers = torch.arange(frames * positions, device=device).view(frames, positions)
        if self.order is not None:
            numbers = numbers[:, self.order[0]]
        return take_part(numbers, self.dim - 1, self.sizes, rank).flatten()

    @property
    def uneven(self) -> float:
        """What the fullest process holds, over an even share."""
        return max(self.sizes) * len(self.sizes) / sum(self.sizes)


@dataclass(frozen=True, eq=False)
class LocalPlan:
    """How the tokens of one process attend: the counterpart of `WindowPlan`.

    Args:
        runs: As in `WindowPlan`.
        table: From the order of the tokens to that of windows, and back. None: they stay as they are.
        tokens: Ulysses: tokens of each process. None: no window reaches beyond this process.
    """

    runs: tuple[tuple[int, int], ...]
    table: Order | None
    tokens: tuple[int, ...] | None = None

    def order(self, device: torch.device) -> Order | None:
        """Return the order for the tokens that this process holds."""
        return self.table if self.tokens is None else None

    def to_heads(self, qkv: Tensor) -> Tensor:
        """Give each process all tokens of some heads. [B, own N, 3, heads, d] to [B, N, 3, own heads, d]."""
        qkv = exchange(qkv, 3, even_sizes(qkv.shape[3], len(self.tokens)), 1, self.tokens)
        if self.table is None:
            return qkv
        return reorder(qkv.flatten(2), *self.table).view(qkv.shape)

    def to_tokens(self, out: Tensor, heads: int) -> Tensor:
        """Undo `to_heads` for the result. [B, N, own heads, d] to [B, own N, heads, d]."""
        if self.table is not None:
            out = reorder(out.flatten(2), *reversed(self.table)).view(out.shape)
        return exchange(out, 1, self.tokens, 2, even_sizes(heads, len(self.tokens)))


def set_sequence_parallel(model: nn.Module, mode: str) -> None:
    """Choose how a model shares out its tokens: "auto", "ulysses" or "axis".

    Raises:
        ValueError: The mode is unknown, or there is a sequence group and the model cannot use it.
    """
    check_mode(mode)
    size = parallel_state().sequence_size
    if hasattr(model, "sequence_parallel"):
        model.sequence_parallel = mode
    elif size > 1:
        raise ValueError(
            f"sp_size={size}: {type(model).__name__} cannot share out its tokens; set sp_size=1."
        )


def check_mode(mode: str) -> None:
    """Raise a ValueError unless the mode is known."""
    if mode not in MODES:
        raise ValueError(f"sequence_parallel={mode!r}: use one of {', '.join(MODES)}.")


def choose_layouts(plans: Sequence[WindowPlan], mode: str, size: int, device: torch.device) -> list[Layout]:
    """Choose what a process holds in each kind of block; Ulysses has one layout for all kinds.

    The axis switch moves a quarter of what Ulysses moves, or half where Ulysses has nothing to do in every
    second block. "auto" takes it unless frames or windows are too few to give each process its share.

    Args:
        plans: Of all kinds of blocks of a model, over one grid.
        mode: "auto", "ulysses" or "axis".
        size: Processes of the group.
        device: Where tables are made.
    """
    grid = plans[0].grid
    if mode != "ulysses":
        frames = Layout(1, even_sizes(grid[0], size))
        columns = [
            frames if all(group.size[0] == 1 for group in plan.groups) else _columns(plan, size, device)
            for plan in plans
        ]
        if mode == "axis" or all(layout.uneven <= _MOST_UNEVEN for layout in columns):
            return columns
    return [Layout(2, even_sizes(grid[1] * grid[2], size))] * len(plans)


def localize(
    plan: WindowPlan, rope: RotaryTable | None, layout: Layout, rank: int, device: torch.device
) -> tuple[LocalPlan, RotaryTable | None]:
    """Cut a plan and its rotary table to what one process needs.

    Args:
        plan: Of the whole grid.
        rope: Of all tokens, in the order of `windows.token_order`.
        layout: What processes hold. Where it cuts through windows, attention goes by heads (Ulysses).
        rank: Number of the process in its sequence group.
        device: Where tables are made.
    """
    order, size = token_order(plan, device), len(layout.sizes)
    held = [layout.tokens(plan.grid, r, device) for r in range(size)]
    places = [tokens if order is None else order[1][tokens] for tokens in held]  # in the order of windows
    own = places[rank]
    local = [_runs(plan, place) for place in places]
    if all(runs is not None for runs in local):
        turn = own.argsort()
        return LocalPlan(local[rank], _table(turn)), _rows(rope, own[turn])
    turn = torch.cat(places).argsort()
    return LocalPlan(plan.runs, _table(turn), tuple(map(len, held))), _rows(rope, own)


def split(x: Tensor, layout: Layout | None) -> Tensor:
    """Return this process's tokens of all. Shape [B, T, S, D]."""
    if layout is None:
        return x
    part = take_part(_ordered(x, layout.order), layout.dim, layout.sizes)
    # Without gradients blocks write over their tokens, so a part of all of them would keep all in memory.
    return part if torch.is_grad_enabled() else part.clone(memory_format=torch.contiguous_format)


def gather(x: Tensor, layout: Layout | None) -> Tensor:
    """Return all tokens on every process. Shape [B, T, S, D]."""
    if layout is None:
        return x
    return _back(gather_parts(x, layout.dim, layout.sizes), layout.order)


def move(x: Tensor, old: Layout | None, new: Layout | None) -> Tensor:
    """Go from one layout to another, of frames to positions or back. Shape [B, T, S, D]."""
    if old is new:
        return x
    x = exchange(_ordered(x, new.order), new.dim, new.sizes, old.dim, old.sizes)
    return _back(x, old.order)


def own_frames(x: Tensor | None, layout: Layout | None) -> Tensor | None:
    """Return the frames of a table [B, T, ...] that belong to this process's tokens."""
    return x if x is None or layout is None or layout.dim != 1 else take_part(x, 1, layout.sizes)


def _columns(plan: WindowPlan, size: int, device: torch.device) -> Layout:
    """Share out the positions of whole windows, with all frames."""
    rows, columns = plan.grid[1:]
    cells = [
        WindowGroup((0, *group.start[1:]), (1, *group.count[1:]), (1, *group.size[1:]))
        for group in plan.groups
        if group.start[0] == 0
    ]
    flat = WindowPlan((1, rows, columns), tuple(cells))
    order = token_order(flat, device)
    lengths = [length for count, length in flat.runs for _ in range(count)]
    if len(set(lengths)) == 1:
        counts = even_sizes(len(lengths), size)
        return Layout(2, tuple(lengths[0] * count for count in counts), order)
    loads, shares = [0] * size, [[] for _ in range(size)]
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):  # the largest first
        least = loads.index(min(loads))
        loads[least] += lengths[number]
        shares[least].append(number)
    places = torch.arange(rows * columns, device=device) if order is None else order[0]
    windows = places.split(lengths)
    turn = torch.cat([windows[number] for share in shares for number in sorted(share)])
    return Layout(2, tuple(loads), _table(turn))


def _runs(plan: WindowPlan, places: Tensor) -> tuple[tuple[int, int], ...] | None:
    """Return the runs of windows that some tokens fill, None if they fill a window in part.

    Args:
        plan: Of the whole grid.
        places: Of the tokens, in the order of windows. Shape [N].
    """
    runs, start = [], 0
    for count, length in plan.runs:
        stop = start + count * length
        inside = places[(places >= start) & (places < stop)]
        windows, filled = ((inside - start) // length).unique(return_counts=True)
        if (filled != length).any():
            return None
        runs.append((len(windows), length))
        start = stop
    return tuple(runs)


def _table(turn: Tensor) -> Order | None:
    """Return an order and its inverse, None if it changes nothing."""
    if torch.equal(turn, torch.arange(len(turn), device=turn.device)):
        return None
    return turn, turn.argsort()


def _rows(rope: RotaryTable | None, rows: Tensor) -> RotaryTable | None:
    return None if rope is None else RotaryTable(rope.cos[rows], rope.sin[rows])


def _ordered(x: Tensor, order: Order | None) -> Tensor:
    if order is None:
        return x
    return reorder(x.flatten(0, 1), *order).view(x.shape)


def _back(x: Tensor, order: Order | None) -> Tensor:
    return x if order is None else _ordered(x, (order[1], order[0]))
