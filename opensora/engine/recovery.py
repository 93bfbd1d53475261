"""Recovery: what a run does about steps whose gradients are not finite."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from opensora.acceleration.parallel import all_reduce_mean, broadcast_text, gather_texts, parallel_state
from opensora.engine.checkpoint import find_damage, list_checkpoints, read_state
from opensora.engine.fault_report import describe, examine, write_report
from opensora.utils.files import if_disk_allows
from opensora.utils.logging import get_logger

_ROUNDS = 2  # from the same checkpoint
_REPORTS = 20  # of one start: they take as long as a step


class Recovery:
    """Counts skipped steps, reports their batches, and goes back to a checkpoint after many in a row.

    A step is skipped by all processes or by none. The list of skipped steps is in the run's state; a run that
    is given it as `skip_steps` has the same bits.

    The first way back from a checkpoint passes over the steps that failed: enough if clips or a process's
    memory were damaged. The second one passes over all steps since the checkpoint, which may have led the
    weights astray. The third time the run stops.

    Args:
        trainer: The `Trainer`.

    Source: Chowdhery et al. 2022, "PaLM", section 5.1, for passing over the batches before a spike.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.origin: Path | None = None  # checkpoint that the run continued from
        self._rounds: Counter[int] = Counter()
        self._reports = 0

    @property
    def is_planned(self) -> bool:
        """Whether the next step makes no update because a list says so."""
        return self.trainer.state.step in self.trainer.state.skip_steps

    def take(self, batches: Sequence[Mapping[str, Any]], spoiled: Sequence[str], bad_loss: float) -> None:
        """Count a step that made no update. Called by all processes.

        Args:
            batches: Those of this process.
            spoiled: Modules whose gradient was not finite; none if the step was planned to be skipped.
            bad_loss: How many of the losses of this process were not finite.
        """
        state = self.trainer.state
        state.skipped.append(state.step)
        if not spoiled:
            get_logger().info("step %d skipped: it is in skip_steps", state.step)
            return
        names = " and ".join(spoiled)
        reason = ""
        # In fp16 gradients overflow now and then, until the loss scale fits; then losses are finite.
        overflow = self.trainer.engine.dtype == torch.float16 and not float(all_reduce_mean(bad_loss))
        if self.trainer.tracker is not None and not overflow and self._reports < _REPORTS:
            self._reports += 1
            reason = self._report(batches)
        get_logger().warning("step %d skipped: the gradient of %s is not finite%s", state.step, names, reason)

    def streak(self) -> list[int]:
        """Return the steps up to the last one that were skipped in a row, without the planned ones."""
        state, streak = self.trainer.state, []
        for step in reversed(state.skipped):
            if step != state.step - 1 - len(streak) or step in state.skip_steps:
                break
            streak.insert(0, step)
        return streak

    def roll_back(self) -> None:
        """Go back to the newest checkpoint from before a row of skipped steps. Called by all processes.

        Raises:
            FloatingPointError: There is none, or going back has not helped.
        """
        bad, trainer = self.streak(), self.trainer
        trainer.settle()  # what is being written may be where the way leads
        text = f"gradients were not finite for {len(bad)} steps in a row, up to step {bad[-1]}"
        path = broadcast_text(str(self._last_good(bad[0]) or "") if parallel_state().is_main else None)
        if not path:
            raise FloatingPointError(
                f"{text}; there is no checkpoint from before to go back to. Lower the learning rate, and "
                f"look into {trainer.tracker.folder / 'reports'}."
            )
        start, ahead = read_state(path).step, trainer.state.skip_steps
        self._rounds[start] += 1
        if self._rounds[start] > _ROUNDS:
            raise FloatingPointError(
                f"{text}, and going back to {path} has not helped, {_ROUNDS} times; lower the learning rate, "
                "or load an older checkpoint."
            )
        skip = bad if self._rounds[start] == 1 else range(start, bad[-1] + 1)
        trainer.load(path)
        trainer.state.skip_steps = sorted({*ahead, *skip})
        trainer.tracker.rewind(start)
        get_logger().warning(
            "%s: back to step %d; steps %d to %d will be passed over", text, start, skip[0], skip[-1]
        )

    def _last_good(self, step: int) -> Path | None:
        """Return the newest intact checkpoint of at most so many steps whose last step made an update."""
        found = [*list_checkpoints(self.trainer.tracker.folder), *([self.origin] if self.origin else [])]
        states = {path: read_state(path) for path in found if path.exists()}
        good = [path for path, s in states.items() if s.step <= step and s.step - 1 not in s.skipped]
        newest_first = sorted(good, key=lambda path: -states[path].step)
        return next((path for path in newest_first if not find_damage(path)), None)

    def _report(self, batches: Sequence[Mapping[str, Any]]) -> str:
        """Find out on which process something is not finite, write it down there, and return what to say."""
        trainer, step, rank = self.trainer, self.trainer.state.step, parallel_state().rank
        manifest = getattr(getattr(trainer.data, "dataset", None), "manifest", None)
        try:
            found = [(batch, examine(trainer.task, trainer.engine, batch, step)) for batch in batches]
        except RuntimeError as error:  # a report must not end the run
            return f"; no report: {error}"
        bad = [one.not_finite for _, one in found if one.not_finite]
        told = [json.loads(text) for text in gather_texts(json.dumps(bad))]
        guilty = [r for r, part in enumerate(told) if part]
        if rank in guilty or (rank == 0 and not guilty):
            parts = [describe(one, batch, manifest) for batch, one in found]
            with if_disk_allows(trainer.tracker.folder):
                write_report(trainer.tracker.folder, step, rank, {"processes": guilty, "batches": parts})
        if not guilty:
            return "; only when computed together"
        kinds = {f"{kind} {', '.join(names[:2])}" for kind, names in told[guilty[0]][0].items()}
        where = f"reports/step{step:06d}_rank{guilty[0]}.json"
        return f" on process {', '.join(map(str, guilty))}: {'; '.join(sorted(kinds))}; see {where}"
