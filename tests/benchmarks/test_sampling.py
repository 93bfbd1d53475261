"""The benchmark of sampling: what takes turns; and the memory of decoding and of networks that are freed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import sampling
from opensora.engine.build import build_components
from opensora.utils.config import load_config
from opensora.utils.memory import fresh_process
from opensora.utils.weights import save_safetensors

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "tests/data/tiny_inference.py")


def test_the_loop_and_its_calls_do_the_same_work(monkeypatch):
    monkeypatch.setattr(sampling, "CASES", {"clip": ((16, 1, 4, 4), 3)})
    monkeypatch.setattr(
        sampling, "interleaved", lambda calls, repeats, clock: {n: (c(), 2.0)[1] for n, c in calls.items()}
    )
    rows = []
    forward = sampling.make_model(True, "fp32").__class__.forward
    monkeypatch.setattr(
        "opensora.models.stdit3.STDiT3.forward",
        lambda self, x, *a, **k: rows.append(len(x)) or forward(self, x, *a, **k),
    )
    measures = {measure.name: measure for measure in sampling._loop("clip")}
    assert rows == [2] * 5 * sampling.STEPS  # both runs, to record; the calls, and both runs
    assert measures["sampling/clip/kept/over_bare"].ok and measures["sampling/clip/gain"].value == 1.0
    # Keys and values of 8 blocks, two branches, 3 tokens; and what is embedded.
    assert measures["sampling/clip/kept"].value * 2**20 > 8 * 2 * 3 * 2 * 384 * 4


@pytest.mark.slow
def test_the_memory_of_a_decode_does_not_grow_with_length():
    # Equal runs differ by 4 MiB of about 32, by how full the encoder's queue gets.
    short = max(fresh_process(sampling.peak, 65, True) for _ in range(2))
    long = min(fresh_process(sampling.peak, 257, True) for _ in range(2))
    assert long < 1.1 * short + 2


@pytest.mark.slow
def test_offload_holds_one_network_at_a_time(tmp_path):
    sizes = [
        "--model.hidden_size",
        "576",
        "--model.num_heads",
        "6",
        "--model.depth",
        "4",
        "--vae.channels",
        "192",
    ]
    parts = build_components(load_config([CONFIG, *sizes]))
    weights = {}
    for name in ("model", "vae"):
        state = getattr(parts, name).state_dict()
        save_safetensors(state, tmp_path / f"{name}.safetensors")
        weights[name] = sum(value.nbytes for value in state.values()) / 2**20
    del parts, state
    peaks, files = {}, {}
    for offload in (False, True):
        words = [CONFIG, *sizes, "--prompt", "a cat", "--save-dir", str(tmp_path / str(offload))]
        words += ["--ckpt-path", str(tmp_path / "model.safetensors"), "--offload", str(offload)]
        words += ["--vae.from_pretrained", str(tmp_path / "vae.safetensors")]
        # Not `ru_maxrss`: it is at least that of the process that started this one.
        code = "import runpy, sys; sys.argv = sys.argv[1:]; "
        code += "runpy.run_path(sys.argv[0], run_name='__main__'); "
        code += "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
        command = [sys.executable, "-c", code, str(ROOT / "scripts/inference.py"), *words]
        where = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=where, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        peaks[offload] = int(done.stdout.split("VmHWM:")[-1].split()[0]) / 1024
        files[offload] = (tmp_path / str(offload) / "sample_0000.mp4").read_bytes()
    assert files[False] == files[True]
    assert peaks[False] - peaks[True] > 0.2 * min(weights.values())  # allocators keep some
