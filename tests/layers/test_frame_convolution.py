"""Convolutions of frames: zeros in front, minimal filtering along time."""

import random

import pytest
import torch
import torch.nn.functional as F

from opensora.layers.frame_convolution import TILE, FrameConvolution, TimeFilter


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _plain(frames: torch.Tensor, missing: int, weight: torch.Tensor, *args: object) -> torch.Tensor:
    video = F.pad(frames.permute(3, 0, 1, 2), (0, 0, 0, 0, missing, 0))
    return F.conv3d(video[None].double(), weight.double(), *args)[0].permute(1, 2, 3, 0)


@pytest.mark.parametrize("seed", range(30))
def test_frames_are_convolved_as_a_padded_video(seed: int) -> None:
    draw = random.Random(seed)
    kernel = [draw.choice((1, 3, 5)) for _ in range(3)]
    stride = [draw.choice((1, 2)) for _ in range(3)]
    missing = draw.randint(0, kernel[0] - 1)
    frames = torch.randn(draw.randint(kernel[0] - missing, 9), 5, 6, 3)
    weight, bias = torch.randn(4, 3, *kernel), draw.choice((None, torch.randn(4)))
    padding = (kernel[1] // 2, kernel[2] // 2)
    expected = _plain(
        frames, missing, weight, None if bias is None else bias.double(), tuple(stride), (0, *padding)
    )
    got = FrameConvolution(weight, bias, stride, padding)(frames, missing)
    torch.testing.assert_close(got, expected.float(), atol=1e-5, rtol=1e-5)
    half = FrameConvolution(weight.bfloat16(), None, stride, padding)(frames.bfloat16(), missing).float()
    if bias is not None:
        half += bias
    torch.testing.assert_close(half, expected.float(), atol=0.3, rtol=0.03)


@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize("tiles", [1, 2, 3])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (1, 5)])
def test_minimal_filtering_is_the_convolution(missing: int, tiles: int, kernel: tuple[int, int]) -> None:
    frames = torch.randn(TILE * tiles + 2 - missing, 6, 5, 16)
    weight = torch.randn(24, 16, 3, *kernel) / (48 * kernel[0] * kernel[1]) ** 0.5
    padding = (kernel[0] // 2, kernel[1] // 2)
    expected = _plain(frames, missing, weight, None, 1, (0, *padding))
    out = torch.empty(TILE * tiles, 6, 5, 24)
    TimeFilter(weight, padding)(frames, missing, out)
    torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=1e-5)


def test_minimal_filtering_loses_little_precision() -> None:
    frames, weight = torch.randn(4 * TILE + 2, 16, 16, 64), torch.randn(64, 64, 3, 3, 3) / 1728**0.5
    expected = _plain(frames, 0, weight, None, 1, (0, 1, 1))
    out = torch.empty(4 * TILE, 16, 16, 64)
    TimeFilter(weight, (1, 1))(frames, 0, out)
    plain = FrameConvolution(weight, None, (1, 1, 1), (1, 1))(frames, 0)
    error, least = ((x - expected).square().mean().sqrt() for x in (out, plain))
    assert least < error < 5 * least
