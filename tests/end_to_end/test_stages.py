"""The published stages in a row, with tiny networks: each starts from the weights of the one before."""

import csv
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from opensora.datasets import resolutions
from opensora.datasets.video_io import write_video
from opensora.engine.checkpoint import read_checkpoint
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.engine.tracker import read_log
from opensora.engine.training import train
from opensora.registry import MODELS, build, fill_in
from opensora.utils.config import load_config
from opensora.utils.random import Draws
from opensora.utils.weights import published_state_dict, save_safetensors

CONFIGS = Path(__file__).parents[2] / "configs"
HEIGHT, WIDTH, FRAMES = 16, 24, 34
STEPS, RATE = 2, 1e-3
WIDTHS = {"hidden_size": 48, "depth": 1, "num_heads": 2}

# Stage, the one whose weights it takes, and its lengths.
V1_3 = [
    ("adapt", None, (1,)),
    ("stage1_nk", "adapt", (1, 34)),
    ("stage1", "stage1_nk", (1, 33)),
    ("stage1_hq", "stage1", (1, 33)),
    ("stage1_noise", "stage1", (1, 33)),
    ("stage2", "stage1_hq", (1, 33)),
    ("adapt_i2v", "stage2", (33,)),
]
V1_2 = [
    ("adapt", None, (1, 34)),
    ("stage1", "adapt", (1, 34)),
    ("stage2", "stage1", (1, 34)),
    ("stage3", "stage2", (1, 34)),
]


class TinyText(nn.Module):
    """Features that are a function of the caption."""

    def __init__(self, width=8, max_length=6):
        super().__init__()
        self.width, self.max_length = width, max_length

    def encode(self, texts):
        lengths = torch.tensor([1 + len(text) % self.max_length for text in texts])
        rows = [sum(text.encode()) for text in texts]
        mask = torch.arange(self.max_length) < lengths[:, None]
        return Draws(0, rows).normal("text", 0, (len(texts), self.max_length, self.width)), mask


@pytest.fixture(scope="module", autouse=True)
def tiny_parts():
    """A text encoder and a resolution that no user has."""
    real = resolutions._table
    sizes = (HEIGHT * WIDTH, {"0.67": (HEIGHT, WIDTH)})
    MODELS.register_module("TinyText", module=TinyText)
    resolutions._table = lambda name: sizes if name == "tiny" else real(name)
    yield
    resolutions._table = real
    MODELS.module_dict.pop("TinyText")


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Four clips and four images."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for number in range(8):
        video = Draws(0, [number]).uniform("clip", 0, (1, 3, FRAMES, HEIGHT, WIDTH))[0] * 2 - 1
        path, length = folder / f"{number}.mp4", FRAMES
        if number < 4:
            path, length = folder / f"{number}.png", 1
            Image.fromarray(((video[:, 0].permute(1, 2, 0) + 1) * 127).byte().numpy()).save(path)
        else:
            write_video(video, path, 24)
        row = {"path": path, "text": "clip " + "x" * number, "num_frames": length, "fps": 24}
        rows.append({**row, "height": HEIGHT, "width": WIDTH})
    with open(folder / "clips.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "clips.csv"


def shrink(cfg, lengths) -> None:
    """Make a shipped config tiny; what it says about chunks, windows, conditions and schedules stays."""
    cfg.model.update(type="STDiT3", **WIDTHS)
    if cfg.vae.type == "VideoVAE":
        cfg.vae.update(channels=32, channel_multipliers=(1, 1, 1, 1), num_res_blocks=1)
    else:
        cfg.vae.spatial.update(block_out_channels=(32, 32, 32, 32), layers_per_block=1)
        cfg.vae.temporal.update(channels=32, channel_multipliers=(1, 1, 1, 1), num_res_blocks=1)
    cfg.vae.update(from_pretrained=None)
    cfg.text_encoder = {"type": "TinyText"}
    cfg.bucket_config = {"tiny": {length: (1.0, 2) for length in lengths}}
    cfg.update(batches_per_step=1, num_workers=0, plugin=None, device="cpu", dtype="fp32")
    cfg.update(max_steps=STEPS * len(lengths), log_every=1, ckpt_every=0)
    cfg.optimizer.update(lr=RATE)


def image_weights(path: Path) -> Path:
    """Write weights as version 1.2 publishes them: four latent channels, no reference frames."""
    torch.manual_seed(1)
    cfg = load_config([str(CONFIGS / "opensora-v1-2/train/adapt.py")])
    model = {**cfg.model, "type": "STDiT3", **WIDTHS, "in_channels": 4}
    model["conditions"]["text"] = {**model["conditions"]["text"], "text_width": 8, "text_length": 6}
    model = build(MODELS, fill_in(MODELS, {k: v for k, v in model.items() if "pretrained" not in k}))
    save_safetensors(published_state_dict(model), path)
    return path


def run_chain(version: str, stages: list, table: Path, outputs: Path) -> dict[str, Path]:
    """Train every stage and return the run folders."""
    first = image_weights(outputs / "weights.safetensors")
    runs: dict[str, Path] = {}
    for name, before, lengths in stages:
        words = ["--data-path", table, "--ckpt-path", runs[before] if before else first]
        words += ["--outputs", outputs, "--run-name", name]
        cfg = load_config([str(CONFIGS / version / f"train/{name}.py"), *map(str, words)])
        shrink(cfg, lengths)
        runs[name] = train(cfg, LatentDiffusion.from_config)
        check_stage(cfg, runs[name], runs[before] if before else None, lengths)
    return runs


def check_stage(cfg, run: Path, before: Path | None, lengths: tuple[int, ...]) -> None:
    """Check that a stage trained what it should, from the averaged weights of the stage before."""
    lines = read_log(run)
    assert len(lines) == STEPS * len(lengths)
    assert all(math.isfinite(line["loss"]) and line["grad_norm_model"] > 0 for line in lines)
    state, tensors = read_checkpoint(run)
    assert state.skipped == []
    frozen = tuple(cfg.model["freeze"])
    if before is None:
        return
    old = read_checkpoint(before)[1]["model_ema"]
    for name, value in tensors["model"].items():
        if name not in old or name.startswith(tuple(cfg.model.ignore_keys)):
            continue
        moved = (value - old[name]).abs().max().item()
        if frozen and name.startswith(frozen):
            assert moved == 0, name
        else:  # AdamW moves a weight by about the rate in a step
            assert moved <= 1.5 * RATE * len(lines), name


@pytest.fixture(scope="module")
def runs(table, tmp_path_factory) -> dict[str, Path]:
    """The run folders of the stages of 1.3."""
    return run_chain("opensora-v1-3", V1_3, table, tmp_path_factory.mktemp("v1_3"))


def test_the_stages_of_1_3(runs):
    adapted, nk, windows = (read_checkpoint(runs[n])[1]["model"] for n in ("adapt", "stage1_nk", "stage1"))
    assert adapted["x_embedder.proj.weight"].shape[1] == 16
    assert not any(name.startswith("temporal_blocks.") for name in adapted)
    assert any(name.startswith("temporal_blocks.") for name in nk)
    assert nk["rope.freqs"].numel() == 12 and windows["rope.freqs"].numel() == 4
    moved = [name for name, value in windows.items() if name in nk and not torch.equal(value, nk[name])]
    assert any(name.startswith("temporal_blocks.") for name in moved)
    final = read_checkpoint(runs["adapt_i2v"])[1]
    assert final["model"]["conditions.frames.reference_embedder.proj.weight"].abs().max() > 0
    assert final["model_ema"].keys() == final["model"].keys()


def test_the_stages_of_1_2(table, tmp_path):
    pytest.importorskip("diffusers")
    runs = run_chain("opensora-v1-2", V1_2, table, tmp_path)
    final = read_checkpoint(runs["stage3"])[1]["model"]
    assert final["x_embedder.proj.weight"].shape[1] == 4
    assert not any("frames" in name for name in final)


@pytest.mark.parametrize(
    ("name", "before", "said"),
    [
        ("adapt", None, "missing: conditions.frames.reference_embedder"),
        ("stage1_nk", "adapt", "missing: temporal_blocks.0"),
        ("stage1", "stage1_nk", r"other shape: rope.freqs \[12\] in the file, \[4\] here"),
    ],
)
def test_what_shipped_configs_ignore_would_be_refused(runs, table, tmp_path, name, before, said):
    weights = runs[before] if before else image_weights(tmp_path / "weights.safetensors")
    config = str(CONFIGS / f"opensora-v1-3/train/{name}.py")
    cfg = load_config([config, "--data-path", str(table), "--outputs", str(tmp_path)])
    shrink(cfg, (1,))
    cfg.model.update(from_pretrained=str(weights), ignore_keys=())
    with pytest.raises(ValueError, match=said):
        train(cfg, LatentDiffusion.from_config)
