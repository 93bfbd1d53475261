"""Offload: only the network that works is in memory."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


class Offload:
    """Bring a network when it is used, and take it away when another one is.

    On a GPU the others wait in the host's memory. On a CPU they are freed, and read from their files again:
    the peak is that of the largest, not of all.

    Args:
        device: Where networks compute.
        make: By name, what builds a network, ready for that device.
    """

    def __init__(self, device: torch.device, make: Mapping[str, Callable[[], nn.Module]]) -> None:
        self.device = device
        self._make = make
        self._waiting: dict[str, nn.Module] = {}

    @contextmanager
    def use(self, owner: object, name: str) -> Iterator[None]:
        """Within the block, `owner` has the network as the attribute `name`; else one without weights.

        Args:
            owner: Has a network on the meta device as that attribute.
            name: One of `make`.
        """
        empty = getattr(owner, name)
        if not next(empty.parameters()).is_meta:  # it is in use already
            yield
            return
        network = self._waiting.pop(name, None) or self._make[name]()
        setattr(owner, name, network.to(self.device))
        try:
            yield
        finally:
            setattr(owner, name, empty)
            if self.device.type != "cpu":
                self._waiting[name] = network.to("cpu")
