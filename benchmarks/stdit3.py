"""STDiT3 beside its bare products, and its peak memory.

Width 384, 4 spatial and 4 temporal blocks, 6 heads, batch 1, 64 text tokens, 2 threads. `over_bare` is our
time over that of the network's matrix products alone. A second shape's grid fills no window; its passes take
seconds, so fewer of them are timed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.bare import BareProducts
from benchmarks.measure import Measure, host_dtypes, interleaved, wanted
from opensora.registry import MODELS, build
from opensora.utils.memory import fresh_process, keep_freed_memory, peak_memory

THREADS = 2
FIRST, SECOND = (16, 8, 32, 32), (16, 20, 45, 80)  # channels, frames, rows, columns
OVER_BARE = {FIRST: 1.15, SECOND: 1.10}
REPEATS = {FIRST: 15, SECOND: 3}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MODES = ("forward", "forward+backward")
TEXT_TOKENS, TEXT_WIDTH = 64, 4096
# Of the reference implementation, measured on two cores of an AMD EPYC of the fourth generation.
REFERENCE_MS = {(FIRST, "fp32", MODES[0]): 603, (FIRST, "fp32", MODES[1]): 1588}
REFERENCE_MIB = {(FIRST, "fp32", MODES[0]): 137, (FIRST, "fp32", MODES[1]): 1258}
BF16_SPEEDUP = 2.0  # over our fp32, where the processor has instructions for it


def run() -> Iterator[Measure]:
    """Yield times, their ratio to the bare products, and peaks, of all shapes, forms, dtypes and modes."""
    torch.set_num_threads(THREADS)
    keep_freed_memory()  # as training does
    for shape in (FIRST, SECOND):
        for windowed in (False, True):
            for dtype in host_dtypes():
                for mode in MODES:
                    name = _name(shape, windowed, dtype, mode)
                    if wanted(name):
                        yield from _case(name, shape, windowed, dtype, mode)


def _case(name: str, shape: tuple[int, ...], windowed: bool, dtype: str, mode: str) -> Iterator[Measure]:
    forward, both, _ = network(shape, windowed, dtype)
    with BareProducts() as products:
        forward()
    backward = mode != MODES[0]
    ours, bare = (both, products.replay_with_gradients) if backward else (forward, products.replay)
    calls = {"ours": ours, "bare": bare}
    if dtype == "bf16":
        calls["fp32"] = network(shape, windowed, "fp32")[backward]
    times = interleaved(calls, REPEATS[shape])
    conditions = {"threads": THREADS, "products": products.counts, "not_contiguous": products.strided}
    case = (shape, dtype, mode)
    reference = {"reference_ms": REFERENCE_MS[case]} if case in REFERENCE_MS else {}
    yield Measure(f"{name}/time", 1000 * times["ours"], "ms", conditions=conditions | reference)
    yield Measure(
        f"{name}/over_bare",
        times["ours"] / times["bare"],
        "x",
        at_most=OVER_BARE[shape] if dtype == "fp32" else None,
        conditions=conditions | {"bare_ms": round(1000 * times["bare"], 1)},
    )
    if "fp32" in times:
        ratio = times["fp32"] / times["ours"]
        yield Measure(f"{name}/over_fp32", ratio, "x", at_least=BF16_SPEEDUP, conditions={"threads": THREADS})
    limit = REFERENCE_MIB[case] / 2 if case in REFERENCE_MIB else None
    found = fresh_process(peak, shape, windowed, dtype, mode)
    yield Measure(f"{name}/peak", found, "MiB", at_most=limit, conditions={"threads": THREADS})


def peak(shape: tuple[int, ...], windowed: bool, dtype: str, mode: str) -> float:
    """Return the peak of one call in MiB above the weights and above the process before the call.

    A call at a tiny size comes before it, so that libraries are loaded and threads are running.
    """
    torch.set_num_threads(THREADS)
    keep_freed_memory()
    model = make_model(windowed, dtype)
    for size in ((16, 2, 8, 8), shape):
        call = network(size, windowed, dtype, model)[mode != MODES[0]]
        found = peak_memory(call)
    return found


def network(
    shape: tuple[int, ...], windowed: bool, dtype: str, model: torch.nn.Module | None = None
) -> tuple[Callable[[], Any], Callable[[], Any], torch.nn.Module]:
    """Return a forward pass, a forward and backward pass, and the model.

    Args:
        shape: Channels, frames, rows and columns of the latents.
        windowed: Whether temporal blocks see windows of 8 x 8 positions in all frames, with rotary embedding
            in spatial blocks too, as version 1.3; else one position in all frames, as version 1.2.
        dtype: "fp32" or "bf16".
        model: The model; a new one by default.
    """
    model = model or make_model(windowed, dtype)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, *shape, generator=generator)
    cond = {
        "text_features": torch.randn(1, TEXT_TOKENS, TEXT_WIDTH, generator=generator),
        "fps": torch.tensor([24.0]),
        "height": torch.tensor([8.0 * shape[2]]),
        "width": torch.tensor([8.0 * shape[3]]),
    }
    t = torch.tensor([0.5])
    gradient = torch.randn(1, 2 * shape[0], *shape[1:], generator=generator)

    @torch.no_grad()
    def forward() -> None:
        model(x, t, cond)

    def both() -> None:
        model(x, t, cond).backward(gradient)
        model.zero_grad(set_to_none=True)

    return forward, both, model


def make_model(windowed: bool, dtype: str) -> torch.nn.Module:
    """Return the network of the benchmark, with random weights, nothing of it zero."""
    torch.manual_seed(0)
    text = {"type": "TextCondition", "text_width": TEXT_WIDTH, "text_length": 300}
    form = {"window_size": (-1, 8, 8), "spatial_rope": True} if windowed else {}
    cfg = {"type": "STDiT3", "hidden_size": 384, "depth": 4, "num_heads": 6, **form}
    cfg["conditions"] = {"text": text, "size": {"type": "SizeCondition"}}
    model = build(MODELS, cfg, in_channels=16)
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model.to(DTYPES[dtype])


def _name(shape: tuple[int, ...], windowed: bool, dtype: str, mode: str) -> str:
    return "/".join(
        ("stdit3", "x".join(map(str, shape)), "windowed" if windowed else "temporal", dtype, mode)
    )
