"""What sequence groups send: bytes and collectives per process and block of STDiT3, in three ways.

Each process counts what it sends to the others while a real network runs, forward and backward, over gloo on
the CPU. Beside the two ways that `opensora/layers/sequence.py` offers stands the plain one, gather/split:
every process gathers all tokens for each temporal block, and works out the whole attention.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measure import Measure, wanted
from benchmarks.processes import in_processes
from opensora.acceleration.activation_checkpoint import set_activation_checkpoint
from opensora.acceleration.collectives import gather_parts, take_part
from opensora.acceleration.parallel import parallel_state
from opensora.layers.sequence import set_sequence_parallel
from opensora.models.stdit3 import Geometry, STDiT3

PROCESSES = (2, 4)
WAYS = ("axis", "ulysses", "gather_split")
MODES = ("forward", "training", "training+recomputation")
FORMS = {"positions": {}, "windows": {"window_size": (-1, 8, 8), "shift_window": True, "spatial_rope": True}}
SIZES = {"even": (8, 32, 32), "uneven": (7, 27, 43)}  # latents: frames, rows, columns
WIDTH, DEPTH, HEADS = 96, 2, 4
AXIS_OVER_ULYSSES = 0.5


def run() -> Iterator[Measure]:
    """Yield for each number of processes, form, size and mode what the three ways send."""
    for processes in (n for n in PROCESSES if wanted(f"communication/{n}x")):
        for name, found in in_processes(processes, "benchmarks.communication:traffic").items():
            way = {w: found[w] for w in WAYS}
            case = f"communication/{processes}x/{name}"
            for key, (sent, calls) in way.items():
                conditions = {
                    "collectives": calls,
                    "width": WIDTH,
                    "dtype": "fp32",
                    "per": "process and block",
                }
                yield Measure(f"{case}/{key}", sent / 1024, "KiB", conditions=conditions)
            ratio = way["axis"][0] / way["ulysses"][0]
            yield Measure(f"{case}/axis_over_ulysses", ratio, "x", at_most=AXIS_OVER_ULYSSES)


class Traffic(TorchDispatchMode):
    """Counts collectives, and the bytes that this process sends to others, while it is entered.

    Attributes:
        calls: Collectives.
        sent: Bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.sent = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            if "alltoall_base" not in func.name():
                raise NotImplementedError(f"{func.name()}: nothing here counts what it sends.")
            _, data, _, _, leaving, *_ = args
            own = leaving[parallel_state().sequence_rank]
            self.calls += 1
            self.sent += (data.numel() - own) * data.element_size()
        return func(*args, **(kwargs or {}))


class GatherSplit(nn.Module):
    """Self attention of all tokens on every process, of which each keeps its own.

    Args:
        attention: Of a block.
        whole: Windows and rotary table of the whole grid.
        sizes: Frames of each process.
    """

    def __init__(self, attention: nn.Module, whole: Geometry, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.attention, self.whole, self.sizes = attention, whole, sizes

    def forward(self, x: Tensor, plan: Any, rope: Any) -> Tensor:
        """Map [B, own tokens, D] to the same shape; what is given beside `x` is for other ways."""
        positions = self.whole.plan.grid[1] * self.whole.plan.grid[2]
        x = gather_parts(x, 1, [positions * n for n in self.sizes])
        out = self.attention(x, self.whole.plan, self.whole.rope)
        return _Split.apply(out, [positions * n for n in self.sizes])


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return take_part(x, 1, sizes).clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return gather_parts(grad, 1, ctx.sizes), None


def traffic() -> dict[str, dict[str, list[float]]]:
    """Return bytes and collectives per block of this process, by case and way. Called by all processes."""
    found: dict[str, dict[str, list[float]]] = {}
    for form, settings in FORMS.items():
        for size_name, size in SIZES.items():
            outputs = []
            for way in WAYS:
                model, shape = _network(settings, size, way)
                for mode in MODES:
                    set_activation_checkpoint(model, mode == MODES[2])
                    with Traffic() as counted, torch.set_grad_enabled(mode != MODES[0]):
                        out = model(*shape)
                        if mode != MODES[0]:
                            out.square().mean().backward()
                    case = found.setdefault(f"{form}/{size_name}/{mode}", {})
                    case[way] = [counted.sent / (2 * DEPTH), counted.calls / (2 * DEPTH)]
                outputs.append(out.detach())
            torch.testing.assert_close(outputs[1:], outputs[:1] * 2)  # three ways, one result
    return found


def _network(settings: dict[str, Any], size: tuple[int, ...], way: str) -> tuple[nn.Module, tuple[Any, ...]]:
    torch.manual_seed(0)
    model = STDiT3({}, in_channels=4, hidden_size=WIDTH, depth=DEPTH, num_heads=HEADS, **settings)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.05)
    side = torch.tensor([256.0])
    inputs = torch.randn(1, 4, *size), torch.tensor([0.5]), {"height": side, "width": side}
    set_sequence_parallel(model, "ulysses" if way == "ulysses" else "axis")
    if way == "gather_split":
        grid = (size[0], -(-size[1] // 2), -(-size[2] // 2))
        scale = model._scale(inputs[2], torch.float32)
        shape = model._shape(grid, scale, model.x_embedder.proj.weight)
        _, whole = model._geometries(grid, scale, torch.float32)
        shape.temporal[:] = [Geometry(g.plan, g.rope, shape.spatial.layout) for g in whole]
        for i, block in enumerate(model.temporal_blocks):
            block.attn = GatherSplit(block.attn, whole[i % len(whole)], shape.spatial.layout.sizes)
    return model, inputs
