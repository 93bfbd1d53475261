"""Functions of a benchmark that run in several processes at once, one thread each."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from opensora.acceleration.parallel import init_distributed

_TIMEOUT_S = 240


def in_processes(count: int, function: str, *words: str) -> Any:
    """Call a function in processes that are one sequence group over gloo, and return what the first found.

    Args:
        count: Processes.
        function: Module and name, as in "benchmarks.group:seconds".
        words: Its arguments. What it returns goes through JSON.

    Raises:
        RuntimeError: A process failed; its output says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
        command = [*torchrun, str(count), "-m", "benchmarks.processes", folder, function, *words]
        group = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            if group.wait(_TIMEOUT_S) != 0:
                raise RuntimeError(f"{' '.join(command)} ended with status {group.returncode}.")
        finally:
            group.terminate()  # torchrun ends its processes
            group.wait(30)
        return json.loads((Path(folder) / "found.json").read_text())


def _main(folder: Path, function: str, words: Sequence[str]) -> None:
    torch.set_num_threads(1)
    state = init_distributed("cpu", timeout_s=600, sp_size=int(os.environ["WORLD_SIZE"]))
    module, _, name = function.partition(":")
    found = getattr(importlib.import_module(module), name)(*words)
    if state.is_main:
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
