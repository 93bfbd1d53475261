"""scripts/inference.py from prompts to files, with tiny random networks."""

import os
import resource
import runpy
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from opensora.engine import generation
from opensora.engine.build import build_components
from opensora.engine.checkpoint import RunState
from opensora.engine.checkpoint_writer import save_checkpoint
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.utils.config import load_config
from opensora.utils.weights import save_safetensors

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "scripts/inference.py")
CONFIG = str(ROOT / "tests/data/tiny_inference.py")
PROMPTS = ["a cat", "a dog, running in the park", "rain"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Return a folder with run folders `model` and `vae`, and a file of another model."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    parts = build_components(load_config([CONFIG]))
    for parameter in parts.model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    raw = parts.model.state_dict()
    averaged = {name: value / 2 if value.is_floating_point() else value for name, value in raw.items()}
    save_checkpoint(folder / "model", RunState(step=3), {"model": raw, "model_ema": averaged})
    save_checkpoint(folder / "vae", RunState(step=3), {"vae": parts.vae.state_dict()})
    save_safetensors(raw, folder / "raw.safetensors")
    narrow = load_config([CONFIG, "--model.hidden_size", "24"])
    save_safetensors(build_components(narrow).model.state_dict(), folder / "narrow.safetensors")
    return folder


def command(runs: Path, out: Path, *options: object) -> list[str]:
    """Return the words after the script's name."""
    words = ["--ckpt-path", runs / "model", "--vae.from_pretrained", runs / "vae", "--save-dir", out]
    return [CONFIG, *map(str, words), *map(str, options)]


def start(*words: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Run the script as a user does."""
    where = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    whole = [sys.executable, *launcher, SCRIPT, *words]
    return subprocess.run(whole, env=where, capture_output=True, text=True)


@pytest.fixture
def run(monkeypatch):
    """Return a function that runs the script in this process."""

    def call(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", [SCRIPT, *words])
        runpy.run_path(SCRIPT, run_name="__main__")

    return call


@pytest.fixture
def make(run, runs, tmp_path):
    """Return a function that makes files with some options and returns their bytes by name."""
    count = iter(range(100))

    def call(*options: object) -> dict[str, bytes]:
        out = tmp_path / f"out{next(count)}"
        run(*command(runs, out, *options))
        return contents(out)

    return call


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, without contact sheets."""
    files = (p for p in sorted(folder.iterdir()) if p.is_file() and not p.stem.endswith("_sheet"))
    return {p.name: p.read_bytes() for p in files}


def pixels(path: Path) -> np.ndarray:
    """Return the frames of a file. int64, shape [T, H, W, 3]."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames).astype(np.int64)


@pytest.fixture(scope="module")
def first(runs, tmp_path_factory) -> Path:
    """Return the folder of a run in its own process: three prompts."""
    out = tmp_path_factory.mktemp("first")
    done = start(*command(runs, out, "--prompt", *PROMPTS))
    assert done.returncode == 0, done.stderr
    (out / "log").write_text(done.stdout)
    return out


def test_a_video_is_h264_of_the_asked_length_size_and_rate(first):
    assert sorted(p.name for p in first.glob("*.mp4")) == [f"sample_{i:04d}.mp4" for i in range(3)]
    with av.open(str(first / "sample_0001.mp4")) as container:
        (stream,) = container.streams
        shape = (stream.codec_context.name, stream.height, stream.width, float(stream.average_rate))
        assert shape == ("h264", 16, 24, 8.0)
        assert sum(1 for _ in container.decode(stream)) == 5
    with Image.open(first / "sample_0001_sheet.png") as sheet:
        assert sheet.size == (4 * 24, 2 * 16)


def test_the_log_says_what_is_made_how_fast_and_how_long(first):
    log = (first / "log").read_text()
    for part in ("3 videos to make, 5 frames of 16 x 24", "tensors loaded from", "model_ema.safetensors"):
        assert part in log
    assert "1 of 3: step 1/2, " in log and " steps/s, 0:00:0" in log and " left" in log
    assert log.count("saved ") == 3


def test_neither_batch_nor_order_nor_process_changes_a_byte(first, make):
    before = contents(first)
    assert len({before[f"sample_{i:04d}.mp4"] for i in range(3)}) == 3
    again = make("--prompt", *reversed(PROMPTS), "--batch-size", 3)
    for i in range(3):
        assert again[f"sample_{2 - i:04d}.mp4"] == before[f"sample_{i:04d}.mp4"]


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_share_the_videos(first, runs, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = start(*command(runs, tmp_path, "--prompt", *PROMPTS, "--device", "cpu"), launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved ") == 2  # of the first process
    before = contents(first)
    assert contents(tmp_path) == {name: before[name] for name in before if name != "log"}


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("mode", ["axis", "ulysses"])
def test_two_processes_share_one_video(first, runs, tmp_path, mode):
    """One writes; it is the video of one process. How near is held in tests/acceleration."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    options = ("--device", "cpu", "--sp-size", 2, "--sequence-parallel", mode)
    done = start(*command(runs, tmp_path, "--prompt", *PROMPTS[:2], *options), launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved ") == 2
    assert sorted(contents(tmp_path)) == ["sample_0000.mp4", "sample_0001.mp4"]
    for name in contents(tmp_path):
        found, wanted = (pixels(folder / name) for folder in (tmp_path, first))
        assert found.shape == wanted.shape and abs(found - wanted).max() <= 4  # the codec adds to one level


def test_freed_networks_and_previews_change_no_byte(first, make, monkeypatch):
    shown, write = [], generation.write_preview
    monkeypatch.setattr(
        generation, "write_preview", lambda f, path: shown.append(write(f, path) or path.read_bytes())
    )
    made = make("--prompt", *PROMPTS[:2], "--offload", "--preview", 1)
    assert made == {name: data for name, data in contents(first).items() if name in made} and len(made) == 2
    assert len(set(shown)) == 2  # one after the first of two steps, each; none is left


def test_seed_sample_and_negative_prompt_make_other_videos(first, make):
    before = (first / "sample_0000.mp4").read_bytes()
    seeds = make("--prompt", PROMPTS[0], "--seed", 43)["sample_0000.mp4"]
    negative = make("--prompt", PROMPTS[0], "--neg-prompt", "blurry and dark")["sample_0000.mp4"]
    samples = make("--prompt", PROMPTS[0], "--num-sample", 2)
    assert list(samples) == ["sample_0000-0.mp4", "sample_0000-1.mp4"]
    assert samples["sample_0000-0.mp4"] == before
    assert len({before, seeds, negative, samples["sample_0000-1.mp4"]}) == 4


def test_averaged_weights_unless_raw_ones_are_asked_for(make, runs):
    options = ("--prompt", PROMPTS[0], "--metadata", False)  # it names the settings, which differ
    raw = make(*options, "--ema", False)
    assert raw == make(*options, "--ckpt-path", runs / "raw.safetensors")
    averaged = make(*options)
    assert raw["sample_0000.mp4"] != averaged["sample_0000.mp4"]
    checkpoint = runs / "model/checkpoints/epoch0-global_step3"
    assert make(*options, "--ckpt-path", checkpoint) == averaged


def test_familiar_flags_are_the_keys_they_stand_for(make):
    options = ("--prompt", PROMPTS[0], "--metadata", False)
    familiar = make(
        *(*options, "--cfg-scale", 5, "--num-sampling-steps", 3, "--flash-attn", False),
        *("--layernorm-kernel", True, "--force-huggingface", True),
    )
    keys = ("--guidance.scales.text.scale", 5.0, "--scheduler.num_sampling_steps", 3)
    assert familiar == make(*options, *keys)
    assert familiar["sample_0000.mp4"] != make(*options)["sample_0000.mp4"]


def test_images_of_a_named_size(make, tmp_path):
    table = tmp_path / "prompts.csv"
    table.write_text('id,text\n1,skipped\n2,"a red, round apple"\n3,skipped too\n')
    size = ("--resolution", "144p", "--aspect-ratio", "1:1", "--image-size", "none")
    files = ("--prompt-path", table, "--start-index", 1, "--end-index", 2, "--sample-name", "apple")
    made = make(*size, *files, "--num-frames", 1)
    assert list(made) == ["apple_0001.png"]
    with Image.open(tmp_path / "out0/apple_0001.png") as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (192, 192))


def test_odd_sizes_and_durations_come_out_as_asked(make, tmp_path):
    options = ("--prompt", "a cat", "--image-size", 18, 25)
    make(*options, "--num-frames", 1)
    with Image.open(tmp_path / "out0/sample_0000.png") as image:
        assert image.size == (25, 18)
    make(*options, "--seconds", 1, "--save-fps", 8)  # 8 frames: 9 is the nearest legal length
    with av.open(str(tmp_path / "out1/sample_0000.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.frames) == (26, 18, 9)  # H.264 wants even sizes


def test_files_named_by_prompts_are_made_once(run, runs, tmp_path, capsys, monkeypatch):
    table = tmp_path / "prompts.txt"
    table.write_text("a cat\n\nrain/snow\na cat\n")
    words = command(runs, tmp_path / "out", "--prompt-path", table, "--prompt-as-path")
    run(*words)
    assert [name.split("-")[0] for name in contents(tmp_path / "out")] == ["a cat.mp4", "rain_snow"]
    (tmp_path / "out/a cat.mp4").write_bytes(b"mine")
    capsys.readouterr()
    monkeypatch.setattr(LatentDiffusion, "from_config", None)  # nothing to build when all is there
    run(*words, "--num-frames", "9")
    assert "0 videos to make, 9 frames of 16 x 24; 2 are there already" in capsys.readouterr().out
    assert (tmp_path / "out/a cat.mp4").read_bytes() == b"mine"


def test_verbose_0_is_silent(make, capsys):
    make("--prompt", "a cat", "--verbose", 0)
    assert capsys.readouterr().out == ""
    make("--prompt", "a cat", "--verbose", 2)
    assert capsys.readouterr().out.count(": step ") == 2


def test_cleaning_and_scores_reach_the_encoder_but_not_the_noise(make):
    plain = make("--prompt", "a cat")
    assert make("--prompt", "a cat", "--clean-prompts") == plain
    assert make("--prompt", "a cat", "--aes", 7) != plain


# Errors


WRONG = {
    "length": (["--num-frames", "10"], "num_frames=10: this vae gives back 9 or 13 frames, not 10"),
    "no length": (["--num-frames", "0"], "num_frames=0: use a number from 1"),
    "half a frame": (["--num-frames", "5.5"], "num_frames=5.5: use a whole number"),
    "seconds": (["--seconds", "-1"], "seconds=-1: use a number above 0"),
    "resolution": (["--image-size", "none", "--resolution", "350p"], "'350p': unknown (the nearest is '"),
    "ratio": (
        ["--image-size", "none", "--aspect-ratio", "9:15"],
        "aspect_ratio='9:15': 240p has no such ratio (the nearest is '",
    ),
    "size": (["--image-size", "50", "70", "90"], "image_size=(50, 70, 90): give height and width in pixels"),
    "small": (["--image-size", "1", "24"], "height=1: too small"),
    "no prompt": (["--prompt", "none"], "there is no prompt: give --prompt 'a text'"),
    "two": (["--prompt-path", "a.txt"], "prompt_path='a.txt': give one of them, not both"),
    "empty": (["--prompt", "a", " "], "number 1 is empty; write a prompt"),
    "file": (["--prompt", "none", "--prompt-path", "no.txt"], "prompt_path='no.txt': no such file"),
    "column": (
        ["--prompt", "none", "--prompt-path", "{table}"],
        "it has columns ['caption']; a column `text`",
    ),
    "weights": (["--ckpt-path", "no/where/run"], "no/where/run: neither a file or folder in "),
    "file weights": (["--vae.from_pretrained", "/no.safetensors"], "/no.safetensors: no such file or folder"),
    "no weights": (["--ckpt-path", "none"], "model.from_pretrained=None: without weights"),
    "no vae": (["--vae.from_pretrained", "none"], "give --vae.from_pretrained with a run folder"),
    "another": (
        ["--ckpt-path", "{narrow}"],
        "does not fit STDiT3: 2 of 59 tensors fit, 0 are missing in the file, 0 are in the file only, "
        "57 have another shape. other shape: ",
    ),
    "vae as model": (["--ckpt-path", "{vae}"], "Nothing fits: this is another model's file"),
    "text encoder": (["--text_encoder.from_pretrained", "./nowhere"], "'./nowhere': no such folder"),
    "gpu": (["--device", "cuda"], "device='cuda': torch sees no GPU here"),
    "device": (["--device", "tpu"], "device='tpu': use 'cuda', 'cpu'"),
    "dtype": (["--dtype", "int8"], "dtype='int8': use one of fp32, bf16, fp16"),
    "count": (["--num-sample", "0"], "num_sample=0: use a whole number from 1"),
    "rate": (["--save-fps", "fast"], "save_fps='fast': use a number above 0"),
    "loop": (["--loop", "0"], "loop=0: use a whole number from 1"),
    "overlap": (
        ["--loop", "2"],
        "condition_frame_length=5: a clip of 5 frames has 2 latent frames and shares fewer with the next",
    ),
    "reference": (["--reference-path", "a.png"], "reference_path='a.png': nothing says which of its frames"),
    "no reference": (
        ["--reference-path", "a.png", "--mask-strategy", "0"],
        "reference 'a.png': no such file",
    ),
    "strategy": (["--mask-strategy", "0,0,0,0,1,2"], "the edit ratio (the sixth number) lies in [0, 1]"),
    "class": (["--cond-type", "i2v"], "cond_type='i2v': use None or one of none, i2v_head"),
    "way": (["--known-as", "pixels"], "known_as='pixels': use one of auto, frames, reference"),
    "address": (
        ["--reference-path", "http://localhost/a.png", "--mask-strategy", "0"],
        "reference 'http://localhost/a.png': not fetched; get the file, or --references.urls True",
    ),
    "step type": (
        ["--postprocess", "[{{'type': 'Watermarks'}}]"],
        "no such postprocessor. Did you mean Watermark",
    ),
    "step key": (["--postprocess", "[{{'type': 'Deflicker', 'windo': 3}}]"], "did you mean 'window'?"),
    "format": (["--video-format", "avi"], "video_format='avi': use one of mp4"),
    "steps": (["--num-sampling-steps", "0"], "num_sampling_steps=0: use at least 1"),
    "type": (["--model.type", "STDiT4"], "type='STDiT4': no such model. Did you mean STDiT3"),
    "negatives": (["--neg-prompt", "a", "b"], "2 negative prompts for 1 prompts; give one, or one each"),
    "score": (["--aes", "good", "--score-format", "numbers"], "aes='good': score_format='numbers' needs"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_one_line_before_a_network_is_built(
    name, run, runs, tmp_path, capsys, monkeypatch
):
    options, said = WRONG[name]
    (tmp_path / "table.csv").write_text("caption\nx\n")
    places = {"table": tmp_path / "table.csv", "narrow": runs / "narrow.safetensors"}
    places["vae"] = runs / "vae/checkpoints/epoch0-global_step3/vae.safetensors"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(LatentDiffusion, "from_config", None)
    words = command(runs, tmp_path / "out", "--prompt", "a cat", *(text.format(**places) for text in options))
    with pytest.raises(SystemExit) as caught:
        run(*words)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1
    assert said in error


def test_a_training_config_is_refused(run, capsys):
    with pytest.raises(SystemExit) as caught:
        run(str(ROOT / "configs/opensora-v1-3/train/demo.py"))
    assert caught.value.code == 2
    assert "not in this config, so it is no config for inference" in capsys.readouterr().err


def test_the_exit_status_of_the_process_and_no_traceback(runs, tmp_path):
    done = start(*command(runs, tmp_path, "--prompt", "a cat", "--num-frames", "10"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: num_frames=10: ") and done.stderr.count("\n") == 1


def test_help_needs_neither_torch_nor_a_second():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", SCRIPT, "--help"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and "--cfg-scale" in done.stdout
    modules = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "mmengine.config" in modules and "torch" not in modules
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
