"""Our own losses do not move: four steps of a tiny model against recorded numbers.

A refactor leaves them alone. A change of numbers rewrites the file, and the commit says why:

    UPDATE_LOSSES=1 python -m pytest tests/regression
"""

import json
import os
from pathlib import Path

import pytest
import torch

from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.utils.random import Draws, seed_everything

RECORD = Path(__file__).with_name("losses.json")
VAE = {
    "type": "VideoVAE",
    "latent_channels": 4,
    "channels": 32,
    "channel_multipliers": (1, 1, 1, 1),
    "num_res_blocks": 1,
    "micro_frame_size": 9,
}
CONDITIONS = {
    "text": {"type": "TextCondition", "text_width": 6, "text_length": 5},
    "size": {"type": "SizeCondition"},
    "frames": {"type": "FrameCondition", "classes": {"i2v_head": 2.0, "v2v_tail": 1.0, "none": 3.0}},
}
WINDOWS = {"window_size": (-1, 2, 2), "spatial_rope": True}
FORMS = {
    "v1.2": {"model": {}, "scheduler": {"frame_factor": "chunk17"}, "frame_mask": {"random": 0.5}},
    "v1.3": {"model": WINDOWS, "scheduler": {"time_distribution": "logit-normal"}, "frame_mask": None},
    "own stages": {
        "model": {**WINDOWS, "shift_window": True},
        "scheduler": {"frame_factor": "latent"},
        "frame_mask": None,
    },
}


def losses(form):
    settings = FORMS[form]
    seed_everything(0)
    conditions = {k: v for k, v in CONDITIONS.items() if form != "v1.2" or k != "frames"}
    small = {"type": "STDiT3", "hidden_size": 24, "depth": 2, "num_heads": 2, "conditions": conditions}
    mask = settings["frame_mask"]
    task = LatentDiffusion.from_config(
        {
            "model": {**small, **settings["model"]},
            "vae": VAE,
            "scheduler": {"type": "RectifiedFlow", "shift_time": True, **settings["scheduler"]},
            "frame_mask": None if mask is None else {"type": "FrameMask", "ratios": mask},
            "condition_dropout": {("text",): 0.2},
            "seed": 3,
        }
    )
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.05)
    found = []
    for step in range(4):
        rows = [2 * step, 2 * step + 1]
        draws = Draws(11, rows)
        sizes = {"fps": 24.0, "num_frames": 9.0, "height": 24.0, "width": 32.0}
        batch = {
            "video": draws.uniform("video", 0, (2, 3, 9, 24, 32)) * 2 - 1,
            "text_features": draws.normal("text", 0, (2, 5, 6)),
            "text_mask": torch.arange(5) < torch.tensor([[3], [5]]),
            "sample": torch.tensor(rows),
            "epoch": torch.zeros(2, dtype=torch.int64),
            **{name: torch.full((2,), value) for name, value in sizes.items()},
        }
        for _, values in task.losses(batch, step):
            optimizer.zero_grad()
            values["loss"].backward()
            optimizer.step()
            found.append(values["loss"].item())
    return found


@pytest.mark.parametrize("form", FORMS)
def test_losses_are_the_recorded_ones(form):
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    found = losses(form)
    if os.environ.get("UPDATE_LOSSES"):
        RECORD.write_text(json.dumps({**record, form: found}, indent=1) + "\n")
    else:
        assert found == pytest.approx(record[form], rel=2e-5)
