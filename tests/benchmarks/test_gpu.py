"""The benchmark of GPUs, as far as a CPU runs it: its training step, its counting, its picture."""

import json

import pytest
import torch

from benchmarks import gpu
from benchmarks.breakdown import draw_gpu
from opensora.acceleration.parallel import init_distributed, shut_down


@pytest.fixture
def small(monkeypatch):
    """Take a small network on the CPU."""
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "MODEL", {"type": "STDiT3", "hidden_size": 48, "depth": 1, "num_heads": 2})
    monkeypatch.setattr(gpu, "TRAINING", {"small": ((2, 8, 8), 2, True)})
    init_distributed("cpu")
    yield
    shut_down()


def test_a_step_trains_and_the_products_of_a_forward_pass_are_counted(small):
    step, flop, count = gpu.make_step("small", "none", False)
    before = step()
    assert count == 2 and float(before["loss"]) > 0 and before["skipped"] == 0
    tokens, captions, width = 2 * 2 * 4 * 4, 2 * gpu.CAPTION, 48
    linear = 2 * width**2 * (tokens * (3 + 1 + 2 + 2 * 4) + captions * 2)  # of a block
    attention = 4 * width * tokens * ((16 + 2) / 2 + gpu.CAPTION)  # a frame or a position, and the caption
    text = 2 * (captions + gpu.CAPTION) * width * (gpu.TEXT_WIDTH + width)  # and the null caption
    assert flop == pytest.approx(2 * (linear + attention) + text, rel=0.02)


def test_the_picture_has_a_bar_for_each_step_and_kernel(tmp_path):
    values = {"train/small/none/eager/share/linear": 0.6, "train/small/none/eager/share/other": 0.4}
    values |= {"attention/spatial small/flash/forward_rate": 200.0, "train/small/none/eager/rate": 3.0}
    values |= {"attention/spatial small/cudnn/forward_rate": 300.0}
    lines = [json.dumps({"name": f"gpu/{name}", "value": value}) for name, value in values.items()]
    (tmp_path / "lines").write_text("\n".join([*lines, "a warning"]))
    draw_gpu(tmp_path / "lines", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


@pytest.mark.gpu
def test_shares_of_kernels_fill_the_time():
    x = torch.randn(2048, 2048, device="cuda")
    shares = gpu.kernel_shares(lambda: [x @ x for _ in range(20)])
    assert shares["linear"] > 0.5 and sum(shares.values()) == pytest.approx(1, abs=0.02)
