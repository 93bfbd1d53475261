"""Checkpoints are there whole or not at all."""

import shutil

import pytest
import torch

from opensora.engine import checkpoint
from opensora.engine.checkpoint import (
    RunState,
    find_checkpoint,
    list_checkpoints,
    read_checkpoint,
    read_state,
    save_checkpoint,
    weights_file,
)


def tensors(value=1.0):
    return {
        "model": {"w": torch.full((3,), value), "count": torch.tensor(7)},
        "model_optimizer": {},
        "model_ema": {"w": torch.full((3,), value / 2)},
    }


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_what_is_saved_is_read_again(tmp_path):
    state = RunState(12, 3, 4, {"hash": "x", "carried": [[1, 2]]}, [5, 6], [{"loss": 0.1 + 0.2}])
    path = save_checkpoint(tmp_path, state, tensors())
    assert path == tmp_path / "checkpoints/epoch3-global_step12"
    found, read = read_checkpoint(tmp_path)
    assert found == state == read_state(path)
    assert read.keys() == tensors().keys() and read["model_optimizer"] == {}
    for stem, part in tensors().items():
        for key, value in part.items():
            assert torch.equal(read[stem][key], value) and read[stem][key].dtype == value.dtype
    assert weights_file(path).name == "model_ema.safetensors"
    assert weights_file(path, ema=False).name == "model.safetensors"
    with pytest.raises(FileNotFoundError, match="no vae.safetensors; it holds"):
        weights_file(path, "vae")


@pytest.mark.parametrize("fails", ["weights", "state", "rename"])
def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch, fails):
    save_checkpoint(tmp_path, RunState(1), tensors())

    def broken(*args, **kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        if fails == "weights":
            written = []
            save = checkpoint.save_safetensors
            patch.setattr(
                checkpoint,
                "save_safetensors",
                lambda *args: broken() if written else written.append(save(*args)),
            )
        elif fails == "state":
            patch.setattr(checkpoint, "write_text", broken)
        else:
            patch.setattr(checkpoint.Path, "rename", broken)
        with pytest.raises(OSError, match="disk full"):
            save_checkpoint(tmp_path, RunState(2), tensors(2.0))
    assert names(tmp_path) == [".epoch0-global_step2.partial", "epoch0-global_step1"]
    assert find_checkpoint(tmp_path).name == "epoch0-global_step1"
    assert torch.equal(read_checkpoint(tmp_path)[1]["model"]["w"], torch.ones(3))
    save_checkpoint(tmp_path, RunState(3), tensors())
    assert names(tmp_path) == ["epoch0-global_step1", "epoch0-global_step3"]  # and the rest is cleared away


def test_the_newest_is_the_one_of_the_last_step(tmp_path):
    for epoch, step in ((0, 9), (1, 10), (2, 100), (1, 20)):
        save_checkpoint(tmp_path, RunState(step, epoch), tensors())
    (tmp_path / "checkpoints/epoch9-global_step999").mkdir()  # no state, so it is none
    (tmp_path / "checkpoints/epoch9-global_step999x").mkdir()
    assert [read_state(path).step for path in list_checkpoints(tmp_path)] == [9, 10, 20, 100]
    assert find_checkpoint(tmp_path).name == "epoch2-global_step100"
    inside = tmp_path / "checkpoints/epoch1-global_step10"
    assert find_checkpoint(inside) == inside


def test_old_ones_go(tmp_path):
    for step in range(5):
        save_checkpoint(tmp_path, RunState(step), tensors(), keep=2)
    assert names(tmp_path) == ["epoch0-global_step3", "epoch0-global_step4"]


def test_the_same_step_twice_is_the_second(tmp_path):
    save_checkpoint(tmp_path, RunState(4), tensors(1.0))
    save_checkpoint(tmp_path, RunState(4), tensors(2.0))
    assert names(tmp_path) == ["epoch0-global_step4"]
    assert torch.equal(read_checkpoint(tmp_path)[1]["model"]["w"], torch.full((3,), 2.0))


def test_a_death_while_a_step_is_replaced_loses_nothing(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, RunState(4), tensors(1.0))
    rename, calls = checkpoint.Path.rename, []

    def second_fails(path, target):
        calls.append(path)
        if len(calls) == 2:
            raise OSError("killed")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Path, "rename", second_fails)
        with pytest.raises(OSError, match="killed"):
            save_checkpoint(tmp_path, RunState(4), tensors(2.0))
    assert not (tmp_path / "checkpoints/epoch0-global_step4").exists()
    assert read_state(tmp_path).step == 4
    assert torch.equal(read_checkpoint(tmp_path)[1]["model"]["w"], torch.ones(3))
    save_checkpoint(tmp_path, RunState(5), tensors(3.0), keep=3)
    assert names(tmp_path) == ["epoch0-global_step5"]


def test_a_death_while_one_is_deleted_leaves_no_half(tmp_path, monkeypatch):
    for step in (1, 2):
        save_checkpoint(tmp_path, RunState(step), tensors())

    def half(path, **kwargs):
        (path / "model.safetensors").unlink()
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", half)
        with pytest.raises(OSError, match="killed"):
            save_checkpoint(tmp_path, RunState(3), tensors(), keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "epoch0-global_step2",
        "epoch0-global_step3",
    ]


def test_an_empty_place_says_what_was_expected(tmp_path):
    assert list_checkpoints(tmp_path / "no") == []
    for path in (tmp_path, tmp_path / "no"):
        with pytest.raises(FileNotFoundError, match="no checkpoint here. Expected a folder with state.json"):
            find_checkpoint(path)
