"""Checkpoints: folders of safetensors and JSON that appear whole or not at all.

RUN/checkpoints/epoch0-global_step500/
    model.safetensors            fp32 weights
    model_ema.safetensors        averaged weights, complete
    model_optimizer.safetensors  optimizer state by parameter
    state.json                   step, epoch, position in the data, fingerprints
"""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from opensora.utils.files import flush_to_disk, write_text
from opensora.utils.logging import get_logger
from opensora.utils.weights import save_safetensors

FOLDER = "checkpoints"
STATE = "state.json"
_NAME = re.compile(r"epoch(\d+)-global_step(\d+)$")
_OLD = ".old"


@dataclass
class RunState:
    """Where a run stands.

    Args:
        step: Optimizer steps done.
        epoch: Current epoch.
        step_in_epoch: Steps of it that are done.
        data: What the data needs to continue: fingerprints and carried rows.
        skipped: Steps without an update, because a gradient was not finite.
        skip_steps: Steps that make no update because a list says so: the config's, and those of going back.
        window: Values of the steps since the last line of the log, so that the next line is the one that an
            uninterrupted run writes.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    data: dict[str, Any] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)
    skip_steps: list[int] = field(default_factory=list)
    window: list[dict[str, float]] = field(default_factory=list)


def checkpoint_name(state: RunState) -> str:
    """Return the folder name of a state."""
    return f"epoch{state.epoch}-global_step{state.step}"


def save_checkpoint(
    run_folder: Path, state: RunState, tensors: dict[str, dict[str, Tensor]], keep: int = 0
) -> Path:
    """Write a checkpoint: into a hidden folder, flushed to disk, then renamed. What broke off before goes.

    Args:
        run_folder: Folder of the run.
        state: Where the run stands.
        tensors: File stem to whole tensors.
        keep: How many checkpoints stay; 0 keeps all.

    Returns:
        The checkpoint's folder.
    """
    folder = run_folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    target, partial = folder / checkpoint_name(state), folder / f".{checkpoint_name(state)}.partial"
    for leftover in folder.glob(".epoch*.partial"):
        shutil.rmtree(leftover)
    partial.mkdir()
    for stem, state_dict in tensors.items():
        save_safetensors(state_dict, partial / f"{stem}.safetensors")
    write_text(json.dumps(vars(state), indent=1), partial / STATE)
    if target.exists():  # the same step saved twice: the newer one wins, and one of them exists at any time
        old = folder / f".{target.name}{_OLD}"
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    partial.rename(target)
    flush_to_disk(folder)
    for old in folder.glob(f".epoch*{_OLD}"):
        _remove(old)
    for path in list_checkpoints(run_folder)[:-keep] if keep else []:
        _remove(path)
    get_logger().info("saved %s", target)
    return target


def list_checkpoints(run_folder: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    folder = Path(run_folder) / FOLDER
    found = [path for path in folder.glob("epoch*") if _NAME.match(path.name)]
    # One that was being replaced when the process died.
    found += [
        path for path in folder.glob(f".epoch*{_OLD}") if not (folder / path.name[1 : -len(_OLD)]).exists()
    ]
    return sorted((path for path in found if (path / STATE).exists()), key=_order)


def find_checkpoint(path: str | Path) -> Path:
    """Return a checkpoint folder: the path itself, or the newest checkpoint of the run at the path.

    Raises:
        FileNotFoundError: There is none.
    """
    path = Path(path)
    if (path / STATE).exists():
        return path
    found = list_checkpoints(path)
    if not found:
        raise FileNotFoundError(
            f"{path}: no checkpoint here. Expected a folder with {STATE}, or a run folder with "
            f"{FOLDER}/epoch*-global_step*/; give one of those."
        )
    return found[-1]


def read_state(path: str | Path) -> RunState:
    """Read where a checkpoint stands, without its tensors."""
    return RunState(**json.loads((find_checkpoint(path) / STATE).read_text()))


def read_checkpoint(path: str | Path) -> tuple[RunState, dict[str, dict[str, Tensor]]]:
    """Read a checkpoint: its state, and tensors by file stem."""
    folder = find_checkpoint(path)
    return read_state(folder), {file.stem: load_file(file) for file in sorted(folder.glob("*.safetensors"))}


def weights_file(path: str | Path, name: str = "model", ema: bool = True) -> Path:
    """Return the weights in a run or checkpoint folder: averaged ones if wanted and there, else raw ones."""
    folder = find_checkpoint(path)
    averaged, raw = folder / f"{name}_ema.safetensors", folder / f"{name}.safetensors"
    chosen = averaged if ema and averaged.exists() else raw
    if not chosen.exists():
        raise FileNotFoundError(
            f"{folder}: no {chosen.name}; it holds {sorted(p.name for p in folder.iterdir())}."
        )
    return chosen


def _order(path: Path) -> tuple[int, int]:
    """Return step and epoch of a checkpoint's name."""
    epoch, step = re.search(r"epoch(\d+)-global_step(\d+)", path.name).groups()
    return int(step), int(epoch)


def _remove(path: Path) -> None:
    """Delete a checkpoint; from the first moment it is none any more."""
    partial = path.with_name(f".{path.name.removeprefix('.')}.partial")
    path.rename(partial)
    shutil.rmtree(partial)
