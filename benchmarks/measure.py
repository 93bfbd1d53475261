"""Measures: a figure with its unit, its aim and its conditions; interleaved timing."""

import fnmatch
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

ONLY = "BENCHMARKS_ONLY"  # environment variable: the pattern of `--only`
_BF16_FLAGS = ("avx512_bf16", "amx_bf16")


@cache
def host_dtypes() -> tuple[str, ...]:
    """Return the precisions that are worth measuring here: bf16 where the processor multiplies such numbers.

    Elsewhere it is emulated, ten times as slow as float32.
    """
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and any(flag in cpuinfo.read_text() for flag in _BF16_FLAGS):
        return ("fp32", "bf16")
    print("this processor has no instructions for bf16: its figures are left out", file=sys.stderr)
    return ("fp32",)


@dataclass(frozen=True)
class Measure:
    """One figure.

    Args:
        name: What was measured, as a path: "stdit3/16x8x32x32/windowed/fp32/forward".
        value: The figure.
        unit: Its unit: "ms", "MiB", "x" for a ratio.
        at_most: The aim, where smaller is better; None for no such aim.
        at_least: The aim, where larger is better; None for no such aim.
        conditions: What the figure depends on, beside the machine.
    """

    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool | None:
        """Whether the aim is met; None without an aim."""
        if self.at_most is None and self.at_least is None:
            return None
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    def line(self) -> str:
        """Return the figure as one line of JSON."""
        aim = None if self.ok is None else f"<= {self.at_most}" if self.at_least is None else None
        if aim is None and self.at_least is not None:
            aim = f">= {self.at_least}"
        value = float(f"{self.value:.5g}")
        row = {"name": self.name, "value": value, "unit": self.unit, "aim": aim, "ok": self.ok}
        return json.dumps({**row, "conditions": {**self.conditions, **machine()}})


@cache
def machine() -> dict[str, Any]:
    """Return what every figure depends on: processor, cores in use, versions."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x.partition(":")[2].strip() for x in cpuinfo.read_text().splitlines() if "model name" in x]
        model = names[0] if names else model
    return {"cpu": model, "cores": os.cpu_count(), "torch": torch.__version__}


def wanted(name: str) -> bool:
    """Return whether the command line asked for the measures whose names start so.

    Benchmarks that take minutes ask before each case; `--only` sets the pattern.
    """
    return fnmatch.fnmatch(name, f"*{os.environ.get(ONLY, '')}*")


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    repeats: int = 7,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Time calls one after the other, round by round, so that a slow minute touches all of them.

    Args:
        calls: What to time, by name.
        repeats: Rounds that count.
        warm_up: Rounds before them.
        clock: Gives seconds; `time.process_time` counts what the process computes, whatever else runs beside.

    Returns:
        The median of each call in seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm_up + repeats):
        for name, call in calls.items():
            start = clock()
            call()
            if turn >= warm_up:
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}
