"""scripts/inference_vae.py and `python -m eval.vae`: whole runs of a tiny autoencoder on real files."""

import json
import subprocess
import sys

import pytest
import torch

from eval.vae import evaluate
from opensora.datasets.video_io import probe, write_image, write_video
from opensora.registry import MODELS, build
from opensora.utils.config import load_config
from opensora.utils.weights import save_safetensors

CONFIG = "configs/vae_v1_3/inference/video_16z_256x256.py"
TINY = {"channels": 32, "channel_multipliers": (1, 1, 1, 1), "num_res_blocks": 1, "latent_channels": 4}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Return a folder with two clips and an image, and the flags of a tiny random autoencoder."""
    folder = tmp_path_factory.mktemp("vae")
    random = torch.Generator().manual_seed(0)
    for name, frames in (("a", 9), ("b", 20)):
        write_video(
            torch.rand(3, frames, 40, 56, generator=random) - 0.5, folder / "clips" / f"{name}.mp4", 24
        )
    write_image(torch.rand(3, 40, 40, generator=random) - 0.5, folder / "clips" / "c.png")
    torch.manual_seed(0)
    save_safetensors(build(MODELS, {"type": "VideoVAE", **TINY}).state_dict(), folder / "vae.safetensors")
    flags = ["--data-path", str(folder / "clips"), "--ckpt-path", str(folder / "vae.safetensors")]
    flags += [
        "--dataset.num-frames",
        "None",
        "--dataset.image-size",
        "None",
        "--dtype",
        "fp32",
        "--device",
        "cpu",
    ]
    for key, value in TINY.items():
        flags += [f"--vae.{key}", str(value)]
    return folder, [*flags, "--vae.tile_size", "None"]


def test_the_script_saves_originals_and_reconstructions(setting, root, tmp_path):
    _, flags = setting
    command = [
        sys.executable,
        "scripts/inference_vae.py",
        CONFIG,
        *flags,
        "--save-dir",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        [*command, "--side-by-side", "True", "--frame-interval", "2"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "b: 20 frames, PSNR" in done.stdout and "latents of 3 clips: mean" in done.stdout
    sizes = {"ori": (40, 56), "rec": (40, 56), "side": (40, 168)}
    for kind, size in sizes.items():
        names = sorted(path.name for path in (tmp_path / f"out_{kind}").iterdir())
        assert names == ["a.mp4", "b.mp4", "c.png"]
        found = probe(str(tmp_path / f"out_{kind}" / "b.mp4"))
        assert (found.num_frames, found.height, found.width) == (20, *size) and found.fps == 12
    again = subprocess.run(
        [*command, "--side-by-side", "True"], cwd=root, capture_output=True, text=True, timeout=300
    )
    assert again.stdout.count("its files are there already") == 3


def test_evaluation_measures_once(setting, root, tmp_path, monkeypatch):
    folder, flags = setting
    monkeypatch.chdir(root)
    cfg = load_config(
        [CONFIG, *flags, "--save-dir", str(tmp_path / "out"), "--metrics", "('psnr', 'ssim', 'flolpips')"]
    )
    result = evaluate(cfg)
    assert result["metrics"]["psnr"]["clips"] == 3 and result["metrics"]["flolpips"]["clips"] == 2
    assert [clip["source"]["num_frames"] for clip in result["clips"].values()] == [9, 20, 1]
    assert json.loads((tmp_path / "out_eval" / "metrics.json").read_text()) == result
    assert "| VideoVAE |" in (tmp_path / "out_eval" / "metrics.md").read_text()
    monkeypatch.setattr("eval.vae.load_autoencoder", None)  # nothing is left to measure
    assert evaluate(cfg) == result


def test_unknown_metrics_and_missing_weights_are_named(setting, root, monkeypatch):
    _, flags = setting
    monkeypatch.chdir(root)
    with pytest.raises(ValueError, match="use some of psnr, ssim, lpips, flolpips"):
        evaluate(load_config([CONFIG, *flags, "--metrics", "('fvd',)"]))
    cfg = load_config([CONFIG, *flags, "--save-dir", "None"])
    cfg.vae.from_pretrained = None
    with pytest.raises(ValueError, match="without weights there is only noise; give --ckpt-path"):
        evaluate(cfg)
