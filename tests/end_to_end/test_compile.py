"""compile=True in the real scripts: the same losses and the same video, up to rounding."""

import json
import subprocess
from pathlib import Path

import pytest

from opensora.datasets.video_io import read_clip

ROOT = Path(__file__).parents[2]


def run(scripts, command: list[str]) -> str:
    """Run a command that may compile for minutes, and return what it wrote."""
    (process,) = scripts.start(*command)
    try:
        output = process.communicate(timeout=600)[0]
    except subprocess.TimeoutExpired:
        scripts.kill([process])
        raise
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
def test_compiled_scripts_train_and_sample_as_others_do(scripts, denoiser, vae, tmp_path):
    losses, videos, logs = [], [], []
    config = str(ROOT / "configs/opensora-v1-3/inference/demo.py")
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        train = denoiser(folder, "--max-steps", 3, "--log-every", 1, "--compile", compiled)
        log = run(scripts, train)
        lines = (folder / "run/log.jsonl").read_text().splitlines()
        losses.append([row["loss"] for row in map(json.loads, lines) if "loss" in row])
        sample = ["--ckpt-path", folder / "run", "--vae.from_pretrained", vae, "--prompt", "a square"]
        sample += ["--num-sampling-steps", 2, "--num-frames", 5, "--image-size", 16, 24, "--dtype", "fp32"]
        sample += ["--device", "cpu", "--save-dir", folder, "--compile", compiled]
        sample += ["--model.hidden_size", 48, "--model.depth", 1, "--model.num_heads", 2]
        sample += ["--vae.latent_channels", 4, "--vae.channel_multipliers", "(1, 1, 1, 1)"]
        words = [str(ROOT / "scripts/inference.py"), config, *map(str, sample)]
        log += run(scripts, words)
        videos.append(read_clip(str(folder / "sample_0000.mp4"), range(5)).float())
        logs.append(log)
    assert len(losses[0]) == 3 and losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert (videos[0] - videos[1]).abs().max() <= 3
    assert "graphs" not in logs[0]
    for line in ("compiled ", "recompilations during training: ", "graphs compiled: "):
        assert line in logs[1], logs[1]
