"""Tracker: the numbers of a run as JSON lines, TensorBoard, Weights & Biases, and a picture of the loss."""

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opensora.utils.files import if_disk_allows, write_text

LOG = "log.jsonl"


class Tracker:
    """Write values by step.

    Args:
        folder: Folder of the run.
        step: Step that the run continues from; lines of later steps, from before a crash, are dropped.
        tensorboard: Whether to write TensorBoard files too.
        wandb: Whether to log to Weights & Biases too; offline unless WANDB_MODE says otherwise.

    Raises:
        ImportError: A package that was asked for is not installed.
    """

    def __init__(self, folder: Path, step: int = 0, tensorboard: bool = False, wandb: bool = False) -> None:
        check_packages(tensorboard, wandb)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._late: list[str] = []  # lines that a full disk has not taken
        self._writer = None
        self.rewind(step)
        self._writer = _tensorboard(folder, step) if tensorboard else None
        self._run = _wandb(folder) if wandb else None

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one line of numbers. What a full disk does not take is kept, and written later."""
        line = {"step": step, **{key: float(value) for key, value in values.items()}}
        self._late.append(json.dumps(line) + "\n")
        with if_disk_allows(self.folder / LOG):
            with open(self.folder / LOG, "r+b") as file:
                file.seek(self._size)
                file.truncate()  # half a line
                file.write("".join(self._late).encode())
                file.flush()
                self._size = file.tell()
            self._late = []
        if self._writer is not None:
            for key, value in line.items():
                self._writer.add_scalar(key, value, step)
        if self._run is not None:
            self._run.log(line, step=step)

    def rewind(self, step: int) -> None:
        """Drop the lines of later steps: the run has gone back, and will write them again."""
        kept = [line for line in read_log(self.folder) if line["step"] <= step]
        self._late = [line for line in self._late if json.loads(line)["step"] <= step]
        write_text("".join(json.dumps(line) + "\n" for line in kept), self.folder / LOG)
        self._size = (self.folder / LOG).stat().st_size
        if self._writer is not None:
            self._writer.close()
            self._writer = _tensorboard(self.folder, step)

    def close(self) -> Path | None:
        """Finish, and draw the losses; return the picture's file."""
        if self._writer is not None:
            self._writer.close()
        if self._run is not None:
            self._run.finish()
        with if_disk_allows(self.folder / "loss.png"):
            return plot_losses(self.folder)
        return None


def read_log(folder: Path) -> list[dict[str, float]]:
    """Read the lines of a run; a last line that was cut off by a crash is left out."""
    path = folder / LOG
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def plot_losses(folder: Path) -> Path | None:
    """Draw every logged loss against the step as `loss.png`; None when there is nothing to draw."""
    lines = read_log(folder)
    names = sorted({key for line in lines for key in line if "loss" in key})
    if not names:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for name in names:
        points = [(line["step"], line[name]) for line in lines if name in line]
        axes.plot(*zip(*points, strict=True), label=name, linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    path = folder / "loss.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def check_packages(tensorboard: bool, wandb: bool) -> None:
    """Look whether the packages that a config asks for are installed.

    Raises:
        ImportError: One is not.
    """
    for name, wanted in (("tensorboard", tensorboard), ("wandb", wandb)):
        if wanted and importlib.util.find_spec(name) is None:
            raise ImportError(
                f"{name}=True: the package is not installed; run pip install {name}, or set {name}=False."
            )


def _tensorboard(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder / "tensorboard", purge_step=step + 1)  # hides what a crash left behind


def _wandb(folder: Path) -> Any:
    import wandb

    mode = os.environ.get("WANDB_MODE", "offline")
    # Names of runs repeat in other folders.
    place = hashlib.blake2b(str(folder.resolve()).encode(), digest_size=4).hexdigest()
    return wandb.init(
        project="opensora",
        name=folder.name,
        dir=str(folder),
        mode=mode,
        resume="allow",
        id=f"{folder.name}-{place}",
    )
