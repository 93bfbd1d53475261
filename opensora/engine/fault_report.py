"""What went into a step and what came out of it, clip by clip: for reports of faults, and for replays."""

import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opensora.utils.files import write_text
from opensora.utils.random import recorded_draws

FOLDER = "reports"
_FEW = 64  # numbers per clip that are written out; of more, their norm
_NAMES = 20  # names in a list
_NO_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


@dataclass
class Examined:
    """A batch whose losses were computed again.

    Args:
        inputs: What the networks were called with, by name, such as "x", "t" or "cond.text".
        draws: Random numbers by name, such as "noise/0".
        losses: By module, the parts that the task yields.
        grad_norms: By module, before clipping; of this process alone.
        not_finite: Names of what is not finite: of `inputs`, `weights`, `losses` and `gradients`.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    draws: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, dict[str, Any]] = field(default_factory=dict)
    grad_norms: dict[str, float] = field(default_factory=dict)
    not_finite: dict[str, list[str]] = field(default_factory=dict)


def examine(task: Any, engine: Any, batch: Mapping[str, Any], step: int) -> Examined:
    """Compute the losses and gradients of a batch, and leave everything as it was. Called by all processes.

    Args:
        task: Gives `trainable()`, `use(modules)`, `losses(batch, step)`.
        engine: Holds its modules.
        batch: A training batch.
        step: Steps done before it.
    """
    found = Examined()
    names = list(task.trainable())
    task.use({name: _Watched(engine, name, found.inputs) for name in names})
    try:
        with recorded_draws() as found.draws:
            for name, parts in task.losses(dict(batch), step):
                weights = {k: p for k, p in engine.modules[name].named_parameters() if p.requires_grad}
                grads = torch.autograd.grad(parts["loss"], list(weights.values()), allow_unused=True)
                found.losses[name] = {
                    k: v.detach().cpu() if isinstance(v, Tensor) else v for k, v in parts.items()
                }
                got = {k: g for k, g in zip(weights, grads, strict=True) if g is not None}
                squares = sum(float(g.double().square().sum()) for g in got.values())
                found.grad_norms[name] = math.sqrt(squares)
                _note(found.not_finite, "weights", weights)
                _note(found.not_finite, "losses", {f"{name}.{k}": v for k, v in found.losses[name].items()})
                _note(found.not_finite, "gradients", got)
    finally:
        task.use({name: engine.module(name) for name in names})
    _note(found.not_finite, "inputs", found.inputs)
    return found


def describe(found: Examined, batch: Mapping[str, Any], table: Any = None) -> dict[str, Any]:
    """Return JSON: the bucket, losses and norms of a batch, and each of its clips.

    Args:
        found: See `examine`.
        batch: The same batch.
        table: Gives the `path` of a row, if it has one.
    """
    size = [int(batch[key][0]) for key in ("num_frames", "height", "width") if key in batch]
    clips = []
    for i, (row, epoch) in enumerate(zip(batch["sample"].tolist(), batch["epoch"].tolist(), strict=True)):
        clip = {"row": row, "epoch": epoch, "path": table.path[row] if hasattr(table, "path") else None}
        clip |= {"text": batch["text"][i]} if "text" in batch else {}
        clip |= {"inputs": _of_clip(found.inputs, i), "draws": _of_clip(found.draws, i)}
        each = [p["per_sample"] for p in found.losses.values() if "per_sample" in p]
        clips.append({**clip, "loss": _plain(each[0][i]) if each else None})
    values = {name: {k: _plain(v) for k, v in parts.items()} for name, parts in found.losses.items()}
    return {
        "bucket": {"size": size, "batch_size": len(clips)},
        "losses": values,
        "grad_norms": {name: _plain(norm) for name, norm in found.grad_norms.items()},
        "not_finite": found.not_finite,
        "clips": clips,
    }


def write_report(folder: Path, step: int, rank: int, report: Mapping[str, Any]) -> Path:
    """Write a report as JSON into a run's folder, and return its file."""
    path = Path(folder) / FOLDER / f"step{step:06d}_rank{rank}.json"
    path.parent.mkdir(exist_ok=True)
    write_text(json.dumps({"step": step, "rank": rank, **report}, indent=1), path)
    return path


def explain_memory(error: Exception, batch: Mapping[str, Any] | None, where: str) -> Exception:
    """Return an error that says what to change, if memory was short; any other error as it is.

    Args:
        error: What came out of a step.
        batch: The batch that was computed.
        where: Phase and step.
    """
    short = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if batch is None or not (short or any(text in str(error) for text in _NO_MEMORY)):
        return error
    size = " x ".join(str(int(batch[key][0])) for key in ("num_frames", "height", "width") if key in batch)
    said = " ".join(str(error).split())[:200]
    return MemoryError(
        f"out of memory in {where}, with a batch of {len(batch['sample'])} clips of {size} ({said}). Lower "
        "the batch size of that bucket in bucket_config (or batch_size), set activation_checkpoint=True, or "
        "share more with plugin='zero2'; python scripts/search_batch_size.py CONFIG finds sizes that fit."
    )


class _Watched:
    """What a task calls instead of a module; keeps what it is called with."""

    def __init__(self, engine: Any, name: str, seen: dict[str, Tensor]) -> None:
        self.engine, self.name, self.seen = engine, name, seen
        self.signature = inspect.signature(engine.modules[name].forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for key, value in _tensors(self.signature.bind(*args, **kwargs).arguments):
            self.seen[key] = value.detach().cpu()
        with self.engine.no_sync(self.name):  # its gradients go nowhere
            return self.engine.module(self.name)(*args, **kwargs)


def _tensors(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in values.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{key}.")


def _note(not_finite: dict[str, list[str]], kind: str, tensors: Mapping[str, Any]) -> None:
    bad = [k for k, v in tensors.items() if isinstance(v, Tensor) and not bool(v.isfinite().all())]
    if bad:
        not_finite[kind] = [*not_finite.get(kind, []), *bad][:_NAMES]


def _of_clip(tensors: Mapping[str, Tensor], place: int) -> dict[str, Any]:
    """Return the numbers of one clip where there are few, and their norm where there are many."""
    parts = {k: v[place] for k, v in tensors.items() if v.ndim and place < len(v)}
    return {k: _plain(v if v.numel() <= _FEW else v.float().norm()) for k, v in parts.items()}


def _plain(value: Any) -> Any:
    """Return what JSON can hold; it has no numbers that are not finite."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
