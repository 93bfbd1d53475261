"""Kill runs at given moments, start them again, and compare them with the run that nobody killed.

python killed_runs.py JOB.json: see `main`. Runs are forks of this process, which has imported everything, so
that they take a second and not five. The killing is done by SIGKILL: from outside a while after a step began,
or by the run itself at a point of the code.
"""

import importlib
import json
import os
import runpy
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import matplotlib
import torch

import opensora.engine.latent_diffusion
import opensora.engine.training  # noqa: F401
import opensora.utils.weights as weights_file
from opensora.engine import checkpoint_writer
from opensora.engine.checkpoint import list_checkpoints, read_checkpoint, step_of
from opensora.engine.trainer import Trainer

LONGEST_S = 120
matplotlib.use("Agg")
import matplotlib.pyplot  # noqa: E402
import torch._dynamo  # noqa: E402
import torch.distributed.fsdp  # noqa: E402, F401


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner, name, count, act):
    """Replace a function so that its call number `count`, from 1, runs `act(original, *its arguments)`."""
    original, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(1)
        return (act if len(calls) == count else lambda f, *a, **k: f(*a, **k))(original, *args, **kwargs)

    setattr(owner, name, counted)


def before(original, *args, **kwargs):
    die()


def after(original, *args, **kwargs):
    original(*args, **kwargs)
    die()


def half_a_file(original, state, file, **kwargs):
    original(state, file, **kwargs)
    os.truncate(file, os.path.getsize(file) // 2)
    die()


def half_a_deletion(original, folder, **kwargs):
    next(Path(folder).glob("*.safetensors")).unlink()
    die()


POINTS = {  # where, which function, what happens there
    "half a file": (weights_file, "save_file", half_a_file),
    "between files": (checkpoint_writer, "describe_file", after),
    "before the parts are joined": (checkpoint_writer.CheckpointWriter, "_collect", before),
    "before the new name": (checkpoint_writer, "_publish", before),
    "with the new name": (checkpoint_writer, "_publish", after),
    "during the deletion of an old one": (checkpoint_writer, "_remove", None),
}


def arrange(kill, rank, pipe):
    """Make this process die at a point of the code, or tell the parent when the step of the kill begins."""
    if kill is None or kill["rank"] != rank:
        return
    if kill["point"] is None:
        step_of_kill, train_step = kill["count"], Trainer.train_step

        def telling(trainer, batches):
            if trainer.state.step == step_of_kill:
                os.write(pipe, b"x")
            return train_step(trainer, batches)

        Trainer.train_step = telling
        return
    owner, name, act = POINTS[kill["point"]]
    if act is None:
        at_call(
            owner,
            name,
            kill["count"],
            lambda remove, path: at_call(shutil, "rmtree", 1, half_a_deletion) or remove(path),
        )
    else:
        at_call(owner, name, kill["count"], act)


def start(command, processes, kill, output):
    """Fork the processes of a run; return their ids and a pipe that tells when the kill's step begins."""
    reading, writing = os.pipe()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ids = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                text = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(text, 1)
                os.dup2(text, 2)
                if processes > 1:
                    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
                    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                arrange(kill, rank, writing)
                sys.argv = list(command)
                runpy.run_path(command[0], run_name="__main__")
                code = 0
            except SystemExit as stop:
                code = stop.code or 0
            finally:
                sys.stdout.flush()
                os._exit(code)
        ids.append(child)
    os.close(writing)
    return ids, reading


def wait(ids, end):
    """Wait until a process ends, and return its id and status."""
    while time.monotonic() < end:
        for child in ids:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                return child, status
        time.sleep(0.005)
    raise TimeoutError(f"processes {ids} do not end")


def run(command, processes, kill, output):
    """Run to the end or the kill; return whether it was killed.

    Raises:
        RuntimeError: It ended otherwise.
    """
    ids, pipe = start(command, processes, kill, output)
    left, killed, end = set(ids), False, time.monotonic() + LONGEST_S
    try:
        if kill is not None and kill["point"] is None and os.read(pipe, 1):
            time.sleep(kill["delay"])
            for child in left:
                os.kill(child, signal.SIGKILL)
        while left:
            child, status = wait(left, end)
            left.discard(child)
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                killed = True
                for other in left:
                    os.kill(other, signal.SIGKILL)
            elif status:
                raise RuntimeError(f"status {status}: {Path(output).read_text()[-3000:]}")
        return killed
    finally:
        os.close(pipe)
        for child in left:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def different(folder, other):
    """Say in what two finished runs differ."""
    (state, tensors), (other_state, others) = read_checkpoint(folder), read_checkpoint(other)
    found = [] if state == other_state else ["state"]
    found += (
        []
        if [step_of(p) for p in list_checkpoints(folder)] == [step_of(p) for p in list_checkpoints(other)]
        else ["kept"]
    )
    found += [] if tensors.keys() == others.keys() else ["files"]
    for stem, part in tensors.items():
        same = part.keys() == others[stem].keys()
        found += [] if same and all(torch.equal(part[key], others[stem][key]) for key in part) else [stem]
    logs = [(place / "log.jsonl").read_text() for place in (folder, other)]
    return found + ([] if logs[0] == logs[1] else ["log"])


def damage_newest(folder):
    """Turn a bit of the newest checkpoint; return its step."""
    newest = list_checkpoints(folder)[-1]
    path = sorted(newest.glob("model_optimizer*.safetensors"))[-1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return step_of(newest)


def main(job):
    """Do a job: `command` with "{outputs}" in it, `processes`, `folder`, and `kills`; print what came out."""
    torch.set_num_threads(1)
    if job["processes"] > 1:
        importlib.import_module("colossalai.booster.plugin.low_level_zero_plugin")  # seconds, in each process
    root = Path(job["folder"])

    def whole_command(outputs):
        return [word.replace("{outputs}", str(outputs)) for word in job["command"]]

    run(whole_command(root / "whole"), job["processes"], None, root / "whole.txt")
    results = []
    for number, kill in enumerate(job["kills"]):
        outputs, output = root / str(number), root / f"{number}.txt"
        killed = run(whole_command(outputs), job["processes"], kill, output)
        left = [step_of(path) for path in list_checkpoints(outputs / "run")]
        if kill["damage"]:
            left.remove(damage_newest(outputs / "run"))
        run(whole_command(outputs), job["processes"], None, output)
        went_on = not left or f"at step {left[-1]}," in output.read_text()
        differs = different(outputs / "run", root / "whole/run")
        results.append({"killed": killed, "left": left, "went_on": went_on, "differs": differs})
        shutil.rmtree(outputs)
    print(json.dumps(results))


main(json.loads(Path(sys.argv[1]).read_text()))
