"""A training run from a config: check, plan, build, train."""

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from opensora.acceleration.activation_checkpoint import set_activation_checkpoint
from opensora.acceleration.block_compile import compilations, compile_blocks
from opensora.acceleration.engine import Engine, check_plugin
from opensora.acceleration.parallel import (
    barrier,
    broadcast_text,
    init_distributed,
    parallel_state,
    shut_down,
)
from opensora.acceleration.watchdog import Watchdog
from opensora.engine.build import build_run_engine, parse_dtype
from opensora.engine.features import task_on_features
from opensora.engine.optimizer import LrSchedule, build_optimizer
from opensora.engine.report import report_run
from opensora.engine.start import Start, find_start
from opensora.engine.tracker import Tracker, check_packages
from opensora.engine.trainer import Trainer, TrainerSettings
from opensora.engine.training_data import TrainingData
from opensora.engine.validation import Validation
from opensora.engine.warm_up import warm_up
from opensora.layers.attention import set_attention_backend
from opensora.layers.fused import is_bf16_quick
from opensora.layers.sequence import check_mode, set_sequence_parallel
from opensora.utils.config import make_run_folder
from opensora.utils.config_defaults import base_configs
from opensora.utils.files import alone_in, if_disk_allows
from opensora.utils.logging import get_logger
from opensora.utils.memory import keep_freed_memory
from opensora.utils.random import seed_everything, use_deterministic_kernels
from opensora.utils.user_errors import USER_ERRORS

STARTS = "starts.jsonl"


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
        BlockingIOError: Another process works in the run's folder.
        FileNotFoundError: A table, weights or a checkpoint is missing.
        ImportError: A package that the config asks for is not installed.
    """
    settings = _check(cfg)
    init_distributed(None if cfg["device"] == "auto" else cfg["device"], sp_size=cfg["sp_size"])
    if parallel_state().device.type == "cpu":
        keep_freed_memory()
    stay = ExitStack()  # in the run's folder
    try:
        alone = not dry_run and _enter(cfg, stay)
        start = find_start(cfg)
        data = TrainingData(cfg, start.state.data["batches_per_step"] if start.state is not None else None)
        if start.state is not None:
            data.load(start.state.data)
        if hasattr(data.dataset, "header"):
            make_task = task_on_features(make_task, cfg, data.dataset.header)
        if dry_run:
            report_run(cfg, make_task, data)
            return None
        check_packages(cfg["tensorboard"], cfg["wandb"])
        build_run_engine(cfg, {}, {})  # finds what it lacks before a network is built
        seed_everything(cfg["seed"])
        if cfg["deterministic"]:
            use_deterministic_kernels()
        try:
            folder = Path(_on_main(lambda: str(make_run_folder(cfg, None if alone else stay))))
            with Watchdog(folder, cfg["hang_timeout_s"]):
                return _run(cfg, make_task, settings, data, start, folder)
        finally:
            data.close()
    finally:
        shut_down()
        stay.close()


def _enter(cfg: Any, stay: ExitStack) -> bool:
    """Keep others out of a named run before its checkpoints are read; False if it is not there yet."""
    folder = Path(cfg["outputs"]) / (cfg["run_name"] or "")

    def enter() -> bool:
        there = bool(cfg["run_name"]) and folder.is_dir()
        if there:
            stay.enter_context(alone_in(folder))
        return there

    return _on_main(enter)


def _on_main(call: Callable[[], Any]) -> Any:
    """Return on all processes what a call gives on the first one; what is wrong is an error of all."""
    said, error = {}, None
    if parallel_state().is_main:
        try:
            said = {"result": call()}
        except USER_ERRORS as wrong:
            said, error = {"error": str(wrong)}, wrong
    said = json.loads(broadcast_text(json.dumps(said)))
    if "error" in said:
        raise error or ValueError(said["error"])
    return said["result"]


def _check(cfg: Any) -> TrainerSettings:
    """Check what needs neither data nor other processes."""
    absent = [key for key in base_configs()["runtime"] if key not in cfg]
    if absent:
        raise ValueError(f"{', '.join(absent[:5])}: not in this config, so it is no config for training.")
    parse_dtype(cfg["dtype"])
    check_plugin(cfg["plugin"] or "none", cfg["offload"])
    if "num_images" in cfg["dataset"] and cfg["dataset"]["num_images"]:
        raise ValueError(
            f"dataset.num_images={cfg['dataset']['num_images']}: the networks of this version do not read "
            "images behind clips; set it to 0. Buckets of one frame train on images and videos in turn."
        )
    if cfg["lora"] is not None:
        raise ValueError(
            f"lora={cfg['lora']!r}: not in this version; set it to None, and choose what is trained with "
            "model.train_only or model.freeze."
        )
    if cfg["start_from_scratch"] and cfg["load"] is None:
        raise ValueError("start_from_scratch=True: it needs a checkpoint; give --load, or set it to False.")
    one = nn.Linear(1, 1)
    set_attention_backend(one, cfg["attention_backend"])
    check_mode(cfg["sequence_parallel"])
    build_optimizer(one, cfg["optimizer"])
    LrSchedule(cfg["optimizer"]["lr"], 1, **cfg["lr_schedule"])
    names = TrainerSettings.__dataclass_fields__
    return TrainerSettings(**{name: cfg[name] for name in names})


def build_run(cfg: Mapping[str, Any], make_task: Callable[[Mapping[str, Any]], Any]) -> tuple[Any, Engine]:
    """Build the task of a config, and the engine around its networks.

    Args:
        cfg: As for `train`.
        make_task: As for `train`.
    """
    task = make_task(cfg)
    modules = task.trainable()
    for module in modules.values():
        set_attention_backend(module, cfg["attention_backend"])
        set_activation_checkpoint(module, cfg["activation_checkpoint"])
        set_sequence_parallel(module, cfg["sequence_parallel"])
        if cfg["compile"]:
            compile_blocks(module)
    optimizers = {name: build_optimizer(module, cfg["optimizer"]) for name, module in modules.items()}
    engine = build_run_engine(cfg, modules, optimizers)
    if engine.device.type == "cpu" and cfg["dtype"] == "bf16" and not is_bf16_quick():
        get_logger().warning("this processor only emulates bfloat16: --dtype fp32 can be 50 times as fast")
    task.place(engine.device, parse_dtype(cfg["dtype"]))
    return task, engine


def _run(
    cfg: Any,
    make_task: Callable[[Mapping[str, Any]], Any],
    settings: TrainerSettings,
    data: TrainingData,
    start: Start,
    folder: Path,
) -> Path:
    is_main = parallel_state().is_main
    data.quarantine.file = folder / "quarantine.jsonl"
    data.plan_file = folder / "plan.npz"
    task, engine = build_run(cfg, make_task)
    shapes = data.planner.buckets.shapes
    if hasattr(task, "check_shapes"):
        task.check_shapes(shapes)
    if cfg["compile"]:
        warm_up(task, engine, shapes)
    total = settings.total_steps(data.steps_per_epoch)
    schedule = LrSchedule(cfg["optimizer"]["lr"], total, **cfg["lr_schedule"])
    validation = Validation(task, data, cfg["validation"], folder) if cfg["validate_every"] else None
    tracker = Tracker(folder, start.step, cfg["tensorboard"], cfg["wandb"]) if is_main else _Silent(folder)
    trainer = Trainer(task, engine, data, engine.optimizers, schedule, settings, tracker, validation)
    if start.checkpoint is not None:
        trainer.load(start.checkpoint, from_scratch=start.state is None)
    if is_main:
        _note_start(folder, cfg, trainer.state.step)
    get_logger().info("run folder %s; %d steps, %d per epoch", folder, total, data.steps_per_epoch)
    compiled = compilations() if cfg["compile"] else 0
    try:
        state = trainer.fit()
    finally:
        picture = tracker.close()
    if cfg["compile"]:
        get_logger().info("recompilations during training: %d", compilations() - compiled)
    get_logger().info("trained to step %d; losses: %s", state.step, picture or "none logged")
    barrier()
    return folder


def _note_start(folder: Path, cfg: Mapping[str, Any], step: int) -> None:
    """Add a line to `starts.jsonl`: which processes make the steps from here on."""
    state = parallel_state()
    line = {"step": step, "processes": state.world_size, "sp_size": cfg["sp_size"], "plugin": cfg["plugin"]}
    line |= {"device": state.device.type, "torch": torch.__version__}
    with if_disk_allows(folder / STARTS), open(folder / STARTS, "a") as file:
        file.write(json.dumps(line) + "\n")


class _Silent:
    """Tracker of processes that do not write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Write nothing."""

    def rewind(self, step: int) -> None:
        """Drop nothing."""

    def close(self) -> None:
        """Do nothing."""
