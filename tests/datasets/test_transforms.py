"""Crops, scalings and the choice of frames."""

import math

import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import interpolate

from opensora.datasets.transforms import (
    TRANSFORMS,
    central,
    downsample_space,
    downsample_time,
    normalize,
    plan_cut,
    resize_crop,
    scale_window,
    temporal_indices,
    transform,
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
    video = transform(name, frames, 24, 24, image)
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


@settings(max_examples=60, deadline=None)
@given(*[st.integers(2, 60)] * 4)
def test_windows_are_those_of_whole_scaled_frames(rows, columns, height, width):
    frames = torch.randint(0, 256, (2, rows, columns, 3), dtype=torch.uint8)
    cut = plan_cut("resize_crop", (rows, columns), height, width)
    x = rearrange(frames, "T H W C -> T C H W").contiguous().float()
    whole = rearrange(
        interpolate(x, size=cut.scaled, mode="bilinear", align_corners=False), "T C H W -> T H W C"
    )
    expected = whole[:, cut.top : cut.top + height, cut.left : cut.left + width]
    assert expected.shape == (2, height, width, 3)
    assert torch.allclose(scale_window(frames, cut), expected, atol=1e-3, rtol=0)  # of 255


@pytest.mark.parametrize("size", [(30, 41), (64, 17), (100, 90)])
def test_images_are_scaled_by_pillow(size):
    image = torch.randint(0, 256, (*size, 3), dtype=torch.uint8)
    cut = plan_cut("resize_crop", size, 16, 16, image=True)
    picture = Image.fromarray(image.numpy()).resize(cut.scaled[::-1], Image.Resampling.BICUBIC)
    box = (cut.left, cut.top, cut.left + 16, cut.top + 16)
    expected = normalize(torch.from_numpy(np.array(picture.crop(box)))).permute(2, 0, 1)
    assert torch.equal(resize_crop(image[None], 16, 16, image=True)[:, 0], expected)


@pytest.mark.parametrize("image", [False, True])
def test_random_crops_are_windows_alike_in_all_frames(image):
    frames = torch.randint(0, 256, (1 if image else 4, 20, 30, 3), dtype=torch.uint8)
    corners = set()
    for u in [(0.0, 0.0), (0.999999, 0.999999), (0.5, 0.3), (0.0, 0.999999)]:
        cut = plan_cut("random_crop", (20, 30), 8, 16, image, (*u, 0, 0))
        corners.add((cut.top, cut.left))
        window = frames[:, cut.top : cut.top + 8, cut.left : cut.left + 16]
        expected = normalize(window).permute(3, 0, 1, 2)
        assert torch.equal(transform("random_crop", frames, 8, 16, image, (*u, 0, 0)), expected)
    assert corners == {(0, 0), (12, 14), (6, 4), (0, 14)}


def test_every_place_of_a_random_crop_is_as_likely():
    tops = [plan_cut("random_crop", (20, 30), 17, 30, u=(u, 0, 0, 0)).top for u in np.arange(0, 1, 0.01)]
    assert [tops.count(top) for top in range(4)] == [25] * 4


def test_frames_that_are_too_small_for_a_random_crop_are_scaled():
    cut = plan_cut("random_crop", (20, 30), 40, 40, u=(0.9, 0.9, 0, 0))
    assert cut.scaled == (40, 60) and (cut.top, cut.left) == (0, 18)
    assert transform("random_crop", ramp(20, 30), 40, 40).shape == (3, 2, 40, 40)


@pytest.mark.parametrize("image", [False, True])
def test_random_sizes_are_multiples_of_8_within_the_clip(image):
    draws = np.random.default_rng(0).random((500, 4))
    cuts = [plan_cut("rand_size_crop", (40, 70), 16, 63, image, u) for u in draws]
    assert {cut.height for cut in cuts} == {16, 24, 32, 40}
    assert {cut.width for cut in cuts} == {16, 24, 32, 40, 48, 56}
    assert all(cut.top + cut.height <= 40 and cut.left + cut.width <= 70 for cut in cuts)
    assert len({(cut.top, cut.left) for cut in cuts}) > 200
    assert {cut.scaled for cut in cuts} == {(40, 70)}
    with pytest.raises(ValueError, match="smaller one first, at least 8"):
        plan_cut("rand_size_crop", (40, 70), 63, 16)


def test_square_only():
    with pytest.raises(ValueError, match="use transform='resize_crop'"):
        transform("center", ramp(8, 8), 8, 16)
    assert transform("center", ramp(20, 40), 10, 10).shape == (3, 2, 10, 10)


def test_wrong_frames():
    with pytest.raises(ValueError, match=r"expected uint8 \[T, H, W, C\]"):
        resize_crop(ramp(8, 8).float(), 8, 8)
    with pytest.raises(ValueError, match="use one of resize_crop, center, random_crop, rand_size_crop"):
        transform("zoom", ramp(8, 8), 8, 8)
    with pytest.raises(ValueError, match="positive"):
        resize_crop(ramp(8, 8), 0, 8)
    with pytest.raises(ValueError, match="scale them first"):
        central(torch.zeros(1, 3, 4, 4), 5, 4)


def test_offsets_of_odd_differences():
    """Frames round down where images round half to even: released weights were trained with both."""
    sizes = [(4, 7), (4, 9)]
    assert [plan_cut("resize_crop", size, 4, 4).left for size in sizes] == [1, 2]
    assert [plan_cut("resize_crop", size, 4, 4, image=True).left for size in sizes] == [2, 2]
    assert [plan_cut("center", size, 4, 4).left for size in sizes] == [2, 2]
    assert [plan_cut("center", (7, 12), 7, 7, image=image).left for image in (False, True)] == [2, 2]


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
