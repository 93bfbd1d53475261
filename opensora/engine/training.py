"""A training run from a config: check, plan, build, train."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from opensora.acceleration.activation_checkpoint import set_activation_checkpoint
from opensora.acceleration.engine import build_engine
from opensora.acceleration.parallel import (
    barrier,
    broadcast_text,
    init_distributed,
    parallel_state,
    shut_down,
)
from opensora.engine.build import parse_dtype
from opensora.engine.checkpoint import find_checkpoint, list_checkpoints, read_state
from opensora.engine.optimizer import LrSchedule, build_optimizer
from opensora.engine.report import report_run
from opensora.engine.tracker import Tracker
from opensora.engine.trainer import Trainer, TrainerSettings
from opensora.engine.training_data import TrainingData
from opensora.engine.validation import Validation
from opensora.layers.attention import set_attention_backend
from opensora.utils.config import make_run_folder
from opensora.utils.logging import get_logger
from opensora.utils.random import seed_everything


def train(cfg: Any, make_task: Callable[[Mapping[str, Any]], Any], dry_run: bool = False) -> Path | None:
    """Run a training config.

    Everything that can be wrong with the data, the processes and the config is found before a network is
    built.

    Args:
        cfg: Keys of `configs/_base_/runtime.py` and of the task.
        make_task: Builds the task, for example `LatentDiffusion.from_config`.
        dry_run: Only report what the run would do.

    Returns:
        The run's folder; None after a dry run.

    Raises:
        ValueError: A setting is wrong, or settings contradict each other.
        FileNotFoundError: A table, weights or a checkpoint is missing.
        ImportError: The plugin needs ColossalAI and it is not installed.
    """
    parse_dtype(cfg["dtype"])
    init_distributed(None if cfg["device"] == "auto" else cfg["device"])
    try:
        checkpoint = _find_load(cfg)
        saved = read_state(checkpoint) if checkpoint is not None else None
        per_step = (
            saved.data["batches_per_step"] if saved is not None and not cfg["start_from_scratch"] else None
        )
        data = TrainingData(cfg, per_step)
        seed_everything(cfg["seed"])
        if dry_run:
            report_run(cfg, make_task, data)
            return None
        return _run(cfg, make_task, data, checkpoint)
    finally:
        shut_down()


def _run(cfg: Any, make_task: Callable, data: TrainingData, checkpoint: Path | None) -> Path:
    folder = Path(broadcast_text(str(make_run_folder(cfg)) if parallel_state().is_main else None))
    task = make_task(cfg)
    modules = task.trainable()
    for module in modules.values():
        set_attention_backend(module, cfg["attention_backend"])
        set_activation_checkpoint(module, cfg["activation_checkpoint"])
    optimizers = {name: build_optimizer(module, cfg["optimizer"]) for name, module in modules.items()}
    engine = build_engine(
        cfg["plugin"],
        cfg["dtype"],
        modules,
        optimizers,
        reduce_bucket_mib=4 * cfg["reduce_bucket_size_in_m"],
    )
    task.place(engine.device, parse_dtype(cfg["dtype"]))
    settings = TrainerSettings(
        epochs=cfg["epochs"],
        max_steps=cfg["max_steps"],
        grad_clip=cfg["grad_clip"],
        ema_decay=cfg["ema_decay"],
        log_every=cfg["log_every"],
        ckpt_every=cfg["ckpt_every"],
        ckpt_keep=cfg["ckpt_keep"],
        validate_every=cfg["validate_every"],
    )
    total = cfg["max_steps"] or data.steps(0) * cfg["epochs"]
    schedule = LrSchedule(cfg["optimizer"]["lr"], total, **cfg["lr_schedule"])
    is_main = parallel_state().is_main
    start = read_state(checkpoint).step if checkpoint is not None and not cfg["start_from_scratch"] else 0
    tracker = Tracker(folder, start, cfg["tensorboard"], cfg["wandb"]) if is_main else _Silent(folder)
    validation = Validation(task, data, cfg["validation"], folder) if cfg["validate_every"] else None
    trainer = Trainer(task, engine, data, optimizers, schedule, settings, tracker, validation)
    if checkpoint is not None:
        trainer.load(checkpoint, from_scratch=cfg["start_from_scratch"])
    get_logger().info("run folder %s; %d steps, %d per epoch", folder, total, data.steps(0))
    state = trainer.fit()
    if is_main:
        picture = tracker.close()
        get_logger().info("trained to step %d; losses: %s", state.step, picture or "none logged")
    barrier()
    return folder


class _Silent:
    """Tracker of processes that do not write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Write nothing."""


def _find_load(cfg: Any) -> Path | None:
    """Resolve `load`: None, "latest" of the named run, or a path. A named run that exists is continued."""
    named = Path(cfg["outputs"]) / cfg["run_name"] if cfg["run_name"] is not None else None
    load = cfg["load"]
    if load == "latest":
        if named is None:
            raise ValueError(
                "load='latest' needs run_name, the run whose newest checkpoint is loaded; give --run-name."
            )
        found = list_checkpoints(named)
        return found[-1] if found else None
    if load is None:
        found = list_checkpoints(named) if named is not None else []
        return found[-1] if found else None
    return find_checkpoint(load)
