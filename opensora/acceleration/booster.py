"""ColossalAI's ZeRO behind the engine's contract: optimizer state, and gradients, split over the processes.

The only file that imports ColossalAI, and only when an engine is built: it takes seconds.

Source: Rajbhandari et al. 2020, "ZeRO: memory optimizations toward training trillion parameter models".
"""

import logging
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from opensora.acceleration.engine import Autocast, Engine
from opensora.acceleration.host_accelerator import HostAccelerator, HostChecks
from opensora.acceleration.parallel import join_alone
from opensora.acceleration.reduction import OrderedReduction

INSTALL = (
    "pip install accelerate bitsandbytes galore-torch peft psutil && pip install --no-deps colossalai==0.5.0"
)
_PRECISION = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class ColossalEngine(Engine):
    """ZeRO: each process updates its slice of every parameter, and all of them gather the new weights.

    Args:
        modules: See `Engine`. Their weights are cast to `dtype`; buffers stay.
        optimizers: See `Engine`.
        dtype: See `Engine`.
        device: See `Engine`.
        reduce_bucket_mib: Gradients reduced at once, in MiB of float32.
        stage: 1 splits optimizer state, 2 also gradients.
        offload: Keep masters and optimizer state in the memory of the CPU.
        overlap: On GPUs, reduce gradients beside the backward pass.

    Raises:
        ImportError: ColossalAI or something that it needs is not installed.
    """

    sharded = True

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        dtype: torch.dtype,
        device: torch.device,
        reduce_bucket_mib: float = 80.0,
        stage: int = 2,
        offload: bool = False,
        overlap: bool = True,
    ) -> None:
        colossal = _import_colossal()
        # ColossalAI calls these names, which torch 2.13 replaces.
        message = r"`torch.distributed.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated"
        warnings.filterwarnings("ignore", message, FutureWarning)
        join_alone(device)
        super().__init__(modules, optimizers, dtype, device)
        host = device.type == "cpu"
        self.stage, self.offload, self.overlap = stage, offload, overlap and not host
        colossal.set_accelerator(
            type("Host", (HostAccelerator, colossal.CpuAccelerator), {})()
            if host
            else colossal.CudaAccelerator()
        )
        mixins = (OrderedReduction, HostChecks) if host else (OrderedReduction,)
        self._optimizer_class = type("ZeroOptimizer", (*mixins, colossal.LowLevelZeroOptimizer), {})
        self._booster = colossal.Booster(
            plugin=colossal.LowLevelZeroPlugin(stage=stage, precision=_PRECISION[dtype])
        )
        self._model_class = colossal.LowLevelZeroModel
        self._bucket = max(1, int(reduce_bucket_mib * 2**20 / 4))
        self._zero: dict[str, OrderedReduction] = {}
        self._rounded: dict[str, dict[str, Tensor]] = {}
        for name in self.modules:
            self._boost(name)

    def no_sync(self, name: str) -> AbstractContextManager[None]:
        """Add up gradients here (zero1), or do nothing (zero2). See `Engine.no_sync`."""
        return self._zero[name].no_sync() if self.stage == 1 else nullcontext()

    def gradients(self, name: str) -> dict[str, Tensor]:
        """Return this process's slices. See `Engine.gradients`."""
        zero = self._zero[name]
        found = {key: zero.get_working_grad_by_param_id(id(p)) for key, p in self._trainable[name].items()}
        return {key: grad for key, grad in found.items() if grad is not None}

    def zero_grad(self, name: str) -> None:
        """Drop the gradients. See `Engine.zero_grad`."""
        self._zero[name].zero_grad()
        self._norms.pop(name, None)

    def _boost(self, name: str) -> None:
        module, optimizer = self.modules[name], self.optimizers[name]
        self._place(module)
        # Casting rounds, so masters, frozen parameters and buffers are taken before.
        masters = {key: self._cut(name, key, p.detach()) for key, p in self._trainable[name].items()}
        frozen = {key: p.detach() for key, p in module.named_parameters() if not p.requires_grad}
        if self.rank == 0:
            self._rounded[name] = {
                key: p.to("cpu", copy=True)
                for key, p in frozen.items()
                if p.is_floating_point() and p.dtype != self.dtype
            }
        buffers = dict(module.named_buffers())
        model = self._model_class(module, _PRECISION[self.dtype], cast_inputs=False)
        for key, buffer in buffers.items():
            parent, _, own = key.rpartition(".")
            module.get_submodule(parent)._buffers[own] = buffer
        zero = self._optimizer_class(
            optimizer,
            forced_dtype=self.dtype,
            reduce_bucket_size=self._bucket,
            overlap_communication=self.overlap,
            partition_grad=self.stage == 2,
            cpu_offload=self.offload,
        )
        zero.mixed_precision_mixin = None  # the engine scales the loss and looks for overflow
        zero.start()
        model, zero, *_ = self._booster.boost(model, zero)
        self._zero[name] = zero
        for key, master in masters.items():
            self._owner(name, key).copy_(master)
        self._forward[name] = (
            model if self.dtype == torch.float32 else Autocast(model, self.device, self.dtype)
        )

    def _backward(self, loss: Tensor, name: str) -> None:
        self._zero[name].backward(loss, inputs=list(self._trainable[name].values()))

    def _update(self, name: str) -> None:
        self._zero[name].step()

    def _owner(self, name: str, key: str) -> Tensor:
        return self._zero[name].working_to_master_param[id(self._trainable[name][key])]

    def _join(self, name: str, key: str, piece: Tensor, keeper: int) -> Tensor | None:
        like = self._trainable[name][key]
        piece = piece.detach().to(self.device).contiguous()
        slices = [torch.empty_like(piece) for _ in range(self.world_size)] if self.rank == keeper else None
        dist.gather(piece, slices, dst=keeper)
        return (
            None
            if slices is None
            else torch.cat(slices)[: like.numel()].view(like.shape).to("cpu", copy=True)
        )

    def _cut(self, name: str, key: str, whole: Tensor) -> Tensor:
        flat, size = whole.reshape(-1), -(-whole.numel() // self.world_size)
        piece = flat[self.rank * size : (self.rank + 1) * size]  # of a mapped file, no more is read than this
        piece = piece.to("cpu" if self.offload else self.device, torch.float32, copy=True)
        return F.pad(piece, (0, size - len(piece)))

    def _put(self, name: str, key: str, tensor: Tensor, value: Tensor) -> None:
        super()._put(name, key, tensor, value)
        if key in (rounded := self._rounded.get(name, {})):
            rounded[key] = value.detach().to("cpu", copy=True)

    def _exact(self, name: str) -> dict[str, Tensor]:
        return self._rounded.get(name, {})

    def _extra_state(self, name: str) -> dict[str, Tensor]:
        order = self._zero[name].order
        return {} if order is None else {"reduce_order": torch.tensor(order)}

    def _take_extra_state(self, name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
        order = state.pop("reduce_order", None)
        self._zero[name].order = None if order is None else order.tolist()
        return state


def _import_colossal() -> SimpleNamespace:
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it warns about kernels that nothing here uses
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from colossalai.accelerator import CpuAccelerator, CudaAccelerator, set_accelerator
            from colossalai.booster import Booster
            from colossalai.booster.plugin import LowLevelZeroPlugin
            from colossalai.booster.plugin.low_level_zero_plugin import LowLevelZeroModel
            from colossalai.zero import LowLevelZeroOptimizer
    except ImportError as error:
        raise ImportError(
            f"plugin='zero1' and 'zero2' need ColossalAI, which cannot be imported ({error}). Install it "
            f"with `{INSTALL}`, or train with plugin='ddp'."
        ) from error
    finally:
        logging.disable(disabled)
    names = {
        "CpuAccelerator": CpuAccelerator,
        "CudaAccelerator": CudaAccelerator,
        "set_accelerator": set_accelerator,
        "Booster": Booster,
        "LowLevelZeroPlugin": LowLevelZeroPlugin,
        "LowLevelZeroModel": LowLevelZeroModel,
        "LowLevelZeroOptimizer": LowLevelZeroOptimizer,
    }
    return SimpleNamespace(**names)
