"""scripts/inference.py --replay: files that are made again from what they say about themselves."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import av
import pytest
import torch

from opensora.datasets.video_io import write_image, write_video
from opensora.engine.build import build_components
from opensora.engine.inference import infer
from opensora.utils.config import load_config
from opensora.utils.weights import save_safetensors

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "scripts/inference.py")
CONFIG = str(ROOT / "tests/data/tiny_inference.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Return a folder with weights."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    parts = build_components(load_config([CONFIG]))
    for parameter in parts.model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for name in ("model", "vae"):
        save_safetensors(getattr(parts, name).state_dict(), folder / f"{name}.safetensors")
    other = {name: value / 2 for name, value in parts.model.state_dict().items()}
    save_safetensors(other, folder / "raw.safetensors")
    return folder


@pytest.fixture(scope="module")
def make(runs, tmp_path_factory) -> Callable[..., list[Path]]:
    """Return a function that makes files with some options, in a folder of their own."""

    def call(*options: object) -> list[Path]:
        weights = [
            "--ckpt-path",
            runs / "model.safetensors",
            "--vae.from_pretrained",
            runs / "vae.safetensors",
        ]
        words = [CONFIG, *weights, "--save-dir", tmp_path_factory.mktemp("out"), *options]
        return infer(load_config([str(word) for word in words]))

    return call


@pytest.fixture(scope="module")
def first(make) -> Path:
    paths = make("--prompt", "a cat", "a dog, running in the park", "rain")
    return paths[0].parent


@pytest.fixture
def replay(monkeypatch) -> Callable[..., Path]:
    """Return a function that runs the script in this process and returns the new file."""

    def call(path: Path, out: Path, *options: object) -> Path:
        words = ["--replay", str(path), "--save-dir", str(out), *map(str, options)]
        monkeypatch.setattr(sys, "argv", [SCRIPT, *words])
        runpy.run_path(SCRIPT, run_name="__main__")
        return out / path.name

    return call


def test_steps_on_the_video(make, replay, tmp_path):
    steps = "[{'type': 'FrameInterpolation', 'factor': 2}, {'type': 'SuperResolution', 'factor': 2}]"
    (path,) = make("--prompt", "a cat", "--postprocess", steps, "--watermark", "--deflicker")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.height, stream.width, stream.average_rate) == (9, 32, 48, 16)
    assert replay(path, tmp_path).read_bytes() == path.read_bytes()


def test_a_video_is_made_again_from_itself_alone(first, replay, tmp_path, capsys):
    for number in (1, 2):
        path = first / f"sample_000{number}.mp4"
        assert replay(path, tmp_path).read_bytes() == path.read_bytes()
    said = capsys.readouterr().out
    assert said.count("byte for byte") == 2 and "'a dog, running in the park', seed 42" in said
    before = path.read_bytes()
    with pytest.raises(SystemExit):
        replay(path, path.parent)
    assert "sample_0002.mp4: would be replaced by its replay" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_every_format_and_all_that_was_asked_is_made_again(make, replay, tmp_path, capsys):
    options = ("--num-sample", 2, "--prompt-as-path", "--seed", 7, "--neg-prompt", "blurry", "--aes", 7)
    formats = [("--num-frames", 1), *(("--video-format", kind) for kind in ("webm", "png"))]
    for form in formats:
        _, path = make("--prompt", "Ein Hund, sehr größ/klein", *options, *form)
        again = replay(path, tmp_path / "again")
        assert "byte for byte" in capsys.readouterr().out
        if path.is_file():
            assert again.read_bytes() == path.read_bytes()
        else:
            assert len(list(again.iterdir())) == 5


def test_references_and_loops_are_made_again(make, replay, tmp_path, capsys):
    still = write_image(torch.linspace(-1, 1, 3 * 16 * 24).reshape(3, 16, 24), tmp_path / "still.png")
    strategy = f"keep {still} at start"
    long = ("--loop", 2, "--condition-frame-length", 2, "--num-frames", 9)
    (path,) = make("--prompt", "|0|a cat|1|a dog", "--mask-strategy", strategy, *long)
    assert replay(path, tmp_path).read_bytes() == path.read_bytes()
    write_image(torch.zeros(3, 16, 24), still)
    capsys.readouterr()
    assert replay(path, tmp_path).read_bytes() != path.read_bytes()
    assert "(a reference is another file)" in capsys.readouterr().out


def test_a_replay_says_what_differs(first, replay, runs, tmp_path, capsys):
    path = first / "sample_0000.mp4"
    other = replay(path, tmp_path, "--seed", 43)
    assert other.read_bytes() != path.read_bytes()
    assert f"not the bytes of {path} (seed 42 then, 43 now)" in capsys.readouterr().out
    assert replay(path, tmp_path, "--cfg-scale", 5).read_bytes() != path.read_bytes()
    assert "guidance {" in capsys.readouterr().out  # also what lies deeper in the config
    (tmp_path / "bare").mkdir()
    write_video(torch.zeros(3, 2, 16, 16), tmp_path / "bare/a.mp4", 8)
    wrong = {
        ("--ckpt-path", runs / "raw.safetensors"): "was made with other weights of model (",
        ("--vae.from_pretrained", runs / "raw.safetensors"): "was made with other weights of vae (",
    }
    for options, said in wrong.items():
        with pytest.raises(SystemExit):
            replay(path, tmp_path / "x", *options)
        assert said in capsys.readouterr().err
    for name, said in (("bare/a.mp4", "carries no recipe"), ("no.mp4", "no such file")):
        with pytest.raises(SystemExit):
            replay(tmp_path / name, tmp_path / "x")
        assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
