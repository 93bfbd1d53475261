"""A sequence group in one process, for networks that run in float64 here."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor


@pytest.fixture
def group(monkeypatch):
    """Call a function in threads that are a sequence group, and return what each found."""

    def run(size: int, function: Callable[[], Tensor]) -> list[Tensor]:
        own, barrier, mail = threading.local(), threading.Barrier(size, timeout=20), {}

        def pass_on(x: Tensor) -> Tensor:
            mail[own.rank] = x
            barrier.wait()
            before = mail[(own.rank - 1) % size].clone()
            barrier.wait()
            return before

        def spread(call, parts, device):
            for first in range(0, len(parts), size):
                mail[own.rank] = call(parts[first + own.rank])
                barrier.wait()
                found = [mail[rank] for rank in range(size)]
                barrier.wait()
                yield from found

        def member(rank: int) -> Tensor:
            own.rank = rank
            with torch.no_grad():
                return function()

        state = lambda: SimpleNamespace(sequence_size=size, sequence_rank=own.rank)  # noqa: E731
        for module in ("streaming", "autoencoder"):
            monkeypatch.setattr(f"opensora.layers.{module}.parallel_state", state)
        monkeypatch.setattr("opensora.layers.streaming.pass_on", pass_on)
        monkeypatch.setattr("opensora.layers.autoencoder.spread", spread)
        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(member, range(size)))

    return run
