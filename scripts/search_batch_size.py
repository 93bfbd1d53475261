"""Search for the largest batch of each bucket, and print a bucket_config to paste.

    python scripts/search_batch_size.py CONFIG
    python scripts/search_batch_size.py CONFIG --base "('360p', 49)"
    python scripts/search_batch_size.py CONFIG --device cpu --memory-gib 8

The largest batch is the one that fits in memory and, with base or base_step_time, whose step takes no longer
than that. Steps are those of the training, on random clips, or on random features if the dataset holds those.
Entries of bucket_config are (probability, batch size), where the search starts at that size, or (guess,
variance), where it stays within guess - variance and guess + variance. The log says how they were read.
"""

import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from opensora.acceleration.activation_checkpoint import set_activation_checkpoint
from opensora.acceleration.parallel import init_distributed, parallel_state, shut_down
from opensora.datasets.buckets import Bucket, Buckets, Shape
from opensora.engine.build import build_run_engine, parse_dtype
from opensora.engine.features import task_on_features
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.engine.optimizer import LrSchedule, build_optimizer
from opensora.engine.trainer import Trainer, TrainerSettings
from opensora.layers.attention import set_attention_backend
from opensora.registry import DATASETS, build, fill_in, resolve
from opensora.utils.config import plain, read_command_line
from opensora.utils.logging import get_logger
from opensora.utils.random import seed_everything
from opensora.utils.user_errors import one_line_errors

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_HALVE_AFTER, _GROWTH = 8, 4  # tries along a line; largest factor from one try to the next


def main() -> None:
    """Read the command line and search; end with one line and status 2 where something is wrong."""
    cfg = read_command_line(__doc__, also="batch_search")
    with one_line_errors():
        init_distributed(None if cfg["device"] == "auto" else cfg["device"])
        try:
            sys.stdout.write(search(cfg))
        finally:
            shut_down()


def search(cfg: Mapping[str, Any]) -> str:
    """Search all buckets of a config, and return Python to paste into one."""
    features = _features(cfg)
    buckets, config, guided = _buckets(cfg, features)
    limits = Limits.of(cfg, buckets, guided)
    steps = Steps(cfg, features)
    found: dict[Bucket, Found] = {}
    order = sorted(buckets.buckets, key=lambda bucket: _place(bucket) != limits.base)
    for bucket in order:
        shape = steps.largest_shape(buckets, bucket)
        is_base = _place(bucket) == limits.base
        target = None if is_base and cfg["base_step_time"] is None else limits.seconds
        found[bucket] = _search_one(steps, shape, bucket, limits, target)
        if is_base and cfg["base_step_time"] is None:
            if not found[bucket].batch:
                raise ValueError(
                    f"base={cfg['base']}: no batch of it fits in memory; choose a smaller bucket."
                )
            limits.seconds = found[bucket].seconds
            get_logger().info("the others shall take at most %.3f s a step", limits.seconds)
    return _as_config(config, buckets, found, guided)


@dataclass
class Limits:
    """What a batch must keep to.

    Args:
        base: (resolution, frames) of the bucket that the others should be as fast as, or None.
        seconds: Longest step; None for any.
        memory: Bytes that the process may take.
        largest: Largest batch that is looked at.
        guided: Whether the entries say themselves how far to look.
    """

    base: tuple[str, int] | None
    seconds: float | None
    memory: float
    largest: int
    guided: bool

    @classmethod
    def of(cls, cfg: Mapping[str, Any], buckets: Buckets, guided: bool) -> "Limits":
        """Read and check the keys of `configs/_base_/batch_search.py`."""
        if parallel_state().world_size > 1:
            raise ValueError("the search runs in one process: start it with python, not with torchrun.")
        seconds, memory = cfg["base_step_time"], cfg["memory_gib"]
        for name, value in (("base_step_time", seconds), ("memory_gib", memory)):
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value}: use a number above 0, or None.")
        if parallel_state().device.type == "cpu" and memory is None:
            raise ValueError(
                "memory_gib=None: a CPU does not say when it is full; give --memory-gib, such as 8."
            )
        device = parallel_state().device
        if memory is None and device.type == "cuda":
            memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        base = None if cfg["base"] is None else (str(cfg["base"][0]), int(cfg["base"][1]))
        if base is not None and base not in [_place(bucket) for bucket in buckets.buckets]:
            raise ValueError(
                f"base={base}: bucket_config has no such entry; name a resolution and a length of it."
            )
        return cls(base, seconds, memory * 2**30, cfg["largest_batch"], guided)


@dataclass
class Found:
    """What a search found.

    Args:
        batch: The largest batch; 0 if not even the smallest is within the limits.
        probes: Batches that were tried.
        seconds: Of a step with that batch.
        memory: Peak of the process in bytes.
    """

    batch: int
    probes: int
    seconds: float = 0.0
    memory: float = 0.0


def largest_batch(load: Callable[[int], float], guess: int, low: int, high: int) -> tuple[int, int]:
    """Return the largest batch whose load is at most 1, and how many were tried.

    The load grows with the batch, about along a line: the next batch to try is where the line through the
    last two reaches 1, then its neighbour. After some tries, and where the line does not help, the interval
    is halved, so it ends for any load that grows.

    Args:
        load: Share of the limit that a batch takes; infinite if it does not fit at all.
        guess: First batch to try.
        low: Smallest batch, at least 1.
        high: Largest batch.

    Returns:
        The batch, 0 if the smallest one exceeds the limit; the number of tries.
    """
    best, failed, probe, tries = low - 1, high + 1, min(max(guess, low), high), 0
    points = [(0, 0.0)]
    while failed - best > 1:
        share = load(probe)
        tries += 1
        best, failed = (probe, failed) if share <= 1 else (best, probe)
        if math.isfinite(share):
            points.append((probe, share))
        open_ended = failed > high  # then go up, but not at once to what may take hours
        probe = min(_GROWTH * max(best, 1), high) if open_ended else (best + failed) // 2
        if tries < _HALVE_AFTER:
            probe = min(_on_line(points, best, failed, probe), probe if open_ended else failed)
        probe = min(max(probe, best + 1), failed - 1)
    return (best if best >= low else 0), tries


def _on_line(points: list[tuple[int, float]], best: int, failed: int, otherwise: int) -> int:
    """Return where the line through the last two points reaches 1, if that is in [best, failed)."""
    if len(points) < 2:
        return otherwise
    (b0, s0), (b1, s1) = points[-2:]
    if b0 == b1 or (s1 - s0) / (b1 - b0) <= 0:
        return otherwise
    found = b1 + math.floor((1 - s1) * (b1 - b0) / (s1 - s0))
    return found if best <= found < failed else otherwise


class Steps:
    """Training steps on random clips, as `scripts/train.py` takes them.

    Args:
        cfg: Config of a training.
        features: Its `FeatureDataset`, or None for clips.
    """

    def __init__(self, cfg: Mapping[str, Any], features: Any = None) -> None:
        self.cfg = cfg
        self.content = None if features is None else features.header["content"]
        seed_everything(cfg["seed"])
        make_task = LatentDiffusion.from_config
        if features is not None:  # they are measured without encoders, whether or not the config names them
            make_task = task_on_features(make_task, cfg, features.header)
        self.task = make_task(cfg)
        modules = self.task.trainable()
        for module in modules.values():
            set_attention_backend(module, cfg["attention_backend"])
            set_activation_checkpoint(module, cfg["activation_checkpoint"])
        self.optimizers = {
            name: build_optimizer(module, cfg["optimizer"]) for name, module in modules.items()
        }
        engine = build_run_engine(cfg, modules, self.optimizers)
        self.device = engine.device
        self.task.place(self.device, parse_dtype(cfg["dtype"]))
        schedule = LrSchedule(cfg["optimizer"]["lr"], 1, **cfg["lr_schedule"])
        settings = TrainerSettings(**{name: cfg[name] for name in TrainerSettings.__dataclass_fields__})
        self.trainer = Trainer(self.task, engine, None, self.optimizers, schedule, settings, None)

    def largest_shape(self, buckets: Buckets, bucket: Bucket) -> Shape:
        """Return the aspect ratio of a bucket that has the most latents."""
        number = buckets.buckets.index(bucket)
        shapes = [shape for shape in buckets.shapes if shape.bucket == number]
        return max(shapes, key=lambda shape: math.prod(self.task.vae.latent_shape(*shape[2:5])))

    def measure(self, shape: Shape, size: int, memory: float, timed: bool) -> tuple[float, float] | None:
        """Take some steps on a batch.

        Args:
            shape: Length and size of the clips.
            size: Clips.
            memory: Bytes that the process may take; more stops after the first step.
            timed: Whether the time matters; else two steps are enough.

        Returns:
            Seconds of a step, the median, and the peak of memory in bytes; None if it does not fit.
        """
        times, peak = [], 0.0
        steps = self.cfg["search_warmup"] + self.cfg["search_steps"] if timed else 2
        try:
            _reset_peak(self.device)
            batch = self.random_batch(shape, size)
            for _ in range(steps):
                start = time.perf_counter()
                self.trainer.train_step([batch])
                peak = _peak(self.device)  # waits for the device
                times.append(time.perf_counter() - start)
                if peak > memory:
                    break
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            times = []
        batch = None
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        kept = times[self.cfg["search_warmup"] if timed else 1 :] or times
        return (statistics.median(kept), peak) if times else None

    def random_batch(self, shape: Shape, size: int) -> dict[str, Any]:
        """Return a batch like those of training, with the longest captions."""
        frames, height, width = shape[2:5]
        sizes = {"fps": 24.0, "num_frames": float(frames), "height": float(height), "width": float(width)}
        batch: dict[str, Any] = {name: torch.full((size,), value) for name, value in sizes.items()}
        batch |= {name: torch.zeros(size, dtype=torch.int64) for name in ("label", "epoch")}
        batch["sample"] = torch.arange(size)
        if self.content is None:
            batch["video"] = torch.rand(size, 3, frames, height, width) * 2 - 1
        else:
            latent = (self.task.vae.latent_channels, *self.task.vae.latent_shape(frames, height, width))
            batch[self.content] = torch.randn(size, *((2,) if self.content == "moments" else ()), *latent)
        encoder = self.task.text_encoder
        if encoder is not None and self.content is None:
            batch["text"] = [" ".join(["a"] * (encoder.max_length - 2))] * size
        elif encoder is not None:
            batch["text_features"] = torch.randn(size, encoder.max_length, encoder.width)
        return batch


def _search_one(steps: Steps, shape: Shape, bucket: Bucket, limits: Limits, target: float | None) -> Found:
    """Search one bucket and say what was found."""
    seen: dict[int, tuple[float, float]] = {}

    def load(size: int) -> float:
        measured = steps.measure(shape, size, limits.memory, target is not None or is_base)
        if measured is None:
            get_logger().info("batch %d does not fit", size)
            return math.inf
        seen[size] = measured
        get_logger().info("batch %d: %.3f s a step, %.2f GiB", size, measured[0], measured[1] / 2**30)
        return max(measured[1] / limits.memory, 0.0 if target is None else measured[0] / target)

    is_base = _place(bucket) == limits.base
    low, high = 1, limits.largest
    if limits.guided:
        low, high = max(bucket.batch_size - bucket.variance, 1), bucket.batch_size + bucket.variance
    size, tries = largest_batch(load, bucket.batch_size or 1, low, high)
    found = Found(size, tries, *(seen[size] if size else (0.0, 0.0)))
    get_logger().info(
        "%s, %d frames (%d x %d): batch %d, %.3f s a step, %.2f GiB, %d tried",
        *(bucket.resolution, bucket.num_frames, shape.height, shape.width, found.batch),
        *(found.seconds, found.memory / 2**30, found.probes),
    )
    return found


def _features(cfg: Mapping[str, Any]) -> Any:
    """Return the dataset of a config if it holds features; None for clips, which the search does not read."""
    if hasattr(resolve(DATASETS, cfg["dataset"]["type"]), "choose_buckets"):
        return build(DATASETS, fill_in(DATASETS, cfg["dataset"], seed=cfg["seed"]))
    if cfg["vae"] is None:
        raise ValueError(
            "vae=None: clips need an autoencoder; set one, or dataset to a FeatureDataset with its data_path."
        )
    return None


def _buckets(cfg: Mapping[str, Any], features: Any) -> tuple[Buckets, Mapping[str, Any] | None, bool]:
    """Return the buckets of a config, their `bucket_config`, and whether entries are (guess, variance)."""
    config, size = plain(cfg["bucket_config"]), cfg["batch_size"]
    frames, image_size = (cfg["dataset"].get(name) for name in ("num_frames", "image_size"))
    if features is not None:
        config, size = features.choose_buckets(config, size)
        frames, image_size = features.num_frames, features.image_size
    if config is None:
        return Buckets.fixed(frames, *(image_size or (None, None)), size or 1), None, False
    buckets, note = _read_as(config, "search"), ""
    odd = [] if buckets is None else [b for b in buckets.buckets if b.batch_size == 1 < b.variance]
    if buckets is None or (odd and _read_as(config, "train") is not None):
        buckets, guided = Buckets(config, "train"), False
        if odd:
            entry = f"bucket_config[{odd[0].resolution!r}][{odd[0].num_frames}]"
            note = f"; {entry} = (1, {odd[0].variance}) makes no sense as (guess, variance)"
    else:
        guided = True
    form = "(guess, variance)" if guided else "(probability, batch size)"
    get_logger().info("entries of bucket_config are read as %s%s", form, note)
    return buckets, config, guided


def _read_as(config: Mapping[str, Any], purpose: str) -> Buckets | None:
    """Return the buckets of a config, None if it has another form."""
    try:
        return Buckets(config, purpose)
    except ValueError:
        return None


def _as_config(
    config: Mapping[str, Any] | None, buckets: Buckets, found: Mapping[Bucket, Found], guided: bool
) -> str:
    """Return the lines of a config that hold the batches."""
    if config is None:
        (only,) = buckets.buckets
        if not found[only].batch:
            shape = buckets.shapes[0]
            raise ValueError(
                f"not even one clip of {shape.num_frames} x {shape.height} x {shape.width} fits; use "
                "smaller or shorter clips, or a smaller model."
            )
        return f"batch_size = {found[only].batch}\n"
    sizes = {_place(bucket): result.batch for bucket, result in found.items()}
    lines = ["bucket_config = {  # resolution: {frames: (probability, batch size)}"]
    for resolution, lengths in config.items():
        parts = []
        for frames, entry in lengths.items():
            probability = 1.0 if guided else entry[0]
            probability = float(probability) if isinstance(probability, int) else probability
            size = sizes[resolution, frames]
            parts.append(f"{frames}: ({probability if size else 0.0}, {size or None})")
        lines.append(f'    "{resolution}": {{{", ".join(parts)}}},')
    return "\n".join([*lines, "}"]) + "\n"


def _place(bucket: Bucket) -> tuple[str, int]:
    return bucket.resolution, bucket.num_frames


def _reset_peak(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        _CLEAR.write_text("5")


def _peak(device: torch.device) -> float:
    """Return the peak of memory in bytes since the last reset: of the process, or of its GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_reserved())
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return 1024.0 * int(line.split()[1])


if __name__ == "__main__":
    main()
