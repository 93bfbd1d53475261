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
from opensora.engine.run_settings import differences, listed_differences, run_settings
from opensora.registry import DATASETS, build, fill_in
from opensora.utils.files import if_disk_allows
from opensora.utils.logging import get_logger


class TrainingData:
    """Read the table, plan epochs, and hand out each step's batches.

    Args:
        cfg: `dataset`, `bucket_config`, `batch_size`, `batches_per_step`, `accumulation_steps`,
            `plan`, `num_workers`, `prefetch_factor`, `seed`, `accept_changes`; a checkpoint keeps all that
            matters.
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
        self.accept_changes, wanted = cfg["accept_changes"], cfg["batches_per_step"]
        if (
            batches_per_step is not None
            and wanted not in (None, batches_per_step)
            and not self.accept_changes
        ):
            raise ValueError(
                f"batches_per_step={wanted}, but the run that is continued has {batches_per_step}; set it to "
                "that or to None, go on in a new epoch with accept_changes=True, or begin anew with "
                "start_from_scratch=True."
            )
        per_step = wanted or batches_per_step or self.world_size * cfg["accumulation_steps"]
        if per_step % self.world_size:
            raise ValueError(
                f"batches_per_step={per_step} cannot be shared by {self.world_size} processes; start as many "
                f"processes as divide it, or set batches_per_step to a multiple of {self.world_size}."
            )
        self.accumulation = per_step // self.world_size
        self.dataset = build(DATASETS, fill_in(DATASETS, cfg["dataset"], seed=cfg["seed"]))
        if hasattr(self.dataset, "check"):
            self.dataset.check()
        manifest = self.dataset.manifest
        table = f"{len(self.dataset.sizes()[0]):,} rows, content {manifest.fingerprint[:12]}"
        self.settings = run_settings(cfg, table)
        self.plan_file: Path | None = None
        self.quarantine = Quarantine(manifest)
        self.excluded = excluded or self.quarantine.excluded
        self.planner = Planner(
            manifest.fingerprint,
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
            with if_disk_allows(self.plan_file):
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
        """Return the settings, the plan's hash, and the rows that it carries and excludes, as JSON."""
        return {
            "settings": self.settings,
            "key": self.plan.key,
            "hash": self.plan.hash,
            "epoch": self.plan.epoch,
            "batches_per_step": self.plan.batches_per_step,
            "carried": self.plan.carried.tolist(),
            "excluded": self.plan.excluded.tolist(),
            "quarantine": self.quarantine.state(),
        }

    def load(self, state: dict[str, Any]) -> bool:
        """Plan the saved epoch again, or with `accept_changes` and another plan the epoch after it.

        Returns:
            Whether the saved epoch goes on.

        Raises:
            ValueError: The table or a setting that matters changed since, and `accept_changes` is not set.
        """
        changed = differences(state["settings"], self.settings)
        same_table = state["settings"]["table"] == self.settings["table"]
        if same_table:  # else its row numbers mean other files
            self.quarantine.load(state["quarantine"])
        excluded = state["excluded"] if same_table else []
        plan = self.plan
        if plan.hash != state["hash"]:
            carried = np.array(state["carried"], dtype=np.int64).reshape(-1, 3)
            fits = same_table or not carried.size
            plan = self.planner.plan(state["epoch"], carried, excluded) if fits else plan
        goes_on = plan.hash == state["hash"]
        if (changed or not goes_on) and not self.accept_changes:
            raise ValueError(_choices(changed, goes_on))
        if changed:
            get_logger().warning("going on with changed settings: %s", listed_differences(changed))
        if not goes_on:
            get_logger().warning("the plan of clips changed: epoch %d begins now", state["epoch"] + 1)
            plan = self.planner.plan(state["epoch"] + 1, np.empty((0, 3), np.int64), excluded)
        self.sampler.set_plan(plan)
        return goes_on

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


def _choices(changed: list[str], goes_on: bool) -> str:
    """Say what differs from the checkpoint, and what can be done."""
    found = listed_differences(changed) or (
        "the same table and settings give another plan of clips, because a file of `plan.costs` or the "
        "version of the planner changed"
    )
    epoch = "" if goes_on else " The clips are planned anew, so the running epoch ends and the next begins."
    return (
        f"the checkpoint was trained with other settings (there -> here): {found}. Either restore them, and "
        "it goes on exactly. Or add --accept-changes: weights, averages, optimizer and step stay, and the "
        f"new settings hold from there.{epoch} Or begin at step 0 with its weights, in another run: "
        "--load CHECKPOINT --start-from-scratch --run-name NEW."
    )
