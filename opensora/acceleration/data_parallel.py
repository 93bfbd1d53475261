"""Plain torch behind the engine's contract: one process, or several that hold everything."""

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from opensora.acceleration.engine import Autocast, Engine


class TorchEngine(Engine):
    """Plain torch: one process, or several that hold everything and average gradients.

    Args:
        modules: See `Engine`.
        optimizers: See `Engine`.
        dtype: See `Engine`.
        device: See `Engine`.
        reduce_bucket_mib: Gradients reduced at once, in MiB of float32.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        dtype: torch.dtype,
        device: torch.device,
        reduce_bucket_mib: float = 80.0,
    ) -> None:
        super().__init__(modules, optimizers, dtype, device)
        for name, module in self.modules.items():
            for parameter in self._trainable[name].values():
                parameter.data = parameter.data.float()
            self._place(module)
            wrapped = _data_parallel(module, device, reduce_bucket_mib) if self.world_size > 1 else module
            self._forward[name] = wrapped if dtype == torch.float32 else Autocast(wrapped, device, dtype)

    def no_sync(self, name: str) -> AbstractContextManager[None]:
        """Add up gradients here, without the other processes. See `Engine.no_sync`."""
        forward = self._forward[name]
        wrapped = forward.module if isinstance(forward, Autocast) else forward
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext()

    def gradients(self, name: str) -> dict[str, Tensor]:
        """Return the gradients, whole on every process. See `Engine.gradients`."""
        return {key: p.grad for key, p in self._trainable[name].items() if p.grad is not None}

    def zero_grad(self, name: str) -> None:
        """Drop the gradients. See `Engine.zero_grad`."""
        for parameter in self._trainable[name].values():
            parameter.grad = None
        self._norms.pop(name, None)

    def _update(self, name: str) -> None:
        self.optimizers[name].step()

    def _owner(self, name: str, key: str) -> Tensor:
        return self._trainable[name][key]

    def _join(self, name: str, key: str, piece: Tensor, keeper: int) -> Tensor | None:
        return piece.detach().to("cpu", copy=True) if self.rank == keeper else None

    def _cut(self, name: str, key: str, whole: Tensor) -> Tensor:
        return whole.to(self.device, torch.float32, copy=True)


def _data_parallel(module: nn.Module, device: torch.device, bucket_mib: float) -> DistributedDataParallel:
    # torch 2.13 renames the first.
    names = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    return DistributedDataParallel(
        module,
        **{buffers: False},  # nothing here changes a buffer on one process alone
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=True,  # an image may skip temporal layers, a batch a condition
        gradient_as_bucket_view=True,
        bucket_cap_mb=bucket_mib,
    )
