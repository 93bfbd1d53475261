"""scripts/train_vae.py and scripts/train.py on a few small clips, in one process."""

import csv
import re
import resource
import shutil
import sys
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

from opensora.datasets.epoch_plan import EpochPlan
from opensora.datasets.quarantine import read_quarantine
from opensora.engine.checkpoint import list_checkpoints, read_state
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.engine.tracker import read_log

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs/opensora-v1-3/train"


def test_the_autoencoder_learns_and_shows_it(vae):
    lines = read_log(vae)
    losses = [line["vae_loss"] for line in lines if "vae_loss" in line]
    assert len(losses) == 3 and losses[-1] < 0.7 * losses[0]
    assert [line["step"] for line in lines if "validation_psnr" in line] == [3, 6]
    for step in (3, 6):
        with Image.open(vae / f"samples/step{step:07d}.png") as picture:
            assert picture.width >= 24
    assert {path.stem for path in list_checkpoints(vae)[-1].glob("*.safetensors")} == {
        "vae",
        "vae_ema",
        "vae_optimizer",
    }


def test_a_run_folder_holds_all_that_is_promised(one_process):
    assert [read_state(path).step for path in list_checkpoints(one_process)] == [5, 10, 12]
    assert {path.name for path in one_process.iterdir()} == {
        ".lock",
        "checkpoints",
        "config.py",
        "log.jsonl",
        "loss.png",
        "plan.npz",
        "starts.jsonl",
    }
    plan = EpochPlan.load(one_process / "plan.npz")
    assert plan.hash == read_state(one_process).data["hash"] and plan.num_steps > 0
    assert [line["step"] for line in read_log(one_process)] == [3, 6, 9, 12]
    assert all({"loss", "lr", "grad_norm_model", "epoch"} <= line.keys() for line in read_log(one_process))
    assert read_state(one_process).epoch >= 1


def test_validation_and_samples_leave_the_training_alone(scripts, denoiser, one_process, tmp_path):
    options = ["--validate-every", 2, "--validation.num_times", 2, "--scheduler.num_sampling_steps", 2]
    scripts.here(*denoiser(tmp_path, "--accumulation-steps", 2, "--max-steps", 12, *options))
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


def test_a_run_goes_on_with_validation_on_the_same_clips(scripts, denoiser, one_process, tmp_path):
    options = ["--accumulation-steps", 2, "--validate-every", 4, "--validation.num_times", 1]
    options += ["--validation.sample", "false"]
    scripts.here(*denoiser(tmp_path / "whole", *options, "--max-steps", 8))
    for steps in (7, 8):  # 7 steps end in the second epoch
        scripts.here(*denoiser(tmp_path / "parts", *options, "--max-steps", steps))
    assert read_log(tmp_path / "parts/run") == read_log(tmp_path / "whole/run")


@pytest.fixture
def damaged(scripts, rows, tmp_path) -> Path:
    """A table whose row 5 cannot be read."""
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    broken = [{**row, "path": tmp_path / "broken.mp4"} if i == 5 else row for i, row in enumerate(rows)]
    return scripts.write_table(tmp_path / "clips.csv", broken)


def test_a_clip_that_cannot_be_read_is_replaced_counted_and_left_out(scripts, denoiser, damaged, tmp_path):
    """One epoch has 6 steps. Stopped in the second one, the run goes on as if it had not been."""
    options = ["--data-path", damaged, "--accumulation-steps", 2, "--ckpt-every", 4]
    scripts.here(*denoiser(tmp_path / "whole", *options, "--max-steps", 16))
    run = tmp_path / "whole/run"
    assert sum(line["replaced"] for line in read_log(run)) == 1
    [line] = read_quarantine(run / "quarantine.jsonl")
    assert (line["row"], line["path"], line["epoch"]) == (5, str(tmp_path / "broken.mp4"), 0)
    assert "cannot be read" in line["reason"]
    states = [read_state(path) for path in list_checkpoints(run)]
    assert states[0].epoch == 0 and states[-1].epoch == 2
    assert all(state.data["excluded"] == ([5] if state.epoch else []) for state in states)
    for steps in (9, 16):
        scripts.here(*denoiser(tmp_path / "parts", *options, "--max-steps", steps))
    assert read_log(tmp_path / "parts/run") == read_log(run)
    assert read_state(tmp_path / "parts/run").data == read_state(run).data


def test_many_clips_that_cannot_be_read_stop_the_run(scripts, damaged, tmp_path, capsys):
    options = ["--max-steps", 60, "--batch-size", 60, "--batches-per-step", 1]
    table = scripts.write_table(tmp_path / "many.csv", 10 * list(csv.DictReader(open(damaged))))
    with pytest.raises(SystemExit) as stop:
        scripts.here(*scripts.script("train_vae", *scripts.words(table, tmp_path, *options)))
    assert stop.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert re.search(r"\d+ of 120 samples could not be read, more than 1%. Mend or remove .*broken.mp4", line)
    assert line.endswith("quarantine.jsonl.")


# What is wrong is said before a network is built

WRONG = {
    "no table": (
        ["--data-path", "none"],
        "dataset.data_path is None; give a table or a folder with --data-path",
    ),
    "missing table": (["--data-path", "nowhere.csv"], "no such table or folder; set --data-path to one"),
    "column": (["--data-path", "{bare}"], "no column num_frames, height, width; it has path, text"),
    "gpu": (["--device", "cuda"], "device='cuda': torch sees no GPU here"),
    "plugin": (["--plugin", "zero3"], "plugin='zero3': use one of none, ddp, fsdp2, zero1, zero2"),
    "sequence": (["--sp-size", "2"], "sp_size=2: it must divide the number of processes, which is 1"),
    "sequence mode": (["--sequence-parallel", "ring"], "sequence_parallel='ring': use one of auto, ulysses"),
    "joint": (["--dataset.num_images", "4"], "the networks of this version do not read images behind clips"),
    "lora": (["--lora", "dict(rank=4)"], "not in this version; set it to None, and choose what is trained"),
    "dtype": (["--dtype", "int8"], "dtype='int8': use one of fp32, bf16, fp16"),
    "attention": (["--attention-backend", "fast"], "attention_backend='fast': use one of auto, math, sdpa"),
    "average": (["--ema-decay", "1.5"], "ema_decay=1.5: use a number in [0, 1)"),
    "rate": (["--lr", "-1"], "Invalid learning rate: -1"),
    "tracking": (["--wandb"], "wandb=True: the package is not installed; run pip install wandb"),
    "load": (["--load", "{empty}"], "no checkpoint here. Expected a folder with state.json"),
    "latest": (["--load", "latest", "--run-name", "none"], "load='latest' needs run_name"),
    "scratch": (["--start-from-scratch"], "start_from_scratch=True: it needs a checkpoint; give --load"),
    "other table": (
        ["--outputs", "{outputs}"],
        'the checkpoint was trained with other settings (there -> here): table: "12 rows, content',
    ),
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
    scripts, name, rows, one_process, denoiser, tmp_path, capsys, monkeypatch
):
    options, said = WRONG[name]
    bare = scripts.write_table(
        tmp_path / "bare.csv", [{"path": row["path"], "text": row["text"]} for row in rows]
    )
    fewer = scripts.write_table(tmp_path / "fewer.csv", rows[1:])
    (tmp_path / "empty").mkdir()
    places = {"bare": bare, "empty": tmp_path / "empty", "outputs": one_process.parent}
    places["early"] = list_checkpoints(one_process)[0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(LatentDiffusion, "from_config", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    given = [text.format(**places) for text in options]
    with pytest.raises(SystemExit) as caught:
        scripts.here(*denoiser(tmp_path, "--data-path", fewer, *given))
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.count("\n") == 1
    assert said in error


def test_a_config_for_inference_is_refused(scripts, capsys):
    config = ROOT / "configs/opensora-v1-3/inference/demo.py"
    with pytest.raises(SystemExit):
        scripts.here(str(ROOT / "scripts/train.py"), str(config))
    assert "plugin" in (error := capsys.readouterr().err) and "no config for training" in error


def test_a_misspelled_key_of_a_component(scripts, denoiser, tmp_path, capsys):
    shutil.copytree(ROOT / "configs/_base_", tmp_path / "configs/_base_")
    config = tmp_path / "configs/opensora-v1-3/train/demo.py"
    config.parent.mkdir(parents=True)
    config.write_text((CONFIGS / "demo.py").read_text().replace("pred_sigma=", "pred_sgma="))
    command = denoiser(tmp_path)
    with pytest.raises(SystemExit):
        scripts.here(command[0], str(config), *command[2:])
    assert "unknown key 'pred_sgma' (value False); did you mean 'pred_sigma'?" in capsys.readouterr().err


def test_weights_of_another_model(scripts, denoiser, one_process, tmp_path, capsys):
    with pytest.raises(SystemExit):
        scripts.here(*denoiser(tmp_path, "--ckpt-path", one_process, "--model.hidden_size", 24))
    error = capsys.readouterr().err
    assert "does not fit STDiT3" in error and "[48] in the file, [24] here" in error


def test_a_checkpoint_of_the_other_script(scripts, denoiser, table, one_process, tmp_path, capsys):
    options = ["--load", one_process, "--accumulation-steps", 2, "--batches-per-step", "none"]
    for more, said in (
        ([], "trained with other settings (there -> here): condition_dropout.('text',): 0.1 -> absent; "),
        (["--accept-changes"], "no weights of vae, it holds model, model_ema"),
    ):
        with pytest.raises(SystemExit):
            scripts.here(*scripts.script("train_vae", *scripts.words(table, tmp_path, *options, *more)))
        assert said in capsys.readouterr().err


def test_without_colossalai_zero_says_how_to_install_it(scripts, denoiser, tmp_path):
    command = scripts.without("colossalai", denoiser(tmp_path, "--plugin", "zero2"))
    output = scripts.finish(scripts.start(*command), status=2)
    assert output.startswith("error: plugin='zero1' and 'zero2' need ColossalAI")
    assert "pip install --no-deps colossalai" in output and "Traceback" not in output
    assert not (tmp_path / "run").exists()


# Without training


def test_dry_run_of_a_published_stage(scripts, tmp_path, capsys):
    kinds = [(1, 360, 640)] * 250 + [(49, 360, 640)] * 60 + [(113, 360, 640)] * 60 + [(200, 100, 100)] * 30
    rows = [
        {"path": f"{i}.mp4", "text": "x", "num_frames": n, "height": h, "width": w, "fps": 24}
        for i, (n, h, w) in enumerate(kinds)
    ]
    table = scripts.write_table(tmp_path / "table.csv", rows)
    words = [str(CONFIGS / "stage1.py"), "--data-path", str(table), "--num-workers", "0"]
    words += ["--outputs", str(tmp_path / "outputs"), "--dataset.check-files", "0"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; the weights alone are 4.5 GiB
    scripts.here(str(ROOT / "scripts/train.py"), *words, "--dry-run")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 2 * 2**20
    out = capsys.readouterr().out
    assert "model: 1,207,959,692 parameters, 1,207,959,680 trained" in out  # all but the angles of positions
    assert "steps of 4 batches (4 per process)" in out
    assert "1 x 360 x 640" in out and "tokens a clip" in out
    assert "113 x 360 x 640" in out and "latents 35 x 45 x 80, 32,200 tokens a clip" in out
    assert "too small 30" in out
    assert "state per process (zero2, 1 of them): " in out
    assert not (tmp_path / "outputs").exists()


def test_dry_run_of_an_autoencoder(scripts, table, tmp_path, capsys):
    scripts.here(*scripts.script("train_vae", *scripts.words(table, tmp_path, "--dry-run")))
    out = capsys.readouterr().out
    assert "vae: " in out and "epoch 0: 6 steps of 2 batches (2 per process)" in out
    assert not list(tmp_path.iterdir())
