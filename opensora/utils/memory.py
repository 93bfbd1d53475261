"""Peak memory of a call, processes that no earlier call has touched, and what the allocator keeps."""

import ctypes
import gc
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt, in glibc


def peak_memory(call: Callable[[], Any]) -> float:
    """Return by how many MiB the process grows at most during a call, above its size before.

    Memory that freed tensors have left in the allocator is given back first, so it does not hide growth.

    Raises:
        OSError: The system has no /proc, or does not let a process reset its own peak.
    """
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    _CLEAR.write_text("5")  # resets the peak of this process
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1024


def fresh_process(call: Callable[..., Any], *args: Any) -> Any:
    """Return what a function of a module returns in a process of its own: no earlier call has touched it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(call, *args).result()


def keep_freed_memory() -> None:
    """Let this process keep what it frees for what it allocates next, as training does at each step.

    glibc gives large pieces back to the system, which fills each with zeros, page by page, when it is needed
    again: a sixth of a step on a CPU (docs/performance.md). Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)  # never


def _status(key: str) -> int:
    """Return a line of the process's status in KiB."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])
