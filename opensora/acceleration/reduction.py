"""Reduction of ZeRO gradients in an order that all processes share, in float32.

ColossalAI reduces gradients in the order in which they appear, and only those that do. Processes whose
batches take other ways through the network (an image skips temporal layers, a condition is absent) would then
add gradients of different parameters to each other, or wait forever. Here every process reduces every
trainable parameter, in one order; what a process did not use counts as zero, and what nobody used has no
gradient.
"""

from functools import partial
from weakref import proxy

import torch
import torch.distributed as dist
from torch import Tensor, nn


class OrderedReduction:
    """Goes in front of ColossalAI's ZeRO optimizer.

    The order is the one in which gradients appeared on the first process at the first reduction, which lets
    communication run beside computation. It is part of a checkpoint: sums of more than two processes may
    depend on it in the last bit.
    """

    def start(self) -> None:
        """Watch the gradients. Called once, after construction."""
        groups = self._working_param_groups
        self._params: list[tuple[nn.Parameter, int]] = [
            (p, g) for g, params in groups.items() for p in params
        ]
        self.order: list[int] | None = None
        self._used: set[int] = set()  # by some process, since the last step
        self._arrived: dict[int, None] = {}  # in this backward pass, in order
        self._next = 0  # place in the order of the first parameter that is not in a bucket yet
        for index, (param, _) in enumerate(self._params):
            self.grad_handles.append(
                param.register_post_accumulate_grad_hook(partial(_arrive, proxy(self), index))
            )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients."""
        super().zero_grad(set_to_none)
        self._used.clear()
        self._arrived.clear()
        self._next = 0

    def arrive(self, index: int) -> None:
        """Take notice of a gradient, and put into buckets what is next in the order."""
        if not self.require_grad_sync:
            return
        self._arrived[index] = None
        if self.order is None:
            return
        while self._next < len(self.order) and self.order[self._next] in self._arrived:
            self._add_to_bucket(*self._params[self.order[self._next]])
            self._next += 1

    def _attach_reduction_hook(self) -> None:
        pass  # `start` attaches ours

    def _reduce_grad(self, partition_grad: bool) -> None:
        device = self._params[0][0].device
        if self.order is None:
            rest = [i for i in reversed(range(len(self._params))) if i not in self._arrived]
            order = torch.tensor([*self._arrived, *rest], device=device)
            dist.broadcast(order, 0)
            self.order = order.tolist()
        used = set(self._arrived)
        for index in self.order[self._next :]:
            param, group = self._params[index]
            if param.grad is None:
                param.grad = torch.zeros_like(param)
            else:
                used.add(index)
            self._add_to_bucket(param, group)
        self._run_reduction()
        flags = torch.tensor([i in used for i in range(len(self._params))], dtype=torch.int32, device=device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        self._used |= {i for i, flag in enumerate(flags.tolist()) if flag}
        for index, (param, group) in enumerate(self._params):
            if index not in self._used:
                self.pid_to_grad_store[id(param)]._grads_of_params[group].pop(id(param))
        self._arrived.clear()
        self._next = 0

    def _add_grad(
        self, grad: Tensor, partition_num: int, group_id: int, param_id: int, rank: int = 0
    ) -> None:
        # Micro-batches add up in float32, and zero1 does not keep the slices that other processes update.
        foreign = partition_num > 1 and rank != self.pid_to_grad_store[param_id].local_rank
        super()._add_grad(
            grad.new_empty(0) if foreign else grad.float(), partition_num, group_id, param_id, rank
        )

    # The engine measures, checks and clips before the step.

    def _compute_grad_norm(self, *args: object, **kwargs: object) -> float:
        return 0.0

    def _unscale_and_clip_grads(self, *args: object) -> None:
        pass


def _arrive(optimizer: OrderedReduction, index: int, _: Tensor) -> None:
    optimizer.arrive(index)
