"""TrainingData: the plan of each epoch and the batches of this process."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from opensora.acceleration.parallel import all_equal, broadcast_text, parallel_state, share_batches
from opensora.datasets.epoch_plan import EpochPlan
from opensora.datasets.loader import build_buckets, build_dataloader
from opensora.datasets.planner import Planner, PlanRules
from opensora.datasets.quarantine import Quarantine
from opensora.datasets.reading import ClipError
from opensora.datasets.samplers import BucketSampler
from opensora.registry import DATASETS, build, fill_in


class TrainingData:
    """Read the table, plan epochs, and hand out each step's batches.

    Args:
        cfg: `dataset`, `bucket_config`, `batch_size`, `batches_per_step`, `accumulation_steps`,
            `plan`, `num_workers`, `prefetch_factor`, `seed`.
        batches_per_step: Batches of a step over all processes, of a run that is continued; None takes the
            config's.
        excluded: Called on the main process at the start of each later epoch; returns the rows, int64 [E],
            that no process takes in it. None takes those of the quarantine. The plan of a running epoch never
            changes.

    Attributes:
        plan_file: Where the main process keeps the plan of the running epoch; None nowhere.
        excluded: As above; may be set until the first epoch ends.
        quarantine: Files that could not be read.

    Raises:
        ValueError: The table, the buckets and the number of processes do not make a plan; says what to
            change.
        FileNotFoundError: There is no such table.
    """

    def __init__(
        self,
        cfg: Mapping[str, Any],
        batches_per_step: int | None = None,
        excluded: Callable[[], np.ndarray] | None = None,
    ) -> None:
        processes = parallel_state()
        self.world_size = processes.data_size
        if batches_per_step is not None and cfg["batches_per_step"] not in (None, batches_per_step):
            raise ValueError(
                f"batches_per_step={cfg['batches_per_step']}, but the run that is continued has "
                f"{batches_per_step}; set it to that or to None, or begin anew with start_from_scratch=True."
            )
        per_step = batches_per_step or cfg["batches_per_step"] or self.world_size * cfg["accumulation_steps"]
        if per_step % self.world_size:
            raise ValueError(
                f"batches_per_step={per_step} cannot be shared by {self.world_size} processes; start as many "
                f"processes as divide it, or set batches_per_step to a multiple of {self.world_size}."
            )
        self.accumulation = per_step // self.world_size
        self.dataset = build(DATASETS, fill_in(DATASETS, cfg["dataset"], seed=cfg["seed"]))
        if hasattr(self.dataset, "check"):
            self.dataset.check()
        self.plan_file: Path | None = None
        self.quarantine = Quarantine(self.dataset.manifest)
        self.excluded = excluded or self.quarantine.excluded
        self.planner = Planner(
            self.dataset.manifest.fingerprint,
            self.dataset.sizes(),
            build_buckets(self.dataset, cfg["bucket_config"], cfg["batch_size"], cfg["plan"]["bucket_rule"]),
            per_step,
            cfg["seed"],
            self.dataset.frame_interval,
            PlanRules.from_config(cfg["plan"]),
        )
        self.sampler = BucketSampler(self.planner, processes.data_rank, self.world_size)
        self.first_plan = self.plan
        if hasattr(self.dataset, "check_planner"):
            self.dataset.check_planner(self.planner)
        self._check_plan()
        self.loader = None
        if processes.sequence_rank == 0:  # it reads for its group
            self.loader = build_dataloader(
                self.dataset, self.sampler, cfg["num_workers"], cfg["prefetch_factor"], processes.device
            )

    def close(self) -> None:
        """End the processes that read clips."""
        self.loader = None

    @property
    def plan(self) -> EpochPlan:
        """The plan of the current epoch."""
        return self.sampler.plan

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the first epoch; those of later ones differ by what is carried over."""
        return self.first_plan.num_steps

    def batches(self, epoch: int, start_step: int) -> Iterator[list[dict[str, Any]]]:
        """Yield for each step from `start_step` on the batches of this process.

        Raises:
            ValueError: Too many files cannot be read, or nothing can replace one; on all processes.
        """
        while self.plan.epoch < epoch:
            self.sampler.next_epoch(self._excluded_now())
        if self.plan.epoch != epoch:
            raise ValueError(f"epoch {epoch} lies behind epoch {self.plan.epoch}, which has been planned.")
        self._check_plan()
        if self.plan_file is not None and parallel_state().is_main:
            self.plan.save(self.plan_file)
        self.sampler.start_step = start_step
        reads = self.loader is not None
        batches = iter(self.loader if reads else ())
        for _ in range(start_step, self.plan.num_steps):
            step, lost = [], ""
            try:
                step = [next(batches) for _ in range(self.accumulation)] if reads else []
            except ClipError as error:  # all processes hear of it, and stop together
                lost = str(error)
            samples = sum(len(batch["sample"]) for batch in step)
            replaced = sum(batch.get("replaced", 0) for batch in step)
            failures = [failure for batch in step for failure in batch.pop("failures", [])]
            self.quarantine.take(samples, replaced, failures, epoch, lost)
            step = share_batches(step)
            for batch in step if not reads else ():
                batch["replaced"] = 0  # who read them counts them
            yield step

    def state(self) -> dict[str, Any]:
        """Return the plan's hash, and the rows that it carries and excludes, as JSON."""
        return {
            "key": self.plan.key,
            "hash": self.plan.hash,
            "epoch": self.plan.epoch,
            "batches_per_step": self.plan.batches_per_step,
            "carried": self.plan.carried.tolist(),
            "excluded": self.plan.excluded.tolist(),
            "quarantine": self.quarantine.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Plan the saved epoch again.

        Raises:
            ValueError: The table, the buckets or the seed changed since.
        """
        self.quarantine.load(state["quarantine"])
        if self.plan.hash == state["hash"]:
            return
        carried = np.array(state["carried"], dtype=np.int64).reshape(-1, 3)
        plan = self.planner.plan(state["epoch"], carried, state["excluded"])
        if plan.hash != state["hash"]:
            raise ValueError(
                f"the checkpoint was trained on another plan (hash {state['hash']}, now {plan.hash}): the "
                "table, bucket_config, frame_interval, batches_per_step or seed changed. Restore them to "
                "continue exactly. Or keep the weights and begin at epoch 0, in another run: --load "
                "CHECKPOINT --start-from-scratch --run-name NEW."
            )
        self.sampler.set_plan(plan)

    def _excluded_now(self) -> np.ndarray:
        """Return the same rows on every process. Shape [E]."""
        own = None
        if self.excluded is not None and parallel_state().is_main:
            own = json.dumps(np.asarray(self.excluded(), dtype=np.int64).tolist())
        return np.array(json.loads(broadcast_text(own) or "[]"), dtype=np.int64)

    def _check_plan(self) -> None:
        if not all_equal(self.plan.hash):
            raise RuntimeError(
                f"processes planned epoch {self.plan.epoch} differently (this one: {self.plan.hash}); they "
                "must read the same table and config. Look for a table that is being written, or files that "
                "differ by machine."
            )
