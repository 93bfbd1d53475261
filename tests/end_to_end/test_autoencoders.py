"""scripts/train_vae.py with every shipped config, made tiny, and a resumed adversarial run."""

from pathlib import Path

import pytest
import torch

from opensora.engine.checkpoint import list_checkpoints, read_checkpoint
from opensora.engine.tracker import read_log
from opensora.utils.config import load_config

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    path
    for path in (ROOT / "configs").glob("*/train/*.py")
    if "_base_.autoencoder" in path.read_text(encoding="utf-8")
)
TINY = {
    "VideoVAE": [
        "--vae.channels",
        32,
        "--vae.channel_multipliers",
        "(1, 1, 1, 1)",
        "--vae.latent_channels",
        4,
    ],
    "CausalVideoVAE": ["--vae.channels", 32, "--vae.channel_multipliers", "(1, 1, 1, 1)"],
    "VQVAE": ["--vae.channels", 16, "--vae.latent_channels", 8, "--vae.num_codes", 16],
    "StackedVAE": ["--vae.spatial.block_out_channels", "(32, 32, 32, 32)", "--vae.temporal.channels", 32]
    + ["--vae.temporal.channel_multipliers", "(1, 1, 1, 1)", "--vae.temporal.num_res_blocks", 1],
}


def command(config: Path, table: Path, outputs: Path, *options: object) -> list[str]:
    text = config.read_text(encoding="utf-8")
    vae = load_config([str(config)]).vae
    tiny = [] if vae.get("patch_shortcut") else TINY[vae.type]  # the lab's models are tiny as they are
    side, data = (32, ["--dataset.size", 100]) if "_base_.shapes " in text else (16, ["--data-path", table])
    words = [*data, "--outputs", outputs, "--run-name", "run", *tiny]
    words += [
        "--dtype",
        "fp32",
        "--device",
        "cpu",
        "--plugin",
        "none",
        "--num-workers",
        0,
        "--wandb",
        "false",
    ]
    words += ["--dataset.image_size", f"({side}, {side})", "--dataset.num_frames", 5, "--batch-size", 1]
    words += ["--batches-per-step", 1, "--epochs", 9, "--log-every", 1, "--ckpt-keep", 0]
    words += ["--lr_schedule.warmup_steps", 0]
    if "discriminator = dict" in text:
        words += ["--discriminator.channels", 8, "--discriminator.num_layers", 2]
    return [str(ROOT / "scripts/train_vae.py"), str(config), *map(str, (*words, *options))]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.parent.name}/{path.stem}")
def test_every_shipped_config_trains(config, scripts, table, tmp_path):
    fast = ["--perceptual.network", "efficientnet", "--max-steps", 2, "--validate-every", 0]
    scripts.here(*command(config, table, tmp_path, *fast))
    lines = read_log(tmp_path / "run")
    assert len(lines) == 2 and all(line["vae_loss"] > 0 for line in lines)


def test_a_resumed_adversarial_run_is_the_uninterrupted_one(scripts, table, tmp_path):
    config = ROOT / "configs/vae_v1_3/train/video_16z.py"
    options = ["--gan.start", 2, "--loss.learned_logvar", "true", "--perceptual.network", "efficientnet"]
    options += ["--optimizer.lr", 1e-3, "--ema_decay", 0.9, "--ckpt-every", 3]
    scripts.here(*command(config, table, tmp_path / "whole", *options, "--max-steps", 6))
    for steps in (3, 6):
        scripts.here(*command(config, table, tmp_path / "parts", *options, "--max-steps", steps))
    whole, parts = (list_checkpoints(tmp_path / name / "run")[-1] for name in ("whole", "parts"))
    (_, expected), (_, found) = read_checkpoint(whole), read_checkpoint(parts)
    assert expected.keys() == found.keys() >= {"vae", "vae_ema", "discriminator", "variance"}
    for name, tensors in expected.items():
        assert all(torch.equal(value, found[name][key]) for key, value in tensors.items()), name
    lines = read_log(tmp_path / "whole/run")
    assert ["discriminator_loss" in line for line in lines] == [False] * 2 + [True] * 4
    first, last = (read_checkpoint(p)[1]["discriminator"] for p in list_checkpoints(whole.parent.parent)[:2])
    assert not torch.equal(first["main.0.weight"], last["main.0.weight"])
