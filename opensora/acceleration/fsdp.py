"""FSDP2 behind the engine's contract: weights, gradients and optimizer state split over the processes.

What ZeRO stage 3 splits, in plain torch. Each block of a network gathers its weights before it runs and drops
them after; the rest of the network is one more such unit, which stays whole from forward to backward pass.

A process owns rows of each parameter. Torch holds them as DTensors; the optimizer sees plain tensors that
share their memory.

Source: Zhao et al. 2023, "PyTorch FSDP: experiences on scaling fully sharded data parallel".
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.optim import Optimizer

from opensora.acceleration.engine import Autocast, Engine
from opensora.acceleration.parallel import join_alone


class FsdpEngine(Engine):
    """Every process updates its rows of every parameter; weights are gathered block by block.

    A block is a module whose class says `compile_alone`; methods that are called from outside, besides
    `forward`, stand in its `called_beside_forward`. All processes must call the same blocks in the same
    order; what one of them does not use within a block, or outside of blocks, counts as zero there.

    Args:
        modules: See `Engine`. Their parameters are replaced by pieces.
        optimizers: See `Engine`.
        dtype: See `Engine`.
        device: See `Engine`.
        offload: Keep weights and optimizer state in the memory of the CPU.

    Raises:
        ImportError: This torch is too old.
    """

    sharded = True

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        dtype: torch.dtype,
        device: torch.device,
        offload: bool = False,
    ) -> None:
        if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
            raise ImportError(
                f"plugin='fsdp2' needs torch 2.13 or newer, this is {torch.__version__}: older ones stop "
                "when processes use different parts of a network. Use 'zero2' or 'ddp', or a newer torch."
            )
        # It warns of outputs that are views, for callers that change them in place; none here does.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
        join_alone(device)
        super().__init__(modules, optimizers, dtype, device)
        self.offload = offload
        self._mesh = init_device_mesh(device.type, (self.world_size,))
        self._pieces: dict[str, dict[str, Tensor]] = {}  # of all parameters, frozen ones too
        self._leaves: dict[str, dict[str, Tensor]] = {}  # whole weights, without memory while not in use
        self._scalars: dict[str, set[str]] = {}  # parameters without rows: whole everywhere
        self._used: dict[str, set[str]] = {name: set() for name in self.modules}  # by some process
        self._reducing = dict.fromkeys(self.modules, True)
        self._unreduced: set[str] = set()  # modules with gradients that wait for a reduction
        for name, module in self.modules.items():
            for parameter in self._trainable[name].values():
                parameter.data = parameter.data.float()
            self._place(module)
            self._shard(name, module)
            self._forward[name] = module if dtype == torch.float32 else Autocast(module, device, dtype)

    @contextmanager
    def no_sync(self, name: str) -> Iterator[None]:
        """Add up whole gradients here. See `Engine.no_sync`."""
        before = self._reducing[name]
        self._reduce(name, False)
        try:
            yield
        finally:
            self._reduce(name, before)

    def gradients(self, name: str) -> dict[str, Tensor]:
        """Return this process's rows. See `Engine.gradients`."""
        return {key: _local(p.grad) for key, p in self._trainable[name].items() if key in self._used[name]}

    def zero_grad(self, name: str) -> None:
        """Drop the gradients. See `Engine.zero_grad`."""
        if name in self._unreduced:
            self.modules[name].reset_iter_state()
        for tensors in (self._trainable[name], self._pieces[name], self._leaves[name]):
            for tensor in tensors.values():
                tensor.grad = None
        self._unreduced.discard(name)
        self._used[name].clear()
        self._norms.pop(name, None)

    def leaves(self, name: str) -> dict[str, Tensor]:
        """Return the whole weights of the forward pass. See `Engine.leaves`."""
        return dict(self._leaves[name])

    def _shard(self, name: str, module: nn.Module) -> None:
        keys = {id(p): key for key, p in module.named_parameters()}
        scalars = {p for p in module.parameters() if p.ndim == 0}
        low = None if self.dtype == torch.float32 else self.dtype
        settings = {
            "mesh": self._mesh,
            "ignored_params": scalars,
            "mp_policy": MixedPrecisionPolicy(low, torch.float32, cast_forward_inputs=False),
        }
        if self.offload:
            settings["offload_policy"] = CPUOffloadPolicy()
        for block in [m for m in module.modules() if getattr(m, "compile_alone", False)]:
            fully_shard(block, **settings)
            for method in getattr(block, "called_beside_forward", ()):
                register_fsdp_forward_method(block, method)
        fully_shard(module, **settings)
        module.set_reduce_scatter_unused_params(True)
        now = dict(module.named_parameters())
        self._trainable[name] = {key: p for key, p in now.items() if p.requires_grad}
        self._scalars[name] = {keys[id(p)] for p in scalars}
        self._pieces[name] = {key: _local(p) for key, p in now.items()}
        for group in self.optimizers[name].param_groups:
            group["params"] = [self._pieces[name][keys[id(p)]] for p in group["params"]]
        self._leaves[name] = self._find_leaves(name, module)
        for key, leaf in self._leaves[name].items():
            leaf.register_post_accumulate_grad_hook(partial(_note, self._used[name], key))

    def _find_leaves(self, name: str, module: nn.Module) -> dict[str, Tensor]:
        """Gather each unit once: FSDP keeps the tensors that it makes then."""
        found = {}
        for prefix, unit in module.named_modules():
            if isinstance(unit, FSDPModule):
                unit.unshard()
                for key, p in unit.named_parameters(prefix):
                    if p.requires_grad and p is not self._trainable[name][key]:
                        found[key] = p
                unit.reshard()
        scalars = {key: p for key, p in self._trainable[name].items() if key in self._scalars[name]}
        return {key: (found | scalars)[key] for key in self._trainable[name]}

    def _reduce(self, name: str, on: bool) -> None:
        self._reducing[name] = on
        self.modules[name].set_requires_gradient_sync(on)

    def _backward(self, loss: Tensor, name: str) -> None:
        with ExitStack() as others:  # a loss may run through another network, whose gradients nobody wants
            for other in self.modules.keys() - {name}:
                others.enter_context(self.no_sync(other))
            super()._backward(loss, name)
        if self._reducing[name]:
            self._agree(name)
            self._unreduced.discard(name)
        else:
            self._unreduced.add(name)

    def _agree(self, name: str) -> None:
        """Learn what the other processes used, and reduce what FSDP does not: parameters without rows."""
        trainable, used = self._trainable[name], self._used[name]
        scalars = [trainable[key] for key in trainable if key in self._scalars[name]]
        flags = [float(key in used) for key in trainable]
        shares = [p.new_zeros(()) if p.grad is None else p.grad for p in scalars]
        total = torch.stack([*torch.tensor(flags, device=self.device), *shares])
        dist.all_reduce(total)
        used.update(key for key, flag in zip(trainable, total.tolist(), strict=False) if flag)
        for p, share in zip(scalars, total[len(flags) :] / self.world_size, strict=True):
            p.grad = share

    def _update(self, name: str) -> None:
        for key, grad in self.gradients(name).items():
            self._pieces[name][key].grad = grad
        self.optimizers[name].step()

    def _owns(self, name: str, key: str) -> bool:
        return self.rank == 0 or key not in self._scalars[name]

    def _put(self, name: str, key: str, tensor: Tensor, value: Tensor) -> None:
        piece = self._pieces[name].get(key)
        if piece is None:
            tensor.copy_(value)
        else:
            piece.copy_(self._cut(name, key, value))

    def _exact(self, name: str) -> dict[str, Tensor]:
        pieces = {k: t for k, t in self._pieces[name].items() if k not in self._trainable[name]}
        whole = {key: self._join(name, key, piece, 0) for key, piece in pieces.items()}
        return {key: tensor for key, tensor in whole.items() if tensor is not None}

    def _owner(self, name: str, key: str) -> Tensor:
        return self._pieces[name][key]

    def _join(self, name: str, key: str, piece: Tensor, keeper: int) -> Tensor | None:
        if key in self._scalars[name]:
            return piece.detach().to("cpu", copy=True) if self.rank == keeper else None
        shape = self.modules[name].get_parameter(key).shape
        padded = torch.zeros(self._rows(shape), *shape[1:], dtype=piece.dtype, device=self.device)
        padded[: len(piece)] = piece.detach()
        parts = [torch.empty_like(padded) for _ in range(self.world_size)] if self.rank == keeper else None
        dist.gather(padded, parts, dst=keeper)
        return None if parts is None else torch.cat(parts)[: shape[0]].to("cpu", copy=True)

    def _cut(self, name: str, key: str, whole: Tensor) -> Tensor:
        if key in self._scalars[name]:
            return whole.to(self.device, torch.float32, copy=True)
        rows = self._rows(whole.shape)
        piece = whole[rows * self.rank : rows * (self.rank + 1)]
        return piece.to("cpu" if self.offload else self.device, torch.float32, copy=True)

    def _rows(self, shape: torch.Size) -> int:
        """Rows of a process; the last ones may have fewer, or none."""
        return -(-shape[0] // self.world_size)


@torch.no_grad()
def _local(tensor: Tensor) -> Tensor:
    """Return what this process holds, in the same memory."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor.detach()


def _note(used: set[str], key: str, _: Tensor) -> None:
    used.add(key)
