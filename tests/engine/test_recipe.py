"""Recipes: what files say about themselves, hashes of weights, and files that say nonsense."""

import json
import os
from pathlib import Path

import pytest
import torch

from opensora.datasets.video_io import read_note, write_frames, write_image
from opensora.engine.output import Output
from opensora.engine.prompts import Request
from opensora.engine.recipe import Recipes, hash_weight_files, read_recipe
from opensora.utils.config import load_config
from opensora.utils.weights import save_safetensors

CONFIG = str(Path(__file__).parents[1] / "data/tiny_inference.py")
REQUEST = Request("a 猫", "a 猫 there", None, 0, 1, 5, 16, 24, 24.0)


@pytest.fixture
def cfg(tmp_path):
    return load_config([CONFIG, "--save-dir", str(tmp_path), "--sample-name", "x"])


def test_a_file_says_what_it_was_made_from(cfg, tmp_path):
    path = Output(cfg, "cpu").save([torch.zeros(3, 5, 16, 24)], REQUEST)
    recipe = read_recipe(path)
    assert recipe["request"] == REQUEST and recipe["seed"] == 42 and recipe["prompt"] == "a 猫"
    assert recipe["config"]["model"] == cfg.model.to_dict() and recipe["config"]["device"] == "cpu"
    assert recipe["config"]["vae"]["channel_multipliers"] == (1, 1, 1, 1)  # still a tuple
    assert list(recipe["weights"]) == ["text_encoder"]
    assert recipe["made_by"]["torch"] == torch.__version__
    text = read_note(path)
    assert str(tmp_path) not in text and json.loads(text)["prompt"] == "a 猫"


def test_a_file_says_nothing_when_it_should_not(cfg):
    path = Output({**cfg, "metadata": False}, "cpu").save([torch.zeros(3, 5, 16, 24)], REQUEST)
    assert read_note(path) is None
    with pytest.raises(ValueError, match="carries no recipe; files made with metadata=True do"):
        read_recipe(path)


def test_the_config_hash_follows_what_matters(cfg):
    def hashed(**changes):
        return json.loads(Recipes({**cfg, **changes}, "cpu").note(REQUEST))["config_hash"]

    first = hashed()
    assert hashed(prompt=["another"], save_dir="elsewhere", verbose=2) == first
    assert len({first, hashed(seed=1), hashed(fps=9), hashed(scheduler={**cfg.scheduler, "x": 1})}) == 4


@pytest.mark.parametrize("value", [None, True, 1.5, "ä", [1, (2, [3])], {"a": (1,)}, {("a", "b"): 1, 2: ()}])
def test_values_come_back_as_they_were(cfg, tmp_path, value):
    note = Recipes({**cfg, "postprocess": value}, "cpu").note(REQUEST)
    write_image(torch.zeros(3, 8, 8), tmp_path / "a.png", note)
    assert read_recipe(tmp_path / "a.png")["config"]["postprocess"] == value


def test_what_a_recipe_cannot_hold_is_said(cfg, tmp_path):
    note = Recipes({**cfg, "postprocess": [{"type": Path}]}, "cpu").note(REQUEST)
    write_frames(torch.zeros(3, 2, 8, 8), tmp_path / "a", note)
    with pytest.raises(ValueError, match=r"made with pathlib\.\w*\.?Path, which a recipe cannot hold"):
        read_recipe(tmp_path / "a")


NONSENSE = [
    *("", "hello", "[]", "3", '{"recipe": 1}', '{"recipe": 1, "request": {}, "config": {}}', "[" * 100_000),
    *('{"recipe": 1, "request": {"x": 1}, "config": 5}', '{"recipe": 1, "request": [], "config": [1]}'),
    *(
        '{"recipe": 1, "request": {"__tuple__": 5}, "config": {}}',
        '{"recipe": 1, "config": {"__pairs__": 1}}',
    ),
    '{"recipe": 1, "config": {"__pairs__": [[[], 1]]}, "request": {}}',
]


@pytest.mark.parametrize("note", NONSENSE)
def test_nonsense_is_refused_in_a_sentence(tmp_path, note):
    path = write_image(torch.zeros(3, 8, 8), tmp_path / "a.png", note)
    with pytest.raises(ValueError, match="carries no recipe"):
        read_recipe(path)


def test_a_recipe_of_another_format_is_refused(cfg, tmp_path):
    note = Recipes(cfg, "cpu").note(REQUEST).replace('"recipe": 1', '"recipe": 2')
    path = write_image(torch.zeros(3, 8, 8), tmp_path / "a.png", note)
    with pytest.raises(ValueError, match="format 2, this version reads 1"):
        read_recipe(path)


# Hashes of weights


def test_hashes_are_of_content_and_remembered(cfg, tmp_path, monkeypatch):
    memory = tmp_path / "cache/weights.json"
    for name, value in (("a", 0.0), ("b", 0.0), ("c", 1.0)):
        save_safetensors({"x": torch.full((4,), value)}, tmp_path / f"{name}.safetensors")

    def hashed(name):
        parts = {**cfg, "vae": {"spatial": {"from_pretrained": str(tmp_path / f"{name}.safetensors")}}}
        return hash_weight_files(parts, str(memory))

    found = hashed("a")
    assert list(found) == ["vae.spatial", "text_encoder"]
    assert hashed("b") == found
    assert hashed("c")["vae.spatial"] != found["vae.spatial"]
    with monkeypatch.context() as patch:
        patch.setattr("opensora.engine.recipe.describe_file", None)  # nothing is read again
        assert hashed("a") == found
    file = tmp_path / "a.safetensors"
    save_safetensors({"x": torch.full((4,), 2.0)}, file)
    os.utime(file, ns=(0, 0))
    assert hashed("a")["vae.spatial"] != found["vae.spatial"]
    memory.write_text("damaged")
    assert hashed("b") == found
