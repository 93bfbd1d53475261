"""scripts/extract_features.py, and training on what it writes: the same bits as training on clips."""

import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from opensora.engine.checkpoint import read_checkpoint
from opensora.engine.tracker import read_log

ROOT = Path(__file__).parents[2]
EXTRACT = str(ROOT / "scripts/extract_features.py")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def on_features(folder: Path) -> list[str]:
    return ["--dataset", f"{{'type': 'FeatureDataset', 'data_path': '{folder}'}}"]


def assert_same(run: Path, other: Path) -> None:
    """Compare the newest checkpoints and the logs of two runs, bit by bit."""
    (state, tensors), (other_state, others) = read_checkpoint(run), read_checkpoint(other)
    assert state == other_state
    for stem, part in tensors.items():
        assert part.keys() == others[stem].keys()
        for key, value in part.items():
            assert torch.equal(value, others[stem][key]), f"{stem}: {key}"
    assert len(read_log(run)) > 2
    assert (run / "log.jsonl").read_text() == (other / "log.jsonl").read_text()


def shards(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*-*.safetensors"))


def kill_when(processes: list[subprocess.Popen], ready: Callable[[], bool], delay: float) -> None:
    """Kill processes, with no time to say goodbye, `delay` seconds after something has happened."""
    while all(process.poll() is None for process in processes) and not ready():
        time.sleep(0.001)
    time.sleep(delay)
    assert any(process.poll() is None for process in processes), "the extraction was over too early"
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate()


@pytest.fixture(scope="module")
def extraction(denoiser):
    """Return the command that extracts features into a folder."""

    def command(folder: Path, *options: object) -> list[str]:
        whole = denoiser(folder, "--save-dir", folder, "--shard-mib", 0.0015, *options)
        return [EXTRACT, *whole[1:]]

    return command


@pytest.fixture(scope="module")
def features(scripts, extraction, tmp_path_factory) -> Path:
    """Features of three epochs, made in one go."""
    folder = tmp_path_factory.mktemp("features")
    scripts.here(*extraction(folder, "--variants", 3))
    return folder


def test_training_on_features_is_training_on_clips(scripts, denoiser, features, one_process, tmp_path):
    scripts.here(*denoiser(tmp_path, "--accumulation-steps", 2, "--max-steps", 12, *on_features(features)))
    assert_same(tmp_path / "run", one_process)


def test_an_extraction_in_parts_is_the_one_in_one_go(scripts, extraction, features, tmp_path):
    """Two processes, both killed at a random moment; then one process goes on; then nothing is left to do."""
    command = extraction(tmp_path, "--variants", 3)
    processes = scripts.start(*command, processes=2)
    kill_when(processes, lambda: len(shards(tmp_path)) >= 1, 0.1 * random.Random(3).random())
    before = {path.name: path.stat().st_mtime_ns for path in shards(tmp_path)}
    assert 0 < len(before) < len(shards(features)) and not (tmp_path / "index.safetensors").exists()
    scripts.here(*command)
    assert contents(tmp_path) == contents(features)
    kept = {path.name: path.stat().st_mtime_ns for path in shards(tmp_path) if path.name in before}
    assert kept == before  # finished shards are not made again
    changed = {path.name: path.stat().st_mtime_ns for path in shards(tmp_path)}
    scripts.here(*command)
    assert {path.name: path.stat().st_mtime_ns for path in shards(tmp_path)} == changed
