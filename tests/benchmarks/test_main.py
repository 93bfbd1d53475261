"""`python -m benchmarks`: several names, and what cannot be measured here."""

import subprocess
import sys

import pytest
import torch


def benchmark(root, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks", *words]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def test_several_names_run_each_by_itself_and_the_worst_status_counts(root):
    done = benchmark(root, "sampling", "stdit3", "--only", "no case has this name")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert benchmark(root, "sampling", "no_such_benchmark").returncode == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(root):
    done = benchmark(root, "gpu")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: device='cuda': torch sees no GPU here")
    assert "Traceback" not in done.stderr
