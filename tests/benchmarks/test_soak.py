"""The soak: a short one with each fault once, and how runs are compared."""

import pytest
import torch

from benchmarks.soak import Fault, _bad_steps, _told, differences, soak
from opensora.engine.checkpoint import RunState
from opensora.utils.files import write_text
from opensora.utils.weights import save_safetensors


def run_of(folder, weight=1.0, line="1", **state):
    place = folder / "checkpoints/epoch0-global_step4"
    place.mkdir(parents=True)
    save_safetensors({"w": torch.tensor([weight])}, place / "model.safetensors")
    write_text(str({**vars(RunState(step=4)), **state}).replace("'", '"'), place / "state.json")
    write_text(f"{line}\n", folder / "log.jsonl")
    return folder


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"skip_steps": [1]}, []),  # who planned the skips
        ({"weight": 1.0000001}, ["model: w"]),
        ({"skipped": [1]}, ["state: skipped"]),
        ({"line": "2"}, ["log: 1 / 2"]),
        ({"line": "1\n2"}, ["log: other lines"]),
    ],
)
def test_any_difference_is_found(tmp_path, changes, found):
    assert differences(run_of(tmp_path / "one"), run_of(tmp_path / "two", **changes)) == found


def test_a_fault_is_told_by_its_own_words():
    lines = ["step 5", "error in process 0: process 1 died in data of step 4"]
    assert _told(lines, "process killed") == lines[1] and not _told(lines, "SIGTERM")
    assert _bad_steps(Fault("NaN in a row", 10, 0)) == [12, 13, 14]
    assert _bad_steps(Fault("SIGTERM", 10, 0)) == []


@pytest.mark.slow
@pytest.mark.dist
def test_each_fault_once_leaves_every_bit_in_place(tmp_path):
    *met, last = soak(tmp_path, steps=120, count=8)
    assert len({one.name for one in met}) == 8 and all(one.conditions["seen"] for one in met)
    assert last.ok, last.conditions["such_as"]
