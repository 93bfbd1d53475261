"""scripts/inference.py as a process, with prompts that a language model writes: a server on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from opensora.engine.build import build_components
from opensora.engine.inference import infer
from opensora.engine.recipe import read_recipe
from opensora.utils.config import load_config
from opensora.utils.weights import save_safetensors

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "scripts/inference.py")
CONFIG = str(ROOT / "tests/data/tiny_inference.py")


def says(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> list[str]:
    """Return the options that name random weights."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    parts = build_components(load_config([CONFIG]))
    for parameter in parts.model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    files = [folder / f"{name}.safetensors" for name in ("model", "vae")]
    for network, file in zip((parts.model, parts.vae), files, strict=True):
        save_safetensors(network.state_dict(), file)
    return ["--ckpt-path", str(files[0]), "--vae.from_pretrained", str(files[1])]


@pytest.fixture
def run() -> Callable[..., str]:
    """Return a function that runs the script in a process, with a server or none, and returns its output."""

    def call(*options: object, server: str | None = None) -> str:
        place = {k: v for k, v in os.environ.items() if not k.startswith("OPENAI_")}
        place |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_PROXY": "*"}
        place |= {} if server is None else {"OPENAI_BASE_URL": server}
        command = [sys.executable, SCRIPT, *map(str, options)]
        done = subprocess.run(command, env=place, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return call


def test_a_refined_prompt_is_in_the_video_and_its_replay_asks_nobody(language_model, weights, run, tmp_path):
    language_model.answers = [says("A grey dog runs over a wide meadow.")]
    words = ("--prompt", "ein Hund", "--llm-refine", "--prompt-as-path", "--save-dir", tmp_path / "first")
    said = run(CONFIG, *weights, *words, server=language_model.url)
    (path,) = (tmp_path / "first").glob("*.mp4")
    assert path.name == "ein Hund.mp4" and "became 'A grey dog runs over a wide meadow.'" in said
    request = read_recipe(path)["request"]
    assert (request.prompt, request.text) == ("ein Hund", "A grey dog runs over a wide meadow.")
    ((asked, body),) = language_model.asked
    assert asked == "/v1/chat/completions" and "ein Hund" in body["messages"][1]["content"]

    plain = infer(load_config([CONFIG, *weights, "--prompt", "ein Hund", "--save-dir", str(tmp_path)]))
    assert plain[0].read_bytes() != path.read_bytes()
    said = run("--replay", path, "--save-dir", tmp_path / "again")
    assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    assert "byte for byte" in said and len(language_model.asked) == 1


def test_random_prompts_make_a_video_each(language_model, weights, run, tmp_path):
    language_model.answers = [says("A beach at dawn."), says("A wood in the rain.")]
    run(CONFIG, *weights, "--random-prompts", 2, "--save-dir", tmp_path, server=language_model.url)
    made = [read_recipe(tmp_path / f"sample_000{i}.mp4")["prompt"] for i in (0, 1)]
    assert made == ["A beach at dawn.", "A wood in the rain."] and len(language_model.asked) == 2


def test_without_a_key_the_prompt_stays_as_it_was(weights, run, tmp_path):
    options = (CONFIG, *weights, "--prompt", "ein Hund")
    said = run(*options, "--llm-refine", "--save-dir", tmp_path / "asked")
    assert "prompts stay as they are: a language model needs OPENAI_API_KEY" in said and "became" not in said
    plain = infer(load_config([*options, "--save-dir", str(tmp_path / "plain")]))
    assert (tmp_path / "asked" / plain[0].name).read_bytes() == plain[0].read_bytes()
