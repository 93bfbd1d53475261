"""Sequence groups through the scripts: two processes that share every clip, beside one process."""

import importlib.util

import pytest
import torch

from opensora.engine.checkpoint import read_checkpoint
from opensora.engine.tracker import read_log

needs_colossalai = pytest.mark.skipif(
    importlib.util.find_spec("colossalai") is None, reason="needs ColossalAI"
)


# Biases of keys have no gradient but rounding; a larger eps keeps Adam from blowing it up.
OPTIONS = ("--model.depth", 2, "--model.window_size", "(-1,2,2)", "--model.shift_window", "true")
OPTIONS += ("--optimizer.eps", 1e-3, "--validate-every", 5, "--validation.num_times", 1)
SILENT = ["--text-encoder", "none", "--condition-dropout", "{}", "--validation.sample", "false"]
SILENT += ["--model.conditions", "{'size': {'type': 'SizeCondition', 'fields': ('fps',)}}"]


@needs_colossalai
@pytest.mark.dist
@pytest.mark.parametrize(
    ("stops", "captions"), [([6], False), pytest.param([5, 10], True, marks=pytest.mark.slow)]
)
def test_two_processes_share_every_clip_of_a_training(scripts, denoiser, tmp_path, stops, captions):
    """They follow the plan of one process, stop, go on, and end with the weights of one process."""
    options = [*OPTIONS, *([] if captions else SILENT)]
    scripts.here(*denoiser(tmp_path / "one", *options, "--max-steps", stops[-1]))
    sequence = ("--plugin", "zero2-seq", "--sp-size", 2)
    for steps in stops:
        command = denoiser(tmp_path / "two", *options, *sequence, "--max-steps", steps)
        said = scripts.finish(scripts.start(*command, processes=2, torchrun=True))
    assert len(stops) == 1 or "at step 5, epoch 0" in said  # continued
    runs = [tmp_path / name / "run" for name in ("one", "two")]
    one, two = (read_checkpoint(run) for run in runs)
    assert one[0].data == two[0].data  # plan, batches per step, samples so far
    for stem in ("model", "model_ema"):
        assert one[1][stem].keys() == two[1][stem].keys()
        for key, value in one[1][stem].items():
            torch.testing.assert_close(two[1][stem][key], value, atol=1e-5, rtol=1e-5, msg=f"{stem}: {key}")
    logs = [read_log(run) for run in runs]
    assert len(logs[0]) == len(logs[1]) >= 3
    for line, expected in zip(*logs, strict=True):
        assert line.keys() == expected.keys()
        for key in line.keys() & {"loss", "validation_loss", "grad_norm_model"}:
            assert line[key] == pytest.approx(expected[key], rel=1e-4), key
    shown = [sorted(path.name for path in run.glob("samples/*")) for run in runs]
    assert shown[0] == shown[1] and bool(shown[0]) == captions
