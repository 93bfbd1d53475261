"""Soak: a long run under injected faults, beside one that is given its lists of bad steps and clips.

Two processes of scripts/train.py train a tiny model on tiny clips. Processes are killed and stopped, signals
sent, checkpoints damaged, the disk is full (by a limit on the size of files), losses are not finite on one
process, clips break. After each fault that ends the run, the same command is given again. In the end weights,
averages, optimizer, state and log must be those of the other run, bit for bit.
"""

import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.measure import Measure
from opensora.acceleration.heartbeat import Beat, read_beat
from opensora.datasets.quarantine import read_quarantine
from opensora.datasets.video_io import write_video
from opensora.engine.checkpoint import list_checkpoints, read_state

STEPS, FAULTS = 2000, 20
CLIPS, FRAMES, HEIGHT, WIDTH = 24, 5, 16, 24
PATIENCE, SAVE_EVERY, HANG_S, LIMIT_S = 3, 25, 30, 300
_ROOT = Path(__file__).resolve().parent.parent
_KINDS = (  # in the order in which they come
    "NaN on one process",
    "process killed",
    "clip damaged",
    "process stopped",
    "disk full",
    "SIGTERM",
    "all killed, newest checkpoint damaged",
    "NaN in a row",
)
_SPOIL = "import sys; from benchmarks.soak import spoiled_train; spoiled_train(sys.argv)"


def run() -> Iterator[Measure]:
    """Yield the seconds that each fault cost, and how many tensors and lines differ in the end: none may."""
    with tempfile.TemporaryDirectory() as folder:
        yield from soak(Path(folder), STEPS, FAULTS)


@dataclass
class Fault:
    """Something that goes wrong.

    Args:
        kind: One of `_KINDS`.
        step: When.
        rank: To which process.
        seen: What the run said.
        seconds: From the fault until the run was past its step.
    """

    kind: str
    step: int
    rank: int
    seen: str = ""
    seconds: float = 0.0


def soak(folder: Path, steps: int, count: int) -> Iterator[Measure]:
    """Train twice in a folder, and compare.

    Args:
        folder: Where clips and runs go.
        steps: Steps of each run.
        count: How many faults, evenly spread.
    """
    gap = steps / (count + 1)
    faults = [Fault(_KINDS[i % len(_KINDS)], int(gap * (i + 1)), i // len(_KINDS) % 2) for i in range(count)]
    spoiled = {rank: [step for f in faults if f.rank == rank for step in _bad_steps(f)] for rank in (0, 1)}
    table = _write_clips(folder / "clips")
    start = time.perf_counter()
    shaken = Run(folder / "shaken", table, steps, spoiled)
    for fault in faults:
        shaken.meet(fault)
        conditions = {"step": fault.step, "process": fault.rank, "seen": fault.seen}
        yield Measure(f"soak/{steps}/{fault.kind}", fault.seconds, "s", conditions=conditions)
    shaken.finish()
    quarantine = shaken.folder / "quarantine.jsonl"
    for path, content in shaken.damaged.items():
        path.write_bytes(content)
    took = {"shaken": time.perf_counter() - start}
    skipped = read_state(shaken.folder).skipped
    start = time.perf_counter()
    calm = Run(folder / "calm", table, steps, {})
    calm.command += ["--skip-steps", repr(skipped), "--dataset.quarantined", str(quarantine)]
    calm.finish()
    took["calm"] = time.perf_counter() - start
    rows = [line["row"] for line in read_quarantine(quarantine)]
    conditions = {"faults": count, "starts": shaken.starts, "skipped": skipped, "replaced_rows": rows}
    conditions |= {f"seconds_{name}": round(seconds) for name, seconds in took.items()}
    different = differences(shaken.folder, calm.folder)
    conditions["such_as"] = different[:3]
    yield Measure(f"soak/{steps}/differences", len(different), "", at_most=0, conditions=conditions)


class Run:
    """A run of two processes that is started again whenever it ends.

    Args:
        outputs: Its place.
        table: The clips.
        steps: How many.
        spoiled: By process, the steps whose loss is not finite.
    """

    def __init__(self, outputs: Path, table: Path, steps: int, spoiled: Mapping[int, list[int]]) -> None:
        self.folder, self.table, self.steps, self.starts = outputs / "run", table, steps, 0
        self.command = [sys.executable, "-c", _SPOIL, json.dumps(spoiled)]
        self.command += [str(_ROOT / "scripts/train.py"), str(_ROOT / "configs/opensora-v1-3/train/demo.py")]
        self.command += _options(outputs, table, steps)
        self.processes: list[subprocess.Popen] = []
        self.lines: list[str] = []
        self.damaged: dict[Path, bytes] = {}  # clips, and what they were

    def meet(self, fault: Fault) -> None:
        """Run up to the step of a fault, let it happen, and run past it again."""
        self._reach(fault.step)
        start, before = time.perf_counter(), len(self.lines)
        self._strike(fault, before)
        self._reach(fault.step + len(_bad_steps(fault)))
        fault.seconds = time.perf_counter() - start
        self._wait(lambda: _told(self.lines[before:], fault.kind), f"{fault} told")
        fault.seen = _told(self.lines[before:], fault.kind)

    def finish(self) -> None:
        """Run to the end."""
        while True:
            self._start()
            for process in self.processes:
                process.wait(timeout=LIMIT_S + self.steps)
            if not any(process.returncode for process in self.processes):
                return

    @property
    def _over(self) -> bool:
        return any(process.poll() is not None for process in self.processes)

    def _reach(self, step: int) -> None:
        self._start()
        self._wait(lambda: self._beat(0).step > step, f"step {step}", again=True)

    def _strike(self, fault: Fault, before: int) -> None:
        pid, kind = self._beat(fault.rank).pid, fault.kind
        if kind == "process killed":
            os.kill(pid, signal.SIGKILL)
        elif kind == "process stopped":
            os.kill(pid, signal.SIGSTOP)
        elif kind == "SIGTERM":
            os.kill(pid, signal.SIGTERM)
            time.sleep(0.05)
            os.kill(pid, signal.SIGTERM)  # once more, while it saves
        elif kind == "disk full":
            main = self._beat(0).pid
            limits = resource.prlimit(main, resource.RLIMIT_FSIZE, (16000, resource.RLIM_INFINITY))
            self._wait(lambda: _told(self.lines[before:], kind), "a save on a full disk")
            resource.prlimit(main, resource.RLIMIT_FSIZE, limits)
            return
        elif kind == "clip damaged":
            path = self.table.parent / f"{(fault.step * 7 + 3) % CLIPS}.mp4"
            self.damaged[path] = path.read_bytes()
            path.write_bytes(bytes(path.stat().st_size))
            return
        elif kind.startswith("all killed"):
            self._kill()
            weights = sorted(list_checkpoints(self.folder)[-1].glob("model*.safetensors"))[0]
            data = bytearray(weights.read_bytes())
            data[-5] ^= 0xFF
            weights.write_bytes(data)
        if kind not in ("NaN on one process", "NaN in a row"):
            other = self.processes[1 - fault.rank] if self.processes else None
            self._wait(lambda: other is None or other.poll() is not None, f"{kind}: the others to end")
            self._kill()

    def _start(self) -> None:
        if self.processes and not self._over:
            return
        self._kill()
        self.starts += 1
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        place |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        for rank in ("0", "1"):
            env = place | {"RANK": rank, "LOCAL_RANK": rank}
            process = subprocess.Popen(self.command, cwd=_ROOT, env=env, **pipes)
            self.processes.append(process)
            threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def _read(self, process: subprocess.Popen) -> None:
        for line in process.stdout:
            self.lines.append(line.rstrip())

    def _beat(self, rank: int) -> Beat:
        found = sorted((self.folder / ".heartbeats").glob(f"*/rank{rank}.json"))
        beat = read_beat(found[-1]) if found else None
        return Beat() if beat is None or beat.state != "running" or beat.is_dead else beat

    def _wait(self, ready: Callable[[], Any], what: str, again: bool = False) -> None:
        end = time.monotonic() + LIMIT_S
        while not ready():
            if time.monotonic() > end:
                self._kill()
                raise RuntimeError(f"waited for {what} in vain:\n" + "\n".join(self.lines[-30:]))
            if again and self._over:
                self._start()
            time.sleep(0.02)

    def _kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes = []


def spoiled_train(argv: list[str]) -> None:
    """Run a script in which the losses of some steps are not finite. Called in the processes of a run.

    Args:
        argv: "-c", JSON with the steps by process, the script, its arguments.
    """
    from opensora.engine.latent_diffusion import LatentDiffusion

    steps = json.loads(argv[1]).get(os.environ["RANK"], [])
    losses = LatentDiffusion.losses

    def spoiled(task: LatentDiffusion, batch: Mapping[str, Any], step: int = 0) -> Iterator[tuple[str, dict]]:
        for name, parts in losses(task, batch, step):
            yield name, {**parts, "loss": parts["loss"] * (torch.nan if step in steps else 1.0)}

    LatentDiffusion.losses = spoiled
    sys.argv = argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")


def differences(run: Path, other: Path) -> list[str]:
    """Return what differs between the newest checkpoints and the logs of two runs."""
    one, two = list_checkpoints(run)[-1], list_checkpoints(other)[-1]
    states = [{k: v for k, v in vars(read_state(path)).items() if k != "skip_steps"} for path in (one, two)]
    found = [f"state: {key}" for key, value in states[0].items() if value != states[1][key]]
    for file in sorted(one.rglob("*.safetensors")):
        tensors, others = load_file(file), load_file(two / file.relative_to(one))
        found += [
            f"{file.stem}: {key}" for key in tensors | others if not torch.equal(tensors[key], others[key])
        ]
    logs = [(path / "log.jsonl").read_text().splitlines() for path in (run, other)]
    found += [f"log: {a} / {b}" for a, b in zip(*logs, strict=False) if a != b]
    return found + ([] if len(logs[0]) == len(logs[1]) else ["log: other lines"])


def _bad_steps(fault: Fault) -> list[int]:
    """Return the steps whose loss a fault spoils; they come a little after it was looked for."""
    if not fault.kind.startswith("NaN"):
        return []
    return [fault.step + 2 + i for i in range(PATIENCE if fault.kind == "NaN in a row" else 1)]


def _told(lines: list[str], kind: str) -> str:
    """Return the line in which a run speaks of a fault."""
    sign = {
        "NaN on one process": "is not finite on process",
        "NaN in a row": "will be passed over",
        "process killed": "died in",
        "process stopped": "has not answered",
        "disk full": "no checkpoint of step",
        "SIGTERM": "asked to stop",
        "all killed, newest checkpoint damaged": "continued from",
        "clip damaged": "",
    }[kind]
    return next((line for line in lines if sign and sign in line), "" if sign else "in quarantine.jsonl")


def _write_clips(folder: Path) -> Path:
    folder.mkdir(parents=True)
    rows = ["path,text,num_frames,height,width,fps"]
    for number in range(CLIPS):
        video = torch.full((3, FRAMES + 4, 2 * HEIGHT, 2 * WIDTH), -0.6)
        for frame in range(FRAMES + 4):
            video[number % 3, frame, 8:20, (3 * number + 2 * frame) % WIDTH :][:, :12] = 0.9
        path = write_video(video, folder / f"{number}.mp4", 24)
        rows.append(f"{path},a square moves,{FRAMES + 4},{2 * HEIGHT},{2 * WIDTH},24")
    table = folder / "clips.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


def _options(outputs: Path, table: Path, steps: int) -> list[str]:
    """Return what makes the demo's config small enough for thousands of steps."""
    options = {
        **{"data-path": table, "outputs": outputs, "run-name": "run", "dtype": "fp32", "device": "cpu"},
        **{"dataset.image_size": (HEIGHT, WIDTH), "dataset.num_frames": FRAMES, "batch-size": 1},
        **{"dataset.check_files": 0, "vae.latent_channels": 4, "vae.channels": 32},
        **{"vae.channel_multipliers": (1, 1, 1, 1), "model.hidden_size": 48, "model.depth": 1},
        **{"model.num_heads": 2, "text-encoder": "none", "condition-dropout": "{}", "plugin": "ddp"},
        **{"model.conditions": "{'size': {'type': 'SizeCondition', 'fields': ('fps',)}}"},
        **{"validate-every": 0, "max-steps": steps, "epochs": steps, "log-every": 5, "patience": PATIENCE},
        **{"lr_schedule.cosine": "false", "ckpt-every": SAVE_EVERY, "ckpt-keep": 3},
        **{"hang-timeout-s": float(HANG_S)},
    }
    return [str(word) for name, value in options.items() for word in (f"--{name}", value)]
