"""The autoencoder of 1.3 at a quarter of its width, beside the bare convolutions of its plain definition.

Encoding and decoding of clips of 128 x 128 pixels: in one piece, in the chunks of the published weights, and
as the inference config ships it. 2 threads. `over_bare` is our time over that of the float32 convolutions of
the definition, so an implementation that runs these stays above 1. `benchmarks/pieces.py` has the streaming
layout by length.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import pieces
from benchmarks.bare import BareProducts
from benchmarks.measure import Measure, host_dtypes, interleaved, wanted
from opensora.models.video_vae import VideoVAE
from opensora.utils.config import load_config
from opensora.utils.memory import fresh_process, peak_memory

THREADS = 2
SIDE = 128
REPEATS = {33: 5, 65: 3}  # frames of the clip, and rounds of the timing
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MODES: dict[str, dict[str, Any]] = {
    "whole": dict(
        micro_batch_size=None, micro_batch_size_2d=None, micro_frame_size=None, temporal_overlap=False
    ),
    "chunks": dict(micro_batch_size=1, micro_batch_size_2d=None, micro_frame_size=17, temporal_overlap=True),
}
SHIPPED = "configs/opensora-v1-3/inference/t2v.py"
# Seconds of the reference implementation in float32 in one piece, on two cores of an AMD EPYC of the fourth
# generation. It runs the bare convolutions and more, so half of these is more than twice as fast.
REFERENCE_S = {(33, "encode"): 1.85, (33, "decode"): 4.80}
OVER_BARE = {"fp32": 0.65, "bf16": 0.5}  # bf16 is what the inference config runs
CHUNKS_OVER_WHOLE = 1.15  # per latent frame
BF16_PSNR = 40.0


def run() -> Iterator[Measure]:
    """Yield times, their ratios to the bare convolutions and to one piece, peaks, and the error of bf16."""
    torch.set_num_threads(THREADS)
    for frames in REPEATS:
        for side in ("encode", "decode"):
            name = f"vae/{frames}x{SIDE}x{SIDE}/{side}"
            if wanted(name):
                with torch.no_grad():
                    yield from _case(name, frames, side)
    if "bf16" in host_dtypes() and wanted("vae/bf16/psnr"):
        with torch.no_grad():
            yield _psnr(min(REPEATS))
    yield from pieces.run()


def _case(name: str, frames: int, side: str) -> Iterator[Measure]:
    conditions: dict[str, Any] = {"threads": THREADS, "rounds": REPEATS[frames]}
    calls, latent_frames = {}, {}
    for dtype in host_dtypes():
        calls[f"bare/{dtype}"] = bare(frames, side, dtype).replay
        for mode in (*MODES, "shipped"):
            calls[f"{mode}/{dtype}"], latent_frames[mode] = network(frames, side, dtype, mode)
    times = interleaved(calls, REPEATS[frames])
    reference = REFERENCE_S.get((frames, side))
    for label, seconds in times.items():
        known = {"reference_s": reference} if label.startswith("whole") and reference else {}
        yield Measure(f"{name}/{label}/time", seconds, "s", conditions=conditions | known)
    for dtype in host_dtypes():
        ratio = times[f"whole/{dtype}"] / times["bare/fp32"]
        yield Measure(f"{name}/whole/{dtype}/over_bare", ratio, "x", OVER_BARE[dtype], conditions=conditions)
        for mode in ("chunks", "shipped"):
            # Chunks that share a frame have more latent frames than one piece.
            each = times[f"{mode}/{dtype}"] / latent_frames[mode]
            ratio = each * latent_frames["whole"] / times[f"whole/{dtype}"]
            full = f"{name}/{mode}/{dtype}/over_whole_per_latent_frame"
            yield Measure(full, ratio, "x", CHUNKS_OVER_WHOLE, conditions=conditions)
        for mode in (*MODES, "shipped"):
            found = fresh_process(peak, frames, side, dtype, mode)
            yield Measure(f"{name}/{mode}/{dtype}/peak", found, "MiB", conditions={"threads": THREADS})


def bare(frames: int, side: str, dtype: str) -> BareProducts:
    """Return the convolutions of the plain definition in one piece.

    Tensors without data run through it, for which no layer takes another path.
    """
    with torch.device("meta"):
        vae = make_model(dtype, "whole")
    x = torch.empty(_shape(vae, frames, side), device="meta")
    with BareProducts() as products:
        getattr(vae, side)(x)
    products.calls = [call for call in products.calls if call[0] in (F.conv2d, F.conv3d)]
    return products


def network(frames: int, side: str, dtype: str, mode: str) -> tuple[Callable[[], Tensor], int]:
    """Return a call that encodes or decodes, and the number of its latent frames.

    Args:
        frames: Length of the clip.
        side: "encode" or "decode".
        dtype: "fp32" or "bf16".
        mode: A key of `MODES`, or "shipped" for the settings of the inference config.
    """
    vae = make_model(dtype, mode)
    x = torch.randn(_shape(vae, frames, side), generator=torch.Generator().manual_seed(0)).clamp(-1, 1)

    @torch.no_grad()
    def call() -> Tensor:
        return getattr(vae, side)(x)

    return call, vae.latent_shape(frames, SIDE, SIDE)[0]


def make_model(dtype: str, mode: str) -> VideoVAE:
    """Return the autoencoder of the benchmark, with random weights."""
    settings = MODES[mode] if mode in MODES else _shipped()
    torch.manual_seed(0)
    return VideoVAE(channels=32, **settings).to(DTYPES[dtype]).eval()


def peak(frames: int, side: str, dtype: str, mode: str) -> float:
    """Return the peak of one call in MiB above the weights and above the process before the call.

    A call for a short clip comes before it, so that libraries are loaded and threads are running.
    """
    torch.set_num_threads(THREADS)
    for length in (5, frames):
        found = peak_memory(network(length, side, dtype, mode)[0])
    return found


def psnr(expected: Tensor, other: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB; the peak is the range of `expected`."""
    error = (expected - other).square().mean().sqrt()
    return 20 * math.log10(float((expected.max() - expected.min()) / error))


def _psnr(frames: int) -> Measure:
    decoded = [network(frames, "decode", dtype, "whole")[0]() for dtype in DTYPES]
    conditions = {"frames": frames, "weights": "random"}
    return Measure("vae/bf16/psnr_to_fp32", psnr(*decoded), "dB", at_least=BF16_PSNR, conditions=conditions)


def _shape(vae: VideoVAE, frames: int, side: str) -> tuple[int, ...]:
    if side == "encode":
        return 1, 3, frames, SIDE, SIDE
    return 1, vae.latent_channels, *vae.latent_shape(frames, SIDE, SIDE)


def _shipped() -> dict[str, Any]:
    cfg = load_config([SHIPPED])["vae"]
    names = ("micro_batch_size", "micro_batch_size_2d", "micro_frame_size", "temporal_overlap")
    return {key: cfg[key] for key in (*names, "tile_size", "tile_axis", "num_tiles")}
