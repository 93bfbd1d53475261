"""Two processes, one of which dies, stops, hangs or fails: the other ends in time, and says where it was."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from opensora.acceleration import heartbeat
from opensora.acceleration.heartbeat import Beat, here, phase, read_beat, waiting, write_beat
from opensora.acceleration.watchdog import Watchdog
from opensora.utils.user_errors import LOST_PROCESS, LostProcessError

ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "tests/acceleration/workers/watchdog_run.py"


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Return what each process of each fault came to."""
    folder = tmp_path_factory.mktemp("faults")
    place = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    faults = ("none", "killed", "stopped", "fails", "hangs")
    command = [sys.executable, str(WORKER), str(folder), *faults]
    done = subprocess.run(command, env=place, capture_output=True, text=True, timeout=600)
    assert not done.returncode, done.stderr
    return {"folder": folder, **json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.dist
def test_without_a_fault_nothing_is_said(told):
    assert [(status, said) for status, said in told["none"]] == [(0, ""), (0, "")]
    assert not (told["folder"] / "none/.heartbeats").exists()


@pytest.mark.dist
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("killed", "process 1 died in forward of step 20 (if its memory was full, dmesg says so)"),
        ("fails", "process 1 failed in data of step 20: ValueError: clips/7.mp4: cannot be read; remove it."),
        ("stopped", "process 1 has not answered for"),
        ("stopped", "since encode of step 20"),
        ("hangs", "process 1 has been in backward of step 20 for"),
    ],
)
def test_the_others_end_and_say_who_and_where(told, fault, said):
    status, text = told[fault][0]
    assert status == LOST_PROCESS and said in text and "goes on from its last checkpoint" in text
    assert text.count("\n") == 1 and "Traceback" not in text


@pytest.mark.dist
def test_who_fails_says_so_itself_and_who_hangs_leaves_its_stacks(told):
    assert (
        told["fails"][1][0] == 2 and "error in process 1: clips/7.mp4: cannot be read" in told["fails"][1][1]
    )
    assert told["hangs"][1][0] == LOST_PROCESS and "process 1 has been in backward" in told["hangs"][1][1]
    assert "in strike" in (told["folder"] / "hangs/reports/stacks_rank1.txt").read_text()


def test_phases_count_within_a_step():
    phase("data", 3)
    first = here()
    assert (first.step, first.phase, first.place, str(first)) == (3, "data", (3, 0), "data of step 3")
    with waiting():
        assert str(here()) == "collective of step 3" and here().place == (3, 1)
    assert str(here()) == "data of step 3" and here().place == (3, 2)
    assert here().pid == os.getpid() and not here().is_dead


def test_beats_are_read_as_written_and_half_a_beat_is_none(tmp_path):
    beat = replace(here(), error="x" * 5000, number=7)
    write_beat(tmp_path / "a.json", beat)
    size = (tmp_path / "a.json").stat().st_size
    assert read_beat(tmp_path / "a.json") == replace(beat, error="x" * heartbeat._MOST_TEXT)
    write_beat(tmp_path / "a.json", Beat())
    assert (tmp_path / "a.json").stat().st_size == size and read_beat(tmp_path / "a.json") == Beat()
    (tmp_path / "a.json").write_text('{"step": 1')
    assert read_beat(tmp_path / "a.json") is None is read_beat(tmp_path / "none.json")
    write_beat(tmp_path / "none/a.json", Beat())  # a disk that fails does not end a run


def test_a_process_that_was_here_and_is_no_more_is_dead(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert replace(here(), pid=child.pid).is_dead  # also before anybody took its status
    child.wait()
    assert replace(here(), pid=child.pid).is_dead
    assert not replace(here(), pid=child.pid, machine="another").is_dead


@pytest.mark.parametrize("size", [1, 2])
def test_programs_started_after_an_error_hear_sigterm(tmp_path, monkeypatch, size):
    before = signal.getsignal(signal.SIGTERM)
    watchdog = Watchdog(tmp_path, 5.0)
    monkeypatch.setattr(watchdog, "size", size)
    monkeypatch.setattr(watchdog, "_watch", lambda: None)
    try:
        with pytest.raises(RuntimeError, match="own"), watchdog:
            raise RuntimeError("own")
        assert (signal.getsignal(signal.SIGTERM) is before) == (size == 1)
        child = subprocess.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 15)"], timeout=60)
        assert child.returncode == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)


def test_only_errors_of_collectives_are_laid_on_others(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="own"), Watchdog(tmp_path, 5.0):
        raise RuntimeError("own")
    monkeypatch.setattr(Watchdog, "_who_is_gone", lambda self: "process 1 died")
    with (
        pytest.raises(LostProcessError, match="process 1 died. Give the same command"),
        Watchdog(tmp_path, 5.0),
    ):
        raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
    with pytest.raises(ValueError, match="hang_timeout_s=-1.0: give seconds, or 0"):
        Watchdog(tmp_path, -1.0)
    with Watchdog(tmp_path / "off", 0.0):
        assert not (tmp_path / "off").exists()
