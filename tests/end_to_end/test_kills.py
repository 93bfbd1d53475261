"""Runs that are killed with SIGKILL, wherever they are, and started again: the same bits as without it."""

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "workers/killed_runs.py"
STEPS, SAVES, SLOWEST_STEP_S = 9, 2, 0.25
WRITING = ("half a file", "between files")  # counts go over the files of all checkpoints
NAMING = ("before the parts are joined", "before the new name", "with the new name")
SILENT = ["--text-encoder", "none", "--condition-dropout", "{}", "--accumulation-steps", 2]
SILENT += ["--model.conditions", "{'size': {'type': 'SizeCondition', 'fields': ('fps',)}}"]
needs_colossalai = pytest.mark.skipif(
    importlib.util.find_spec("colossalai") is None, reason="needs ColossalAI"
)


def moment(draw: random.Random, processes: int = 1) -> dict:
    """Draw a moment in time: a step, and seconds after its beginning."""
    step, rank = draw.randrange(1, STEPS), draw.randrange(processes)
    delay = draw.uniform(0, SLOWEST_STEP_S)
    return {"point": None, "count": step, "delay": delay, "rank": rank, "damage": False}


def point(draw: random.Random, name: str, processes: int = 1) -> dict:
    """Draw one of the times that a run comes to a point of the code, and the process that dies there."""
    times = {"during the deletion of an old one": 3}.get(name, 4 if name in NAMING else 8)
    rank = draw.randrange(processes) if name in WRITING else 0
    return {"point": name, "count": draw.randint(1, times), "delay": 0.0, "rank": rank, "damage": False}


def damaged() -> dict:
    """Kill a run with two checkpoints, and damage the newer one before the run goes on."""
    return {"point": "with the new name", "count": 3, "delay": 0.0, "rank": 0, "damage": True}


@pytest.fixture(scope="module")
def kill_and_compare(denoiser, tmp_path_factory):
    """Return a function that does a list of kills and says what came out of each."""

    def do(kills: list[dict], processes: int = 1) -> None:
        folder = tmp_path_factory.mktemp("kills")
        options = ["--max-steps", STEPS, "--ckpt-every", SAVES, "--ckpt-keep", 2, "--log-every", 3]
        options += ["--plugin", "none" if processes == 1 else "zero2", *SILENT]
        job = {"command": denoiser(Path("{outputs}"), *options), "processes": processes}
        job |= {"folder": str(folder), "kills": kills}
        (folder / "job.json").write_text(json.dumps(job))
        command = [sys.executable, str(WORKER), str(folder / "job.json")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120 + 60 * len(kills))
        assert done.returncode == 0, done.stderr[-4000:]
        results = json.loads(done.stdout.splitlines()[-1])
        assert len(results) == len(kills)
        for kill, result in zip(kills, results, strict=True):
            too_late = kill["point"] is None and STEPS in result["left"]  # a fast machine had ended
            assert result["killed"] or too_late, (kill, result)
            assert result["went_on"] and not result["differs"], (kill, result)
        assert 2 * sum(result["killed"] for result in results) > len(results)

    return do


def test_killed_at_three_random_moments_and_once_damaged(kill_and_compare):
    draw = random.Random(0)
    kills = [moment(draw), point(draw, "half a file"), point(draw, draw.choice(NAMING)), damaged()]
    kill_and_compare(kills)


@pytest.mark.slow
def test_killed_at_many_moments(kill_and_compare):
    draw = random.Random(1)
    kills = [moment(draw) for _ in range(10)]
    kills += [point(draw, name) for name in 3 * WRITING + 2 * NAMING]
    kill_and_compare(kills + 2 * [point(draw, "during the deletion of an old one")])


@needs_colossalai
@pytest.mark.dist
@pytest.mark.slow
def test_two_processes_killed_at_many_moments(kill_and_compare):
    draw = random.Random(2)
    kills = [point(draw, name, 2) for name in WRITING + NAMING] + [moment(draw, 2), damaged()]
    kill_and_compare(kills, processes=2)
