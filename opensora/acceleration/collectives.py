"""Exchanges between the processes of a sequence group; gradients run back through most of them.

Cuts may be uneven, and a process may get nothing. With one process each function returns what it was given.

Every process of a group computes the same loss from the same gathered output, and the engine averages
gradients over all processes. A process sees only the gradient of its own tokens. So `gather_parts` multiplies
gradients by the number of processes of the group: the average is then the gradient of one process.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from opensora.acceleration.parallel import parallel_state, share_batches


def even_sizes(total: int, parts: int) -> tuple[int, ...]:
    """Cut `total` into `parts` numbers that differ by one at most, the larger ones first."""
    return tuple(total // parts + (i < total % parts) for i in range(parts))


def take_part(x: Tensor, dim: int, sizes: Sequence[int], rank: int | None = None) -> Tensor:
    """Return the part of `x` along `dim` of one process of the sequence group; None is this process."""
    rank = parallel_state().sequence_rank if rank is None else rank
    return x.narrow(dim, sum(sizes[:rank]), sizes[rank])


def exchange(
    x: Tensor, split_dim: int, split_sizes: Sequence[int], join_dim: int, join_sizes: Sequence[int]
) -> Tensor:
    """Cut along one axis, and become whole along another: every process sends every other one its part.

    Args:
        x: Whole along `split_dim`; this process's part along `join_dim`.
        split_dim: Axis to cut.
        split_sizes: How much of it each process gets.
        join_dim: Axis that becomes whole.
        join_sizes: How much of it each process has.

    Returns:
        This process's part along `split_dim`, whole along `join_dim`.
    """
    if len(split_sizes) == 1:
        return x
    return _Exchange.apply(x, split_dim, tuple(split_sizes), join_dim, tuple(join_sizes))


def gather_parts(x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Join the parts of all processes along `dim`, in their order, on every one of them.

    Args:
        x: This process's part.
        dim: Axis to join.
        sizes: Length of each process's part.
    """
    return x if len(sizes) == 1 else _Gather.apply(x, dim, tuple(sizes))


def spread(call: Callable[[Any], Tensor], parts: Sequence[Any], device: torch.device) -> Iterator[Tensor]:
    """Yield `call(part)` for each part; processes of a sequence group compute one part each, in turn.

    With gradients each process computes all of them.

    Args:
        call: Gives the same on every process.
        parts: The same on every process. All of them take as many results as one does.
        device: Where the results of others go.
    """
    state = parallel_state()
    size = state.sequence_size
    if size == 1 or torch.is_grad_enabled():
        yield from map(call, parts)
        return
    for first in range(0, len(parts), size):
        some = parts[first : first + size]
        own = [{"result": call(some[state.sequence_rank])}] if state.sequence_rank < len(some) else []
        for source in range(len(some)):
            (shared,) = share_batches(own, source)
            yield shared["result"].to(device)


def pass_on(x: Tensor) -> Tensor:
    """Give `x` to the next process of the sequence group, and return what the one before gave.

    The first process follows the last. All of them call this, with the same shape and dtype; no gradients.
    """
    state, x = parallel_state(), x.contiguous()
    if state.sequence_size == 1:
        return x
    arriving, leaving = [0] * state.sequence_size, [0] * state.sequence_size
    leaving[(state.sequence_rank + 1) % state.sequence_size] = x.numel()
    arriving[state.sequence_rank - 1] = x.numel()
    received = torch.empty_like(x)
    dist.all_to_all_single(received.view(-1), x.view(-1), arriving, leaving, group=state.sequence_group)
    return received


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, split_dim: int, splits: tuple[int, ...], join_dim: int, joins: tuple[int, ...]
    ) -> Tensor:
        ctx.back = join_dim, joins, split_dim, splits
        return _send(x.split(splits, split_dim), join_dim, joins)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Exchange.apply(grad, *ctx.back), None, None, None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, sizes: tuple[int, ...]) -> Tensor:
        ctx.cut = dim, sizes
        return _send([x] * len(sizes), dim, sizes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dim, sizes = ctx.cut
        return len(sizes) * take_part(grad, dim, sizes), None, None


def _send(parts: Sequence[Tensor], join_dim: int, joins: Sequence[int]) -> Tensor:
    """Send part i to process i of the group, and join what arrives."""
    state = parallel_state()
    own = list(parts[state.sequence_rank].shape)
    shapes = [[*own[:join_dim], size, *own[join_dim + 1 :]] for size in joins]
    sent = torch.cat([part.reshape(-1) for part in parts])
    arriving, leaving = [math.prod(shape) for shape in shapes], [part.numel() for part in parts]
    received = sent.new_empty(sum(arriving))
    dist.all_to_all_single(received, sent, arriving, leaving, group=state.sequence_group)
    pieces = received.split(arriving)
    return torch.cat([piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)], join_dim)
