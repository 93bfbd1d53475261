"""The streaming autoencoder whole, in chunks, in tiles and streamed: seconds and peak memory by length.

The layout of configs/vae/train/streaming.py at a quarter of its width, one thread, small frames. Times are of
the processor, so other work on the machine moves them less. Peaks are of processes in which freed memory goes
back to the system at once: what the allocator keeps for later is no part of them.
"""

import ctypes
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks.measure import Measure, interleaved, wanted
from opensora.models.video_vae import VideoVAE
from opensora.utils.config import load_config
from opensora.utils.memory import peak_memory

SIZE = (48, 48)
CHUNK = 33
LENGTHS = (17, 65, 129, 257)  # frames of the clip
ROUNDS = 3  # of whole and streamed, whose ratio is asked for; the others run once
MODES: dict[str, dict[str, Any]] = {
    "whole": {},
    "chunked": dict(micro_frame_size=CHUNK),
    "tiled": dict(spatial_tile=4, spatial_overlap=2),
    "streamed": dict(micro_frame_size=CHUNK),  # frames come and go in parts
}
CONFIG = "configs/vae/train/streaming.py"
STREAMED_OVER_WHOLE = 1.1
PEAK_GROWTH = 1.05  # of the longest clip over the shortest that is longer than a chunk
_MMAP_THRESHOLD = -3  # of mallopt


def run() -> Iterator[Measure]:
    """Yield seconds, the ratio of streamed to whole, peaks, and the growth of the streamed peak."""
    torch.set_num_threads(1)
    for side in ("encode", "decode"):
        for frames in LENGTHS:
            name = f"vae/streaming/{frames}x{SIZE[0]}x{SIZE[1]}/{side}"
            if wanted(name):
                yield from _times(name, frames, side)
    if wanted("vae/streaming/peak"):
        yield from _peaks()


def network(frames: int, side: str, mode: str) -> Callable[[], None]:
    """Return a call that encodes or decodes a clip in one of the `MODES`.

    Args:
        frames: Length of the clip.
        side: "encode" or "decode".
        mode: A key of `MODES`.
    """
    settings = {k: v for k, v in load_config([CONFIG])["vae"].items() if k not in ("type", "from_pretrained")}
    settings.pop("ignore_keys")
    torch.manual_seed(0)
    vae = VideoVAE(**settings | dict(channels=32) | MODES[mode]).eval()
    shape = (3, frames, *SIZE) if side == "encode" else (16, *vae.latent_shape(frames, *SIZE))
    step = CHUNK - 1 if side == "encode" else (CHUNK - 1) // 4
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def call() -> None:
        if mode == "streamed":
            for _ in getattr(vae, f"{side}_stream")(
                draw(1, shape[0], length, *shape[2:]) for length in part_lengths(shape[1], step)
            ):
                pass
        else:
            getattr(vae, side)(draw(1, *shape))

    return call


def part_lengths(total: int, step: int) -> list[int]:
    """Return the lengths of the parts of a clip: one more than a step, then steps, then the rest."""
    first = min(1 + step, total)
    return [first, *(min(step, total - start) for start in range(first, total, step))]


def peaks(side: str, mode: str) -> dict[int, float]:
    """Return the peaks of clips of all lengths in MiB, above this process, which does nothing else."""
    torch.set_num_threads(1)
    ctypes.CDLL("libc.so.6").mallopt(_MMAP_THRESHOLD, 1 << 16)
    network(5, side, mode)()  # loads libraries
    return {frames: peak_memory(network(frames, side, mode)) for frames in LENGTHS}


def _times(name: str, frames: int, side: str) -> Iterator[Measure]:
    calls = {mode: network(frames, side, mode) for mode in MODES}
    pair = {mode: calls.pop(mode) for mode in ("whole", "streamed")}
    times = interleaved(pair, ROUNDS, clock=time.process_time)
    others = interleaved(calls, 1, clock=time.process_time)
    for found, rounds in ((times, ROUNDS), (others, 1)):
        conditions = {"threads": 1, "rounds": rounds, "clock": "process"}
        for mode, seconds in found.items():
            yield Measure(f"{name}/{mode}/time", seconds, "s", conditions=conditions)
    ratio = times["streamed"] / times["whole"]
    yield Measure(f"{name}/streamed/over_whole", ratio, "x", STREAMED_OVER_WHOLE, conditions={"threads": 1})


def _peaks() -> Iterator[Measure]:
    cases = [(side, mode) for side in ("encode", "decode") for mode in MODES]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for (side, mode), found in zip(cases, pool.map(peaks, *zip(*cases, strict=True)), strict=True):
            for frames, value in found.items():
                name = f"vae/streaming/peak/{frames}x{SIZE[0]}x{SIZE[1]}/{side}/{mode}"
                yield Measure(name, value, "MiB", conditions={"threads": 1})
            longer = [value for frames, value in found.items() if frames > CHUNK]
            aim = PEAK_GROWTH if mode == "streamed" else None
            name = f"vae/streaming/peak/{side}/{mode}/growth_to_{max(found)}_frames"
            yield Measure(name, longer[-1] / longer[0], "x", aim, conditions={"threads": 1})
