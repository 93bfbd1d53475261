"""`python -m eval.videos`: whole runs over folders of real files."""

import json
import subprocess
import sys

import pytest
import torch

from eval.clip_pairs import PairOptions
from eval.videos import compare
from opensora.datasets.video_io import write_video

SETTINGS = {"lpips_network": "alex", "lpips_weights": None, "optical_flow": "dis"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return originals, and copies with noise: a has 9 frames, b has 5 and more noise."""
    root = tmp_path_factory.mktemp("videos")
    random = torch.Generator().manual_seed(0)
    rows = torch.linspace(-0.6, 0.6, 40)[:, None].expand(40, 64)
    for name, frames, noise in (("a", 9, 0.05), ("b", 5, 0.3)):
        clip = torch.stack([rows.roll(3 * t, 0) for t in range(frames)])[None].expand(3, -1, -1, -1)
        write_video(clip, root / "one" / f"{name}.mp4", 24)
        write_video(
            clip + noise * torch.randn(clip.shape, generator=random), root / "two" / f"{name}.mp4", 24
        )
    return root / "one", root / "two"


def test_the_command_prints_a_table_and_writes_every_figure(folders, root, tmp_path):
    file = tmp_path / "out" / "figures.json"
    command = [sys.executable, "-m", "eval.videos", *map(str, folders)]
    command += ["--metrics", "psnr", "ssim", "lpips", "flolpips", "--save-path", str(file)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "\n| | psnr | ssim | lpips | flolpips | clips |\n" in done.stdout
    result = json.loads(file.read_text())
    a, b = result["clips"]
    assert (a["name"], a["frames"], b["name"], b["frames"]) == ("a", 9, "b", 5)
    for name, better in (("psnr", max), ("ssim", max), ("lpips", min), ("flolpips", min)):
        assert better(a[name], b[name]) == a[name] != b[name]
        assert result["metrics"][name]["mean"] == pytest.approx((a[name] + b[name]) / 2)
        assert result["metrics"][name]["clips"] == 2
    assert "stlpips" in result["conditions"]["lpips"] and result["conditions"]["flow"] == "dis"


def test_equal_folders_have_perfect_scores_and_no_nan(folders):
    result = compare(folders[0], folders[0], ["psnr", "ssim", "lpips", "flolpips"], PairOptions(), SETTINGS)
    perfect = {"psnr": 100.0, "ssim": 1.0, "lpips": 0.0, "flolpips": 0.0}
    for name, value in perfect.items():
        assert result["metrics"][name]["mean"] == pytest.approx(value, abs=1e-9)


def test_pieces_do_not_change_a_figure(folders, monkeypatch):
    names = ["psnr", "lpips", "flolpips"]
    whole = compare(*folders, names, PairOptions(), SETTINGS)
    monkeypatch.setattr("eval.videos._PIECE", 4)
    for one, other in zip(
        compare(*folders, names, PairOptions(), SETTINGS)["clips"], whole["clips"], strict=True
    ):
        assert {k: v for k, v in one.items() if k in names} == pytest.approx(
            {k: other[k] for k in names}, rel=1e-5
        )


def test_motion_of_an_image_is_refused(folders):
    with pytest.raises(ValueError, match="flolpips: a has one frame"):
        compare(*folders, ["flolpips"], PairOptions(num_frames=1), SETTINGS)


def test_a_user_error_is_one_line(folders, root):
    command = [sys.executable, "-m", "eval.videos", str(folders[0]), "nowhere"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and done.stderr.startswith("error: nowhere: does not exist")
