"""A video coded by the processes of a sequence group, beside one process alone.

The layout of configs/vae/train/streaming.py at a quarter of its width, in chunks of 17 frames, one thread per
process, so that two processes need two cores. It takes about two minutes.
"""

import statistics
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.measure import Measure, wanted
from benchmarks.processes import in_processes
from opensora.acceleration.parallel import barrier
from opensora.models.video_vae import VideoVAE
from opensora.utils.config import load_config

PROCESSES = 2
CONFIG = "configs/vae/train/streaming.py"
CHUNK = 17
SIZE = (48, 48)
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
            yield Measure(f"{name}/{PROCESSES}x/gain", alone / together, "x", conditions=conditions)


def seconds(side: str, frames: str) -> float:
    """Return the median time of a call in this process group."""
    call, times = _call(side, int(frames)), []
    for turn in range(REPEATS + 1):
        barrier()
        start = time.perf_counter()
        call()
        if turn:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _model() -> VideoVAE:
    settings = {k: v for k, v in load_config([CONFIG])["vae"].items() if k not in ("type", "from_pretrained")}
    settings.pop("ignore_keys")
    torch.manual_seed(0)
    return VideoVAE(**settings | dict(channels=32, micro_frame_size=CHUNK)).eval()


def _call(side: str, frames: int) -> Callable[[], None]:
    vae = _model()
    shape = (3, frames, *SIZE) if side == "encode" else (16, *vae.latent_shape(frames, *SIZE))
    data = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def call() -> None:
        getattr(vae, side)(data)

    return call
