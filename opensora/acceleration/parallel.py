"""Processes of a run: who this one is, and what all of them can agree on.

`init_distributed` sets the only global state of the framework, `ParallelState`, once. Without it, or with one
process, every function here works and communicates with nobody.
"""

import atexit
import gc
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from opensora.acceleration.heartbeat import waiting

_MANY = 1 << 16  # numbers of a tensor that stays on the device it arrived on
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class ParallelState:
    """This process among all processes of the run.

    Args:
        rank: Number of this process, from 0.
        world_size: Number of processes.
        local_rank: Number of this process on its machine, from 0.
        device: Where it computes.
        data_group: Processes that see different samples; None for all of them.
        sequence_group: Processes that share the tokens of the same samples, of consecutive ranks; None when
            each process has samples of its own.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    device: torch.device = torch.device("cpu")
    data_group: ProcessGroup | None = None
    sequence_group: ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Number of this process in the data group."""
        return dist.get_rank(self.data_group) if dist.is_initialized() else 0

    @property
    def data_size(self) -> int:
        """Number of processes in the data group."""
        return dist.get_world_size(self.data_group) if dist.is_initialized() else 1

    @property
    def sequence_rank(self) -> int:
        """Number of this process in its sequence group."""
        return 0 if self.sequence_group is None else dist.get_rank(self.sequence_group)

    @property
    def sequence_size(self) -> int:
        """Number of processes in its sequence group."""
        return 1 if self.sequence_group is None else dist.get_world_size(self.sequence_group)


_state = ParallelState()


def parallel_state() -> ParallelState:
    """Return who this process is; one process on the CPU before `init_distributed`."""
    return _state


def init_distributed(device: str | None = None, timeout_s: float = 3600.0, sp_size: int = 1) -> ParallelState:
    """Join the processes that a launcher started, and choose this one's device.

    torchrun and accelerate name a process by RANK, WORLD_SIZE and LOCAL_RANK; without them a SLURM step of
    several tasks is read. Processes talk through NCCL on GPUs and through gloo on the CPU. One process joins
    nothing.

    Args:
        device: "cuda" or "cpu"; None takes a GPU where torch sees one.
        timeout_s: Seconds after which a process that waits for the others gives up.
        sp_size: Processes that share one sequence; divides the number of processes.

    Returns:
        The state, which `parallel_state()` gives from now on.

    Raises:
        ValueError: The device does not exist here, the launcher's variables make no sense, or `sp_size` does
            not fit the number of processes.
    """
    global _state
    rank, world_size, local_rank, local_size = _launched(os.environ)
    if sp_size < 1 or world_size % sp_size:
        raise ValueError(
            f"sp_size={sp_size}: it must divide the number of processes, which is {world_size}. Start a "
            f"multiple of {max(sp_size, 1)} processes with torchrun --nproc_per_node, or set sp_size=1."
        )
    place = _device(device, local_rank, local_size)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if world_size > 1 and not dist.is_initialized():
        missing = [name for name in _ADDRESS if name not in os.environ]
        if missing:
            raise ValueError(
                f"{' and '.join(missing)}: not set, but {world_size} processes must find each other. Start "
                "them with torchrun, or export MASTER_ADDR (the first machine) and MASTER_PORT (a free port)."
            )
        dist.init_process_group(
            "nccl" if place.type == "cuda" else "gloo",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
            device_id=place if place.type == "cuda" else None,
        )
        atexit.register(shut_down)
    _state = ParallelState(rank, world_size, local_rank, place, *_groups(world_size, sp_size, timeout_s))
    return _state


def join_alone(device: torch.device) -> None:
    """Make a group of this process, unless there is one: some libraries want a group even for one process."""
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        atexit.register(shut_down)


def shut_down() -> None:
    """Leave the other processes. Called at exit; calling it twice does no harm."""
    global _state
    if dist.is_initialized():
        # A thread of gloo may still be about to drop a tensor, for which it needs the interpreter. Finding it
        # gone, it aborts the process (seen in one exit of six). DDP's reducers keep it from being joined.
        gc.collect()
        dist.destroy_process_group()
        if _state.device.type == "cpu":
            time.sleep(0.2)
    _state = ParallelState()


@waiting()
def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier(device_ids=[_state.device.index] if _state.device.type == "cuda" else None)


@waiting()
def all_reduce_mean(value: Tensor | float) -> Tensor:
    """Return the mean of `value` over the processes, in float32 or wider, on this process's device.

    Args:
        value: A number or a tensor; the same shape on every process. It is left as it is.
    """
    total = torch.as_tensor(value, device=_state.device).detach()
    total = total.to(torch.promote_types(total.dtype, torch.float32), copy=True)
    if dist.is_initialized():
        dist.all_reduce(total)
        total /= dist.get_world_size()
    return total


@waiting()
def broadcast_text(text: str | None, group: ProcessGroup | None = None, source: int = 0) -> str:
    """Return the text of one process everywhere; JSON carries anything else.

    Args:
        text: The text on that process. Others may pass None.
        group: Processes that take part; None is all.
        source: Its number in the group.
    """
    if not dist.is_initialized():
        return text or ""
    sends = dist.get_rank(group) == source
    data = (text or "").encode() if sends else b""
    size = torch.tensor(len(data), device=_state.device)
    dist.broadcast(size, group=group, group_src=source)
    if not int(size):
        return ""
    received = _bytes(data) if sends else torch.empty(int(size), dtype=torch.uint8, device=_state.device)
    dist.broadcast(received, group=group, group_src=source)
    return received.cpu().numpy().tobytes().decode()


@waiting()
def share_batches(batches: list[dict[str, Any]], source: int = 0) -> list[dict[str, Any]]:
    """Return the batches of one process of the sequence group on all of its processes.

    Clips are read once, so a file that one process reads and another does not cannot make them differ.

    Args:
        batches: On that process: tensors, and what JSON can hold. Others pass anything.
        source: Its number in the group.

    Returns:
        The same batches. On GPUs the others get tensors of many numbers on their device.
    """
    group = _state.sequence_group
    if group is None:
        return batches
    sends, heads = _state.sequence_rank == source, []
    for batch in batches if sends else []:
        kinds = {k: [list(v.shape), str(v.dtype)[6:]] for k, v in batch.items() if isinstance(v, Tensor)}
        heads.append([kinds, {key: value for key, value in batch.items() if key not in kinds}])
    heads = json.loads(broadcast_text(json.dumps(heads) if sends else None, group, source))
    shared = []
    for i, (kinds, rest) in enumerate(heads):
        for key, (shape, dtype) in kinds.items():
            if sends:
                tensor = batches[i][key].to(_state.device).contiguous()
            else:
                tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=_state.device)
            dist.broadcast(tensor, group=group, group_src=source)
            rest[key] = tensor if tensor.numel() > _MANY else tensor.cpu()
        shared.append(rest)
    return batches if sends else shared


@waiting()
def gather_texts(text: str) -> list[str]:
    """Return the texts of all processes, in their order, on every one of them."""
    if not dist.is_initialized():
        return [text]
    data = text.encode()
    sizes = [torch.tensor(0, device=_state.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor(len(data), device=_state.device))
    longest = max(int(size) for size in sizes)
    padded = [torch.empty(longest + 1, dtype=torch.uint8, device=_state.device) for _ in sizes]
    dist.all_gather(padded, _bytes(data.ljust(longest + 1)))
    texts = zip(padded, sizes, strict=True)
    return [part[: int(size)].cpu().numpy().tobytes().decode() for part, size in texts]


@waiting()
def all_equal(value: str) -> bool:
    """Say whether every process passes the same text, without sending it: plans are compared so."""
    if not dist.is_initialized():
        return True
    own = _bytes(hashlib.sha256(value.encode()).digest())
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    return all(torch.equal(own, other) for other in everyone)


def _groups(
    world_size: int, sp_size: int, timeout_s: float
) -> tuple[ProcessGroup | None, ProcessGroup | None]:
    """Make this process's data group and sequence group."""
    if sp_size == 1:
        return None, None
    numbers = torch.arange(world_size).view(-1, sp_size)
    data, sequence = (
        dist.new_subgroups_by_enumeration(ranks.tolist(), timeout=timedelta(seconds=timeout_s))[0]
        for ranks in (numbers.T, numbers)
    )
    return data, sequence


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(_state.device)


def _launched(env: Mapping[str, str]) -> tuple[int, int, int, int]:
    """Read rank, processes, rank on this machine, and processes on this machine."""
    if "RANK" not in env and "WORLD_SIZE" not in env and int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    elif int(env.get("WORLD_SIZE", "1")) > 1 or "RANK" in env:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    else:
        return 0, 1, 0, 1
    missing = [name for name in names if name not in env]
    if missing:
        raise ValueError(
            f"{', '.join(missing)}: not set, while {', '.join(names)} belong together. Use torchrun."
        )
    rank, world_size, local_rank = (int(env[name]) for name in names)
    if not 0 <= rank < world_size:
        raise ValueError(
            f"{names[0]}={rank}: expected 0 to {world_size - 1}, because {names[1]}={world_size}."
        )
    return rank, world_size, local_rank, int(env.get("LOCAL_WORLD_SIZE", local_rank + 1))


def _device(device: str | None, local_rank: int, local_size: int) -> torch.device:
    if device not in (None, "cuda", "cpu"):
        raise ValueError(f"device={device!r}: use 'cuda', 'cpu', or None for a GPU where there is one.")
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device is None and not available):
        return torch.device("cpu")
    if not available:
        raise ValueError(
            "device='cuda': torch sees no GPU here. Use device='cpu', or a torch built for the GPU."
        )
    if local_size > available or local_rank >= available:
        raise ValueError(
            f"{max(local_size, local_rank + 1)} processes on this machine, but torch sees {available} GPUs; "
            f"each needs its own. Start at most {available} (torchrun --nproc_per_node), or use device='cpu'."
        )
    return torch.device("cuda", local_rank)
