"""A video coded by the processes of a sequence group, beside one process alone.

The network and clips of `benchmarks/pieces.py` in chunks, one thread per process, so two processes need two
cores. It takes about four minutes.
"""

import statistics
import time
from collections.abc import Iterator

from benchmarks.measure import Measure, wanted
from benchmarks.pieces import CHUNK, SIZE, network
from benchmarks.processes import in_processes
from opensora.acceleration.parallel import barrier

PROCESSES = 2
GAIN = 1.5
LENGTHS = (65, 257)
SIDES = ("encode", "decode")
ROUNDS = 2  # of both kinds of groups in turn
REPEATS = 2


def run() -> Iterator[Measure]:
    """Yield for each side and length seconds alone and together, and how many times as fast together is."""
    for side in SIDES:
        for frames in LENGTHS:
            name = f"group/{frames}x{SIZE[0]}x{SIZE[1]}/{side}"
            if not wanted(name):
                continue
            found: dict[int, list[float]] = {1: [], PROCESSES: []}
            for _ in range(ROUNDS):
                for count, values in found.items():
                    values.append(in_processes(count, "benchmarks.group:seconds", side, str(frames)))
            alone, together = (statistics.median(values) for values in found.values())
            conditions = {"threads": 1, "chunk": CHUNK, "rounds": ROUNDS}
            yield Measure(f"{name}/alone", alone, "s", conditions=conditions)
            yield Measure(f"{name}/{PROCESSES}x", together, "s", conditions=conditions)
            gain = alone / together
            yield Measure(f"{name}/{PROCESSES}x/gain", gain, "x", at_least=GAIN, conditions=conditions)


def seconds(side: str, frames: str) -> float:
    """Return the median time of a call in this process group."""
    call, times = network(int(frames), side, "chunked"), []
    for turn in range(REPEATS + 1):
        barrier()
        start = time.perf_counter()
        call()
        if turn:
            times.append(time.perf_counter() - start)
    return statistics.median(times)
