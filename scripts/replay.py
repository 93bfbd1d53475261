"""Compute one step of a run again, on one process: its clips, noise, times, masks and loss.

    python scripts/replay.py outputs/my_run --step 120
    python scripts/replay.py outputs/my_run --step 120 --rank 1 --device cpu

Steps count from 0: step 120 starts from checkpoint global_step120, and is in line 121 of the log. Without
--rank all processes of the run are replayed, one after the other. Other options change the config, as for
training. The loss has the bits of the run where there is a checkpoint of exactly this step (or for step 0 of
fresh weights), and the step ran on the same kind of device. Writes report.json, tensors.safetensors (inputs
of the network and random numbers) and clips.png into replays/ of the run folder.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from opensora.acceleration.parallel import init_distributed, shut_down
from opensora.datasets.epoch_plan import EpochPlan
from opensora.datasets.quarantine import read_quarantine
from opensora.datasets.video_io import contact_sheet
from opensora.engine.autoencoding import Autoencoding
from opensora.engine.checkpoint import RunState, list_checkpoints, read_checkpoint, read_state
from opensora.engine.fault_report import FOLDER, Examined, describe, examine
from opensora.engine.features import task_on_features
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.engine.tracker import read_log
from opensora.engine.training import STARTS, build_run
from opensora.engine.training_data import TrainingData
from opensora.utils.config import load_config, plain
from opensora.utils.files import write_text
from opensora.utils.logging import get_logger
from opensora.utils.random import Draws, seed_everything
from opensora.utils.user_errors import one_line_errors
from opensora.utils.weights import save_safetensors


def main() -> None:
    """Read the command line and replay; end with one line and status 2 where something is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--step", type=int, required=True, help="steps done before it")
    parser.add_argument("--rank", type=int, help="one process of the run; all without it")
    args, options = parser.parse_known_args()
    with one_line_errors():
        if not (args.run / "config.py").is_file():
            raise FileNotFoundError(
                f"{args.run}: no run here, it would have a config.py; give a run's folder."
            )
        cfg = plain(load_config([str(args.run / "config.py"), *options]))
        init_distributed(None if cfg["device"] == "auto" else cfg["device"])
        try:
            sys.stdout.write(Replay(args.run, cfg, args.step).run(args.rank))
        finally:
            shut_down()


@dataclass(frozen=True)
class Processes:
    """Who made a step.

    Args:
        count: Processes of the run.
        sequence: How many of them shared a sequence.
    """

    count: int
    sequence: int

    @classmethod
    def of(cls, run: Path, step: int) -> "Processes":
        """Read the run's starts."""
        path = run / STARTS
        lines = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
        lines = [line for line in lines if line["step"] <= step]
        if not lines:
            raise FileNotFoundError(
                f"{path}: does not say which processes made step {step}; is it a run's folder?"
            )
        return cls(lines[-1]["processes"], lines[-1]["sp_size"])


class Replay:
    """One step of a run.

    Args:
        run: Folder of the run.
        cfg: Its config.
        step: Steps done before it.

    Raises:
        ValueError: The run has no such step, or its data are others now.
    """

    def __init__(self, run: Path, cfg: dict[str, Any], step: int) -> None:
        self.folder, self.step, self.processes = run, step, Processes.of(run, step)
        plugin = cfg["plugin"] and str(cfg["plugin"]).removesuffix("-seq")
        self.cfg = {**cfg, "num_workers": 0, "prefetch_factor": None, "plugin": plugin, "sp_size": 1}
        states = {path: read_state(path) for path in list_checkpoints(run)}
        before = [path for path, state in states.items() if state.step <= step]
        last = max((state.step for state in states.values()), default=0)
        if not 0 <= step <= max(last, read_log(run)[-1]["step"] if read_log(run) else 0):
            raise ValueError(f"step={step}: the run has made {last} steps; give 0 to {last}.")
        self.checkpoint = before[-1] if before else None
        self.state = states[self.checkpoint] if self.checkpoint else RunState()
        groups = self.processes.count // self.processes.sequence
        per_step = self.state.data["batches_per_step"] if self.checkpoint else self.cfg["batches_per_step"]
        self.data = TrainingData(self.cfg, per_step or groups * self.cfg["accumulation_steps"])
        self.ranks = groups

    def run(self, rank: int | None) -> str:
        """Replay processes, write their files, and return what to print."""
        if rank is not None and not 0 <= rank < self.processes.count:
            raise ValueError(
                f"rank={rank}: the run had {self.processes.count} processes; give 0 to one less."
            )
        batches = self._batches()
        task, engine = self._build()
        if rank is None:
            ranks = range(0, self.processes.count, self.processes.sequence)
        else:
            ranks = [rank]
        lines, values = [f"step {self.step}: {self._weights()}\n"], []
        for one in ranks:
            mine = batches[one // self.processes.sequence :: self.ranks]
            found = [(batch, examine(task, engine, batch, self.step)) for batch in mine]
            folder = self.folder / "replays" / f"step{self.step:06d}_rank{one}"
            lines.append(self._write(folder, one, found, task))
            values.append(_loss_of([examined for _, examined in found]))
            lines.append(_compare(f"process {one}", values[-1], _reported(self.folder, self.step, one)))
        if rank is None:
            mean = float(torch.stack(values).double().sum() / len(values))
            lines.append(_compare("all processes", mean, self._logged()))
        return "".join(lines)

    def _batches(self) -> list[dict[str, Any]]:
        """Return the batches of the step, of all processes."""
        data, at = self.data, self.state.step_in_epoch + self.step - self.state.step
        if self.checkpoint:
            data.load(self.state.data)
        file = self.folder / "quarantine.jsonl"
        lines = read_quarantine(file) if file.exists() else []
        while at >= data.plan.num_steps:
            at -= data.plan.num_steps
            rows = {line["row"] for line in lines if line["epoch"] <= data.plan.epoch}
            data.sampler.next_epoch(np.array(sorted(rows | data.quarantine.rows), dtype=np.int64))
        saved = self.folder / "plan.npz"
        if saved.exists() and (plan := EpochPlan.load(saved)).epoch == data.plan.epoch != 0:
            if plan.hash != data.plan.hash:
                raise ValueError(
                    f"{saved}: the plan of epoch {plan.epoch} was another; the table has changed."
                )
        return next(data.batches(data.plan.epoch, at))

    def _build(self) -> tuple[Any, Any]:
        make = LatentDiffusion.from_config if "model" in self.cfg else Autoencoding.from_config
        if hasattr(self.data.dataset, "header"):
            make = task_on_features(make, self.cfg, self.data.dataset.header)
        seed_everything(self.cfg["seed"])
        task, engine = build_run(self.cfg, make)
        tensors = read_checkpoint(self.checkpoint)[1] if self.checkpoint else {}
        for name in task.trainable() if self.checkpoint else ():
            engine.load(name, tensors[name])
        task.use({name: engine.module(name) for name in task.trainable()})
        return task, engine

    def _weights(self) -> str:
        if self.checkpoint is None:
            exact, what = self.step == 0 and self.cfg["load"] is None, "the weights that the run began with"
        else:
            exact, what = self.state.step == self.step, f"the weights of {self.checkpoint.name}"
        return f"computed with {what}, {'which are' if exact else 'NOT'} those of this step"

    def _write(
        self, folder: Path, rank: int, found: list[tuple[Mapping[str, Any], Examined]], task: Any
    ) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        parts = [describe(one, batch, self.data.dataset.manifest) for batch, one in found]
        report = {"step": self.step, "rank": rank, "weights": self._weights(), "batches": parts}
        write_text(json.dumps(report, indent=1), folder / "report.json")
        tensors, lines = {}, [f"process {rank}: {folder}\n"]
        for i, (batch, one) in enumerate(found):
            tensors |= {f"{i}.input.{key}": value.contiguous() for key, value in one.inputs.items()}
            tensors |= {f"{i}.draw.{key}": value.contiguous() for key, value in one.draws.items()}
            sheet = folder / ("clips.png" if len(found) == 1 else f"clips{i}.png")
            _draw(batch, task, sheet)
            lines += [f"  {_line(clip)}\n" for clip in parts[i]["clips"]]
        save_safetensors(tensors, folder / "tensors.safetensors")
        return "".join(lines)

    def _logged(self) -> float | None:
        """Return the loss of the log, if a line holds this step alone."""
        lines = {line["step"]: line for line in read_log(self.folder) if "lr" in line}
        alone = self.step == 0 or self.step in lines
        name = "loss" if "model" in self.cfg else "vae_loss"
        return lines[self.step + 1].get(name) if alone and self.step + 1 in lines else None


def _loss_of(found: list[Examined]) -> torch.Tensor:
    """Return a process's loss of a step, added up as the trainer does."""
    total = torch.zeros(())
    for one in found:
        total = total + next(iter(one.losses.values()))["loss"] / len(found)
    return total


def _reported(folder: Path, step: int, rank: int) -> float | None:
    """Return the loss in a report of the run itself."""
    path = folder / FOLDER / f"step{step:06d}_rank{rank}.json"
    if not path.exists():
        return None
    batches = json.loads(path.read_text())["batches"]
    return sum(float(next(iter(b["losses"].values()))["loss"]) / len(batches) for b in batches)


def _compare(who: str, value: torch.Tensor | float, recorded: float | None) -> str:
    text = f"{who}: loss {float(value)!r}"
    if recorded is None:
        return f"{text}\n"
    same = float(value) == recorded or (np.isnan(float(value)) and np.isnan(recorded))
    return f"{text}, {'equal to' if same else 'NOT'} the recorded {recorded!r}\n"


def _line(clip: Mapping[str, Any]) -> str:
    """Say what a clip was trained with."""
    flat = {
        k: v
        for k, v in clip["inputs"].items()
        if not isinstance(v, list) or (len(v) <= 16 and not any(isinstance(one, list) for one in v))
    }
    numbers = {k: round(v, 6) if isinstance(v, float) else v for k, v in flat.items()}
    given = " ".join(f"{key}={value}" for key, value in numbers.items())
    return f"row {clip['row']} epoch {clip['epoch']} loss {clip['loss']} {given} {clip['path'] or ''}"


def _draw(batch: Mapping[str, Any], task: Any, path: Path) -> None:
    """Write a contact sheet of a batch, a row for each clip; latents are decoded if that can be."""
    video, vae = batch.get("video"), getattr(task, "vae", None)
    if video is None:
        if vae is None or next(vae.parameters()).is_meta:
            get_logger().info("no %s: the data are features, and the vae has no weights here", path.name)
            return
        draws = Draws(task.seed, batch["sample"].tolist(), batch["epoch"].tolist())
        z, cond = task.encode(batch, draws)
        video = task.decode(z, int(cond["num_frames"][0]))
    contact_sheet(
        video.permute(1, 2, 0, 3, 4).flatten(2, 3).cpu(), path, columns=min(8, video.shape[2]), rows=1
    )


if __name__ == "__main__":
    main()
