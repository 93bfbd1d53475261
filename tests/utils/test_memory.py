"""Peak memory of a call, and memory that stays."""

import platform
from pathlib import Path

import pytest
import torch

from opensora.utils.memory import fresh_process, keep_freed_memory, peak_memory


def test_peak_memory_sees_what_a_call_frees_again():
    size = 64 << 20
    found = peak_memory(lambda: torch.ones(size, dtype=torch.uint8))
    assert 60 < found < 80
    assert peak_memory(lambda: None) < 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_stays_with_a_process_that_asks_for_it():
    kept, given_back = fresh_process(_left_by_a_large_tensor, True), fresh_process(_left_by_a_large_tensor)
    assert given_back < 8 and kept > 100


def _left_by_a_large_tensor(keep: bool = False) -> float:
    """Return by how many MiB a process is larger after a tensor of 128 MiB was there."""
    if keep:
        keep_freed_memory()
    torch.ones(1)
    before = _resident()
    torch.ones(128 << 20, dtype=torch.uint8)
    return _resident() - before


def _resident() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) / 1024
