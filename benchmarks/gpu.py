"""STDiT3-XL/2 on a GPU, with random weights: training steps, attention kernels, a video of 720p, 4 seconds.

Training is the Trainer's step on features: forward and backward pass, clipping, AdamW, no encoders. MFU
counts the products of one forward pass three times, whatever is computed again, over the dense bf16 peak of
an H100.
"""

import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Measure, wanted
from opensora.acceleration.activation_checkpoint import set_activation_checkpoint
from opensora.acceleration.block_compile import compile_blocks
from opensora.acceleration.engine import build_engine
from opensora.acceleration.parallel import init_distributed
from opensora.datasets.video_io import write_video
from opensora.engine.build import Components, build_network
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.engine.optimizer import LrSchedule, build_optimizer
from opensora.engine.trainer import Trainer, TrainerSettings
from opensora.registry import MODELS, SCHEDULERS, build
from opensora.schedulers.guidance import Guidance
from opensora.utils.config import load_config
from opensora.utils.random import Draws, seed_everything

DEVICE = "cuda"
MODEL: dict[str, Any] = {"type": "STDiT3-XL/2"}
PEAK = 989e12  # dense bf16 products a second
# Frames, rows, columns of the latents, clips in a batch, whether activations are computed again.
TRAINING = {
    "16x256x256": ((16, 32, 32), 8, False),
    "64x512x512": ((64, 64, 64), 2, True),
}
PUBLISHED = {"16x256x256": 7.00, "64x512x512": 0.40}  # samples a second of STDiT-XL/2 on an H800
PLUGINS = ("none", "zero2")
CAPTION, TEXT_WIDTH, CHANNELS = 120, 4096, 4
ATTENTION = {  # batch, heads, queries, keys, channels of a head
    "spatial 16x256x256": (512, 16, 256, 256, 72),
    "temporal 64x512x512": (4096, 16, 64, 64, 72),
    "spatial 64x512x512": (256, 16, 1024, 1024, 72),
    "spatial 720p": (25, 16, 3600, 3600, 72),
    "windows 720p": (60, 16, 1600, 1600, 72),
}
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
VIDEO, VIDEO_S = "configs/opensora-v1-3/inference/t2v.py", 130  # published: 720p, 4 s on an H100
VIDEO_SIZE = (720, 1280)
TIMED_STEPS = 6  # of a video: one is like the other
KINDS = {  # the first kind with a part of a kernel's name gets its time
    "attention": ("flash", "fmha", "sdpa", "cudnn_generated"),
    "linear": ("gemm", "cutlass", "nvjet", "splitk", "cublas"),
    "norms": ("norm",),
    "optimizer": ("multi_tensor", "adam"),
    "triton": ("triton",),
    "copies, order": ("memcpy", "memset", "copy", "index", "cat", "gather"),
    "elementwise": ("elementwise",),
    "reductions": ("reduce",),
}


def run() -> Iterator[Measure]:
    """Yield samples a second, MFU, peaks and shares of training; times of attention; seconds of a video."""
    init_distributed(DEVICE)
    seed_everything(0)
    for case in TRAINING:
        for plugin in PLUGINS:
            for compiled in (False, True):
                name = f"gpu/train/{case}/{plugin}/{'compiled' if compiled else 'eager'}"
                if wanted(name):
                    yield from _training(name, case, plugin, compiled)
    for case, shape in ATTENTION.items():
        if wanted(f"gpu/attention/{case}"):
            yield from _attention(case, shape)
    for compiled in (False, True):
        name = f"gpu/video/{'compiled' if compiled else 'eager'}"
        if wanted(name):
            yield from _video(name, compiled)


def gpu() -> dict[str, Any]:
    """Return the conditions of every figure."""
    return {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "weights": "random"}


def timed(call: Callable[[], Any], warm_up: int, repeats: int) -> float:
    """Return the median of a call in seconds, with what it left to do on the device."""
    times = []
    for turn in range(warm_up + repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        if turn >= warm_up:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def make_step(case: str, plugin: str, compiled: bool) -> tuple[Callable[[], Any], float, int]:
    """Return a training step, the products of its forward passes in FLOP, and its clips."""
    size, batch_size, again = TRAINING[case]
    model_cfg = {
        **MODEL,
        "conditions": {
            "text": {"type": "TextCondition", "text_width": TEXT_WIDTH, "text_length": CAPTION},
            "size": {"type": "SizeCondition", "fields": ("fps", "height", "width", "num_frames")},
        },
    }
    batch = random_batch(batch_size, CHANNELS, size)
    with torch.device("meta"):
        flop = forward_flop(build(MODELS, model_cfg, in_channels=CHANNELS), batch)
    with torch.device(DEVICE):
        model = build(MODELS, model_cfg, in_channels=CHANNELS)
    set_activation_checkpoint(model, again)
    optimizers = {"model": build_optimizer(model, {"lr": 1e-5, "weight_decay": 0.0})}
    if compiled:
        compile_blocks(model)
    engine = build_engine(plugin, "bf16", {"model": model}, optimizers)
    parts = Components(model=model, scheduler=build(SCHEDULERS, {"type": "RectifiedFlow"}))
    task = LatentDiffusion(parts)
    task.place(engine.device, torch.bfloat16)
    settings = TrainerSettings(epochs=1, log_every=0, ckpt_every=0, ema_decay=None, grad_clip=1.0)
    trainer = Trainer(task, engine, None, optimizers, LrSchedule(1e-5, 1), settings, None)
    return lambda: trainer.train_step([batch]), flop, batch_size


def random_batch(count: int, channels: int, size: tuple[int, int, int]) -> dict[str, Any]:
    """Return a batch of features as training reads them, for latents of this size."""
    values = {"fps": 24.0, "num_frames": float(size[0]), "height": 8.0 * size[1], "width": 8.0 * size[2]}
    batch: dict[str, Any] = {name: torch.full((count,), value) for name, value in values.items()}
    batch |= {"sample": torch.arange(count), "epoch": torch.zeros(count, dtype=torch.int64)}
    batch["latents"] = torch.randn(count, channels, *size)
    batch["text_features"] = torch.randn(count, CAPTION, TEXT_WIDTH)
    return batch


def forward_flop(model: torch.nn.Module, batch: Mapping[str, Any]) -> float:
    """Count the products of a forward pass, on tensors without data."""
    cond = {key: batch[key] for key in ("fps", "num_frames", "height", "width")}
    cond["text_features"] = batch["text_features"].to("meta")
    x = batch["latents"].to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x, torch.full((len(x),), 0.5, device="meta"), cond)
    return float(counter.get_total_flops())


def _training(name: str, case: str, plugin: str, compiled: bool) -> Iterator[Measure]:
    gc.collect()  # networks of the case before are in cycles
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        step, flop, count = make_step(case, plugin, compiled)
        seconds = timed(step, 3, 5)
    except torch.OutOfMemoryError:
        print(f"{name}: does not fit into this GPU's memory, left out", file=sys.stderr)
        return
    conditions = {"batch": count, "published_h800": PUBLISHED[case], "recomputed": TRAINING[case][2], **gpu()}
    yield Measure(f"{name}/rate", count / seconds, "samples/s", conditions=conditions)
    yield Measure(f"{name}/over_published", count / seconds / PUBLISHED[case], "x", conditions=conditions)
    yield Measure(f"{name}/mfu", 3 * flop / seconds / PEAK, "of peak", conditions=conditions | {"flop": flop})
    yield Measure(f"{name}/peak", torch.cuda.max_memory_allocated() / 2**30, "GiB", conditions=conditions)
    for kind, share in kernel_shares(step).items():
        yield Measure(f"{name}/share/{kind}", share, "of time", conditions=conditions)


def kernel_shares(call: Callable[[], Any]) -> dict[str, float]:
    """Return what share of the time each kind of kernel takes, and how long the device waits."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        total = time.perf_counter() - start
    shares = dict.fromkeys((*KINDS, "other"), 0.0)
    for event in record.key_averages():
        label = event.key.lower()
        kinds = (kind for kind, parts in KINDS.items() if any(part in label for part in parts))
        shares[next(kinds, "other")] += event.self_device_time_total / 1e6 / total
    return shares | {"device waits": max(0.0, 1 - sum(shares.values()))}


def _attention(case: str, shape: tuple[int, ...]) -> Iterator[Measure]:
    batch, heads, queries, keys, channels = shape
    q = torch.randn(batch, heads, queries, channels, device=DEVICE, dtype=torch.bfloat16)
    k, v = (torch.randn(batch, heads, keys, channels, device=DEVICE).to(q) for _ in range(2))
    flop = 4.0 * batch * heads * queries * keys * channels
    for kernel, backend in KERNELS.items():
        for x in (q, k, v):
            x.requires_grad_(False)

        def forward(backend: SDPBackend = backend) -> torch.Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v)

        try:
            seconds = timed(forward, 3, 11)
            for x in (q, k, v):
                x.requires_grad_(True)
            both = timed(lambda call=forward: call().sum().backward(), 3, 11)
        except RuntimeError as error:  # this kernel does not take this shape
            print(f"gpu/attention/{case}/{kernel}: {error}".splitlines()[0], flush=True)
            continue
        conditions = {"shape": shape, "dtype": "bf16", **gpu()}
        name = f"gpu/attention/{case}/{kernel}"
        yield Measure(f"{name}/forward", 1000 * seconds, "ms", conditions=conditions)
        yield Measure(f"{name}/both", 1000 * both, "ms", conditions=conditions)
        yield Measure(f"{name}/forward_rate", flop / seconds / 1e12, "TFLOP/s", conditions=conditions)


def _video(name: str, compiled: bool) -> Iterator[Measure]:
    """Sample, decode and write a video with the config's own settings, caption features given."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    cfg = load_config([VIDEO, "--num-frames", "97"])
    for part in ("model", "vae"):
        cfg[part]["from_pretrained"] = None
    cfg["model"]["conditions"]["text"].update(text_width=TEXT_WIDTH, text_length=300)
    with torch.device(DEVICE):
        model, vae = (
            build_network(cfg, part, None).to(torch.bfloat16).eval().requires_grad_(False)
            for part in ("model", "vae")
        )
    if compiled:
        compile_blocks(model)
    guidance = Guidance(**cfg["guidance"])
    parts = Components(model, vae, scheduler=build(SCHEDULERS, cfg["scheduler"]), guidance=guidance)
    diffusion = LatentDiffusion.from_config(cfg, parts)
    values = {"fps": 24.0, "num_frames": 97.0, "height": float(VIDEO_SIZE[0]), "width": float(VIDEO_SIZE[1])}
    batch = {key: torch.tensor([value]) for key, value in values.items()}
    batch["text_features"] = torch.randn(1, 300, TEXT_WIDTH, device=DEVICE, dtype=torch.bfloat16)
    times = [time.perf_counter()]

    def on_step(*_: Any) -> None:
        torch.cuda.synchronize()
        times.append(time.perf_counter())
        if len(times) > TIMED_STEPS:
            raise _Enough

    with suppress(_Enough):
        diffusion.sample(batch, Draws(0, [0]), on_step=on_step)
    steps = cfg["scheduler"]["num_sampling_steps"]
    conditions = {"steps": steps, "timed_steps": TIMED_STEPS, "frames": 97, "size": VIDEO_SIZE, **gpu()}
    each = statistics.median(b - a for a, b in zip(times[1:], times[2:], strict=False))
    sampling = times[1] - times[0] + (steps - 1) * each
    yield Measure(f"{name}/first_step", times[1] - times[0], "s", conditions=conditions)
    yield Measure(f"{name}/step", each, "s", conditions=conditions)
    yield Measure(f"{name}/sampling", sampling, "s", conditions=conditions)
    peaks = [torch.cuda.max_memory_allocated() / 2**30]
    torch.cuda.reset_peak_memory_stats()
    z = torch.randn(vae.latent_channels, *vae.latent_shape(97, *VIDEO_SIZE), device=DEVICE)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write_video(diffusion.decode_stream(z, 97), Path(folder, "video.mp4"), 24)
        decoding = time.perf_counter() - start
    peaks.append(torch.cuda.max_memory_allocated() / 2**30)
    yield Measure(f"{name}/decoding", decoding, "s", conditions=conditions)
    for part, value in zip(("sampling", "decoding"), peaks, strict=True):
        yield Measure(f"{name}/{part}_peak", value, "GiB", conditions=conditions)
    conditions |= {"published_h100": VIDEO_S}
    yield Measure(f"{name}/whole", sampling + decoding, "s", VIDEO_S, conditions=conditions)


class _Enough(Exception):  # noqa: N818
    """Enough steps are timed."""
