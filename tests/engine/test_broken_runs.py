"""Runs whose buckets, rules or processes are wrong stop before a network is built, and say what to change.

The cases are those that users of video training report most: no batch without an error, rows that are never
seen, processes that wait for each other.
"""

import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from opensora.engine import training, training_data
from opensora.engine.training import train
from opensora.engine.training_data import TrainingData
from opensora.utils.config_defaults import base_configs
from opensora.utils.files import alone_in


class Table:
    """A dataset that has sizes only: groups of (rows, frames, height, width)."""

    num_frames, image_size = None, None

    def __init__(self, groups, frame_interval=1, seed=0):
        rows = [clip for count, *clip in groups for _ in range(count)]
        self.columns = tuple(np.array(rows, dtype=np.int32).reshape(-1, 3).T)
        self.frame_interval = frame_interval
        self.manifest = SimpleNamespace(fingerprint="toy")

    def sizes(self):
        return self.columns


def config(groups, bucket_config, frame_interval=1, **changes):
    base = base_configs()
    plan = {**base["runtime"]["plan"], **changes.pop("plan", {})}
    dataset = {"type": Table, "groups": groups, "frame_interval": frame_interval}
    data = {"dataset": dataset, "bucket_config": bucket_config, "plan": plan, "num_workers": 0}
    return {**base["video"], **base["runtime"], **data, "plugin": None, "dtype": "fp32", **changes}


def no_task(cfg):
    raise AssertionError("a network was built")


WIDE, SMALL = (360, 640), (100, 100)
VIDEOS = {"360p": {49: (1.0, 5)}}
BROKEN = {
    "no clip is long enough": (
        config([(16, 16, *WIDE)], {"360p": {51: (1.0, 2)}}),
        r"no step(.|\n)*16 too short(.|\n)*Add a length of 16 or less to bucket_config\['360p'\]",
    ),
    "the interval makes clips too short": (
        config([(16, 51, *WIDE)], {"360p": {51: (1.0, 2)}}, frame_interval=3),
        "needs 153 with frame_interval=3(.|\n)*or lower frame_interval",
    ),
    "no clip is large enough": (config([(9, 60, *SMALL)], VIDEOS), "9 too small(.|\n)*at most 12500 pixels"),
    "images without an image bucket": (
        config([(9, 1, *WIDE)], VIDEOS),
        r"9 no bucket for images(.|\n)*1: \(1.0, BATCH\)",
    ),
    "probabilities of 0": (config([(9, 60, *WIDE)], {"360p": {49: (0.0, 5)}}), "9 probability(.|\n)*raise"),
    "fewer clips than a batch": (
        config([(3, 60, *WIDE)], VIDEOS),
        r"3 rows for batches of 5(.|\n)*\[49\] to 3, or add 2 such clips",
    ),
    "a size of which there are few": (
        config([(50, 60, *WIDE), (2, 60, 640, 360)], VIDEOS, plan={"starved": "error"}),
        "640 x 360: 2 rows for batches of 5(.|\n)*plan.starved='merge'",
    ),
    "fewer batches than a step": (
        config([(16, 60, *WIDE)], VIDEOS, batches_per_step=8),
        "3 full batches(.|\n)*Set batches_per_step=3",
    ),
    "most rows fit nothing": (
        config([(40, 60, *WIDE), (60, 30, *WIDE)], VIDEOS),
        "drops 60 of 100 rows(.|\n)*60 too short(.|\n)*length of 30 or less(.|\n)*plan.max_dropped=0.6",
    ),
    "an empty table": (config([], VIDEOS), "The table is empty"),
    "a resolution that does not exist": (
        config([(9, 60, *WIDE)], {"360": {49: (1.0, 5)}}),
        "bucket_config\\['360'\\].*unknown",
    ),
    "a batch size of 0": (config([(9, 60, *WIDE)], {"360p": {49: (1.0, 0)}}), "batch size 0; use an integer"),
    "a probability above 1": (config([(9, 60, *WIDE)], {"360p": {49: (1.5, 2)}}), "number in \\[0, 1\\]"),
    "a length that is no number": (
        config([(9, 60, *WIDE)], {"360p": {"4s": (1.0, 2)}}),
        "an integer number of frames",
    ),
    "an unknown rule": (
        config([(9, 60, *WIDE)], VIDEOS, plan={"bucket_rule": "first"}),
        "plan.bucket_rule='first': use one of resolution, ratio",
    ),
    "an unknown remainder": (
        config([(9, 60, *WIDE)], VIDEOS, plan={"remainder": "drop"}),
        "plan.remainder='drop': use one of carry, pad",
    ),
}


@pytest.mark.parametrize("cfg, message", BROKEN.values(), ids=BROKEN)
def test_a_broken_run_stops_before_a_network_is_built(cfg, message):
    with pytest.raises(ValueError, match=message):
        train(cfg, no_task)


def test_a_run_that_is_not_broken_goes_on_to_the_network():
    cfg = config([(16, 60, *WIDE)], VIDEOS, outputs="nowhere", device="cpu")
    with pytest.raises(AssertionError, match="a network was built"):
        train(cfg, no_task, dry_run=True)


WORKS = """
import sys, time
from pathlib import Path
from opensora.utils.files import alone_in
run = Path(sys.argv[1])
with alone_in(run):
    print("works", flush=True)
    time.sleep(float(sys.argv[2]))
    (run / "saved").touch()
"""


@pytest.fixture
def works(tmp_path):
    """Start a process that works in the run "run" for so many seconds."""

    def start(seconds):
        (tmp_path / "run").mkdir()
        words = [sys.executable, "-c", WORKS, str(tmp_path / "run"), str(seconds)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == b"works\n"

    started = []
    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_process_reads_a_runs_checkpoints_after_the_first_has_saved_its_last(
    tmp_path, works, monkeypatch
):
    seen = []

    def find(cfg):
        seen.append((tmp_path / "run/saved").exists())
        raise ValueError("enough seen")

    monkeypatch.setattr(training, "find_start", find)
    works(1.5)
    with pytest.raises(ValueError, match="enough seen"):
        train(config([(16, 60, *WIDE)], VIDEOS, outputs=str(tmp_path), run_name="run", device="cpu"), no_task)
    assert seen == [True]


def test_a_second_process_is_refused_where_the_first_goes_on(tmp_path, works, monkeypatch):
    monkeypatch.setattr(training, "alone_in", partial(alone_in, patience_s=0.2))
    works(60)
    cfg = config([(16, 60, *WIDE)], VIDEOS, outputs=str(tmp_path), run_name="run", device="cpu")
    with pytest.raises(BlockingIOError, match=r"run: process \d+ on .* works in this folder"):
        train(cfg, no_task)
    with pytest.raises(AssertionError, match="a network was built"):
        train(cfg, no_task, dry_run=True)  # only looks


def processes(size):
    return SimpleNamespace(data_size=size, data_rank=0, is_main=True, device="cpu")


def test_processes_that_do_not_divide_a_step(monkeypatch):
    monkeypatch.setattr(training_data, "parallel_state", lambda: processes(3))
    with pytest.raises(ValueError, match="batches_per_step=8 cannot be shared by 3 processes.*multiple of 3"):
        TrainingData(config([(90, 60, *WIDE)], VIDEOS, batches_per_step=8))


def test_processes_that_read_other_tables(monkeypatch):
    """Elsewhere they would hang, since one has a step more."""
    monkeypatch.setattr(training_data, "all_equal", lambda text: False)
    with pytest.raises(RuntimeError, match="planned epoch 0 differently.*the same table and config"):
        TrainingData(config([(90, 60, *WIDE)], VIDEOS))


def test_a_checkpoint_of_other_buckets():
    state = TrainingData(config([(90, 60, *WIDE)], VIDEOS)).state()
    other = TrainingData(config([(90, 60, *WIDE)], {"360p": {49: (1.0, 4)}}))
    with pytest.raises(ValueError, match=r"bucket_config.360p.49: \[1.0, 5\] -> \[1.0, 4\]\. Either restore"):
        other.load(state)
