"""scripts/extract_features.py: what lies in the folder is kept only if it is what would be written."""

import csv
import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch

from opensora.acceleration.parallel import ParallelState
from opensora.datasets.features import FeatureDataset
from opensora.datasets.video_io import write_image

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/extract_features.py"
BUCKETS = "{'144p': {1: (1.0, 1)}, '240p': {1: (0.5, 1)}}"
TINY = ["--dtype", "fp32", "--device", "cpu", "--batches-per-step", 1, "--num-workers", 0, "--variants", 1]
TINY += ["--vae.channels", 32, "--vae.latent_channels", 4, "--vae.channel_multipliers", "(1, 1, 1, 1)"]
TINY += ["--text-encoder", "none", "--batch-size", "none", "--dataset.num_frames", "none"]
TINY += ["--dataset.image_size", "none", "--shard-mib", 0.01, "--bucket-config", BUCKETS]


@pytest.fixture
def table(tmp_path) -> Path:
    """Write four images, two of them smaller than 240p by one rule only."""
    rows = []
    for number in range(4):
        height, width = ((300, 400), (230, 400))[number % 2]
        image = torch.full((3, height, width), number / 4 - 0.5)
        path = write_image(image, tmp_path / f"{number}.png")
        rows.append({"path": path, "num_frames": 1, "height": height, "width": width})
    with open(tmp_path / "images.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path / "images.csv"


@pytest.fixture
def extract(table, tmp_path, monkeypatch):
    """Return what extracts the images, in this process."""

    def run(*options: object) -> Path:
        words = [SCRIPT, ROOT / "configs/opensora-v1-3/train/demo.py", "--data-path", table]
        words += ["--save-dir", tmp_path / "features", *TINY, *options]
        monkeypatch.setattr("sys.argv", [str(word) for word in words])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return tmp_path / "features"

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_shards_of_other_clips_are_made_anew(extract, caplog):
    folder = extract()
    before = contents(folder)
    shards = [name for name in before if name.startswith("latents")]
    assert len(shards) > 2
    shutil.copy(folder / shards[0], folder / shards[1])
    extract()
    assert "latents-00001.safetensors is made anew: it holds clips of other rows" in caplog.text
    assert contents(folder) == before


def test_shards_of_other_sizes_of_the_same_rows_are_made_anew(extract, caplog):
    folder = extract("--bucket-config", "{'144p': {1: (1.0, 1)}}")
    header = json.loads((folder / "features.json").read_text())
    stale = contents(folder)
    shutil.rmtree(folder)
    extract("--bucket-config", "{'240p': {1: (1.0, 1)}}", "--plan.max_dropped", 1.0)
    wanted = contents(folder)
    assert header["shards"] == json.loads(wanted["features.json"])["shards"]
    for name in stale:  # the header of one, the shards of the other, as if a rule that it lacks had changed
        if name.startswith("latents"):
            (folder / name).write_bytes(stale[name])
    extract("--bucket-config", "{'240p': {1: (1.0, 1)}}", "--plan.max_dropped", 1.0)
    assert "latents-00000.safetensors is made anew: it holds another clip of" in caplog.text
    assert contents(folder) == wanted


@pytest.mark.parametrize("rule", [["--plan.bucket_rule", "ratio"], ["--plan.starved", "drop"]])
def test_another_rule_of_the_plan_is_refused(extract, capsys, rule):
    folder = extract()
    before = contents(folder)
    with pytest.raises(SystemExit):
        extract(*rule)
    assert "these features were made with another plan" in capsys.readouterr().err
    assert contents(folder) == before


def test_files_that_are_unreadable_or_gone_cost_no_shard_at_a_restart(extract, tmp_path, caplog):
    (tmp_path / "1.png").write_bytes(b"no image")
    folder = extract()
    before = contents(folder)
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("latents*")}
    (tmp_path / "2.png").unlink()
    extract()
    assert contents(folder) == before
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("latents*")} == times
    write_image(torch.zeros(3, 230, 400), tmp_path / "1.png")
    extract()
    assert f"{tmp_path / '1.png'} could not be read, and has changed since" in caplog.text
    assert FeatureDataset(str(folder)).index["latents_shard"].min() >= 0


@pytest.mark.parametrize("is_main", [True, False])
def test_the_main_process_writes_the_index_when_all_shards_are_written(is_main):
    done = []

    class Job:
        folder, captions, place = Path("x"), [], ParallelState(rank=0 if is_main else 1, world_size=2)

        def __init__(self, cfg):
            pass

        def __getattr__(self, name):
            return lambda: done.append(name) or True

    extract = runpy.run_path(str(SCRIPT))["extract"]
    extract.__globals__.update(Extraction=Job, barrier=lambda: done.append("barrier"))
    extract({})
    expected = ["announce", "open_folder", "write_clips", "barrier"]
    assert done == expected + ["write_index"] * is_main


def test_folders_of_frames_are_extracted_and_those_that_changed_anew(extract, tmp_path, caplog):
    for number in range(2):
        (tmp_path / f"clips/{number}").mkdir(parents=True)
        for frame in range(5):
            write_image(
                torch.full((3, 200, 320), frame / 9), tmp_path / "clips" / str(number) / f"{frame}.png"
            )
    options = ["--data-path", tmp_path / "clips", "--dataset.layout", "frames"]
    options += ["--bucket-config", "{'144p': {5: (1.0, 1)}}", "--dataset.frame_interval", 1]
    folder = extract(*options)
    before = contents(folder)
    FeatureDataset(str(folder)).check()
    assert FeatureDataset(str(folder)).index["latents_shard"].tolist() == [0, 1]
    extract(*options)
    assert contents(folder) == before
    write_image(torch.zeros(3, 200, 320), tmp_path / "clips/1/4.png")
    with pytest.raises(ValueError, match="clips/1/: it has changed since its features were extracted"):
        FeatureDataset(str(folder)).check()
    extract(*options)
    changed = {name for name, content in contents(folder).items() if content != before[name]}
    assert {"latents-00001.safetensors", "index.safetensors"} == changed
    assert "clips/1/ has changed" in caplog.text
