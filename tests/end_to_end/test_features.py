"""scripts/extract_features.py, and training on what it writes: the same bits as training on clips."""

import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from opensora.datasets.features import FeatureDataset
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
    for one in (state, other_state):  # the datasets differ
        one.data.pop("settings")
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
    psutil = pytest.importorskip("psutil")
    readers = [one for process in processes for one in psutil.Process(process.pid).children(recursive=True)]
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate()
    _, alive = psutil.wait_procs(readers, timeout=200)
    assert not alive, "readers outlive the process that they read for"


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


def test_samples_of_the_posterior_and_validation_without_the_encoders(scripts, denoiser, features, tmp_path):
    options = ["--max-steps", 6, "--sample-posterior", "--validate-every", 3, "--validation.sample", "false"]
    options += ["--validation.num_times", 2, "--log-every", 1]
    scripts.here(*denoiser(tmp_path / "live", *options))
    without = ["--vae", "none", "--text-encoder", "none"]
    scripts.here(*denoiser(tmp_path / "cached", *options, *on_features(features), *without))
    assert_same(tmp_path / "cached/run", tmp_path / "live/run")
    assert sum("validation_loss" in line for line in read_log(tmp_path / "cached/run")) == 2


def test_windows_of_longer_clips(scripts, denoiser, extraction, tmp_path, capsys):
    """Cut from clips or features: the same bits. Replays show the windows, dry runs count their tokens."""
    longer = ["--dataset.num_frames", 9, "--vae.micro_frame_size", "none"]
    scripts.here(*extraction(tmp_path / "features", *longer))
    options = [*longer, "--latent_window", "{'frames': 2, 'begin': 0.3}", "--max-steps", 6, "--log-every", 1]
    options += ["--validate-every", 3, "--validation.num_times", 2]
    scripts.here(*denoiser(tmp_path / "live", *options))
    cached = [*options, *on_features(tmp_path / "features")]
    scripts.here(*denoiser(tmp_path / "cached", *cached))
    assert_same(tmp_path / "cached/run", tmp_path / "live/run")
    capsys.readouterr()
    scripts.here(str(ROOT / "scripts/replay.py"), str(tmp_path / "cached/run"), "--step", "0")
    assert "equal to the recorded" in capsys.readouterr().out
    assert list((tmp_path / "cached/run").glob("replays/*/clips*.png"))
    scripts.here(*denoiser(tmp_path / "dry", *options, "--dry-run"))
    assert "windows of 2, " in capsys.readouterr().out
    short = ["--dataset.num_frames", 5, "--latent_window", "{'frames': 2}"]
    with pytest.raises(SystemExit):
        scripts.here(*denoiser(tmp_path / "short", *options, *short))
    assert "so no window lies anywhere but at their beginning" in "".join(capsys.readouterr())


def test_features_that_do_not_fit_end_a_run_before_it_starts(
    scripts, denoiser, features, vae, tmp_path, capsys
):
    weights = vae / "checkpoints/epoch0-global_step6/vae.safetensors"  # not the averaged ones
    changed = tmp_path / "changed"
    shutil.copytree(features, changed)
    path = shards(changed)[0]
    path.write_bytes(path.read_bytes()[:-1])
    other = ["--vae.from_pretrained", weights]
    for options, said in (
        ([*on_features(features), *other], "vae: these features were made with other weights"),
        (
            [*on_features(features), "--text_encoder.max_length", 9],
            "text_encoder: max_length=9, and these features",
        ),
        (on_features(changed), "latents-00000.safetensors: damaged or cut short"),
        (
            ["--dataset.data_path", features],
            "is a folder of features: set dataset to dict(type='FeatureDataset'",
        ),
    ):
        with pytest.raises(SystemExit):
            scripts.here(*denoiser(tmp_path / "run", *options))
        assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_extraction_into_a_folder_of_other_features_is_refused(
    scripts, extraction, features, tmp_path, capsys
):
    for options, said in (
        (["--variants", 2], "these features were made with another plan"),
        (["--variants", 3, "--text_encoder.max_length", 9], "with another encoders"),
        (["--variants", 0], "variants=0, shard_mib=0.0015: both must be above 0"),
        (["--vae", "none"], "vae=None: latents need an autoencoder"),
    ):
        with pytest.raises(SystemExit):
            scripts.here(*extraction(features, *options))
        assert said in capsys.readouterr().err


def test_a_file_that_changed_is_extracted_again(scripts, extraction, rows, tmp_path, capsys):
    few = [{**row, "path": tmp_path / f"{i}.mp4"} for i, row in enumerate(rows[:4])]
    for row, source in zip(few, rows, strict=False):
        shutil.copy(source["path"], row["path"])
    table = scripts.write_table(tmp_path / "clips.csv", few)
    command = extraction(tmp_path / "features", "--data-path", table, "--shard-mib", 0.0005)
    scripts.here(*command)
    before = contents(tmp_path / "features")
    shutil.copy(rows[7]["path"], few[2]["path"])
    with pytest.raises(ValueError, match="2.mp4: it has changed since its features were extracted .row 2."):
        FeatureDataset(str(tmp_path / "features")).check()
    scripts.here(*command)
    after = contents(tmp_path / "features")
    assert [name for name in before if before[name] != after[name]] == [
        "index.safetensors",
        "latents-00002.safetensors",
    ]
    FeatureDataset(str(tmp_path / "features")).check()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_many_moments(scripts, extraction, features, tmp_path, seed):
    moments = random.Random(seed)
    command = extraction(tmp_path, "--variants", 3, "--num-workers", seed % 2)
    for start in range(3):
        ready = [lambda: (tmp_path / "features.json").exists(), lambda: list(tmp_path.glob(".latents*"))][
            start % 2
        ]
        processes = scripts.start(*command, processes=1 + seed // 2)
        try:
            kill_when(processes, ready, 0.5 * moments.random())
        except AssertionError:
            break  # it was over
    scripts.finish(scripts.start(*command, processes=2))
    assert contents(tmp_path) == contents(features)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("sampled", [False, True])
def test_two_processes_train_the_same_on_features(scripts, denoiser, features, tmp_path, sampled):
    options = ["--plugin", "ddp", "--max-steps", 10, "--sample-posterior", str(sampled)]
    for name, more in (("live", []), ("cached", [*on_features(features), "--num-workers", 1])):
        command = denoiser(tmp_path / name, *options, *more)
        scripts.finish(scripts.start(*command, processes=2))
    assert_same(tmp_path / "cached/run", tmp_path / "live/run")
