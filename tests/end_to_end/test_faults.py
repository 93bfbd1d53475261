"""Faults of whole runs: scripts/train.py with bad numbers, full disks, signals and lost processes."""

import json
import math
import os
import resource
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from opensora.acceleration.heartbeat import Beat, read_beat
from opensora.engine.checkpoint import read_state
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


def steps_done(run: Path) -> list[Beat]:
    """Return the beats of both processes, once they have made a few steps."""
    end = time.monotonic() + 100
    while time.monotonic() < end:
        beats = [read_beat(path) for path in sorted(run.glob(".heartbeats/*/rank?.json"))]
        if len(beats) == 2 and all(beat is not None and beat.step > 3 for beat in beats):
            return beats
        time.sleep(0.05)
    raise AssertionError("no steps were made")


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_ends_the_others_after_they_have_spoken(scripts, denoiser, tmp_path, rank):
    options = ["--plugin", "ddp", "--max-steps", 5000, "--batches-per-step", 2, *SILENT]
    started = scripts.start(*denoiser(tmp_path, *options), processes=2, torchrun=True)
    try:
        os.kill(steps_done(tmp_path / "run")[rank].pid, signal.SIGKILL)
        output = started[0].communicate(timeout=600)[0]
    finally:
        scripts.kill(started)
    assert f"error in process {1 - rank}: process {rank} died in " in output or (
        rank and "error: process 1 died in " in output
    )
    assert "a named run goes on from its last checkpoint" in output


@pytest.mark.slow
@pytest.mark.dist
def test_torchrun_passes_on_a_signal_and_the_run_saves(scripts, denoiser, tmp_path):
    options = ["--plugin", "ddp", "--max-steps", 5000, "--batches-per-step", 2, "--ckpt-every", 0, *SILENT]
    started = scripts.start(*denoiser(tmp_path, *options), processes=2, torchrun=True)
    try:
        beats = steps_done(tmp_path / "run")
        started[0].send_signal(signal.SIGTERM)
        os.kill(beats[1].pid, signal.SIGTERM)
        output = started[0].communicate(timeout=600)[0]
    finally:
        scripts.kill(started)
    step = read_state(tmp_path / "run").step
    assert f"asked to stop: saving step {step}" in output and f"trained to step {step}" in output


def test_a_disk_that_stays_full_ends_the_run_with_an_error(scripts, denoiser, tmp_path):
    """A limit on the size of files stands for the disk: the kernel refuses the same writes."""
    (started,) = scripts.start(*denoiser(tmp_path, "--max-steps", 6, *SILENT))
    resource.prlimit(started.pid, resource.RLIMIT_FSIZE, (16000, resource.RLIM_INFINITY))
    said = scripts.finish([started], status=2)
    assert said.count("no checkpoint of step 5 (") == 1 and "Training goes on" in said
    assert "error: step 6 is not saved, and the run is over: " in said and "none yet" in said
    assert [line["step"] for line in read_log(tmp_path / "run")] == [3, 6]
