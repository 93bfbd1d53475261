"""Checkpoints: folders of safetensors and JSON that appear whole or not at all.

RUN/checkpoints/epoch0-global_step500/
    model.safetensors            fp32 weights
    model_ema.safetensors        averaged weights, complete
    model_optimizer.safetensors  optimizer state by parameter
    state.json                   step, epoch, position in the data, settings of the run
    manifest.json                size and SHA-256 of the other files

Of several processes each writes its share of the whole tensors: `model-00001-of-00004.safetensors` and so on,
with `model.safetensors.index.json`. `checkpoint_writer.py` writes all this, and this file reads it.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from opensora.acceleration.parallel import gather_texts, parallel_state
from opensora.utils.logging import get_logger
from opensora.utils.weight_files import INDEX, SAFE, WeightFiles

FOLDER = "checkpoints"
STATE, MANIFEST = "state.json", "manifest.json"
OLD = ".old"
_NAME = re.compile(r"epoch(\d+)-global_step(\d+)$")
_FILE = re.compile(rf"(.+?)(-\d{{5}}-of-\d{{5}})?{re.escape(SAFE)}(?:{re.escape(INDEX)})?")


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


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's name."""
    return _order(path)[0]


def list_checkpoints(run_folder: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    folder = Path(run_folder) / FOLDER
    found = [path for path in folder.glob("epoch*") if _NAME.match(path.name)]
    # One that was being replaced when the process died.
    replaced = folder.glob(f".epoch*{OLD}")
    found += [path for path in replaced if not (folder / path.name[1 : -len(OLD)]).exists()]
    return sorted((path for path in found if (path / STATE).exists()), key=_order)


def find_checkpoint(path: str | Path) -> Path:
    """Return a checkpoint folder: the path itself, or the newest checkpoint of the run at the path.

    Raises:
        FileNotFoundError: There is none.
    """
    return _candidates(path)[-1]


def intact_checkpoint(path: str | Path, together: bool = False, stem: str | None = None) -> Path:
    """Return a checkpoint whose files are as they were written: the path itself, or the newest of a run.

    A damaged one of a run is passed over with a warning.

    Args:
        path: A checkpoint or a run folder.
        together: All processes call this, and share the reading.
        stem: Look at the files of these tensors only.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The checkpoint, or each of the run, is damaged.
    """
    candidates, reason = _candidates(path), ""
    for folder in reversed(candidates):
        reason = find_damage(folder, together, stem)
        if not reason:
            return folder
        if folder != candidates[0]:
            get_logger().warning("%s is damaged, so the one before is taken: %s", folder, reason)
    beside = list_checkpoints(candidates[0].parent.parent)
    others = [other.name for other in beside if other not in candidates]
    raise ValueError(
        f"{candidates[0]}: a damaged checkpoint{', like all newer ones' if len(candidates) > 1 else ''}: "
        f"{reason}. Copy it again from where it is whole"
        f"{', or give --load another one, such as ' + others[-1] if others else ''}, or start a new run."
    )


def find_damage(folder: Path, together: bool = False, stem: str | None = None) -> str:
    """Say how the files of a checkpoint differ from what was written; nothing if they do not.

    Arguments as for `intact_checkpoint`.
    """
    rank, world_size = (parallel_state().rank, parallel_state().world_size) if together else (0, 1)
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        names = [name for name in files if stem is None or _stem(name) == stem]
        reasons = (_difference(folder / name, **files[name]) for name in names[rank::world_size])
        reason = next(filter(None, reasons), "")
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"
    return next(filter(None, gather_texts(reason)), "") if together else reason


def describe_file(path: Path) -> dict[str, Any]:
    """Return what the manifest says of a file."""
    now = path.stat()
    return {"size": now.st_size, "sha256": _sha256(path, now.st_mtime_ns)}


def read_state(path: str | Path) -> RunState:
    """Read where a checkpoint stands, without its tensors."""
    return RunState(**json.loads((find_checkpoint(path) / STATE).read_text()))


def read_checkpoint(path: str | Path) -> tuple[RunState, dict[str, dict[str, Tensor]]]:
    """Read a checkpoint: its state, and tensors by file stem.

    Tensors are mapped from the files: only the parts that are used are read from the disk.
    """
    folder = find_checkpoint(path)
    stems = sorted({_stem(file.name) for file in folder.glob(f"*{SAFE}*")})
    files = {stem: WeightFiles.find(folder / f"{stem}{SAFE}") for stem in stems}
    return read_state(folder), {stem: dict(found.tensors()) for stem, found in files.items()}


def weights_file(path: str | Path, name: str = "model", ema: bool = True) -> Path:
    """Return the weights in a run or checkpoint folder: averaged ones if wanted and there, else raw ones.

    The file itself may be absent: `WeightFiles.find` takes its index then.

    Raises:
        FileNotFoundError: There are none.
        ValueError: They are damaged.
    """
    folder = find_checkpoint(path)
    stems = {_stem(file.name) for file in folder.glob(f"*{SAFE}*")}
    stem = f"{name}_ema" if ema and f"{name}_ema" in stems else name
    if stem not in stems:
        raise FileNotFoundError(
            f"{folder}: no {stem}{SAFE}; it holds {sorted(p.name for p in folder.iterdir())}."
        )
    return intact_checkpoint(path, stem=stem) / f"{stem}{SAFE}"


def _candidates(path: str | Path) -> list[Path]:
    path = Path(path)
    found = [path] if (path / STATE).exists() else list_checkpoints(path)
    if not found:
        raise FileNotFoundError(
            f"{path}: no checkpoint here. Expected a folder with {STATE}, or a run folder with "
            f"{FOLDER}/epoch*-global_step*/; give one of those."
        )
    return found


def _difference(path: Path, size: int, sha256: str) -> str:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != size:
        return f"{path.name} has {path.stat().st_size:,} bytes, and {size:,} were written"
    return "" if describe_file(path)["sha256"] == sha256 else f"{path.name} has other bytes than were written"


@lru_cache(maxsize=100)
def _sha256(path: Path, changed_ns: int) -> str:
    """Hash a file; one that has not changed since is not read again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stem(name: str) -> str:
    """Return what a file of tensors is a part of; other files are by themselves."""
    match = _FILE.fullmatch(name)
    return match[1] if match else name


def _order(path: Path) -> tuple[int, int]:
    """Return step and epoch of a checkpoint's name."""
    epoch, step = re.search(r"epoch(\d+)-global_step(\d+)", path.name).groups()
    return int(step), int(epoch)
