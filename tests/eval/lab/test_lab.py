"""`python -m eval.lab` from prompts to tables, with networks of random weights."""

import json
import sys
from pathlib import Path

import pytest
import torch

from eval.lab.__main__ import main
from opensora.engine.build import build_components
from opensora.utils.config import load_config
from opensora.utils.weights import save_safetensors

CONFIG = str(Path(__file__).parents[2] / "data/tiny_inference.py")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    built = build_components(load_config([CONFIG]))
    for name in ("model", "vae"):
        save_safetensors(getattr(built, name).state_dict(), folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def lab(weights, tmp_path, monkeypatch, capsys):
    def run(*words):
        given = ["--model.from-pretrained", f"{weights}/model.safetensors", "--device", "cpu"]
        given += ["--vae.from-pretrained", f"{weights}/vae.safetensors", "--save-dir", f"{tmp_path}/s"]
        given += ["--image-size", "32", "32", "--num-frames", "9", "--neighbours", "4"]
        monkeypatch.setattr(sys, "argv", ["lab", CONFIG, *given, *words])
        main()
        shown = capsys.readouterr().out
        return shown[shown.index("| right") :], json.loads((tmp_path / "s_lab/result.json").read_text())

    return run


def test_clips_are_made_judged_and_kept(lab, tmp_path):
    words = ("--prompts", "2", "--modes", "t2v", "real", "--seeds", "1")
    shown, result = lab(*words)
    assert "| t2v |" in shown and "memorisation" in shown
    assert result["modes"]["real"]["adherence"]["all"]["share"] == 1
    assert {row["prompt"] for row in result["modes"]["t2v"]["clips"]} == {
        row["prompt"] for row in result["modes"]["real"]["clips"]
    }
    frames = sorted((tmp_path / "s_lab").glob("clips-*/t2v/*/*.png"))
    assert len(frames) == 18 and (tmp_path / "s_lab/t2v.png").exists()
    times = [path.stat().st_mtime_ns for path in frames]
    assert lab(*words) == (shown, result)
    assert [path.stat().st_mtime_ns for path in frames] == times


@pytest.mark.slow
def test_every_way_of_asking(lab):
    words = ("--prompts", "2", "--rounds", "3", "--condition-frame-length", "2", "--diverse-prompts", "1")
    shown, result = lab(*words, "--modes", "t2v", "i2v", "i2v_loop", "extend", "vae")
    rows = {mode: part["clips"][0] for mode, part in result["modes"].items()}
    assert {"first frame dB", "last frame dB of the vae"} <= rows["i2v_loop"].keys()
    assert "last frame dB" not in rows["i2v"] and rows["extend"]["color drift"] >= 0
    assert "diversity" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--modes", "t3v"), "modes="),
        (("--prompts", "0"), "prompts=0"),
        (("--num-frames", "2s"), "num_frames="),
        (("--modes", "extend", "--rounds", "1"), "rounds=1"),
    ],
)
def test_wrong_settings_end_with_one_line(lab, words, said, capsys):
    with pytest.raises(SystemExit) as end:
        lab(*words)
    assert said in str(end.value.code) + capsys.readouterr().err
