"""PSNR and SSIM: closed forms, and the definition written out."""

import pytest
import torch
import torch.nn.functional as F

from eval.metrics.pixel import psnr, ssim


@pytest.fixture
def clip():
    return torch.rand(3, 3, 24, 31, generator=torch.Generator().manual_seed(0)) * 0.8


def test_equal_clips_have_the_perfect_score(clip):
    assert psnr(clip, clip).tolist() == [100.0] * 3
    assert ssim(clip, clip) == pytest.approx(1.0, abs=1e-12)


def test_a_constant_of_a_tenth_is_20_db(clip):
    assert psnr(clip, clip + 0.1) == pytest.approx(20.0, abs=1e-5)


def test_frames_are_measured_one_by_one(clip):
    other = clip.clone()
    other[1] = 0
    for metric in (psnr, ssim):
        values = metric(clip, other)
        assert values[0] == values[2] > values[1]
        assert values[1] == pytest.approx(float(metric(clip[1:2], other[1:2])), abs=1e-9)


def test_ssim_is_its_definition_over_whole_windows(clip):
    other = (clip + 0.1 * torch.randn(clip.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    window = torch.exp(-((torch.arange(11).double() - 5) ** 2) / (2 * 1.5**2))
    window = window / window.sum()
    blur = lambda x: F.conv2d(x.double().flatten(0, 1)[:, None], (window[:, None] * window)[None, None])  # noqa: E731
    a, b = blur(clip), blur(other)
    va, vb, cov = blur(clip**2) - a * a, blur(other**2) - b * b, blur(clip * other) - a * b
    index = (2 * a * b + 0.01**2) * (2 * cov + 0.03**2) / ((a * a + b * b + 0.01**2) * (va + vb + 0.03**2))
    assert ssim(clip, other) == pytest.approx(index.view(3, -1).mean(1), abs=1e-6)


def test_psnr_is_that_of_torchmetrics(clip):
    from torchmetrics.functional.image import peak_signal_noise_ratio

    other = (clip + 0.05).clamp(0, 1) * 0.9
    theirs = [peak_signal_noise_ratio(other[i], clip[i], data_range=1.0) for i in range(3)]
    assert psnr(clip, other) == pytest.approx(torch.stack(theirs), abs=1e-4)


def test_frames_smaller_than_a_window_are_refused():
    small = torch.zeros(1, 3, 10, 40)
    with pytest.raises(ValueError, match="10 x 40 are too small; sides of 11"):
        ssim(small, small)
