"""Quarantine: files that could not be read, counted over all processes, written down, and left out later."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from opensora.acceleration.parallel import all_reduce_mean, gather_texts, parallel_state
from opensora.datasets.manifest import Manifest
from opensora.utils.files import if_disk_allows

_MOST_REPLACED = 0.01  # of the samples so far
_FIRST_SAMPLES = 100  # before them the share says nothing
_SHOWN = 3  # reasons in an error


class Quarantine:
    """Keeps account of files that could not be read.

    All processes hear of each other's files in the step in which they meet them. So they stop together, they
    agree which rows to leave out, and one process writes. The plan of the running epoch stays as it is.

    Args:
        manifest: The table; names the file of a row.

    Attributes:
        file: Where the main process writes, one line of JSON for each row: `row`, `path`, `reason`, `epoch`.
            None writes nothing.
        samples: Samples so far, over all processes.
        replaced: How many of them stand for others.
        rows: Rows that could not be read, each once.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.file: Path | None = None
        self.samples = self.replaced = 0
        self.rows: set[int] = set()
        self._reasons: list[str] = []  # the latest

    def excluded(self) -> np.ndarray:
        """Return the rows that later epochs leave out. int64, shape [E]."""
        return np.array(sorted(self.rows), dtype=np.int64)

    def take(
        self, samples: int, replaced: int, failures: Sequence[tuple[int, str]], epoch: int, lost: str = ""
    ) -> None:
        """Take the account of a step. Called by all processes.

        Args:
            samples: Samples of this process in this step.
            replaced: How many of them stand for others.
            failures: Row and reason of each file that could not be read.
            epoch: The running epoch.
            lost: Why this process has no batch; empty if it has.

        Raises:
            ValueError: More than one percent of the samples were replaced, or a process has no batch; on all
                processes.
        """
        size = parallel_state().world_size
        counts = size * all_reduce_mean(
            torch.tensor([samples, replaced, len(failures), bool(lost)], dtype=torch.float32)
        )
        samples, replaced, failed, any_lost = (round(n) for n in counts.tolist())
        self.samples, self.replaced = self.samples + samples, self.replaced + replaced
        if failed or any_lost:
            self._hear(failures, lost, epoch)
        if self.samples >= _FIRST_SAMPLES and self.replaced > _MOST_REPLACED * self.samples:
            raise ValueError(
                f"{self.replaced} of {self.samples} samples could not be read, more than "
                f"{_MOST_REPLACED:.0%}. Mend or remove these files: {' '.join(self._reasons)}{self._where()}"
            )

    def _hear(self, failures: Sequence[tuple[int, str]], lost: str, epoch: int) -> None:
        """Tell all processes what this one met, and write what is new."""
        told = [json.loads(text) for text in gather_texts(json.dumps([failures, lost]))]
        fresh = {row: reason for part, _ in told for row, reason in part if row not in self.rows}
        self.rows |= fresh.keys()
        if self.file is not None:
            with if_disk_allows(self.file):
                self._write(fresh, epoch)
        reasons = dict.fromkeys(reason for part, _ in told for _, reason in part)
        self._reasons = [*self._reasons, *reasons][-_SHOWN:]
        reason = next((lost for _, lost in told if lost), "")
        if reason:
            raise ValueError(f"{reason}{self._where()}")

    def _where(self) -> str:
        return "" if self.file is None else f" All are in {self.file}."

    def state(self) -> dict[str, Any]:
        """Return the account as JSON; the same on all processes."""
        return {"samples": self.samples, "replaced": self.replaced, "rows": sorted(self.rows)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on with an account."""
        self.samples, self.replaced = state["samples"], state["replaced"]
        self.rows = set(state["rows"])

    def _line(self, row: int, reason: str, epoch: int) -> str:
        line = {"row": row, "path": self.manifest.path[row], "reason": reason, "epoch": epoch}
        return json.dumps(line, ensure_ascii=False) + "\n"

    def _write(self, fresh: Mapping[int, str], epoch: int) -> None:
        """Write rows and their reasons, but for those that the run met before it was interrupted."""
        if self.file is None or not parallel_state().is_main:
            return
        written = {line["row"] for line in read_quarantine(self.file)} if self.file.exists() else set()
        lines = [self._line(row, reason, epoch) for row, reason in fresh.items() if row not in written]
        if not lines:
            return
        with open(self.file, "ab+") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            if file.read() not in (b"", b"\n"):  # an earlier process died while it wrote
                lines = ["\n", *lines]
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())


def read_quarantine(path: str | Path) -> list[dict[str, Any]]:
    """Read the lines of a quarantine file; half a line, left by a process that died, is passed over.

    Raises:
        FileNotFoundError: There is no such file.
    """
    lines = []
    for text in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and "row" in line:
            lines.append(line)
    return lines
