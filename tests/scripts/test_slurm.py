"""The SLURM scripts: what they would run, and a job that must end saves and waits in the queue again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "scripts/slurm"
SCRIPTS = {"train": ("CONFIG", "--run-name", "night"), "inference": ("CONFIG", "--seed", "3")}
# Stand for SLURM's programs: `srun` is a step that ends when it is told to, after it has "saved".
PROGRAMS = {
    "srun": f"""#!{sys.executable}
import os, signal, sys
from pathlib import Path
calls = os.environ["CALLS"]
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})  # from here on it waits to be asked for
Path(f"{{calls}}.srun").write_text(" ".join(sys.argv))
Path(f"{{calls}}.new").write_text(str(os.getpid()))
os.rename(f"{{calls}}.new", f"{{calls}}.pid")
signal.sigwait({{signal.SIGTERM}})
with open(calls, "a") as file:
    file.write("saved\\n")
""",
    "scontrol": """#!/usr/bin/env bash
echo "scontrol $*" >> "$CALLS"
if [[ $1 == show ]]; then echo alpha; echo beta; fi
""",
    "scancel": """#!/usr/bin/env bash
echo "scancel $*" >> "$CALLS"
read -r step < "$CALLS.pid" || [ -n "$step" ]
kill -TERM "$step"
while [[ $STEP == ends ]] && kill -0 "$step"; do sleep 0.1; done
""",
}


def environment(**variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "NCCL_", "TORCH_ELASTIC"))}
    return {**kept, **variables}


def dry(name, *words, **variables):
    command = ["bash", FOLDER / f"{name}.sh", *words]
    return subprocess.run(
        command, env=environment(**variables), cwd=ROOT, text=True, capture_output=True, timeout=300
    )


@pytest.fixture
def programs(tmp_path):
    """Variables under which the scripts find our programs instead of SLURM's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in PROGRAMS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "SLURM_JOB_ID": "40123",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_SUBMIT_DIR": str(ROOT),
    }


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.sh")), ids=lambda path: path.name)
def test_bash_reads_it(path):
    subprocess.run(["bash", "-n", path], check=True, timeout=300)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_dry_run_prints_environment_and_command(name):
    done = dry(name, "--dry-run", *SCRIPTS[name], "--model.freeze", "('a b',)", NCCL_SOCKET_IFNAME="ib0")
    assert done.returncode == 0, done.stderr
    *variables, command = done.stdout.splitlines()
    assert {"NCCL_DEBUG=WARN", "NCCL_SOCKET_IFNAME=ib0", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=270"} <= set(
        variables
    )
    assert command.startswith("srun --nodes 2 --ntasks 2 --ntasks-per-node 1 ")
    assert "--nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_id 0 " in command
    words = " ".join(SCRIPTS[name])
    assert f" scripts/{name}.py {words} --model.freeze \\(\\'a\\ b\\'\\,\\)" in command


def test_processes_meet_on_the_first_machine(programs):
    command = dry("train", "--dry-run", "CONFIG", "--run-name=x", **programs).stdout.splitlines()[-1]
    assert "--nproc_per_node 4 " in command and f"--rdzv_endpoint alpha:{20000 + 40123 % 20000} " in command


def test_what_cannot_work_is_refused(tmp_path):
    assert "give --run-name" in dry("train", "--dry-run", "CONFIG").stderr
    assert "not in a SLURM job" in dry("inference", "CONFIG").stderr
    (tmp_path / "scripts/slurm").mkdir(parents=True)
    (tmp_path / "scripts/slurm/launch.sh").write_text((FOLDER / "launch.sh").read_text())
    done = dry("inference", "--dry-run", "CONFIG", SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == 2 and "submit from the root" in done.stderr


def start(programs):
    """Start the training script, and wait until its step runs."""
    command = ["bash", FOLDER / "train.sh", "CONFIG", "--run-name", "night"]
    said = Path(programs["CALLS"] + ".said")
    with open(said, "w") as file:  # no pipe, which would stay open as long as the step lives
        process = subprocess.Popen(
            command, env=environment(**programs), cwd="/", stdout=file, stderr=subprocess.STDOUT
        )
    wait_for(Path(programs["CALLS"] + ".pid").exists)
    return process, said


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.parametrize(
    "by, step",  # what the step does while the script tells it to end
    [("time limit", "goes on"), ("time limit", "ends"), ("preemption", "ends")],
)
def test_a_job_that_must_end_saves_and_goes_on_later(programs, by, step):
    process, said = start({**programs, "STEP": step})
    try:
        if by == "time limit":
            process.send_signal(signal.SIGUSR1)
        else:  # SLURM tells script and steps; a step takes longer to save than the script to hear it
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: "saving" in said.read_text())
            os.kill(int(Path(programs["CALLS"] + ".pid").read_text()), signal.SIGTERM)
        process.wait(timeout=300)
    finally:
        process.kill()
    output = said.read_text()
    assert process.returncode == 0 and "saving" in output, output
    calls = Path(programs["CALLS"]).read_text().splitlines()
    told = ["scancel --signal=TERM 40123"] if by == "time limit" else []
    again = ["scontrol requeue 40123"] if by == "time limit" else []  # else SLURM does it
    assert calls == ["scontrol show hostnames node[1-2]", *told, "saved", *again]
    assert "scripts/train.py" in Path(programs["CALLS"] + ".srun").read_text()


def test_a_run_that_fails_is_not_queued_again(programs):
    (Path(programs["CALLS"]).parent / "bin/srun").write_text("#!/usr/bin/env bash\nexit 3\n")
    done = dry("train", "CONFIG", "--run-name", "night", **programs)
    assert done.returncode == 3
    assert "requeue" not in Path(programs["CALLS"]).read_text()
