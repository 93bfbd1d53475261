"""Small clips, tiny forms of the demo's configs, and what starts scripts."""

import csv
import os
import runpy
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from opensora.datasets.video_io import write_video

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs/opensora-v1-3/train"
FRAMES, SIDE, CLIPS = 9, 32, 12
SAVES, LINES = 5, 3  # steps between checkpoints, and between lines of the log: they do not meet
COLORS = {"red": (0.9, -0.8, -0.8), "green": (-0.8, 0.9, -0.8), "blue": (-0.8, -0.8, 0.9)}


def moving_square(number: int) -> torch.Tensor:
    """Draw a square that moves to the right. Shape [3, T, H, W]."""
    video = torch.full((3, FRAMES, SIDE, SIDE), -0.6)
    color = torch.tensor(list(COLORS.values())[number % 3])[:, None, None]
    for frame in range(FRAMES):
        left = (3 * number + 2 * frame) % (SIDE - 8)
        video[:, frame, 12:20, left : left + 8] = color
    return video


def write_table(path: Path, rows: list[dict]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def words(table: Path, outputs: Path, *options: object) -> list[str]:
    """Return the options that make a demo config tiny."""
    tiny = ["--data-path", table, "--outputs", outputs, "--dtype", "fp32", "--device", "cpu"]
    tiny += ["--dataset.image_size", "(16, 24)", "--dataset.num_frames", 5, "--vae.latent_channels", 4]
    tiny += ["--vae.channels", 32, "--vae.channel_multipliers", "(1, 1, 1, 1)", "--batch-size", 1]
    tiny += ["--lr_schedule.cosine", "false", "--validate-every", 0, "--plugin", "none"]
    return [str(word) for word in (*tiny, *options)]


def script(name: str, *options: object) -> list[str]:
    """Return a script, its demo config and options."""
    config = CONFIGS / {"train": "demo.py", "train_vae": "demo_vae.py"}[name]
    return [str(ROOT / f"scripts/{name}.py"), str(config), *map(str, options)]


def here(*command: str) -> None:
    """Run a script in this process; it saves the start of another."""
    before = sys.argv
    sys.argv = list(command)
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        sys.argv = before


def without(package: str, command: list[str]) -> list[str]:
    """Return a command for `start` that runs a script where a package cannot be imported."""
    block = f"import runpy, sys; sys.modules[{package!r}] = None; sys.argv = sys.argv[1:]; "
    return ["-c", block + "runpy.run_path(sys.argv[0], run_name='__main__')", *command]


def start(*command: str, processes: int = 1, torchrun: bool = False) -> list[subprocess.Popen]:
    """Start a script in processes of its own; with torchrun, which takes seconds itself, or as it would."""
    place = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    launcher, ranks = [], [{}]
    if torchrun:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    elif processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    whole = [sys.executable, *launcher, *command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [subprocess.Popen(whole, env=place | rank, **pipes) for rank in ranks]


def kill(processes: list[subprocess.Popen]) -> None:
    """Kill processes and what they started, with no time to say goodbye.

    What they started holds their pipes open, so it must go too before their output ends.
    """
    psutil = pytest.importorskip("psutil")
    victims = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(process.pid)
            victims += [*first.children(recursive=True), first]
    for victim in victims:
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    for process in processes:
        process.communicate(timeout=600)


def finish(processes: list[subprocess.Popen], status: int = 0) -> str:
    """Wait for processes and return what they wrote."""
    try:
        outputs = [process.communicate(timeout=600)[0] for process in processes]
    except subprocess.TimeoutExpired:
        kill(processes)
        raise
    assert [process.returncode for process in processes] == [status] * len(processes), "".join(outputs)
    return "".join(outputs)


@pytest.fixture(scope="session")
def scripts() -> SimpleNamespace:
    """Return what starts scripts; tests do not import each other."""
    parts = (write_table, words, script, here, without, start, kill, finish)
    return SimpleNamespace(**{part.__name__: part for part in parts})


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Write the clips and return their rows."""
    folder = tmp_path_factory.mktemp("clips")
    found = []
    for number in range(CLIPS):
        path = write_video(moving_square(number), folder / f"{number}.mp4", 24)
        row = {"path": path, "text": f"a {list(COLORS)[number % 3]} square moves", "num_frames": FRAMES}
        found.append({**row, "height": SIDE, "width": SIDE, "fps": 24})
    return found


@pytest.fixture(scope="session")
def table(rows, tmp_path_factory) -> Path:
    return write_table(tmp_path_factory.mktemp("table") / "clips.csv", rows)


@pytest.fixture(scope="session")
def vae(table, tmp_path_factory) -> Path:
    """Train the autoencoder for a few steps and return its run folder."""
    folder = tmp_path_factory.mktemp("vae")
    options = ["--max-steps", 6, "--log-every", 2, "--validate-every", 3]
    here(*script("train_vae", *words(table, folder, *options)))
    return folder / "vae"


@pytest.fixture(scope="session")
def denoiser(table, vae):
    """Return the command that trains the denoiser into a folder."""

    def command(outputs: Path, *options: object) -> list[str]:
        tiny = ["--model.hidden_size", 48, "--model.depth", 1, "--model.num_heads", 2]
        tiny += ["--batches-per-step", "none", "--vae.from_pretrained", vae, "--run-name", "run"]
        tiny += ["--log-every", LINES, "--ckpt-every", SAVES, "--ckpt-keep", 0]
        return script("train", *words(table, outputs, *tiny, *options))

    return command


@pytest.fixture(scope="session")
def one_process(denoiser, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    here(*denoiser(folder, "--accumulation-steps", 2, "--max-steps", 12))
    return folder / "run"
