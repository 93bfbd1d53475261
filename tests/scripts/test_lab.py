"""The lab: what its folder holds, stages that stop, what is shipped, and numbers that make nothing."""

import importlib
import json
import sys

import pytest


@pytest.fixture
def lab(root, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(root / "scripts")
    return importlib.import_module("lab")


def test_a_folder_holds_a_lab_of_one_length(lab, tmp_path):
    path = tmp_path / "made_of.json"
    lab.check_folder(path, 0.15)
    lab.check_folder(path, 0.15)
    with pytest.raises(
        SystemExit, match="a lab of another --scale or of other configs; give another --folder"
    ):
        lab.check_folder(path, 1.0)


@pytest.mark.parametrize(
    "script, option",
    [("lab", "--scale"), ("lab", "--prompts"), ("lab", "--threads"), ("lab_knobs", "--seeds")],
)
def test_numbers_that_make_nothing_are_refused(lab, monkeypatch, capsys, script, option):
    monkeypatch.setattr(sys, "argv", [script, option, "0"])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(script).main()
    assert "give more than 0" in capsys.readouterr().err


def test_a_stage_that_stopped_early_ends_the_lab(lab, tmp_path, monkeypatch):
    """As after SIGTERM: the script saves and ends without an error."""
    monkeypatch.setattr(lab, "run", lambda *words: None)
    with pytest.raises(SystemExit, match="stage1 stopped before step 5; the same command goes on"):
        lab.train("stage1", tmp_path, 0.001, "train")


def test_shipping_writes_weights_and_statistics_again_and_again(lab, tmp_path, monkeypatch):
    config = tmp_path / "vae.py"
    config.write_text(lab.VAE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(lab, "VAE", config)
    calls = []
    monkeypatch.setattr(lab, "run", lambda *words: calls.append(words))
    monkeypatch.setattr("opensora.engine.checkpoint.weights_file", lambda folder, part, ema: folder / part)
    for start in (1.0, 2.0):
        found = {name: [start + i / 8 for i in range(16)] for name in ("latent_mean", "latent_std")}
        (tmp_path / "latents.json").write_text(json.dumps(found))
        lab.ship(tmp_path, lab.option_words(tmp_path / "latents.json"))
        text = config.read_text(encoding="utf-8")
        for name, numbers in found.items():
            values = text[text.index(f"{name}=[") :].partition("[")[2].partition("]")[0]
            assert [float(word) for word in values.replace(",", " ").split()] == numbers
    assert [words[2].name for words in calls] == ["vae.safetensors", "stdit3.safetensors"] * 2
