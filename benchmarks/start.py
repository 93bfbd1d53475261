"""Start-up: from a fresh process to an imported library, and to the first sampling step of a tiny model."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Measure
from opensora.engine.build import build_components
from opensora.utils.config import read_config
from opensora.utils.weights import save_safetensors

REPEATS = 5
MOST_SECONDS = 4.0
CONFIG = "configs/opensora-v1-3/inference/demo.py"
IMPORTS = ("opensora", "opensora.engine.inference")
FIRST_STEP = ": step 1/"
_ROOT = Path(__file__).resolve().parent.parent


def run() -> Iterator[Measure]:
    """Yield seconds from the start of a process to an import, and to the first finished sampling step."""
    for module in IMPORTS:
        command = [sys.executable, "-c", f"import {module}; print('imported', flush=True)"]
        yield _measure(f"start/import/{module}", command, "imported")
    with tempfile.TemporaryDirectory() as folder:
        paths = make_weights(Path(folder))
        command = [sys.executable, "scripts/inference.py", CONFIG, "--prompt", "a cat", "--device", "cpu"]
        command += ["--ckpt-path", str(paths["model"]), "--vae.from_pretrained", str(paths["vae"])]
        yield _measure("start/inference/first_step", [*command, "--save-dir", folder], FIRST_STEP)


def make_weights(folder: Path) -> dict[str, Path]:
    """Write random weights of the demo's networks into a folder; return the files by component."""
    parts = build_components(read_config(_ROOT / CONFIG))
    paths = {}
    for name in ("model", "vae"):
        paths[name] = folder / f"{name}.safetensors"
        save_safetensors(getattr(parts, name).state_dict(), paths[name])
    return paths


def seconds_until(command: list[str], text: str) -> float:
    """Return the seconds from the start of a process to the first line of its output with a text in it.

    Raises:
        RuntimeError: The process ended without such a line.
    """
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    with process:
        for line in process.stdout:
            lines.append(line)
            if text in line:
                seconds = time.perf_counter() - start
                process.kill()
                return seconds
    raise RuntimeError(f"{' '.join(command)}: no line with {text!r} in its output:\n{''.join(lines[-20:])}")


def _measure(name: str, command: list[str], text: str) -> Measure:
    seconds_until(command, text)  # files are in the page cache afterwards
    times = [seconds_until(command, text) for _ in range(REPEATS)]
    conditions = {"fresh_processes": REPEATS, "slowest": round(max(times), 2)}
    return Measure(name, statistics.median(times), "s", at_most=MOST_SECONDS, conditions=conditions)
