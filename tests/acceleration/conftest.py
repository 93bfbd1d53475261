"""Start several processes that know each other."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def launch() -> Callable[..., None]:
    """Return a function that runs a worker in `world` processes, and fails with what a failed one said."""

    def run(worker: Path, world: int, *arguments: object, timeout_s: float = 600.0) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
        env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "LOCAL_WORLD_SIZE": str(world)}
        processes = [
            subprocess.Popen(
                [sys.executable, str(worker), *map(str, arguments)],
                env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(world)
        ]
        try:
            outputs = [process.communicate(timeout=timeout_s)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        for rank, (process, output) in enumerate(zip(processes, outputs, strict=True)):
            assert process.returncode == 0, f"{arguments}, process {rank}:\n{output[-4000:]}"

    return run
