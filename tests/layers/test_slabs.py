"""Layers in slabs of frames against the plain layers: any shape, any slab, and nothing else changed."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensora.layers import slabs
from opensora.layers.causal_conv3d import BareCausalConv3d, Downsample2D, Upsample2D
from opensora.layers.slabs import in_slabs, slab_conv, slab_downsample, slab_refine, slab_upsample
from opensora.layers.vae_blocks import ResBlock, Upsample3D


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(params=[1, 3000, 2 << 20])
def slab_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(slabs, "_SLAB_BYTES", request.param)
    return request.param


def _norm(channels: int) -> nn.GroupNorm:
    norm = nn.GroupNorm(4, channels, eps=1e-6)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.normal_(norm.bias)
    return norm


def _close(got: Tensor, expected: Tensor) -> None:
    assert got.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(got, expected, atol=3e-5, rtol=3e-5)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(40))
def test_causal_convolution(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(seed)
    monkeypatch.setattr(slabs, "_SLAB_BYTES", draw.choice((1, 20_000, 1 << 20)))
    channels, out_channels = draw.choice((4, 16, 32)), draw.choice((3, 16, 32))
    kernel = tuple(draw.choice((1, 3, 3, 5)) for _ in range(3))
    stride = tuple(draw.choice((1, 1, 2)) for _ in range(3))
    front = draw.choice((None, None, kernel[0] - 1, kernel[0] // 2))
    conv = BareCausalConv3d(channels, out_channels, kernel, stride, draw.random() < 0.7, front)
    least = kernel[0] - conv.pads[0][0]
    x = torch.randn(
        draw.choice((1, 2)), channels, draw.randint(least, 14), draw.randint(1, 9), draw.randint(1, 9)
    )
    norm = draw.choice((None, _norm(channels)))
    before = x.clone()
    given = x if norm is None else F.silu(norm(x))
    flat = [n for pair in reversed(conv.pads) for n in pair]
    expected = F.conv3d(F.pad(given, flat), conv.weight, conv.bias, stride)
    shortcut = None
    if draw.random() < 0.5:
        y = torch.randn(len(x), 8, *expected.shape[2:])
        shortcut = (y, BareCausalConv3d(8, out_channels, 1, bias=draw.random() < 0.5))
        expected = expected + F.conv3d(y, shortcut[1].weight, shortcut[1].bias)
    _close(slab_conv(x, conv, norm, shortcut), expected)
    torch.testing.assert_close(x, before, atol=0, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 4, 5, 7, 9, 12])
def test_result_in_place_of_the_input(frames: int, slab_bytes: int) -> None:
    conv, norm = BareCausalConv3d(16, 16), _norm(16)
    x = torch.randn(2, 16, frames, 5, 4)
    expected = x + F.conv3d(F.pad(F.silu(norm(x)), (1, 1, 1, 1, 2, 0)), conv.weight, conv.bias)
    h = x.contiguous(memory_format=torch.channels_last_3d)
    got = slab_conv(h, conv, norm, (x.clone(), None), out=h)
    assert got is h
    _close(got, expected)


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 2, 3), (3, 7, 8), (9, 6, 5)])
def test_resampling_of_frames(size: tuple[int, int, int], slab_bytes: int) -> None:
    x, down, up = torch.randn(2, 8, *size), Downsample2D(8), Upsample2D(8)
    frames = [x[:, :, t] for t in range(size[0])]
    halved = torch.stack([down.conv(F.pad(frame, (0, 1, 0, 1))) for frame in frames], dim=2)
    doubled = torch.stack([up.conv(F.interpolate(frame, scale_factor=2)) for frame in frames], dim=2)
    _close(slab_downsample(x, down.conv), halved)
    _close(slab_upsample(x, up.conv), doubled)


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 3, 4), (3, 2, 5), (6, 4, 3), (9, 2, 2)])
def test_upsampling_of_videos(size: tuple[int, int, int], slab_bytes: int) -> None:
    x, conv, norm = torch.randn(2, 8, *size), BareCausalConv3d(8, 8), _norm(8)
    u = F.interpolate(x, scale_factor=2)
    h = F.conv3d(F.pad(u, (1, 1, 1, 1, 2, 0)), conv.weight, conv.bias)
    got = slab_upsample(x, conv)
    _close(got, h)
    _close(slab_refine(got, norm, x), F.silu(norm(h) + u) + u)


@torch.no_grad()
def test_norm_far_from_zero_is_exact(slab_bytes: int) -> None:
    conv, norm = BareCausalConv3d(8, 4, 1), _norm(8)
    x = torch.randn(1, 8, 9, 6, 5) + 1000 * torch.randn(1, 8, 1, 1, 1)
    expected = conv(
        F.silu(F.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double(), 1e-6)).float()
    )
    torch.testing.assert_close(slab_conv(x, conv, norm), expected, atol=2e-3, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(
    "block", [lambda: ResBlock(32, 64), lambda: ResBlock(32, 32), lambda: Upsample3D(32)]
)
def test_bfloat16_is_as_near_as_the_plain_layers(block: type, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = block(), torch.randn(1, 32, 6, 8, 8)
    exact = layer(x)
    layer, errors = layer.bfloat16(), []
    for name in ("slabs", "plain"):
        if name == "plain":
            for module in ("opensora.layers.causal_conv3d", "opensora.layers.vae_blocks"):
                monkeypatch.setattr(f"{module}.in_slabs", lambda _: False)
        out = layer(x.bfloat16())
        assert out.dtype == torch.bfloat16
        errors.append((out.float() - exact).square().mean().sqrt())
    assert errors[0] < 1.3 * errors[1]


def test_gradients_and_autocast_take_the_plain_layers() -> None:
    x = torch.randn(1, 4, 1, 1, 1)
    assert not in_slabs(x)
    assert not in_slabs(x.to("meta"))
    with torch.no_grad():
        assert in_slabs(x)
        assert not in_slabs(x.to("meta"))
        with torch.autocast("cpu", torch.bfloat16):
            assert not in_slabs(x)
    layer, x = ResBlock(32, 64).double(), torch.randn(1, 32, 5, 2, 2, dtype=torch.float64, requires_grad=True)
    gradient = torch.autograd.grad(layer(x).square().sum(), x)[0].flatten()
    step = 1e-6 * F.one_hot(torch.tensor(7), x.numel()).view(x.shape)
    with torch.no_grad():  # slabs know no gradient, but their differences are one
        high, low = (layer(x + s).square().sum() for s in (step, -step))
    torch.testing.assert_close((high - low) / 2e-6, gradient[7], atol=1e-3, rtol=1e-3)
