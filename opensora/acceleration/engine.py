"""Engines: what stands between a training loop and the processes, the precision and the optimizer's memory.

One contract, three implementations. `TorchEngine` (`data_parallel.py`) is plain torch: plugin "none" (one
process) and "ddp" (every process holds everything). `ColossalEngine` (`booster.py`) splits optimizer state,
and with "zero2" gradients, over the processes. `FsdpEngine` (`fsdp.py`) splits weights as well, in plain
torch.

A step, with `n` micro-batches on this process:

    for i, batch in enumerate(micro_batches):
        with engine.no_sync("model") if i < n - 1 else nullcontext():
            loss = ... engine.module("model")(...) ...
            engine.backward(loss / n, "model")
    norm = engine.clip("model", max_norm)  # 0 only measures
    updated = engine.step("model")

**Gradients** are the mean over the processes, so with losses divided by `n` as above the step follows the
mean over all micro-batches of all processes. `backward(loss, name)` reaches the parameters of `name` only: a
loss that runs through a second network (a discriminator) leaves no gradient there. A parameter that no
process used keeps no gradient, and the optimizer skips it; one that some process used is updated on all.

**Precision.** The optimizer updates float32 masters, always. A forward pass runs under `torch.autocast` in
`dtype`. The torch engine keeps the float32 masters in the module; the sharded ones compute with weights in
`dtype`, and buffers as they were. Gradients of several micro-batches add up in float32, except under
`no_sync` of zero1. fp16 scales the loss.

**Pieces.** A process owns a piece of each trainable parameter, float32: all of it, with ZeRO a slice of the
flattened and zero-padded tensor, with FSDP some of its rows. `masters`, `gradients` and optimizer state come
in pieces, `gather` joins them, `scatter` cuts whole tensors. What is saved is whole, so any plugin with any
number of processes goes on from it. Methods that gather must be called by every process. They give the whole
tensors to the first process, or with `spread` each to another one, so that none holds a whole checkpoint.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from opensora.acceleration.loss_scale import LossScale
from opensora.acceleration.parallel import parallel_state
from opensora.utils.logging import get_logger

PLUGINS = ("none", "ddp", "fsdp2", "zero1", "zero2", "zero1-seq", "zero2-seq")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Autocast(nn.Module):
    """A module whose forward pass runs in another precision.

    Args:
        module: What to call.
        device: Where it computes.
        dtype: Precision of matrix products; float32 changes nothing.
    """

    def __init__(self, module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.device_type, self.dtype = module, device.type, dtype

    def forward(self, *args: object, **kwargs: object) -> object:
        """Call the module with these arguments."""
        with torch.autocast(self.device_type, self.dtype, enabled=self.dtype != torch.float32):
            return self.module(*args, **kwargs)


class Engine(ABC):
    """What all engines share; the contract is this file's docstring.

    Args:
        modules: The networks that are trained, by name.
        optimizers: For each of them a torch optimizer over its trainable parameters.
        dtype: Precision of the forward pass.
        device: Where this process computes.
    """

    sharded = False

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.modules, self.optimizers = dict(modules), dict(optimizers)
        self.dtype, self.device = dtype, device
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self._trainable = {
            name: trainable(name, m, self.optimizers[name]) for name, m in self.modules.items()
        }
        self._scales = {name: LossScale(dtype == torch.float16) for name in self.modules}
        self._keepers = {name: self._share_out(part) for name, part in self._trainable.items()}
        self._norms: dict[str, float] = {}  # of gradients that are unscaled and clipped, ready for the step
        self._forward: dict[str, nn.Module] = {}

    def module(self, name: str) -> nn.Module:
        """Return what a training step calls instead of the module `name`. Calling it is all it is for."""
        return self._forward[name]

    def backward(self, loss: Tensor, name: str) -> None:
        """Add the gradient of `loss` to the gradients of the module `name`."""
        scaled = loss * self._scales[name].value if self._scales[name].enabled else loss
        self._backward(scaled, name)

    @abstractmethod
    def no_sync(self, name: str) -> AbstractContextManager[None]:
        """Return a context whose forward and backward passes are not reduced yet.

        It is for all micro-batches of a step but the last. zero2 reduces each of them all the same: it has no
        room for whole gradients. fsdp2 still gathers weights there.
        """

    def clip(self, name: str, max_norm: float) -> float:
        """Scale gradients down to a norm. Call it once, after the last backward pass of a step.

        Args:
            name: Which module.
            max_norm: Largest norm over all its gradients; 0 only measures.

        Returns:
            The norm before clipping, the same on every process; inf when a gradient is not finite.
        """
        pieces = self.gradients(name)
        grads, own = list(pieces.values()), [g for key, g in pieces.items() if self._owns(name, key)]
        squares = torch.zeros((), dtype=torch.float64, device=self.device)
        if own:
            norms = [norm.to(self.device) for norm in torch._foreach_norm(own)]
            squares += torch.stack(norms).double().square().sum()
        if self.sharded:
            dist.all_reduce(squares)
        scale = 1.0 if name in self._norms else self._scales[name].value
        norm = math.sqrt(value) / scale if math.isfinite(value := float(squares)) else math.inf
        factor = (max_norm / norm if 0 < max_norm < norm else 1.0) / scale
        if grads and factor != 1 and math.isfinite(norm):
            torch._foreach_mul_(grads, factor)
        self._norms[name] = norm
        return norm

    def step(self, name: str) -> bool:
        """Update the weights of the module `name`, and drop its gradients.

        Returns:
            Whether it happened. Gradients that are not finite are dropped, and weights and optimizer stay as
            they are, on every process alike.
        """
        if name not in self._norms:
            self.clip(name, 0.0)
        finite = math.isfinite(self._norms.pop(name))
        if finite:
            self._update(name)
        self._scales[name].update(finite)
        self.zero_grad(name)
        return finite

    def skip(self, name: str) -> None:
        """Make no update, and leave behind what a step with gradients that are not finite does."""
        self._norms[name] = math.inf
        self.step(name)

    def masters(self, name: str) -> dict[str, Tensor]:
        """Return this process's float32 pieces of the trainable parameters; not copies."""
        return {key: self._owner(name, key).detach() for key in self._trainable[name]}

    @abstractmethod
    def gradients(self, name: str) -> dict[str, Tensor]:
        """Return this process's pieces of the reduced gradients, of those parameters that have one.

        fp16 gradients are scaled until `clip`.
        """

    def gather(self, name: str, pieces: Mapping[str, Tensor], spread: bool = False) -> dict[str, Tensor]:
        """Join pieces to whole tensors on the CPU of one process; the others get none.

        Args:
            name: Which module.
            pieces: Pieces by parameter, of the same parameters on every process.
            spread: Give each process its share of the whole tensors; else the first one gets all.
        """
        keys = [key for key in self._trainable[name] if key in pieces]
        whole = {key: self._join(name, key, pieces[key], self._keeper(name, key, spread)) for key in keys}
        return {key: tensor for key, tensor in whole.items() if tensor is not None}

    def scatter(self, name: str, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cut whole tensors, the same on every process, into this one's pieces: float32 copies there."""
        return {key: self._cut(name, key, tensor.detach()) for key, tensor in whole.items()}

    def frozen(self, name: str) -> dict[str, Tensor]:
        """Return the other tensors of a checkpoint: frozen parameters and buffers, as before any cast.

        They are copies on the CPU of the first process; the others get none.
        """
        exact = self._exact(name)
        if self.rank != 0:
            return {}
        module = self.modules[name]
        named = dict(module.named_parameters(remove_duplicate=False))
        tensors = module.state_dict()
        rest = {key: tensors[key] for key, p in module.named_parameters() if not p.requires_grad}
        rest |= {key: tensor for key, tensor in tensors.items() if key not in named}
        return {key: exact.get(key, tensor).detach().to("cpu", copy=True) for key, tensor in rest.items()}

    def weights(self, name: str, spread: bool = False) -> dict[str, Tensor]:
        """Return masters as `gather` does, and on the first process `frozen`: what a checkpoint keeps."""
        return self.gather(name, self.masters(name), spread) | self.frozen(name)

    def state(self, name: str, spread: bool = False) -> dict[str, Tensor]:
        """Return the optimizer's state, whole, where `gather` puts the parameters.

        Names are those of the optimizer: "exp_avg.<parameter>", "exp_avg_sq.<parameter>", "step.<parameter>";
        fp16 adds "loss_scale" and "growth", ZeRO "reduce_order".
        """
        result: dict[str, Tensor | None] = {}
        for key in self._trainable[name]:
            owner, keeper = self._owner(name, key), self._keeper(name, key, spread)
            for field, value in self.optimizers[name].state.get(owner, {}).items():
                if not isinstance(value, Tensor):
                    continue
                if field != "step" and value.shape == owner.shape:
                    result[f"{field}.{key}"] = self._join(name, key, value, keeper)
                elif self.rank == keeper:
                    result[f"{field}.{key}"] = value.detach().to("cpu", copy=True)
        if self.rank == 0:
            result |= self._scales[name].state() | self._extra_state(name)
        return {key: value for key, value in result.items() if value is not None}

    @torch.no_grad()
    def load(
        self, name: str, weights: Mapping[str, Tensor], optimizer_state: Mapping[str, Tensor] | None = None
    ) -> None:
        """Restore masters, working weights and optimizer, from whole tensors that every process passes.

        Args:
            name: Which module.
            weights: As `weights` gives them. All trainable parameters; frozen ones and buffers that are not
                among them keep their values.
            optimizer_state: As `state` gives it, of any plugin. None leaves the optimizer as it is.

        Raises:
            ValueError: Names or shapes are not those of the module.
        """
        self._check_weights(name, weights)
        tensors = dict(self.modules[name].named_parameters()) | dict(self.modules[name].named_buffers())
        for key, value in weights.items():
            self._put(name, key, tensors[key], value)
        self.zero_grad(name)
        if optimizer_state is not None:
            self._load_optimizer(name, optimizer_state)

    @abstractmethod
    def zero_grad(self, name: str) -> None:
        """Drop the gradients of the module `name`."""

    def leaves(self, name: str) -> dict[str, Tensor]:
        """Return what a loss is differentiated by, by trainable parameter."""
        return dict(self._trainable[name])

    def _put(self, name: str, key: str, tensor: Tensor, value: Tensor) -> None:
        """Set a parameter or buffer of a module, and what the optimizer updates, to a whole tensor."""
        tensor.copy_(value)
        if key in self._trainable[name] and (owner := self._owner(name, key)) is not tensor:
            owner.copy_(self._cut(name, key, value))

    def _check_weights(self, name: str, weights: Mapping[str, Tensor]) -> None:
        module = self.modules[name]
        shapes = {key: t.shape for key, t in (*module.named_parameters(), *module.named_buffers())}
        for word, keys in (
            ("missing", [key for key in self._trainable[name] if key not in weights]),
            ("unknown", [key for key in weights if key not in shapes]),
            (
                "of another shape",
                [key for key, t in weights.items() if key in shapes and t.shape != shapes[key]],
            ),
        ):
            if keys:
                raise ValueError(
                    f"weights of {name!r}: {len(keys)} {word}, such as {', '.join(keys[:3])}. A checkpoint "
                    "fits the model it was made with: compare its config with this one's."
                )

    def _load_optimizer(self, name: str, state: Mapping[str, Tensor]) -> None:
        optimizer = self.optimizers[name]
        self._scales[name].load(state)
        state = {key: value for key, value in state.items() if key not in ("loss_scale", "growth")}
        state = self._take_extra_state(name, state)
        optimizer.state.clear()
        on_host = not any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
        for entry, value in state.items():
            field, _, key = entry.partition(".")
            if key not in self._trainable[name]:
                raise ValueError(
                    f"optimizer state of {name!r}: {entry!r} belongs to no trainable parameter. Continue "
                    "with the same model, `freeze` and `train_only`, or load the weights alone."
                )
            if field != "step" and value.shape == self._trainable[name][key].shape:
                piece = self._cut(name, key, value)
            else:
                piece = value.detach().to("cpu" if on_host else self.device, copy=True)
            optimizer.state[self._owner(name, key)][field] = piece

    def _share_out(self, trainable: Mapping[str, Tensor]) -> dict[str, int]:
        """Return for each parameter the process that keeps it in a `spread`: about equal shares, in order."""
        total, before, keepers = sum(p.numel() for p in trainable.values()), 0, {}
        for key, parameter in trainable.items():
            keepers[key] = before * self.world_size // max(total, 1)
            before += parameter.numel()
        return keepers

    def _keeper(self, name: str, key: str, spread: bool) -> int:
        return self._keepers[name][key] if spread else 0

    def _place(self, module: nn.Module) -> None:
        """Move a module to the device, and give all processes the weights of the first."""
        module.to(self.device)
        if self.world_size > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.detach(), 0)

    def _backward(self, loss: Tensor, name: str) -> None:
        loss.backward(inputs=list(self.leaves(name).values()))

    def _owns(self, name: str, key: str) -> bool:
        """Say whether a piece counts here when all processes add theirs up."""
        return True

    def _exact(self, name: str) -> dict[str, Tensor]:
        """Return frozen parameters that the module holds rounded or in pieces. Called by every process."""
        return {}

    def _extra_state(self, name: str) -> dict[str, Tensor]:
        return {}

    def _take_extra_state(self, name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Use what `_extra_state` of any engine gave, and return the rest."""
        state.pop("reduce_order", None)
        return state

    @abstractmethod
    def _update(self, name: str) -> None: ...

    @abstractmethod
    def _owner(self, name: str, key: str) -> Tensor:
        """Return the tensor that the optimizer updates."""

    @abstractmethod
    def _join(self, name: str, key: str, piece: Tensor, keeper: int) -> Tensor | None:
        """Return the whole tensor on the CPU of the process `keeper`, a copy; None on the others."""

    @abstractmethod
    def _cut(self, name: str, key: str, whole: Tensor) -> Tensor:
        """Return this process's piece of a whole tensor: a float32 copy where the optimizer works."""


def build_engine(
    plugin: str | None,
    dtype: str,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    *,
    reduce_bucket_mib: float = 80.0,
    device: str | torch.device | None = None,
    offload: bool = False,
    overlap: bool = True,
) -> Engine:
    """Build the engine of a run; `init_distributed` comes first. Modules move to the device.

    Args:
        plugin: One of `PLUGINS`; None is "none". "zero1-seq" and "zero2-seq" are the published names of
            "zero1" and "zero2" with sequence groups, which work with every plugin.
        dtype: "bf16", "fp16" or "fp32".
        modules: The networks that are trained, by name. ZeRO casts their weights in place.
        optimizers: For each module a torch optimizer over its trainable parameters. ZeRO and FSDP replace the
            parameters in its groups by pieces; learning rates are still set in `param_groups`.
        reduce_bucket_mib: Gradients reduced at once, in MiB of float32. FSDP reduces block by block.
        device: Where this process computes; None takes what `init_distributed` chose.
        offload: Keep optimizer state in the memory of the CPU and update there.
        overlap: On GPUs, let ZeRO communicate beside the backward pass.

    Raises:
        ValueError: A choice is unknown, modules and optimizers do not fit, or the plugin cannot serve the
            processes.
        ImportError: The plugin needs ColossalAI, or a newer torch, and it cannot be imported.
    """
    plugin = plugin or "none"
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: use one of {', '.join(DTYPES)}.")
    if modules.keys() != optimizers.keys():
        raise ValueError(
            f"modules {sorted(modules)} and optimizers {sorted(optimizers)}: give each module one optimizer."
        )
    processes = dist.get_world_size() if dist.is_initialized() else 1
    check_plugin(plugin, offload, processes)
    plugin = plugin.removesuffix("-seq")
    place = parallel_state().device if device is None else torch.device(device)
    if offload and place.type == "cpu":
        if modules:
            get_logger().info("offload=True changes nothing: this run computes on the CPU anyway")
        offload = False
    common = (modules, optimizers, DTYPES[dtype], place)
    if plugin in ("none", "ddp"):
        from opensora.acceleration.data_parallel import TorchEngine

        return TorchEngine(*common, reduce_bucket_mib)
    if plugin == "fsdp2":
        from opensora.acceleration.fsdp import FsdpEngine

        return FsdpEngine(*common, offload)

    from opensora.acceleration.booster import ColossalEngine

    return ColossalEngine(*common, reduce_bucket_mib, int(plugin.removeprefix("zero")), offload, overlap)


def check_plugin(plugin: str, offload: bool = False, processes: int = 1) -> None:
    """Check a choice of plugin, before anything is loaded.

    Raises:
        ValueError: It is unknown, or cannot do what is asked of it.
    """
    if plugin == "gemini":
        raise ValueError(
            "plugin='gemini': ColossalAI's Gemini stops when a batch leaves a parameter without a gradient, "
            "as one without a condition does, and it cannot run on the CPU. Use plugin='fsdp2', which splits "
            "the same, and offload=True to keep it in the memory of the CPU."
        )
    if plugin not in PLUGINS:
        raise ValueError(f"plugin={plugin!r}: use one of {', '.join(PLUGINS)}.")
    if plugin == "none" and processes > 1:
        raise ValueError(
            f"plugin='none' with {processes} processes: each would train its own model. Use plugin='ddp' or "
            "plugin='zero2'."
        )
    if offload and plugin in ("none", "ddp"):
        raise ValueError(
            f"offload=True with plugin={plugin!r}: only zero1, zero2 and fsdp2 move optimizer state to the "
            "CPU, with one process as well; use one of them, or offload=False."
        )


def trainable(name: str, module: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name; the optimizer must have all of them and no others."""
    named = {key: p for key, p in module.named_parameters() if p.requires_grad}
    owned = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    absent = [key for key, p in named.items() if id(p) not in owned]
    if absent or not named or len(owned) != len(named):
        raise ValueError(
            f"optimizer of {name!r}: it holds {len(owned)} trainable parameters, the module has {len(named)}"
            f"{', such as ' + absent[0] if absent else ''}. Build it from the module's parameters that "
            "require gradients."
        )
    return named
