"""Crops, scalings and the choice of frames."""

import math

import pytest
import torch

from opensora.datasets.transforms import (
    TRANSFORMS,
    center_crop,
    central,
    downsample_space,
    downsample_time,
    fill,
    normalize,
    resize_crop,
    temporal_indices,
)


def ramp(height, width, frames=2):
    """Return frames whose columns count from left to right."""
    columns = torch.arange(width, dtype=torch.uint8)
    return columns[None, None, :, None].expand(frames, height, width, 3).contiguous()


def test_bytes_to_unit_range():
    assert normalize(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
@pytest.mark.parametrize("image", [False, True])
def test_same_size_changes_nothing(name, image):
    frames = torch.randint(0, 256, (1 if image else 11, 24, 24, 3), dtype=torch.uint8)
    video = TRANSFORMS[name](frames, 24, 24, image)
    assert torch.allclose(video, normalize(frames).permute(3, 0, 1, 2), atol=1e-6)


@pytest.mark.parametrize("image", [False, True])
def test_crop_is_central(image):
    """The width is twice too large: a quarter is lost on each side."""
    video = resize_crop(ramp(16, 32), 16, 16, image)
    assert torch.allclose(video[0, 0, 0], normalize(torch.arange(8, 24)), atol=1e-6)


@pytest.mark.parametrize("size", [(16, 16), (9, 31), (40, 12), (7, 7)])
@pytest.mark.parametrize("image", [False, True])
def test_a_uniform_picture_stays_and_fills(size, image):
    frames = torch.full((3, 21, 33, 3), 90, dtype=torch.uint8)
    video = resize_crop(frames, *size, image)
    assert video.shape == (3, 3, *size)
    assert torch.allclose(video, torch.tensor(90 / 127.5 - 1), atol=1e-6)


def test_long_clips_are_cut_into_pieces_unseen():
    frames = torch.randint(0, 256, (19, 20, 30, 3), dtype=torch.uint8)
    whole = resize_crop(frames, 12, 14)
    single = torch.cat([resize_crop(frame[None], 12, 14) for frame in frames], dim=1)
    assert torch.equal(whole, single)


def test_square_only():
    with pytest.raises(ValueError, match="use transform='resize_crop'"):
        center_crop(ramp(8, 8), 8, 16)
    assert center_crop(ramp(20, 40), 10, 10).shape == (3, 2, 10, 10)


def test_wrong_frames():
    with pytest.raises(ValueError, match=r"expected uint8 \[T, H, W, C\]"):
        resize_crop(ramp(8, 8).float(), 8, 8)
    with pytest.raises(ValueError, match="positive"):
        resize_crop(ramp(8, 8), 0, 8)
    with pytest.raises(ValueError, match="scale them first"):
        central(torch.zeros(1, 3, 4, 4), 5, 4)


def test_offsets_of_odd_differences():
    """Frames round down, the central crop rounds half to even: released weights were trained with both."""
    x = torch.arange(7.0)[None, None, None, :].expand(1, 1, 4, 7)
    assert fill(x, 4, 4)[0, 0, 0, 0] == 1
    assert central(x, 4, 4)[0, 0, 0, 0] == 2


def test_blurring_keeps_shape_and_mean():
    video = torch.rand(2, 3, 8, 16, 8)
    for blurred in (downsample_space(video, 2), downsample_time(video, 2)):
        assert blurred.shape == video.shape
        assert blurred.mean() == pytest.approx(video.mean().item(), abs=0.02)
        assert blurred.std() < video.std()


@pytest.mark.parametrize("total, num_frames, interval", [(17, 17, 1), (20, 17, 1), (40, 17, 2), (300, 16, 3)])
def test_every_start_is_drawn_equally(total, num_frames, interval):
    starts = total - (num_frames - 1) * interval
    seen = [temporal_indices(total, num_frames, interval, (i + 0.5) / starts)[0] for i in range(starts)]
    assert seen == list(range(starts))
    last = temporal_indices(total, num_frames, interval, math.nextafter(1.0, 0.0))
    assert last[-1] == total - 1
    assert {b - a for a, b in zip(last, last[1:], strict=False)} <= {interval}


def test_short_clips_are_covered():
    assert temporal_indices(20, 17, 2, 0.9) == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 19]
    with pytest.raises(ValueError, match="ask for at most 16 frames"):
        temporal_indices(16, 17, 1, 0.0)
