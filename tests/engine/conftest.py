"""What tests of the loop share."""

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from opensora.utils.random import Draws


@pytest.fixture(scope="session")
def toy() -> SimpleNamespace:
    """Return the small table, task and trainer of test_trainer.py; tests do not import each other."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "test_trainer.py")))


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """Return the config of a tiny denoiser and autoencoder; tests change copies."""
    text = {"type": "TextCondition", "text_width": 6, "text_length": 5}
    network = {"type": "STDiT3", "hidden_size": 24, "depth": 1, "num_heads": 2, "conditions": {"text": text}}
    vae = {"type": "VideoVAE", "latent_channels": 4, "channels": 32, "channel_multipliers": (1, 1, 1, 1)}
    vae |= {"num_res_blocks": 1, "micro_frame_size": None}
    return {"model": network, "vae": vae, "scheduler": {"type": "RectifiedFlow"}}


@pytest.fixture(scope="session")
def batch() -> Callable[..., dict[str, torch.Tensor]]:
    """Return a function that makes a training batch of two clips for it."""

    def make(frames: int = 5) -> dict[str, torch.Tensor]:
        sizes = {"fps": 24.0, "num_frames": float(frames), "height": 16.0, "width": 16.0}
        return {
            "video": Draws(9, [0, 1]).normal("clip", 0, (2, 3, frames, 16, 16)).clamp(-1, 1),
            "text_features": Draws(9, [0, 1]).normal("text", 0, (2, 5, 6)),
            "sample": torch.tensor([0, 1]),
            "epoch": torch.zeros(2, dtype=torch.int64),
            **{name: torch.full((2,), value) for name, value in sizes.items()},
        }

    return make
