"""The perceptual distance: identity, symmetry, and an order that eyes agree with."""

import builtins

import pytest
import torch
import torch.nn.functional as F

from eval.metrics.perceptual import PerceptualDistance


@pytest.fixture(scope="module")
def distance():
    return PerceptualDistance()


@pytest.fixture(scope="module")
def clip():
    """Return a moving disc on a striped ground. Shape [3, 2, 64, 64], in [-1, 1]."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    frames = []
    for shift in (-0.2, 0.2):
        disc = ((x - shift) ** 2 + y**2 < 0.25).float()
        frames.append(torch.stack([disc, 0.5 * torch.sin(12 * x) * (1 - disc), y * disc]))
    return torch.stack(frames, dim=1).clamp(-1, 1)


def blurred(clip, size):
    small = F.interpolate(clip.transpose(0, 1), size=(size, size), mode="area")
    return F.interpolate(small, size=clip.shape[2:], mode="bilinear").transpose(0, 1)


def test_a_clip_is_at_distance_0_to_itself_and_only_to_itself(distance, clip):
    assert distance(clip, clip).item() == 0
    assert distance(clip, clip.flip(3)).item() > 0.01


def test_it_is_symmetric(distance, clip):
    other = blurred(clip, 16)
    assert distance(clip, other).item() == pytest.approx(distance(other, clip).item(), rel=1e-5)


def test_more_blur_is_farther_and_noise_farthest(distance, clip):
    noise = torch.rand(clip.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    values = [distance(clip, other).item() for other in (blurred(clip, 32), blurred(clip, 8), noise)]
    assert values == sorted(values) and values[2] > 1.5 * values[1]
    assert values[2] < 4 * 5  # five layers of directions, each at most 4 apart


def test_it_is_the_mean_over_frames(distance, clip):
    other = blurred(clip, 16)
    whole = distance(clip, other).item()
    single = [distance(clip[:, i : i + 1], other[:, i : i + 1]).item() for i in range(2)]
    assert whole == pytest.approx(sum(single) / 2, rel=1e-4)


def test_values_beyond_the_range_are_cut(distance, clip):
    assert distance(clip * 3, (clip * 3).clamp(-1, 1)).item() == 0


def test_shapes_must_be_the_same(distance, clip):
    with pytest.raises(ValueError, match=r"\(3, 2, 64, 64\) and \(3, 1, 64, 64\): bring them to one size"):
        distance(clip, clip[:, :1])


def test_missing_packages_are_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "efficientnet_lite_pytorch":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match="run pip install --no-deps efficientnet-lite-pytorch==0.1.0 "):
        PerceptualDistance()
