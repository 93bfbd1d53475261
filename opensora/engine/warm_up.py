"""Compile ahead: one made-up batch per bucket, so that no step of a training waits for the compiler."""

from collections.abc import Iterable
from typing import Any

import torch

from opensora.acceleration.block_compile import compilations
from opensora.acceleration.engine import Autocast, Engine
from opensora.utils.logging import get_logger


def warm_up(task: Any, engine: Engine, shapes: Iterable[Any]) -> int:
    """Run losses and gradients of blank clips, with captions of one length and of several.

    Sizes are dynamic in compiled blocks, so one aspect ratio of a bucket is enough. Weights, gradients and
    random numbers of the training are as before.

    Args:
        task: Gives `trainable()`, `use(modules)` and `losses(batch)`, as for the trainer.
        engine: Holds the networks.
        shapes: `Shape` of every bucket and aspect ratio.

    Returns:
        The number of graphs that were compiled.
    """
    if getattr(task, "vae", None) is None or getattr(task, "text_encoder", None) is None:
        get_logger().info("the data holds features, so blocks are compiled at the first steps, not before")
        return 0
    before, seen = compilations(), set()
    networks = engine.modules.items()
    task.use({name: Autocast(module, engine.device, engine.dtype) for name, module in networks})
    for shape in shapes:
        if shape.batch_size and shape.bucket not in seen:
            seen.add(shape.bucket)
            for captions in (["a"] * shape.batch_size, ["a", "a b c"] * shape.batch_size):
                _run(task, engine, shape, captions[: shape.batch_size])
    count = compilations() - before
    get_logger().info("compiled %d graphs for %d buckets", count, len(seen))
    return count


def _run(task: Any, engine: Engine, shape: Any, captions: list[str]) -> None:
    size = len(captions)
    batch = {"video": torch.zeros(size, 3, shape.num_frames, shape.height, shape.width), "text": captions}
    numbers = {"fps": 24, "height": shape.height, "width": shape.width, "num_frames": shape.num_frames}
    batch |= {name: torch.full((size,), float(value)) for name, value in numbers.items()}
    batch |= {"sample": torch.arange(size), "epoch": torch.zeros(size, dtype=torch.int64)}
    for name, parts in task.losses(batch):
        torch.autograd.grad(parts["loss"], list(engine.leaves(name).values()), allow_unused=True)
        engine.zero_grad(name)
