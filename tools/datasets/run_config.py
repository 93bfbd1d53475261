"""What a training config says about data: buckets, step between frames, seed, transform."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opensora.datasets.assignment import BucketTable, Columns
from opensora.datasets.buckets import Buckets
from opensora.datasets.loader import build_buckets
from opensora.datasets.planner import Planner, PlanRules
from opensora.utils.config import load_config


@dataclass(frozen=True)
class RunConfig:
    """The part of a config that decides what becomes of a clip.

    Args:
        buckets: Where clips belong.
        frame_interval: Step between frames.
        transform: Name of the transform.
        seed: Seed of the run.
        rules: What becomes of rows that fill no batch.
    """

    buckets: Buckets
    frame_interval: int
    transform: str
    seed: int
    rules: PlanRules = PlanRules()


@dataclass(frozen=True)
class _Size:
    num_frames: int | None
    image_size: Any


def read_run_config(words: Sequence[str]) -> RunConfig:
    """Read a config file and the options after it.

    Args:
        words: The file, then `--key value` as for training.

    Raises:
        ValueError: It is no config for training on clips, or its buckets are wrong.
    """
    cfg = load_config(words)
    dataset = cfg["dataset"] if "dataset" in cfg and "plan" in cfg else {}
    if "frame_interval" not in dataset:
        raise ValueError(f"--config {words[0]}: it has no dataset of clips; give a config for training.")
    size = _Size(dataset["num_frames"], dataset["image_size"])
    buckets = build_buckets(size, cfg["bucket_config"], cfg["batch_size"], cfg["plan"]["bucket_rule"])
    rules = PlanRules.from_config(cfg["plan"])
    return RunConfig(buckets, dataset["frame_interval"], dataset["transform"], cfg["seed"], rules)


def rows_by_shape(run: RunConfig, columns: Columns, epoch: int = 0) -> BucketTable:
    """Return the shape of each row in an epoch, and why rows have none."""
    planner = Planner("", columns, run.buckets, 1, run.seed, run.frame_interval, run.rules)
    return planner.assignment(np.zeros(0, dtype=np.int64)).draw(run.seed, epoch)
