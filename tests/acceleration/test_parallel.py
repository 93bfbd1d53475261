"""Process groups: reading the launcher, choosing devices, and what processes agree on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from opensora.acceleration import parallel

ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "tests/acceleration/workers/parallel_run.py"
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8"}


@pytest.fixture
def launched(monkeypatch):
    """Sets the variables of a launcher, and no others."""

    def set_variables(**values):
        for name in (*LAUNCHER, *SLURM):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    set_variables()
    monkeypatch.setattr(parallel, "_state", parallel.ParallelState())
    return set_variables


def gpus(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_one_process_joins_nothing(launched):
    state = parallel.init_distributed("cpu")
    assert (state.rank, state.world_size, state.local_rank, state.is_main) == (0, 1, 0, True)
    assert state.device == torch.device("cpu")
    assert not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1


def test_one_process_agrees_with_itself(launched, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    parallel.barrier()
    assert parallel.all_equal("a")
    assert parallel.broadcast_text("text") == "text"
    assert parallel.gather_texts("text") == ["text"]
    assert float(parallel.all_reduce_mean(2.5)) == 2.5


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1, 0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (3, 4, 1, 2)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, (0, 1, 0, 1)),
        (SLURM, (5, 8, 1, 2)),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, (0, 1, 0, 1)),
        ({**SLURM, "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, (0, 2, 0, 1)),
    ],
)
def test_the_launcher_names_the_process(variables, expected):
    assert parallel._launched(variables) == expected


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK, LOCAL_RANK: not set"),
        ({"RANK": "0"}, "WORLD_SIZE, LOCAL_RANK: not set"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK=2: expected 0 to 1"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, "SLURM_LOCALID: not set"),
    ],
)
def test_variables_that_make_no_sense_are_named(variables, message):
    with pytest.raises(ValueError, match=message):
        parallel._launched(variables)


def test_processes_need_an_address(launched):
    launched(RANK=0, WORLD_SIZE=2, LOCAL_RANK=0)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    with pytest.raises(ValueError, match="MASTER_ADDR and MASTER_PORT: not set, but 2 processes"):
        parallel.init_distributed("cpu")


@pytest.mark.parametrize("count", [0, 1])
def test_the_cpu_can_always_be_asked_for(monkeypatch, count):
    gpus(monkeypatch, count)
    assert parallel._device("cpu", 5, 8) == torch.device("cpu")


def test_a_gpu_is_taken_where_there_is_one(monkeypatch):
    gpus(monkeypatch, 0)
    assert parallel._device(None, 0, 1) == torch.device("cpu")
    gpus(monkeypatch, 2)
    assert parallel._device(None, 1, 2) == torch.device("cuda", 1)


def test_devices_that_do_not_exist_are_refused(monkeypatch):
    gpus(monkeypatch, 0)
    with pytest.raises(ValueError, match="device='cuda': torch sees no GPU"):
        parallel._device("cuda", 0, 1)
    with pytest.raises(ValueError, match="device='tpu': use 'cuda', 'cpu'"):
        parallel._device("tpu", 0, 1)
    gpus(monkeypatch, 2)
    for device in ("cuda", None):
        with pytest.raises(ValueError, match="4 processes on this machine, but torch sees 2 GPUs"):
            parallel._device(device, 0, 4)


@pytest.mark.dist
def test_two_processes_of_torchrun(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    subprocess.run(
        [*command, str(WORKER), str(tmp_path)],
        env=env | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=600,
    )
    both = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for rank, found in enumerate(both):
        assert found.pop("rank") == [rank, rank, 2, rank, 2, rank == 0]
        assert found.pop("untouched") == [rank + 1, 2 * rank + 2]
        assert found == {
            "known": True,
            "mean": [1.5, 3.0],
            "mean_of_number": 0.5,
            "text": '{"name": "größe"}',
            "texts": ["", "größe"],
            "empty": "",
            "same": True,
            "different": False,
        }
