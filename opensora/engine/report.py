"""Report of a dry run: what a config would train, on what, and how much memory its state takes."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from opensora.acceleration.parallel import parallel_state
from opensora.datasets.assignment import REASONS
from opensora.datasets.plan_errors import name_of
from opensora.engine.build import without_weights
from opensora.utils.logging import get_logger
from opensora.utils.meta_device import meta_device

GIB = 2**30


def report_run(cfg: Mapping[str, Any], make_task: Callable[[Mapping[str, Any]], Any], data: Any) -> None:
    """Log the report. Networks are built on the meta device, so nothing is allocated.

    Args:
        cfg: The config of the run.
        make_task: Builds the task.
        data: The planned `TrainingData`.
    """
    with meta_device():
        task = make_task(_without_weights(cfg))
    if hasattr(task, "check_shapes"):
        task.check_shapes(data.planner.buckets.shapes)
    log = get_logger().info
    for name, module in task.trainable().items():
        total = sum(p.numel() for p in module.parameters())
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        log("%s: %s parameters, %s trained", name, f"{total:,}", f"{trained:,}")
        for line in memory_lines(cfg, total, trained):
            log("  %s", line)
    plan = data.plan
    log(
        "epoch %d: %d steps of %d batches (%d per process), plan %s",
        plan.epoch, plan.num_steps, plan.batches_per_step, data.accumulation, plan.hash,
    )  # fmt: skip
    log("rows: %s", ", ".join(f"{name} {count}" for name, count in plan.counts.items() if count))
    for line in plan_lines(data):
        log("%s", line)
    for line in bucket_lines(task, plan):
        log("  %s", line)


def memory_lines(cfg: Mapping[str, Any], total: int, trained: int) -> list[str]:
    """Say how much memory weights, gradients, optimizer and average take on each process.

    Args:
        cfg: `plugin`, `dtype`, `ema_decay`.
        total: Parameters.
        trained: Those that are trained.
    """
    ranks = parallel_state().world_size
    plugin = cfg["plugin"] or "none"
    zero = int(plugin[4]) if plugin.startswith("zero") else 0
    half = 2 if cfg["dtype"] != "fp32" else 4
    parts = {  # with ZeRO, masters are cut over processes and the network holds working copies
        "weights": total * half if zero else total * 4,
        "fp32 masters": trained * 4 / ranks if zero else 0,
        "gradients": trained * 4 / ranks if zero == 2 else trained * (half + 4 / ranks if zero else 4),
        "optimizer": trained * 8 / (ranks if zero else 1),
        "average": 0 if cfg["ema_decay"] is None else trained * 4 / (ranks if zero else 1),
    }
    lines = [f"{name}: {size / GIB:.2f} GiB" for name, size in parts.items() if size]
    lines.append(
        f"state per process ({plugin}, {ranks} of them): {sum(parts.values()) / GIB:.2f} GiB, "
        "plus activations"
    )
    return lines


def plan_lines(data: Any) -> list[str]:
    """Say how evenly a plan keeps processes busy, what it leaves out, and which buckets starve.

    Args:
        data: The planned `TrainingData`.
    """
    plan, buckets = data.plan, data.planner.buckets
    total = sum(plan.counts[name] for name in REASONS)
    out = {n: c for n, c in plan.counts.items() if c and n not in ("taken", "used", "repeated")}
    left = ", ".join(f"{100 * count / total:.1f} % {name}" for name, count in out.items())
    ranks = data.world_size
    lines = [
        f"balance: the slowest of {ranks} processes does {plan.imbalance(ranks):.3f} times the mean work",
        f"not in this epoch: {left or 'no row'}",
    ]
    for entry in data.planner.starved:
        go = "go on" if entry.home is None else f"become {name_of(buckets, buckets.shapes[entry.home])}"
        name = name_of(buckets, buckets.shapes[entry.shape])
        lines.append(f"starved: {name}; its {entry.rows} rows {go}")
    return lines


def bucket_lines(task: Any, plan: Any) -> list[str]:
    """Say for each size in a plan how many batches and clips it has, and how many tokens a clip is."""
    sizes, counts = np.unique(plan.sizes, axis=0, return_counts=True)
    clips = np.diff(plan.starts)
    lines = []
    for size, count in zip(sizes, counts, strict=True):
        frames, height, width = (int(n) for n in size)
        chosen = clips[(plan.sizes == size).all(1)]
        line = f"{frames} x {height} x {width}: {count} batches of {int(chosen.max())}"
        if getattr(task, "vae", None) is not None and hasattr(task, "model"):
            latent = task.vae.latent_shape(frames, height, width)
            line += f", latents {' x '.join(map(str, latent))}"
            window, unit = getattr(task, "window", None), "clip"
            if window is not None and window.frames < latent[0]:
                latent, unit = (window.frames, *latent[1:]), "window"
                line += f", windows of {window.frames}"
            patch = getattr(task.model, "patch_size", (1, 1, 1))
            tokens = math.prod(-(-n // p) for n, p in zip(latent, patch, strict=True))
            line += f", {tokens:,} tokens a {unit}"
        lines.append(line)
    return lines


def _without_weights(cfg: Mapping[str, Any]) -> dict[str, Any]:
    bare = dict(cfg)
    for name in ("model", "vae"):
        if isinstance(bare.get(name), Mapping):
            bare[name] = without_weights(bare[name])
    return bare
