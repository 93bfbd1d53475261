"""Trainer: the loop around any task."""

import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from opensora.acceleration.heartbeat import here, phase
from opensora.acceleration.parallel import all_reduce_mean, parallel_state
from opensora.engine.checkpoint import FOLDER, RunState, find_checkpoint, read_checkpoint
from opensora.engine.checkpoint_writer import CheckpointWriter
from opensora.engine.ema import Ema
from opensora.engine.fault_report import explain_memory
from opensora.engine.log_window import LogWindow
from opensora.engine.optimizer import LrSchedule
from opensora.engine.recovery import Recovery
from opensora.utils.logging import get_logger


class TrainingData(Protocol):
    """What the trainer asks of its data."""

    def batches(self, epoch: int, start_step: int) -> Iterable[list[dict[str, Any]]]:
        """Yield for each step from `start_step` on the batches of this process."""

    def state(self) -> dict[str, Any]:
        """Return what is needed to continue, as JSON."""

    def load(self, state: dict[str, Any]) -> bool:
        """Continue from a saved state.

        Returns:
            Whether the saved epoch goes on; if not, the next one begins.

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
        log_every: Steps between lines of the log; 0 writes none.
        ckpt_every: Steps between checkpoints; 0 saves at the end only.
        ckpt_keep: Checkpoints that stay, the latest ones; 0 keeps all.
        ckpt_keep_every: Checkpoints of steps that this divides stay too; 0 for none.
        validate_every: Steps between validations; 0 never validates.
        patience: Skipped steps in a row after which the run goes back to a checkpoint, see `Recovery`.
        skip_steps: Steps, counted from 0, that make no update: those that another run skipped.
        record_time: Log how long each step waits for data and computes, in seconds.

    Raises:
        ValueError: A number is out of range.
    """

    epochs: int
    max_steps: int | None = None
    grad_clip: float = 0.0
    ema_decay: float | None = None
    log_every: int = 10
    ckpt_every: int = 0
    ckpt_keep: int = 0
    ckpt_keep_every: int = 0
    validate_every: int = 0
    patience: int = 20
    skip_steps: Sequence[int] = ()
    record_time: bool = False

    def __post_init__(self) -> None:
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(
                f"ema_decay={self.ema_decay}: use a number in [0, 1), or None to keep no average."
            )
        least = {"epochs": 1, "patience": 1, "grad_clip": 0, "log_every": 0}
        least |= {"ckpt_every": 0, "ckpt_keep": 0, "ckpt_keep_every": 0, "validate_every": 0}
        if self.max_steps is not None:
            least["max_steps"] = 1
        for name, smallest in least.items():
            if not getattr(self, name) >= smallest:
                raise ValueError(f"{name}={getattr(self, name)}: use a number from {smallest}.")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return how many steps the run has, if all epochs are as long as the first."""
        steps = self.epochs * steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)


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
        validate: Called with the step on all processes; returns values to log.
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
        self.state = RunState(skip_steps=sorted(settings.skip_steps))
        self.names = list(task.trainable())
        task.use({name: engine.module(name) for name in self.names})
        decay = settings.ema_decay
        self.averages = {} if decay is None else {name: Ema(engine, name, decay) for name in self.names}
        self.recovery = Recovery(self)
        self._window = LogWindow()
        self._progress = _Progress(schedule.num_steps)
        self._asked = False  # to stop, by a signal to this process
        self._stop = False  # agreed by all processes, so that they leave the loop together
        self._batch: Mapping[str, Any] | None = None  # that is computed
        self._saved: int | None = None  # step of the last checkpoint in this run's folder
        self._blocked = 0.0  # seconds that the last step was held up by saving
        folder = Path() if tracker is None else tracker.folder  # who only tries steps saves none
        self._writer = CheckpointWriter(folder, settings.ckpt_keep, settings.ckpt_keep_every)

    def fit(self) -> RunState:
        """Train to the end, or until SIGTERM or Ctrl-C asks to stop: then save and return.

        Raises:
            FloatingPointError: Gradients were not finite for `patience` steps in a row, and there is no way
                back.
            OSError: The end was reached, and the last checkpoint could not be written.
            MemoryError: A batch needs more memory than there is.
        """
        handlers = {s: signal.signal(s, self._request_stop) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            while not self._done():
                for batches, waited in self._batches():
                    values = self._try_step(batches)
                    if len(self.recovery.streak()) >= self.settings.patience:
                        self.recovery.roll_back()
                        break
                    self._after_step({**values, "seconds_data": waited})
                    if self._done():
                        break
                else:
                    self.state.epoch, self.state.step_in_epoch = self.state.epoch + 1, 0
            if self._saved != self.state.step:
                self.save()
            if error := self.settle():
                raise OSError(f"step {self.state.step} is not saved, and the run is over: {error}")
        finally:
            self._writer.leave()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return self.state

    def train_step(self, batches: list[dict[str, Any]]) -> dict[str, Tensor | float]:
        """Run the batches of one optimizer step.

        The loss of a step is the mean over its batches, on all processes, of their means.

        Returns:
            Mean loss values of this process's batches, the gradient norms, the learning rate, how many clips
            were replaced, whether the step was skipped, and how long it took.
        """
        start = time.perf_counter()
        rate = self.schedule(self.state.step)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate
        values: dict[str, Any] = {"lr": rate, "replaced": sum(int(b.get("replaced", 0)) for b in batches)}
        values["skipped"] = 0
        if self.recovery.is_planned:
            for name in self.names:
                self.engine.skip(name)
            spoiled, bad_loss, computed = [], 0.0, {}
        else:
            spoiled, bad_loss, computed = self._compute(batches)
        if spoiled or self.recovery.is_planned:  # all skip it, and the log adds up processes
            self.recovery.take(batches, spoiled, float(bad_loss))
            values["skipped"] = 1 / parallel_state().world_size
        else:
            values |= computed
        if hasattr(self.task, "after_step"):
            self.task.after_step(skipped=bool(values["skipped"]))
        self.state.step += 1
        self.state.step_in_epoch += 1
        asked, failed = all_reduce_mean(torch.tensor([self._asked, self._writer.failed])).tolist()
        if failed:
            self.settle()
        if asked and not self._stop:
            self._stop = True
            get_logger().warning("asked to stop: saving step %d", self.state.step)
        values["seconds_save"], self._blocked = self._blocked, 0.0
        values["seconds_step"] = time.perf_counter() - start  # agreeing has waited for the device
        return values

    def _compute(self, batches: list[dict[str, Any]]) -> tuple[list[str], Tensor | float, dict[str, Any]]:
        """Return the modules whose gradient was not finite, how many losses were not, and the values."""
        values: dict[str, Any] = {}
        spoiled: list[str] = []
        bad_loss: Tensor | float = 0.0
        for i, batch in enumerate(batches):
            last, self._batch = i + 1 == len(batches), batch
            phase("encode")
            losses = self.task.losses(batch, self.state.step)
            with ExitStack() as stack:
                # The forward pass is inside as well: engines look there whether to reduce.
                for name in () if last else self.names:
                    stack.enter_context(self.engine.no_sync(name))
                for name, parts in losses:
                    phase("backward")
                    # A loss that is not finite must not leave finite gradients.
                    finite = parts["loss"].detach().isfinite()
                    bad_loss = bad_loss + (~finite).float()
                    valid = torch.where(finite, 1.0, torch.nan)
                    self.engine.backward(parts["loss"] * valid / len(batches), name)
                    for key, value in parts.items():
                        if isinstance(value, Tensor) and value.ndim == 0:
                            label = key if name == "model" or key != "loss" else f"{name}_{key}"
                            values[label] = values.get(label, 0.0) + value.detach() / len(batches)
                    if last and not self._update(name, values):
                        spoiled.append(name)
        return spoiled, bad_loss, values

    def save(self) -> None:
        """Copy the current state, and begin to write it as a checkpoint. Called by all processes.

        Training goes on meanwhile. `settle` tells whether it was written.
        """
        phase("save")
        start = time.perf_counter()
        self.settle()  # before copying, so that there is one copy at a time
        waited = time.perf_counter() - start
        parts: dict[str, dict[str, Tensor]] = {}
        for name in self.names:  # every process gets its share of the whole tensors, copied
            parts[name] = self.engine.weights(name, spread=True)
            parts[f"{name}_optimizer"] = self.engine.state(name, spread=True)
            if name in self.averages:
                parts[f"{name}_ema"] = self.engine.frozen(name) | self.averages[name].whole(spread=True)
        self.state.data = self.data.state()
        self.state.window = self._window.steps()
        skipped = self.state.step - 1 in self.state.skipped[-1:]  # then an older one may be gone back to
        self._writer.save(self.state, parts, keep_all=skipped)
        self._saved = self.state.step
        self._blocked = time.perf_counter() - start
        text = "saving step %d: held up for %.3f s, %.3f s of it by the checkpoint before"
        get_logger().info(text, self.state.step, self._blocked, waited)

    def settle(self) -> str:
        """Wait until the last checkpoint is written. Called by all processes.

        Returns:
            Why it could not be, for example because the disk is full; the older ones are still there. Empty
            if it was.
        """
        error = self._writer.wait()
        if error:
            self._saved = None
            get_logger().warning("%s Training goes on, and the next save tries again.", error)
        return error

    def load(self, path: str | Path, from_scratch: bool = False) -> None:
        """Continue from a checkpoint, on any number of processes.

        Args:
            path: A checkpoint or a run folder.
            from_scratch: Take weights, averages and optimizer, but start at epoch 0 and step 0.

        Raises:
            FileNotFoundError: There is no checkpoint.
            ValueError: It is of another model, or its data is not this run's.
        """
        path = find_checkpoint(path)
        state, tensors = read_checkpoint(path)
        absent = [name for name in self.names if name not in tensors or f"{name}_optimizer" not in tensors]
        if absent:
            raise ValueError(
                f"{path}: no weights of {', '.join(absent)}, it holds {', '.join(tensors)}; load a "
                "checkpoint that the same script wrote, or give weights with from_pretrained."
            )
        for name in self.names:
            self.engine.load(name, tensors[name], tensors[f"{name}_optimizer"])
            if name in self.averages:
                self.averages[name].load(tensors.get(f"{name}_ema", tensors[name]))
        if not from_scratch:
            if not self.data.load(state.data):
                state.epoch, state.step_in_epoch = state.epoch + 1, 0
            state.skip_steps = sorted({*state.skip_steps, *self.settings.skip_steps})
            self.state, self.recovery.origin = state, path
            self._window = LogWindow(state.window)
            if path.parent.resolve() == (self.tracker.folder / FOLDER).resolve():
                self._saved = state.step
        get_logger().info("continued from %s at step %d, epoch %d", path, self.state.step, self.state.epoch)

    def _batches(self) -> Iterator[tuple[list[dict[str, Any]], float]]:
        """Yield the batches of each step, with the seconds that they were waited for."""
        batches = iter(self.data.batches(self.state.epoch, self.state.step_in_epoch))
        while True:
            phase("data", self.state.step)
            start = time.perf_counter()
            if (step := next(batches, None)) is None:
                return
            yield step, time.perf_counter() - start

    def _try_step(self, batches: list[dict[str, Any]]) -> dict[str, Tensor | float]:
        try:
            return self.train_step(batches)
        except (MemoryError, RuntimeError) as error:
            raise explain_memory(error, self._batch, str(here())) from error

    def _update(self, name: str, values: dict[str, Any]) -> bool:
        phase("collective")
        values[f"grad_norm_{name}"] = self.engine.clip(name, self.settings.grad_clip)
        updated = self.engine.step(name)
        if updated and name in self.averages:
            self.averages[name].update()
        return updated

    def _after_step(self, values: dict[str, Any]) -> None:
        step, settings = self.state.step, self.settings
        if settings.log_every:
            timed = settings.record_time
            self._window.add({k: v for k, v in values.items() if timed or not k.startswith("seconds_")})
        self._progress.steps += 1
        if settings.log_every and step % settings.log_every == 0:
            line = self._window.close()
            if parallel_state().is_main:
                self.tracker.log(step, {**line, "epoch": self.state.epoch})
                get_logger().info("%s", self._progress.line(step, self.state.epoch, line))
        if self.validate is not None and settings.validate_every and step % settings.validate_every == 0:
            phase("validation")
            line = self.validate(step)
            if parallel_state().is_main:
                self.tracker.log(step, line)
        if settings.ckpt_every and step % settings.ckpt_every == 0:
            self.save()

    def _done(self) -> bool:
        limit = self.settings.max_steps
        over = self.state.epoch >= self.settings.epochs or (limit is not None and self.state.step >= limit)
        return over or self._stop

    def _request_stop(self, number: int, frame: Any) -> None:
        self._asked = True  # nothing more: a handler runs in the middle of anything


class _Progress:
    """The line on the screen: values, speed, time left."""

    def __init__(self, total: int) -> None:
        self.total, self.steps, self.start = total, 0, time.perf_counter()

    def line(self, step: int, epoch: int, values: Mapping[str, float]) -> str:
        rate = self.steps / max(time.perf_counter() - self.start, 1e-9)
        left = int(max(0, self.total - step) / rate)
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        shown = " ".join(f"{key} {value:.4g}" for key, value in values.items())
        return f"step {step}/{self.total} epoch {epoch} {shown} | {rate:.2f} steps/s, {clock} left"
