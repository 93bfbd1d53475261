"""Times: the shift's published values, its limits, and distributions."""

import pytest
import torch

from opensora.schedulers.timesteps import draw_times, frame_factor, redraw_above, sampling_times, shift_times
from opensora.utils.random import Draws


def shift(t, height, width, num_frames, **kw):
    values = [torch.tensor([float(v)]) for v in (t, height, width, num_frames)]
    return shift_times(*values, **{"rule": "stride4", **kw}).item()


@pytest.mark.parametrize(
    ("size", "compat", "expected"),
    [
        ((360, 640, 113), False, 0.8322368),
        ((360, 640, 113), True, 0.8315790),
        ((720, 1280, 113), False, 0.9084380),
        ((720, 1280, 113), True, 0.9080460),
        ((360, 640, 49), False, 0.7645727),
        ((360, 640, 49), True, 0.7647059),
        ((720, 1280, 1), False, 0.6521740),
        ((144, 256, 1), False, 0.2727273),
    ],
)
def test_published_values_of_the_shift(size, compat, expected):
    assert shift(0.5, *size, compat_bf16=compat) == pytest.approx(expected, abs=2e-7)


@pytest.mark.parametrize("rule", ["stride4", "chunk17", None])
def test_no_length_makes_times_stick_at_an_end(rule):
    t = torch.linspace(0, 1, 101)[1:-1]
    for frames in range(1, 201):
        n = torch.full_like(t, frames)
        mean = shift_times(t, torch.full_like(t, 256), torch.full_like(t, 256), n, rule=rule).mean()
        assert 0.05 < mean < 0.95


def test_the_shift_keeps_its_ends_and_its_order():
    t = torch.linspace(0, 1, 33)
    out = shift_times(t, *(torch.full_like(t, v) for v in (720, 1280, 113)), rule="stride4")
    assert out[0] == 0 and out[-1] == pytest.approx(1, abs=1e-6)
    assert (out.diff() > 0).all()


def test_each_sample_is_shifted_by_its_own_size():
    t, height = torch.full((2,), 0.5), torch.tensor([360.0, 720.0])
    both = shift_times(t, height, height, torch.tensor([1.0, 49.0]), rule="stride4")
    assert both.tolist() == pytest.approx([shift(0.5, 360, 360, 1), shift(0.5, 720, 720, 49)])


def test_frame_factors():
    n = torch.tensor([1.0, 3, 5, 16, 17, 51, 113])
    assert frame_factor(n, "stride4", 9).tolist() == [1, 1, 1, 3, 4, 12, 28]
    assert frame_factor(n, "chunk17", 9).tolist() == [1, 1, 2, 4, 5, 15, 30]
    assert frame_factor(n, "latent", 9).tolist() == [9] * 7
    assert frame_factor(n, None, 9).tolist() == [1] * 7


def test_published_sampling_times():
    times = sampling_times(30)[:, None]
    out = (
        1000 * shift_times(times, *(torch.tensor([float(v)]) for v in (360, 640, 113)), rule="stride4")[:, 0]
    )
    assert out[[0, 1, 15, 29]].tolist() == pytest.approx([1000.0, 993.0969, 832.2368, 146.0739], abs=1e-4)
    assert (sampling_times(7, 1000) * 1000).tolist() == pytest.approx([1000, 857, 714, 571, 429, 286, 143])


def test_distributions():
    draws = Draws(0, range(20000))
    uniform = draw_times(draws, 20000, "uniform", 0, 1, None)
    assert uniform.mean() == pytest.approx(0.5, abs=0.01) and 0 <= uniform.min() and uniform.max() < 1
    normal = torch.logit(draw_times(draws, 20000, "logit-normal", 0.5, 2.0, None))
    assert normal.mean() == pytest.approx(0.5, abs=0.05) and normal.std() == pytest.approx(2.0, abs=0.05)
    steps = draw_times(draws, 20000, "uniform", 0, 1, 10) * 10
    assert sorted(steps.round().unique().tolist()) == list(range(10))
    torch.testing.assert_close(steps, steps.round())


def test_times_above_a_threshold_are_redrawn_for_videos_only():
    draws, t = Draws(0, range(1000)), torch.linspace(0, 1, 1000)
    frames = torch.where(torch.arange(1000) % 2 == 0, 1.0, 17.0)
    out = redraw_above(t, 0.7, draws, frames)
    video_above = (frames > 1) & (t > 0.7)
    assert torch.equal(out[~video_above], t[~video_above])
    assert (out[video_above] >= 0.7).all() and (out[video_above] != t[video_above]).all()
