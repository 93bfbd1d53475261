"""Trainer: the loop around any task."""

import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from opensora.acceleration.parallel import all_reduce_mean, barrier, parallel_state
from opensora.engine.checkpoint import RunState, read_checkpoint, save_checkpoint
from opensora.engine.ema import Ema
from opensora.engine.optimizer import LrSchedule
from opensora.utils.logging import get_logger


class TrainingData(Protocol):
    """What the trainer asks of its data."""

    def steps(self, epoch: int) -> int:
        """Return the optimizer steps of an epoch."""

    def batches(self, epoch: int, start_step: int) -> Iterable[list[dict[str, Any]]]:
        """Yield for each step from `start_step` on the batches of this process."""

    def state(self) -> dict[str, Any]:
        """Return what is needed to continue, as JSON."""

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            ValueError: The table or the plan is another one.
        """


@dataclass
class TrainerSettings:
    """How long to train, and what to do along the way.

    Args:
        epochs: Passes over the data.
        max_steps: Stop after so many optimizer steps; None runs all epochs.
        grad_clip: Largest norm of the gradient; 0 does not clip.
        ema_decay: Of the averaged weights; None keeps none.
        log_every: Steps between lines of the log.
        ckpt_every: Steps between checkpoints; 0 saves at the end only.
        ckpt_keep: Checkpoints that stay; 0 keeps all.
        validate_every: Steps between validations; 0 never validates.
        patience: Skipped steps in a row that stop the run.
    """

    epochs: int
    max_steps: int | None = None
    grad_clip: float = 0.0
    ema_decay: float | None = None
    log_every: int = 10
    ckpt_every: int = 0
    ckpt_keep: int = 0
    validate_every: int = 0
    patience: int = 20


class Trainer:
    """Train a task: steps, averages, logs, checkpoints.

    Args:
        task: Gives `trainable()`, `use(modules)`, `losses(batch, step)`.
        engine: Runs backward passes and optimizer steps.
        data: Batches by epoch and step.
        optimizers: The optimizers in the engine, by module name.
        schedule: Learning rate by step.
        settings: See `TrainerSettings`.
        tracker: Takes `log(step, values)`; checkpoints go to its `folder`.
        validate: Called with (step, use_average) on all processes; returns values to log.
    """

    def __init__(
        self,
        task: Any,
        engine: Any,
        data: TrainingData,
        optimizers: Mapping[str, torch.optim.Optimizer],
        schedule: LrSchedule,
        settings: TrainerSettings,
        tracker: Any,
        validate: Any = None,
    ) -> None:
        self.task, self.engine, self.data, self.optimizers = task, engine, data, optimizers
        self.schedule, self.settings = schedule, settings
        self.tracker, self.validate = tracker, validate
        self.state = RunState()
        self.names = list(task.trainable())
        task.use({name: engine.module(name) for name in self.names})
        decay = settings.ema_decay
        self.averages = {} if decay is None else {name: Ema(engine, name, decay) for name in self.names}
        self.total_steps = settings.max_steps or data.steps(0) * settings.epochs  # else an estimate
        self._stop = False

    def fit(self) -> RunState:
        """Train to the end, or until SIGTERM or Ctrl-C asks to stop: then save and return.

        Raises:
            FloatingPointError: Gradients were not finite for `patience` steps in a row.
        """
        handlers = {s: signal.signal(s, self._request_stop) for s in (signal.SIGTERM, signal.SIGINT)}
        meter = _Meter(self.total_steps - self.state.step)
        try:
            while not self._done():
                for batches in self.data.batches(self.state.epoch, self.state.step_in_epoch):
                    values = self.train_step(batches)
                    meter.add(values)
                    self._after_step(meter)
                    if self._done():
                        break
                else:
                    self.state.epoch, self.state.step_in_epoch = self.state.epoch + 1, 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        self.save()
        return self.state

    def train_step(self, batches: list[dict[str, Any]]) -> dict[str, Tensor | float]:
        """Run the batches of one optimizer step.

        The loss of a step is the mean over its batches, on all processes, of their means.

        Returns:
            Mean loss values of this process's batches, the gradient norms and the learning rate.
        """
        rate = self.schedule(self.state.step)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate
        values: dict[str, Any] = {"lr": rate, "replaced": 0}
        for i, batch in enumerate(batches):
            last = i + 1 == len(batches)
            values["replaced"] += int(batch.get("replaced", 0))
            losses = self.task.losses(batch, self.state.step)
            # The forward pass runs inside no_sync too: engines look at it to know whether to reduce.
            sync = nullcontext() if last else self._no_sync()
            with sync:
                for name, parts in losses:
                    self.engine.backward(parts["loss"] / len(batches), name)
                    for key, value in parts.items():
                        if isinstance(value, Tensor) and value.ndim == 0:
                            label = key if name == "model" or key != "loss" else f"{name}_{key}"
                            values[label] = values.get(label, 0.0) + value.detach() / len(batches)
                    if last:
                        self._update(name, values)
        self.state.step += 1
        self.state.step_in_epoch += 1
        # A signal to one process stops all at the same step.
        self._stop = all_reduce_mean(float(self._stop)) > 0
        return values

    def save(self) -> None:
        """Write a checkpoint of the current state. Called by all processes."""
        tensors: dict[str, dict[str, Tensor]] = {}
        for name in self.names:  # every process takes part in gathering, the main one gets whole tensors
            tensors[name] = self.engine.weights(name)
            tensors[f"{name}_optimizer"] = self.engine.state(name)
            if name in self.averages:
                tensors[f"{name}_ema"] = self.engine.frozen(name) | self.averages[name].whole()
        self.state.data = self.data.state()
        if parallel_state().is_main:
            save_checkpoint(self.tracker.folder, self.state, tensors, self.settings.ckpt_keep)
        barrier()

    def load(self, path: str | Path, from_scratch: bool = False) -> None:
        """Continue from a checkpoint, on any number of processes.

        Args:
            path: A checkpoint or a run folder.
            from_scratch: Take weights, averages and optimizer, but start at epoch 0 and step 0.

        Raises:
            FileNotFoundError: There is no checkpoint.
            ValueError: Its data is not this run's.
        """
        state, tensors = read_checkpoint(path)
        for name in self.names:
            self.engine.load(name, tensors[name], tensors[f"{name}_optimizer"])
            if name in self.averages:
                self.averages[name].load(
                    tensors[f"{name}_ema"] if f"{name}_ema" in tensors else tensors[name]
                )
        if not from_scratch:
            self.data.load(state.data)
            self.state = state
        get_logger().info("continued from %s at step %d, epoch %d", path, self.state.step, self.state.epoch)

    def _update(self, name: str, values: dict[str, Any]) -> None:
        values[f"grad_norm_{name}"] = self.engine.clip(name, self.settings.grad_clip)
        if self.engine.step(name):
            if name in self.averages:
                self.averages[name].update()
            return
        self.state.skipped.append(self.state.step)
        recent = self.state.skipped[-self.settings.patience :]
        get_logger().warning("step %d skipped: the gradient of %s is not finite", self.state.step, name)
        if len(recent) == self.settings.patience and recent[-1] - recent[0] < self.settings.patience:
            raise FloatingPointError(
                f"gradients of {name} were not finite for {self.settings.patience} steps in a row, up to "
                f"step {self.state.step}; lower the learning rate, or load a checkpoint from before."
            )

    def _after_step(self, meter: "_Meter") -> None:
        step, settings = self.state.step, self.settings
        if settings.log_every and step % settings.log_every == 0:
            values = {key: float(all_reduce_mean(value)) for key, value in meter.flush().items()}
            if parallel_state().is_main:
                self.tracker.log(step, {**values, "epoch": self.state.epoch})
                get_logger().info("%s", meter.line(step, self.total_steps, self.state.epoch, values))
        if self.validate is not None and settings.validate_every and step % settings.validate_every == 0:
            values = self.validate(step)
            if parallel_state().is_main:
                self.tracker.log(step, values)
        if settings.ckpt_every and step % settings.ckpt_every == 0 and not self._done():
            self.save()

    def _no_sync(self) -> Any:
        from contextlib import ExitStack

        stack = ExitStack()
        for name in self.names:
            stack.enter_context(self.engine.no_sync(name))
        return stack

    def _done(self) -> bool:
        limit = self.settings.max_steps
        over = self.state.epoch >= self.settings.epochs or (limit is not None and self.state.step >= limit)
        return over or self._stop

    def _request_stop(self, number: int, frame: Any) -> None:
        get_logger().warning("signal %d: saving after this step, then stopping", number)
        self._stop = True


class _Meter:
    """Means of logged values, and the rate of steps."""

    def __init__(self, steps_left: int) -> None:
        self.sums: dict[str, Any] = {}
        self.count, self.total = 0, 0
        self.start = time.perf_counter()

    def add(self, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        self.count += 1
        self.total += 1

    def flush(self) -> dict[str, float]:
        means = {key: float(value) / max(self.count, 1) for key, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def line(self, step: int, total: int, epoch: int, values: Mapping[str, float]) -> str:
        rate = self.total / max(time.perf_counter() - self.start, 1e-9)
        left = int((total - step) / rate)
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        shown = " ".join(f"{key} {value:.4g}" for key, value in values.items())
        return f"step {step}/{total} epoch {epoch} {shown} | {rate:.2f} steps/s, {clock} left"
