"""What lets ColossalAI's ZeRO run on the CPU: a device that needs no streams, and a check that accepts it.

Both classes are mixed into ColossalAI's own by `booster.py`, and only when the device is the CPU.
"""

from contextlib import AbstractContextManager, nullcontext

import torch


class HostAccelerator:
    """Goes in front of ColossalAI's `CpuAccelerator`, which refuses what ZeRO asks of every device.

    The CPU has one order of execution, so there is nothing to wait for and a stream is None.
    """

    def get_current_device(self) -> torch.device:
        """Return the CPU."""
        return torch.device("cpu")

    def device_count(self) -> int:
        """Return 1."""
        return 1

    def synchronize(self, device: object = None) -> None:
        """Do nothing."""

    def empty_cache(self) -> None:
        """Do nothing."""

    def Stream(self, *args: object, **kwargs: object) -> None:  # noqa: N802
        """Return None, the only stream there is."""

    def current_stream(self, device: object = None) -> None:
        """Return None, the only stream there is."""

    def default_stream(self, device: object = None) -> None:
        """Return None, the only stream there is."""

    def stream(self, stream_: object) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()


class HostChecks:
    """Goes in front of ColossalAI's ZeRO optimizer, whose checks insist on a GPU."""

    def _sanity_checks(self) -> None:
        pass  # its other check, one dtype for all parameters, holds because the engine casts them
