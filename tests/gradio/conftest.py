"""What tests of the demo page share: its modules, a tiny model with weights, and a server."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from opensora.engine.build import build_components
from opensora.utils.config import load_config
from opensora.utils.weights import save_safetensors

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "tests/data/tiny_inference.py")
sys.path.append(str(ROOT / "gradio"))  # as Python does for `python gradio/app.py`


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> list[str]:
    """Return a config and options with weights of a tiny random model."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    parts = build_components(load_config([CONFIG]))
    for parameter in parts.model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_safetensors(parts.model.state_dict(), folder / "model.safetensors")
    save_safetensors(parts.vae.state_dict(), folder / "vae.safetensors")
    weights = [
        "--ckpt-path",
        f"{folder}/model.safetensors",
        "--vae.from_pretrained",
        f"{folder}/vae.safetensors",
    ]
    return [CONFIG, *weights]


@pytest.fixture(scope="session")
def served(start, tmp_path_factory) -> Iterator[SimpleNamespace]:
    """Serve the page; `url`, `output` and `studio`."""
    pytest.importorskip("gradio")
    from app import launch

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = tmp_path_factory.mktemp("page") / "out"
    words = [*start, "--port", str(port), "--output", str(output), "--queue-size", "3", "--upload-mb", "1"]
    blocks = launch(words, wait=False)
    yield SimpleNamespace(url=f"http://127.0.0.1:{port}/", output=output, studio=blocks.studio)
    blocks.close()
