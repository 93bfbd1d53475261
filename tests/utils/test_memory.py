"""Peak memory of a call."""

import torch

from opensora.utils.memory import peak_memory


def test_peak_memory_sees_what_a_call_frees_again():
    size = 64 << 20
    found = peak_memory(lambda: torch.ones(size, dtype=torch.uint8))
    assert 60 < found < 80
    assert peak_memory(lambda: None) < 4
