"""Faults of whole runs: scripts/train.py with bad numbers, full disks, signals and lost processes."""

import json
import math
from pathlib import Path

import pytest
from safetensors.torch import load_file

from opensora.engine.tracker import read_log

ROOT = Path(__file__).parents[2]
# Without captions a process starts in half the time.
SILENT = ["--text-encoder", "none", "--condition-dropout", "{}"]
SILENT += ["--model.conditions", "{'size': {'type': 'SizeCondition', 'fields': ('fps',)}}"]


@pytest.fixture(scope="module")
def pair(scripts, denoiser, tmp_path_factory) -> Path:
    """A run of two processes with two batches each."""
    folder = tmp_path_factory.mktemp("pair")
    options = ["--plugin", "ddp", "--max-steps", 8, "--batches-per-step", 4, "--log-every", 1, *SILENT]
    scripts.finish(scripts.start(*denoiser(folder, *options), processes=2))
    return folder / "run"


def replay(scripts, capsys, run: Path, *options: object) -> str:
    scripts.here(str(ROOT / "scripts/replay.py"), str(run), *map(str, options))
    return capsys.readouterr().out


@pytest.mark.dist
def test_a_replayed_step_has_the_bits_of_the_run(scripts, pair, capsys):
    losses = {line["step"]: line["loss"] for line in read_log(pair)}
    for step in (0, 5):
        said = replay(scripts, capsys, pair, "--step", step)
        assert "which are those of this step" in said
        assert f"all processes: loss {losses[step + 1]!r}, equal to the recorded" in said


@pytest.mark.dist
def test_a_replay_of_one_process_shows_what_went_in(scripts, pair, capsys):
    said = replay(scripts, capsys, pair, "--step", 7, "--rank", 1)
    assert "step 7: computed with the weights of epoch" in said and "NOT those of this step" in said
    folder = pair / "replays/step000007_rank1"
    report = json.loads((folder / "report.json").read_text())
    assert len(report["batches"]) == 2 and all(len(batch["clips"]) == 1 for batch in report["batches"])
    tensors = load_file(folder / "tensors.safetensors")
    for i, batch in enumerate(report["batches"]):
        (clip,) = batch["clips"]
        assert clip["path"].endswith(".mp4") and str(clip["row"]) in said and math.isfinite(clip["loss"])
        assert clip["inputs"]["t"] == tensors[f"{i}.input.t"].item()
        assert tensors[f"{i}.draw.noise/0"].shape == tensors[f"{i}.input.x"].shape
        assert (folder / f"clips{i}.png").stat().st_size > 200
    other = replay(scripts, capsys, pair, "--step", 7, "--rank", 0)
    assert not {line for line in other.splitlines() if " row " in f" {line}"} & set(said.splitlines())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--step", 9], "step=9: the run has made 8 steps; give 0 to 8."),
        (["--step", 1, "--rank", 2], "rank=2: the run had 2 processes; give 0 to one less."),
    ],
)
@pytest.mark.dist
def test_a_replay_of_what_never_was_is_refused(scripts, pair, capsys, options, said):
    with pytest.raises(SystemExit):
        replay(scripts, capsys, pair, *options)
    assert said in capsys.readouterr().err
