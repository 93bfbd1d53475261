"""`accelerate launch` starts scripts/train.py as torchrun does, here with weights in pieces (FSDP2)."""

import importlib.util

import pytest

from opensora.engine.checkpoint import list_checkpoints, read_checkpoint
from opensora.engine.tracker import read_log


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="needs accelerate")
def test_accelerate_starts_what_torchrun_starts(scripts, denoiser, tmp_path):
    settings = ["--plugin", "fsdp2", "--max-steps", 6, "--validate-every", 4, "--validation.num_times", 2]
    settings += ["--activation-checkpoint", "true"]
    accelerate = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    accelerate += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    accelerate += ["--main_process_port", "0"]
    scripts.finish(scripts.start(*accelerate, *denoiser(tmp_path / "accelerate", *settings)))
    single = [*settings, "--plugin", "none", "--accumulation-steps", 2]
    scripts.here(*denoiser(tmp_path / "one", *single))
    one, two = tmp_path / "one/run", tmp_path / "accelerate/run"
    lines, found = read_log(one), read_log(two)
    assert [line["step"] for line in found] == [line["step"] for line in lines] and len(found) > 2
    for line, expected in zip(found, lines, strict=True):
        for key, value in expected.items():
            assert line[key] == pytest.approx(value, abs=1e-4, rel=1e-3), key
    for name in ("step0000004.png", "step0000004.mp4"):
        assert (two / "samples" / name).exists() == (one / "samples" / name).exists()
    assert list((two / "samples").iterdir())
    (_, weights), (_, expected) = (read_checkpoint(list_checkpoints(run)[-1]) for run in (two, one))
    for stem in ("model", "model_ema"):
        assert weights[stem].keys() == expected[stem].keys()
        for key, value in expected[stem].items():
            assert float((weights[stem][key] - value).abs().max()) <= 1e-4, key
