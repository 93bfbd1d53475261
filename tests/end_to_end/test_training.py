"""scripts/train_vae.py and scripts/train.py on a few small clips: one process, two, killed and continued."""

import csv
import importlib.util
import json
import os
import random
import resource
import runpy
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

from opensora.datasets.video_io import write_video
from opensora.engine.autoencoding import Autoencoding
from opensora.engine.checkpoint import list_checkpoints, read_checkpoint, read_state
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.engine.tracker import read_log

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs/opensora-v1-3/train"
FRAMES, SIDE, CLIPS = 9, 32, 12
STEPS, SAVES, LINES = 20, 5, 3  # of the runs that are compared: lines of the log and checkpoints do not meet
COLORS = {"red": (0.9, -0.8, -0.8), "green": (-0.8, 0.9, -0.8), "blue": (-0.8, -0.8, 0.9)}
needs_colossalai = pytest.mark.skipif(
    importlib.util.find_spec("colossalai") is None, reason="needs ColossalAI"
)


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


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict]:
    """Write the clips and return their rows."""
    folder = tmp_path_factory.mktemp("clips")
    found = []
    for number in range(CLIPS):
        path = write_video(moving_square(number), folder / f"{number}.mp4", 24)
        row = {"path": path, "text": f"a {list(COLORS)[number % 3]} square moves", "num_frames": FRAMES}
        found.append({**row, "height": SIDE, "width": SIDE, "fps": 24})
    return found


@pytest.fixture(scope="module")
def table(rows, tmp_path_factory) -> Path:
    return write_table(tmp_path_factory.mktemp("table") / "clips.csv", rows)


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


def finish(processes: list[subprocess.Popen], status: int = 0) -> str:
    """Wait for processes and return what they wrote."""
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [status] * len(processes), outputs
    return "".join(outputs)


@pytest.fixture(scope="module")
def vae(table, tmp_path_factory) -> Path:
    """Train the autoencoder for a few steps and return its run folder."""
    folder = tmp_path_factory.mktemp("vae")
    options = ["--max-steps", 6, "--log-every", 2, "--validate-every", 3]
    here(*script("train_vae", *words(table, folder, *options)))
    return folder / "vae"


@pytest.fixture(scope="module")
def denoiser(table, vae):
    """Return the command that trains the denoiser into a folder."""

    def command(outputs: Path, *options: object) -> list[str]:
        tiny = ["--model.hidden_size", 48, "--model.depth", 1, "--model.num_heads", 2]
        tiny += ["--batches-per-step", "none", "--vae.from_pretrained", vae, "--run-name", "run"]
        tiny += ["--log-every", LINES, "--ckpt-every", SAVES, "--ckpt-keep", 0]
        return script("train", *words(table, outputs, *tiny, *options))

    return command


# Without captions a process starts in half the time.
SILENT = ["--text-encoder", "none", "--condition-dropout", "{}"]
SILENT += ["--model.conditions", "{'size': {'type': 'SizeCondition', 'fields': ('fps',)}}"]


@pytest.fixture(scope="module")
def one_process(denoiser, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    here(*denoiser(folder, "--accumulation-steps", 2, "--max-steps", 12))
    return folder / "run"


@pytest.fixture(scope="module")
def two(denoiser):
    """Return the command of a run of two processes."""

    def command(outputs: Path, plugin: str = "zero2", steps: int = STEPS, silent: bool = True) -> list[str]:
        return denoiser(outputs, "--plugin", plugin, "--max-steps", steps, *(SILENT if silent else []))

    return command


@pytest.fixture(scope="module")
def zero2(two, tmp_path_factory) -> Path:
    """An uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("zero2")
    finish(start(*two(folder), processes=2, torchrun=True))
    return folder / "run"


@pytest.fixture(scope="module")
def zero2_captions(two, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("captions")
    finish(start(*two(folder, silent=False), processes=2, torchrun=True))
    return folder / "run"


def lines_of(run: Path, last: int) -> list[dict]:
    return [line for line in read_log(run) if line["step"] <= last]


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


# One run


def test_the_autoencoder_learns_and_shows_it(vae):
    lines = read_log(vae)
    losses = [line["vae_loss"] for line in lines if "vae_loss" in line]
    assert len(losses) == 3 and losses[-1] < 0.7 * losses[0]
    assert [line["step"] for line in lines if "validation_psnr" in line] == [3, 6]
    for step in (3, 6):
        with Image.open(vae / f"samples/step{step:07d}.png") as picture:
            assert picture.width >= SIDE
    assert {path.stem for path in list_checkpoints(vae)[-1].glob("*.safetensors")} == {
        "vae",
        "vae_ema",
        "vae_optimizer",
    }


def test_a_run_folder_holds_all_that_is_promised(one_process):
    assert [read_state(path).step for path in list_checkpoints(one_process)] == [5, 10, 12]
    assert {path.name for path in one_process.iterdir()} == {
        "checkpoints",
        "config.py",
        "log.jsonl",
        "loss.png",
    }
    assert [line["step"] for line in read_log(one_process)] == [3, 6, 9, 12]
    assert all({"loss", "lr", "grad_norm_model", "epoch"} <= line.keys() for line in read_log(one_process))
    assert read_state(one_process).epoch >= 1


def test_validation_and_samples_leave_the_training_alone(denoiser, one_process, tmp_path):
    options = ["--validate-every", 2, "--validation.num_times", 2, "--scheduler.num_sampling_steps", 2]
    here(*denoiser(tmp_path, "--accumulation-steps", 2, "--max-steps", 12, *options))
    run = tmp_path / "run"
    lines = read_log(run)
    assert [line for line in lines if "loss" in line] == read_log(one_process)
    checks = [line for line in lines if "validation_loss" in line]
    assert [line["step"] for line in checks] == [2, 4, 6, 8, 10, 12]
    assert checks[0]["validation_loss"] == pytest.approx(
        (checks[0]["validation_loss_t0.33"] + checks[0]["validation_loss_t0.67"]) / 2
    )
    assert len({line["validation_loss"] for line in checks}) == 6
    with av.open(str(run / "samples/step0000002.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5
    assert (run / "samples/step0000012.png").is_file()


def test_a_run_goes_on_with_validation_on_the_same_clips(denoiser, one_process, tmp_path):
    options = ["--accumulation-steps", 2, "--validate-every", 4, "--validation.num_times", 1]
    options += ["--validation.sample", "false"]
    here(*denoiser(tmp_path / "whole", *options, "--max-steps", 8))
    for steps in (7, 8):  # 7 steps end in the second epoch
        here(*denoiser(tmp_path / "parts", *options, "--max-steps", steps))
    assert read_log(tmp_path / "parts/run") == read_log(tmp_path / "whole/run")


def test_a_clip_that_cannot_be_read_is_replaced_and_counted(denoiser, rows, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    broken = [{**row, "path": tmp_path / "broken.mp4"} if i == 5 else row for i, row in enumerate(rows)]
    path = write_table(tmp_path / "clips.csv", broken)
    here(*denoiser(tmp_path, "--data-path", path, "--accumulation-steps", 2, "--max-steps", 6))
    assert sum(line["replaced"] for line in read_log(tmp_path / "run")) == 1


def test_many_clips_that_cannot_be_read_stop_the_run(rows, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    broken = [{**row, "path": tmp_path / "broken.mp4"} if i == 5 else row for i, row in enumerate(rows)]
    path = write_table(tmp_path / "clips.csv", broken)
    options = ["--max-steps", 60, "--batch-size", 6, "--batches-per-step", 1, "--dataset.num_frames", 1]
    with pytest.raises(RuntimeError, match=r"of \d+ samples could not be read, more than 1%. Mend or remove"):
        here(*script("train_vae", *words(path, tmp_path, *options)))


# Several processes


@needs_colossalai
@pytest.mark.dist
def test_one_process_and_two_train_the_same(two, zero2, denoiser, tmp_path):
    here(*denoiser(tmp_path / "one", "--accumulation-steps", 2, "--max-steps", 12, *SILENT))
    finish(start(*two(tmp_path / "ddp", "ddp", 12), processes=2))
    one, ddp = tmp_path / "one/run", tmp_path / "ddp/run"
    for other in (ddp, zero2):
        assert_close(other, one, 12)
    assert {read_state(run).data["batches_per_step"] for run in (one, ddp, zero2)} == {2}


@needs_colossalai
@pytest.mark.dist
def test_a_run_of_two_goes_on_with_one(two, zero2, tmp_path):
    (path,) = (path for path in list_checkpoints(zero2) if read_state(path).step == 10)
    here(*two(tmp_path, "none"), "--load", str(path))
    assert read_state(tmp_path / "run").data["batches_per_step"] == 2
    assert_goes_on(tmp_path / "run", zero2, 10)


def saved(run: Path) -> bool:
    return bool(list_checkpoints(run))


def saving(run: Path) -> bool:
    return any((run / "checkpoints").glob(".*.partial"))


def started(run: Path) -> bool:
    return (run / "log.jsonl").exists()


def kill(processes: list[subprocess.Popen]) -> None:
    """Kill processes and what they started, with no time to say goodbye."""
    psutil = pytest.importorskip("psutil")
    for process in processes:
        first = psutil.Process(process.pid)
        for victim in (*first.children(recursive=True), first):
            victim.kill()
    for process in processes:
        process.communicate()


def kill_and_continue(command: list[str], run: Path, ready, delay: float, torchrun: bool) -> None:
    """Start a run, kill it `delay` seconds after `ready`, and give the same command again."""
    processes = start(*command, processes=2, torchrun=torchrun)
    while all(process.poll() is None for process in processes) and not ready(run):
        time.sleep(0.001)
    time.sleep(delay)
    assert all(process.poll() is None for process in processes), "the run was over too early"
    kill(processes)
    steps = [read_state(path).step for path in list_checkpoints(run)]
    assert STEPS not in steps
    output = finish(start(*command, processes=2, torchrun=torchrun))
    assert not steps or f"at step {steps[-1]}," in output


@needs_colossalai
@pytest.mark.dist
def test_a_killed_run_that_is_started_again_is_the_uninterrupted_one(two, zero2, tmp_path):
    kill_and_continue(two(tmp_path), tmp_path / "run", saved, 0.3 * random.Random(1).random(), False)
    assert_same(tmp_path / "run", zero2)


@needs_colossalai
@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_at_many_moments(two, zero2_captions, tmp_path, seed):
    ready, longest = ((saving, 0.02), (saved, 0.4), (started, 0.4))[seed % 3]
    delay = longest * random.Random(seed).random()
    kill_and_continue(two(tmp_path, silent=False), tmp_path / "run", ready, delay, True)
    assert_same(tmp_path / "run", zero2_captions)


@needs_colossalai
@pytest.mark.dist
@pytest.mark.slow
def test_a_run_of_one_goes_on_with_two(two, one_process, zero2_captions, tmp_path):
    (path,) = (path for path in list_checkpoints(one_process) if read_state(path).step == 10)
    finish(start(*two(tmp_path, silent=False), "--load", str(path), processes=2))
    assert_goes_on(tmp_path / "run", zero2_captions, 10)


# What is wrong is said before a network is built

WRONG = {
    "no table": (["--data-path", "none"], "dataset.data_path is None; give a table with --data-path"),
    "missing table": (["--data-path", "nowhere.csv"], "no such table; set --data-path to a .csv"),
    "column": (["--data-path", "{bare}"], "no column num_frames, height, width; it has path, text"),
    "gpu": (["--device", "cuda"], "device='cuda': torch sees no GPU here"),
    "plugin": (["--plugin", "zero3"], "plugin='zero3': use one of none, ddp, zero1, zero2."),
    "sequence": (["--sp-size", "2"], "sp_size=2, plugin=None: sequence parallelism is not in this version"),
    "sequence plugin": (["--plugin", "zero2-seq"], "plugin='zero2-seq': sequence parallelism is not in"),
    "lora": (["--lora", "dict(rank=4)"], "not in this version; set it to None, and choose what is trained"),
    "dtype": (["--dtype", "int8"], "dtype='int8': use one of fp32, bf16, fp16"),
    "attention": (["--attention-backend", "fast"], "attention_backend='fast': use one of auto, math, sdpa"),
    "average": (["--ema-decay", "1.5"], "ema_decay=1.5: use a number in [0, 1)"),
    "rate": (["--lr", "-1"], "Invalid learning rate: -1"),
    "tracking": (["--wandb"], "wandb=True: the package is not installed; run pip install wandb"),
    "load": (["--load", "{empty}"], "no checkpoint here. Expected a folder with state.json"),
    "latest": (["--load", "latest", "--run-name", "none"], "load='latest' needs run_name"),
    "scratch": (["--start-from-scratch"], "start_from_scratch=True: it needs a checkpoint; give --load"),
    "other table": (["--outputs", "{outputs}"], "the checkpoint was trained on another plan"),
    "other steps": (
        ["--outputs", "{outputs}", "--batches-per-step", "3"],
        "batches_per_step=3, but the run that is continued has 2; set it to that or to None",
    ),
    "going back": (
        ["--outputs", "{outputs}", "--load", "{early}", "--start-from-scratch"],
        "this start would go on from step 0; give another --run-name",
    ),
    "batches": (["--batches-per-step", "13"], "There are 11 full batches, and a step takes"),
    "key": (["--optimizer.learning", "1"], "--optimizer.learning: 'learning' is not in optimizer"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_before_a_network_is_built(
    name, rows, one_process, denoiser, tmp_path, capsys, monkeypatch
):
    options, said = WRONG[name]
    bare = write_table(tmp_path / "bare.csv", [{"path": row["path"], "text": row["text"]} for row in rows])
    fewer = write_table(tmp_path / "fewer.csv", rows[1:])
    (tmp_path / "empty").mkdir()
    places = {"bare": bare, "empty": tmp_path / "empty", "outputs": one_process.parent}
    places["early"] = list_checkpoints(one_process)[0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(LatentDiffusion, "from_config", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    given = [text.format(**places) for text in options]
    with pytest.raises(SystemExit) as caught:
        here(*denoiser(tmp_path, "--data-path", fewer, *given))
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.count("\n") == 1
    assert said in error


def test_a_config_for_inference_is_refused(capsys):
    config = ROOT / "configs/opensora-v1-3/inference/demo.py"
    with pytest.raises(SystemExit):
        here(str(ROOT / "scripts/train.py"), str(config))
    assert "epochs, max_steps" in (error := capsys.readouterr().err) and "no config for training" in error


def test_a_misspelled_key_of_a_component(denoiser, tmp_path, capsys):
    shutil.copytree(ROOT / "configs/_base_", tmp_path / "configs/_base_")
    config = tmp_path / "configs/opensora-v1-3/train/demo.py"
    config.parent.mkdir(parents=True)
    config.write_text((CONFIGS / "demo.py").read_text().replace("pred_sigma=", "pred_sgma="))
    command = denoiser(tmp_path)
    with pytest.raises(SystemExit):
        here(command[0], str(config), *command[2:])
    assert "unknown key 'pred_sgma' (value False); did you mean 'pred_sigma'?" in capsys.readouterr().err


def test_weights_of_another_model(denoiser, one_process, tmp_path, capsys):
    with pytest.raises(SystemExit):
        here(*denoiser(tmp_path, "--ckpt-path", one_process, "--model.hidden_size", 24))
    error = capsys.readouterr().err
    assert "does not fit STDiT3" in error and "[48] in the file, [24] here" in error


def test_a_checkpoint_of_the_other_script(denoiser, table, one_process, tmp_path, capsys):
    options = ["--load", one_process, "--accumulation-steps", 2, "--batches-per-step", "none"]
    with pytest.raises(SystemExit):
        here(*script("train_vae", *words(table, tmp_path, *options)))
    assert "no weights of vae, it holds model, model_ema" in capsys.readouterr().err


def test_losses_that_are_not_there(table, tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        here(*script("train_vae", *words(table, tmp_path, "--loss.perceptual_weight", 1)))
    assert "perceptual_weight cannot be trained by this version" in capsys.readouterr().err


def test_without_colossalai_zero_says_how_to_install_it(denoiser, tmp_path):
    block = "import runpy, sys; sys.modules['colossalai'] = None; sys.argv = sys.argv[1:]; "
    block += "runpy.run_path(sys.argv[0], run_name='__main__')"
    output = finish(start("-c", block, *denoiser(tmp_path, "--plugin", "zero2")), status=2)
    assert output.startswith("error: plugin='zero1' and 'zero2' need ColossalAI")
    assert "pip install --no-deps colossalai" in output and "Traceback" not in output
    assert not (tmp_path / "run").exists()


@pytest.mark.dist
def test_more_processes_than_a_step_has_batches(denoiser, tmp_path):
    output = finish(start(*denoiser(tmp_path, "--batches-per-step", 1), processes=2), status=2)
    said = "error: batches_per_step=1 cannot be shared by 2 processes; start as many processes as divide it"
    assert output.count(said) == output.count("\n") == 2


# Without training


def test_dry_run_of_a_published_stage(tmp_path, capsys):
    kinds = [(1, 360, 640)] * 250 + [(49, 360, 640)] * 60 + [(113, 360, 640)] * 60 + [(200, 100, 100)] * 30
    rows = [
        {"path": f"{i}.mp4", "text": "x", "num_frames": n, "height": h, "width": w, "fps": 24}
        for i, (n, h, w) in enumerate(kinds)
    ]
    table = write_table(tmp_path / "table.csv", rows)
    words = [str(CONFIGS / "stage1.py"), "--data-path", str(table), "--outputs", str(tmp_path / "outputs")]
    before = time.perf_counter()
    here(str(ROOT / "scripts/train.py"), *words, "--dry-run")
    assert time.perf_counter() - before < 60
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 3 * 2**20
    )  # KiB; the weights alone are 4.5 GiB
    out = capsys.readouterr().out
    assert "model: 1,207,959,692 parameters, 1,207,959,680 trained" in out  # all but the angles of positions
    assert "steps of 4 batches (4 per process)" in out
    assert "1 x 360 x 640" in out and "tokens a clip" in out
    assert "113 x 360 x 640" in out and "latents 35 x 45 x 80, 32,200 tokens a clip" in out
    assert "too small 30" in out
    assert "state per process (zero2, 1 of them): " in out
    assert not (tmp_path / "outputs").exists()


def test_dry_run_of_an_autoencoder(table, tmp_path, capsys, monkeypatch):
    here(*script("train_vae", *words(table, tmp_path, "--dry-run")))
    out = capsys.readouterr().out
    assert "vae: " in out and "epoch 0: 6 steps of 2 batches (2 per process)" in out
    assert json.dumps(sorted(p.name for p in tmp_path.iterdir())) == "[]"
    assert Autoencoding.__doc__
