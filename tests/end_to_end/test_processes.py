"""scripts/train.py in two processes: equal to one, killed and continued, stopped, with fewer and more."""

import importlib.util
import signal
import time
from pathlib import Path

import pytest
import torch

from opensora.engine.checkpoint import list_checkpoints, read_checkpoint, read_state
from opensora.engine.tracker import read_log

STEPS, LINES = 20, 3  # of the runs that are compared; between two lines of the log
needs_colossalai = pytest.mark.skipif(
    importlib.util.find_spec("colossalai") is None, reason="needs ColossalAI"
)

# Without captions a process starts in half the time.
SILENT = ["--text-encoder", "none", "--condition-dropout", "{}"]
SILENT += ["--model.conditions", "{'size': {'type': 'SizeCondition', 'fields': ('fps',)}}"]


@pytest.fixture(scope="module")
def two(denoiser):
    """Return the command of a run of two processes."""

    def command(outputs: Path, plugin: str = "zero2", steps: int = STEPS, silent: bool = True) -> list[str]:
        return denoiser(outputs, "--plugin", plugin, "--max-steps", steps, *(SILENT if silent else []))

    return command


@pytest.fixture(scope="module")
def zero2(scripts, two, tmp_path_factory) -> Path:
    """An uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("zero2")
    scripts.finish(scripts.start(*two(folder), processes=2, torchrun=True))
    return folder / "run"


@pytest.fixture(scope="module")
def zero2_captions(scripts, two, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("captions")
    scripts.finish(scripts.start(*two(folder, silent=False), processes=2, torchrun=True))
    return folder / "run"


def lines_of(run: Path, last: int) -> list[dict]:
    return [line for line in read_log(run) if line["step"] <= last]


def at_step(run: Path, step: int) -> Path:
    (path,) = (path for path in list_checkpoints(run) if read_state(path).step == step)
    return path


def assert_close_weights(run: Path, other: Path, step: int) -> None:
    """Compare weights and averages of two runs at a step."""
    one, two = (read_checkpoint(at_step(path, step))[1] for path in (run, other))
    assert one.keys() == two.keys()
    for stem in ("model", "model_ema"):
        assert one[stem].keys() == two[stem].keys()
        for key, value in one[stem].items():
            torch.testing.assert_close(value, two[stem][key], atol=1e-5, rtol=1e-5, msg=f"{stem}: {key}")


def assert_goes_on(run: Path, other: Path, step: int) -> None:
    """Compare the losses after `step` of a run that went on from another's checkpoint."""
    lines = [line for line in read_log(other) if line["step"] > step]
    assert len(lines) > 2
    for line, expected in zip(read_log(run), lines, strict=True):
        assert line["step"] == expected["step"]
        assert line["loss"] == pytest.approx(expected["loss"], abs=1e-4)


def assert_close(run: Path, other: Path, last: int) -> None:
    """Compare the losses of two runs."""
    pairs = list(zip(lines_of(run, last), lines_of(other, last), strict=True))
    assert pairs and pairs[-1][0]["step"] > last - LINES
    for line, expected in pairs:
        assert line["step"] == expected["step"]
        assert line["loss"] == pytest.approx(expected["loss"], abs=1e-4)
        assert line["grad_norm_model"] == pytest.approx(expected["grad_norm_model"], rel=1e-3)


def assert_same(run: Path, other: Path) -> None:
    """Compare the newest checkpoints and the logs of two runs, bit by bit."""
    (state, tensors), (other_state, others) = read_checkpoint(run), read_checkpoint(other)
    assert state == other_state
    assert tensors.keys() == others.keys()
    for stem, part in tensors.items():
        assert part.keys() == others[stem].keys()
        for key, value in part.items():
            assert torch.equal(value, others[stem][key]), f"{stem}: {key}"
    assert (run / "log.jsonl").read_text() == (other / "log.jsonl").read_text()


@needs_colossalai
@pytest.mark.dist
def test_one_process_and_two_train_the_same(scripts, two, zero2, denoiser, tmp_path):
    single = denoiser(tmp_path / "one", "--accumulation-steps", 2, "--max-steps", 12, *SILENT)
    for command, processes in ((single, 1), (two(tmp_path / "ddp", "ddp", 12), 2)):
        bare = scripts.without("colossalai", command)  # plain torch is enough for both
        scripts.finish(scripts.start(*bare, processes=processes))
    one, ddp = tmp_path / "one/run", tmp_path / "ddp/run"
    for other in (ddp, zero2):
        assert_close(other, one, 12)
        assert_close_weights(other, one, 10)
    assert {read_state(run).data["batches_per_step"] for run in (one, ddp, zero2)} == {2}


@needs_colossalai
@pytest.mark.dist
def test_a_run_of_two_goes_on_with_one(scripts, two, zero2, tmp_path):
    scripts.here(*two(tmp_path, "none"), "--load", str(at_step(zero2, 10)))
    assert read_state(tmp_path / "run").data["batches_per_step"] == 2
    assert_goes_on(tmp_path / "run", zero2, 10)


def saved(run: Path) -> bool:
    return bool(list_checkpoints(run))


@needs_colossalai
@pytest.mark.dist
def test_a_killed_run_that_is_started_again_is_the_uninterrupted_one(scripts, two, zero2, tmp_path):
    """test_kills.py does so at many moments; here with new processes and the command as users give it."""
    processes = scripts.start(*two(tmp_path), processes=2)
    while all(process.poll() is None for process in processes) and not saved(tmp_path / "run"):
        time.sleep(0.001)
    scripts.kill(processes)
    steps = [read_state(path).step for path in list_checkpoints(tmp_path / "run")]
    assert steps and STEPS not in steps
    output = scripts.finish(scripts.start(*two(tmp_path), processes=2))
    assert f"at step {steps[-1]}," in output
    assert_same(tmp_path / "run", zero2)


@pytest.mark.dist
@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(scripts, two, tmp_path):
    steps = 400
    processes = scripts.start(*two(tmp_path, "ddp", steps), processes=2)
    while all(process.poll() is None for process in processes) and not saved(tmp_path / "run"):
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    output = scripts.finish(processes)
    last = read_state(tmp_path / "run").step
    assert 5 <= last < steps and f"asked to stop: saving step {last}" in output
    assert read_checkpoint(tmp_path / "run")[1].keys() == {"model", "model_ema", "model_optimizer"}


@needs_colossalai
@pytest.mark.dist
@pytest.mark.slow
def test_a_run_of_one_goes_on_with_two(scripts, two, one_process, zero2_captions, tmp_path):
    load = str(at_step(one_process, 10))
    scripts.finish(scripts.start(*two(tmp_path, silent=False), "--load", load, processes=2))
    assert_goes_on(tmp_path / "run", zero2_captions, 10)


@pytest.mark.dist
def test_more_processes_than_a_step_has_batches(scripts, denoiser, tmp_path):
    command = denoiser(tmp_path, "--batches-per-step", 1)
    output = scripts.finish(scripts.start(*command, processes=2), status=2)
    said = ": batches_per_step=1 cannot be shared by 2 processes; start as many processes as divide it"
    assert output.count(f"error{said}") == output.count(f"error in process 1{said}") == 1
    assert output.count("\n") == 2


@pytest.mark.dist
def test_each_process_of_torchrun_says_what_is_wrong_at_most_once(scripts, denoiser, tmp_path):
    command = denoiser(tmp_path, "--batches-per-step", 1)
    output = scripts.finish(scripts.start(*command, processes=2, torchrun=True), status=1)
    assert output.count("error: batches_per_step=1 cannot be shared by 2 processes") == 1
    # On a busy machine torchrun may take longer to end the other than that waits with the same words.
    assert output.count("cannot be shared by 2 processes") <= 2


def test_too_many_bad_clips_stop_both_processes_with_a_line_each(scripts, two, rows, tmp_path):
    """Each process reads a part; neither alone has seen enough to stop."""
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    many = [
        {**row, "path": tmp_path / "broken.mp4"} if i in (30, 31) else row for i, row in enumerate(10 * rows)
    ]
    table = scripts.write_table(tmp_path / "clips.csv", many)
    command = [*two(tmp_path, "ddp"), "--data-path", str(table), "--batch-size", "10"]
    said = scripts.finish(scripts.start(*command, processes=2, torchrun=True), status=1)
    lines = [line for line in said.splitlines() if line.startswith("error")]
    assert 1 <= len(lines) <= 2 and sum(line.startswith("error: ") for line in lines) == 1
    assert all("2 of 1" in line and "samples could not be read, more than 1%" in line for line in lines)
    assert 'File "' not in said.split("error: ")[0]
