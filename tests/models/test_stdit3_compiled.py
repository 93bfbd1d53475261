"""Compiled blocks: equal to eager ones, and no compilation for a size after the first ones."""

import pytest
import torch

from opensora.acceleration.block_compile import compilations, compile_blocks
from opensora.registry import MODELS, build

CONDITIONS = {"text": {"type": "TextCondition", "text_width": 8, "text_length": 10}}
SIZES = [(2, 4, 8, 12), (3, 5, 10, 14), (2, 6, 18, 8), (4, 3, 12, 20)]  # batch, frames, rows, columns


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    settings = {
        "hidden_size": 24,
        "depth": 2,
        "num_heads": 2,
        "window_size": (-1, 2, 3),
        "spatial_rope": True,
    }
    model = build(MODELS, {"type": "STDiT3", "conditions": CONDITIONS, **settings}, in_channels=4)
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def run(model: torch.nn.Module, size: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    batch, *grid = size
    generator = torch.Generator().manual_seed(sum(size))
    x = torch.randn(batch, 4, *grid, generator=generator)
    cond = {name: torch.full((batch,), 64.0) for name in ("height", "width")}
    cond["text_features"] = torch.randn(batch, 4 + batch, 8, generator=generator)
    model.zero_grad()
    out = model(x, torch.rand(batch, generator=generator), cond)
    out.square().mean().backward()
    return out.detach(), model.spatial_blocks[0].attn.qkv.weight.grad.clone()


@pytest.mark.slow
def test_compiled_equals_eager_and_new_sizes_compile_nothing():
    torch._dynamo.reset()
    eager, compiled = network(), network()
    assert compile_blocks(compiled) == 4
    assert list(compiled.state_dict()) == list(eager.state_dict())
    before, counts = compilations(), []
    for size in SIZES:
        for ours, theirs in zip(run(compiled, size), run(eager, size), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        counts.append(compilations() - before)
    assert counts[0] > 0
    assert counts[-1] == counts[1], counts  # the first two sizes are the warm-up


def test_a_network_without_blocks_is_an_error():
    with pytest.raises(ValueError, match="compile=True: Linear has no blocks to compile"):
        compile_blocks(torch.nn.Linear(2, 2))
