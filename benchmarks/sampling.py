"""Sampling: the loop beside its bare forward passes, what reuse saves, and memory of a video that is written.

The network of `benchmarks/stdit3.py` with windows, in float32, two guidance branches, 1 thread. `over_bare`
is the time of a run over that of the same calls of the network one by one, each computing all it needs. Times
are the process's own: the loop leaves nothing to wait for.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Measure, interleaved, wanted
from benchmarks.stdit3 import TEXT_WIDTH, make_model
from opensora.datasets.video_io import through_sheet, write_video
from opensora.models.video_vae import VideoVAE
from opensora.schedulers.guidance import Guidance
from opensora.schedulers.rectified_flow import RectifiedFlow
from opensora.utils.memory import fresh_process, peak_memory

THREADS = 1
STEPS = 3
CASES = {"clip": ((16, 4, 16, 16), 120), "image": ((16, 1, 32, 32), 300)}  # latents, tokens of the caption
OVER_BARE = 1.03
LENGTHS = (17, 65, 257)
SIDE = 48
VAE = {"channels": 32, "channel_multipliers": (1, 1, 1, 1), "num_res_blocks": 1}  # in chunks of 17 frames
MORE_MEMORY = 1.1  # of the longest video over the one before


def run() -> Iterator[Measure]:
    """Yield the overhead of the loop, the gain and memory of reuse, and the peaks of decoding to a file."""
    torch.set_num_threads(THREADS)
    for case in CASES:
        if wanted(f"sampling/{case}"):
            yield from _loop(case)
    if wanted("sampling/decode"):
        yield from _decode()


def _loop(case: str) -> Iterator[Measure]:
    shape, tokens = CASES[case]
    plain, calls = sampler(shape, tokens, reuse=False)
    kept, kept_calls = sampler(shape, tokens, reuse=True)
    plain()
    kept()
    recorded, cache = list(calls), kept_calls[0]["cache"]

    @torch.no_grad()
    def bare() -> None:
        for call in recorded:
            call["model"](*call["args"], known=None)

    times = interleaved({"bare": bare, "plain": plain, "kept": kept}, 5, clock=time.process_time)
    conditions = {"threads": THREADS, "steps": STEPS, "latents": shape, "tokens": tokens, "dtype": "fp32"}
    conditions["bare_ms"] = round(1000 * times["bare"], 1)
    for name in ("plain", "kept"):
        ratio = times[name] / times["bare"]
        yield Measure(f"sampling/{case}/{name}/over_bare", ratio, "x", OVER_BARE, conditions=conditions)
    yield Measure(f"sampling/{case}/gain", times["plain"] / times["kept"], "x", conditions=conditions)
    yield Measure(f"sampling/{case}/kept", cache.num_bytes / 2**20, "MiB", conditions=conditions)


def sampler(
    shape: tuple[int, ...], tokens: int, reuse: bool
) -> tuple[Callable[[], Any], list[dict[str, Any]]]:
    """Return a sampling run, and the list that its calls of the network are written to."""
    model, calls = make_model(True, "fp32"), []
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, *shape, generator=generator)
    cond = {"text_features": torch.randn(1, tokens, TEXT_WIDTH, generator=generator)}
    values = {"fps": 24.0, "height": 8.0 * shape[2], "width": 8.0 * shape[3], "num_frames": 29.0}
    cond |= {name: torch.tensor([value]) for name, value in values.items()}
    scheduler = RectifiedFlow(STEPS, shift_time=True, reuse_conditions=reuse)

    class Recorder:
        takes_cache = True

        def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            if len(calls) < STEPS:
                calls.append({"model": model, "args": args, **kwargs})
            return model(*args, **kwargs)

    recorder = Recorder()
    return lambda: scheduler.sample(recorder, noise, cond, Guidance({"text": 7.5})), calls


def _decode() -> Iterator[Measure]:
    conditions = {"side": SIDE, "threads": THREADS, "vae": VAE}
    found = {}
    for frames in LENGTHS:
        found[frames] = fresh_process(peak, frames, True)
        yield Measure(f"sampling/decode/stream/{frames}/peak", found[frames], "MiB", conditions=conditions)
    longest, before = LENGTHS[-1], LENGTHS[-2]
    ratio = found[longest] / found[before]
    yield Measure(
        f"sampling/decode/stream/{longest}_over_{before}", ratio, "x", MORE_MEMORY, conditions=conditions
    )
    whole = fresh_process(peak, longest, False)
    yield Measure(f"sampling/decode/whole/{longest}/peak", whole, "MiB", conditions=conditions)


def peak(frames: int, stream: bool) -> float:
    """Return by how many MiB a process grows while it decodes latents and writes video and contact sheet.

    The shortest clip comes before, so that libraries are loaded and threads are running.
    """
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    vae = VideoVAE(**VAE).eval()

    @torch.no_grad()
    def write(length: int, folder: str) -> None:
        z = torch.randn(1, vae.latent_channels, *vae.latent_shape(length, SIDE, SIDE))
        parts = (part[0] for part in (vae.decode_stream if stream else _at_once(vae))(z, length))
        write_video(through_sheet(parts, length, Path(folder, "v.png")), Path(folder, "v.mp4"), 24)

    with tempfile.TemporaryDirectory() as folder:
        write(LENGTHS[0], folder)
        return peak_memory(lambda: write(frames, folder))


def _at_once(vae: VideoVAE) -> Callable[..., list[torch.Tensor]]:
    return lambda z, num_frames: [vae.decode(z, num_frames)]
