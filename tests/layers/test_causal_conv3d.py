"""Causal convolution: tiles change nothing, later frames change nothing earlier."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opensora.layers import causal_conv3d
from opensora.layers.causal_conv3d import (
    BareCausalConv3d,
    CausalConv3d,
    Downsample2D,
    Downsample3D,
    Upsample2D,
    frame_wise,
    set_micro_batch_2d,
    set_tiling,
    tiled_conv3d,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.mark.parametrize("seed", range(40))
def test_tiles_equal_one_convolution(seed: int) -> None:
    draw = random.Random(seed)
    kernel = [draw.choice((1, 2, 3, 5)) for _ in range(3)]
    stride = [draw.choice((1, 1, 2, 3)) for _ in range(3)]
    padding = [(draw.randint(0, k), draw.randint(0, k)) for k in kernel]
    x = torch.randn(
        2, 3, *(draw.randint(max(k - sum(p), 1), 11) for k, p in zip(kernel, padding, strict=True))
    )
    weight, bias = torch.randn(4, 3, *kernel), draw.choice((None, torch.randn(4)))
    flat = [n for pair in reversed(padding) for n in pair]
    plain = F.conv3d(F.pad(x, flat), weight, bias, tuple(stride))
    for axis in (None, 2, 3, 4):
        for tiles in (dict(tile_size=draw.randint(1, 5)), dict(num_tiles=draw.randint(1, 14))):
            for gradient in (True, False):
                with torch.set_grad_enabled(gradient):
                    tiled = tiled_conv3d(x, weight, bias, stride, padding, axis=axis, **tiles)
                torch.testing.assert_close(tiled, plain, atol=2e-5, rtol=1e-5)


def test_tiles_have_the_gradients_of_one_convolution() -> None:
    x, weight = torch.randn(1, 2, 7, 6, 5), torch.randn(3, 2, 3, 3, 3, requires_grad=True)
    padding = ((2, 0), (1, 1), (1, 1))
    plain = torch.autograd.grad(tiled_conv3d(x, weight, padding=padding).square().sum(), weight)[0]
    for axis in (2, 3, 4):
        loss = tiled_conv3d(x, weight, padding=padding, axis=axis, num_tiles=3).square().sum()
        torch.testing.assert_close(torch.autograd.grad(loss, weight)[0], plain, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("axis", "tiles", "expected"),
    [
        (2, dict(tile_size=2), [2, 1]),  # the rows of outputs are split evenly, the first tiles get one more
        (3, dict(tile_size=16), [8]),  # an axis shorter than the tile stays whole
        (None, dict(tile_size=4), [4, 4, 3]),  # the longest axis after padding: 13 // 4 tiles of 11 outputs
        (4, dict(num_tiles=99, tile_size=4), [1] * 11),
        (2, {}, [3]),
    ],
)
def test_number_and_length_of_tiles(
    monkeypatch: pytest.MonkeyPatch, axis: int | None, tiles: dict, expected: list[int]
) -> None:
    seen = []
    plain = causal_conv3d._padded_conv3d

    def spy(*args: object) -> torch.Tensor:
        seen.append(plain(*args))
        return seen[-1]

    monkeypatch.setattr(causal_conv3d, "_padded_conv3d", spy)
    x, weight = torch.randn(1, 1, 5, 10, 11), torch.randn(1, 1, 3, 3, 3)
    tiled_conv3d(x, weight, padding=((0, 0), (0, 0), (1, 1)), axis=axis, **tiles)
    assert [out.shape[axis or 4] for out in seen] == expected


def test_input_smaller_than_the_kernel_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"is \(2, 4, 4\) with padding, smaller than the kernel \(3, 3, 3\); use a"
    ):
        tiled_conv3d(torch.zeros(1, 1, 2, 4, 4), torch.zeros(1, 1, 3, 3, 3))


@pytest.mark.parametrize("tiling", [{}, dict(tile_size=2, axis=2), dict(num_tiles=3)])
@pytest.mark.parametrize("stride", [1, (2, 1, 1), 2])
def test_later_frames_change_nothing_earlier(tiling: dict, stride: int | tuple) -> None:
    conv = CausalConv3d(2, 3, 3, stride=stride)
    set_tiling(conv, **tiling)
    step = conv.conv.stride[0]
    video = torch.randn(1, 2, 9, 5, 6)
    out = conv(video)
    for frame in range(1, 9):
        changed = video.clone()
        changed[:, :, frame:] += 1.0
        same = (frame - 1) // step + 1  # outputs that see frames before it only
        other = conv(changed)
        torch.testing.assert_close(other[:, :, :same], out[:, :, :same], atol=0, rtol=0)
        assert (other[:, :, same:] != out[:, :, same:]).any() or same == out.shape[2]


def test_causal_padding_is_zeros_in_front() -> None:
    conv = CausalConv3d(2, 3, 3)
    video = torch.randn(1, 2, 4, 5, 6)
    plain = F.conv3d(F.pad(video, (1, 1, 1, 1, 2, 0)), conv.conv.weight, conv.conv.bias)
    torch.testing.assert_close(conv(video), plain)


@pytest.mark.parametrize("kernel", [1, 3, (5, 1, 3)])
@pytest.mark.parametrize("stride", [1, 2])
def test_image_is_the_first_frame_of_a_video(kernel: int | tuple, stride: int) -> None:
    conv = BareCausalConv3d(2, 3, kernel, stride)
    video = torch.randn(2, 2, 6, 8, 7)
    torch.testing.assert_close(conv(video[:, :, :1]), conv(video)[:, :, :1])


def test_parameters_are_those_of_one_convolution() -> None:
    assert set(CausalConv3d(2, 3).state_dict()) == {"conv.weight", "conv.bias"}
    assert set(BareCausalConv3d(2, 3).state_dict()) == {"weight", "bias"}
    assert set(CausalConv3d(2, 3, bias=False).state_dict()) == {"conv.weight"}


def test_fewer_zero_frames_in_front() -> None:
    conv = CausalConv3d(1, 1, 3, stride=(2, 1, 1), front=1)
    video = torch.randn(1, 1, 8, 4, 4)
    plain = F.conv3d(F.pad(video, (1, 1, 1, 1, 1, 0)), conv.conv.weight, conv.conv.bias, (2, 1, 1))
    torch.testing.assert_close(conv(video), plain)
    assert plain.shape[2] == 4


@pytest.mark.parametrize("micro_batch_size", [None, 1, 2, 4, 100])
@pytest.mark.parametrize("gradient", [True, False])
def test_frame_wise_is_the_function_of_every_frame(micro_batch_size: int | None, gradient: bool) -> None:
    layer, video, sizes = nn.Conv2d(2, 3, 3, stride=2), torch.randn(2, 2, 3, 9, 8), []

    def function(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return layer(images)

    with torch.set_grad_enabled(gradient):
        out = frame_wise(function, video, micro_batch_size)
        frames = [layer(video[:, :, t]) for t in range(3)]
    torch.testing.assert_close(out, torch.stack(frames, dim=2))
    assert sum(sizes) == 6
    assert max(sizes) == min(micro_batch_size or 6, 6)


@pytest.mark.parametrize("size", [(1, 8, 8), (2, 9, 7), (5, 2, 3)])
def test_resampled_sizes(size: tuple[int, int, int]) -> None:
    frames, height, width = size
    x = torch.randn(1, 2, *size)
    assert Downsample2D(2)(x).shape[2:] == (frames, height // 2, width // 2)
    assert Downsample3D(2)(x).shape[2:] == ((frames + 1) // 2, (height + 1) // 2, (width + 1) // 2)
    assert Upsample2D(2)(x).shape[2:] == (frames, 2 * height, 2 * width)


def test_downsampling_pads_the_right_and_the_bottom() -> None:
    layer, x = Downsample2D(1), torch.randn(1, 1, 1, 4, 4)
    plain = layer.conv(F.pad(x[:, :, 0], (0, 1, 0, 1)))
    torch.testing.assert_close(layer(x)[:, :, 0], plain)


def test_settings_reach_every_layer() -> None:
    net = nn.Sequential(
        CausalConv3d(1, 2), nn.Sequential(Downsample2D(2), Upsample2D(2)), BareCausalConv3d(2, 1)
    )
    set_tiling(net, tile_size=4, axis=3)
    set_micro_batch_2d(net, 2)
    assert net[0].conv.tiling == net[2].tiling == (4, 3, None)
    assert net[1][0].micro_batch_size == net[1][1].micro_batch_size == 2
    set_tiling(net)
    set_micro_batch_2d(net, None)
    assert net[2].tiling == (None, None, None)
    assert net[1][0].micro_batch_size is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            dict(axis=1),
            r"tile_axis=1: expected 2 \(time\), 3 \(height\), 4 \(width\), or None for the longest\.",
        ),
        (dict(tile_size=0), r"tile_size=0: expected a whole number from 1, or None to do without tiles\."),
        (
            dict(num_tiles=2.0),
            r"num_tiles=2\.0: expected a whole number from 1, or None to do without tiles\.",
        ),
    ],
)
def test_wrong_tiles_are_errors(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        set_tiling(CausalConv3d(1, 1), **settings)


def test_wrong_micro_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"micro_batch_size_2d=0: expected a whole number from 1, or None"):
        set_micro_batch_2d(Upsample2D(1), 0)
