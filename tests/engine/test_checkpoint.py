"""Checkpoints are there whole or not at all."""

import errno
import re
import resource
import shutil
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from opensora.engine import checkpoint, checkpoint_writer
from opensora.engine.build import resolve_run
from opensora.engine.checkpoint import (
    RunState,
    find_checkpoint,
    find_damage,
    intact_checkpoint,
    list_checkpoints,
    read_checkpoint,
    read_state,
    step_of,
    weights_file,
)
from opensora.engine.checkpoint_writer import CheckpointWriter, save_checkpoint
from opensora.utils.weights import load_weights, read_state_dict


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
            save = checkpoint_writer.save_safetensors
            patch.setattr(
                checkpoint_writer,
                "save_safetensors",
                lambda *args: broken() if written else written.append(save(*args)),
            )
        elif fails == "state":
            patch.setattr(checkpoint_writer, "write_text", broken)
        else:
            patch.setattr(checkpoint.Path, "rename", broken)
        with pytest.raises(OSError, match="disk full"):
            save_checkpoint(tmp_path, RunState(2), tensors(2.0))
    assert names(tmp_path) == ["epoch0-global_step1"]  # the partial one is gone
    assert find_checkpoint(tmp_path).name == "epoch0-global_step1"
    assert torch.equal(read_checkpoint(tmp_path)[1]["model"]["w"], torch.ones(3))
    save_checkpoint(tmp_path, RunState(3), tensors())
    assert names(tmp_path) == ["epoch0-global_step1", "epoch0-global_step3"]


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
        if path.name == ".epoch0-global_step1.partial":
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


def test_multiples_of_a_step_stay(tmp_path):
    for step in range(1, 8):
        save_checkpoint(tmp_path, RunState(step), tensors(), keep=2, keep_every=3)
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [3, 6, 7]


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def turn_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "cut": ("model_ema.safetensors", cut, "model_ema.safetensors has .* bytes, and .* were written"),
    "bit": ("model_optimizer.safetensors", turn_a_bit, "model_optimizer.safetensors has other bytes"),
    "state": ("state.json", turn_a_bit, "state.json has other bytes than were written"),
    "lost": ("model.safetensors", Path.unlink, "model.safetensors is missing"),
    "manifest": ("manifest.json", cut, "manifest.json cannot be read"),
    "no manifest": ("manifest.json", Path.unlink, "manifest.json cannot be read .FileNotFoundError"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_or_refused(tmp_path, kind, caplog):
    file, harm, said = DAMAGE[kind]
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, RunState(step), tensors())
    paths = list_checkpoints(tmp_path)
    assert intact_checkpoint(tmp_path) == paths[2] and not find_damage(paths[2])
    harm(paths[2] / file)
    with caplog.at_level("WARNING", logger="opensora"):
        assert intact_checkpoint(tmp_path, together=True) == paths[1]
    assert re.search(f"global_step3 is damaged, so the one before is taken: {said}", caplog.text)
    with pytest.raises(
        ValueError, match=f"global_step3: a damaged checkpoint: {said}.*such as .*global_step2"
    ):
        intact_checkpoint(paths[2])
    for path in paths[:2]:
        harm(path / file)
    with pytest.raises(ValueError, match=f"global_step1: a damaged .*, like all newer ones: {said}"):
        intact_checkpoint(tmp_path)


def test_weights_are_verified_by_themselves(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, RunState(step), tensors(step))
    turn_a_bit(list_checkpoints(tmp_path)[1] / "model_ema.safetensors")
    assert weights_file(tmp_path).parent.name == "epoch0-global_step1"
    assert weights_file(tmp_path, ema=False).parent.name == "epoch0-global_step2"


def test_what_changes_while_it_is_written_is_written_as_it_was(tmp_path, monkeypatch):
    """The state may go on at once, and the one before is finished first."""
    go = Event()
    write = checkpoint_writer.save_safetensors
    monkeypatch.setattr(checkpoint_writer, "save_safetensors", lambda *a: go.wait(60) and write(*a))
    writer = CheckpointWriter(tmp_path)
    state = RunState(1, skipped=[7])
    writer.save(state, tensors())
    state.step, state.skipped[:] = 2, [8]
    assert not list_checkpoints(tmp_path)  # the call came back before anything was there
    go.set()
    writer.save(state, tensors(2.0))
    assert read_state(tmp_path) == RunState(1, skipped=[7])
    writer.wait()
    assert read_state(tmp_path) == RunState(2, skipped=[8])


def shares():
    """What two processes write; the second has no state of the optimizer."""
    first = {"model": {"a": torch.ones(3)}, "model_optimizer": {"step.a": torch.tensor(1.0)}, "vae": {}}
    return first, {"model": {"b": torch.arange(4.0)}, "model_optimizer": {}, "vae": {}}


def two_writers(folder):
    writers = CheckpointWriter(folder), CheckpointWriter(folder)
    for rank, writer in enumerate(writers):
        writer.rank, writer.world_size = rank, 2
    return writers


def test_processes_write_their_shares(tmp_path):
    writers = two_writers(tmp_path)
    for writer, parts in zip(writers, shares(), strict=True):
        writer.save(RunState(4), parts)
    for writer in writers:
        writer.wait()
    folder = intact_checkpoint(tmp_path)
    assert {path.name for path in folder.iterdir()} == {
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "manifest.json"),
        *("model_optimizer-00001-of-00002.safetensors", "state.json"),
        *(f"{stem}.safetensors.index.json" for stem in ("model", "model_optimizer", "vae")),
    }
    read = read_checkpoint(folder)[1]
    assert {stem: sorted(part) for stem, part in read.items()} == {
        "model": ["a", "b"],
        "model_optimizer": ["step.a"],
        "vae": [],
    }
    assert sorted(read_state_dict(folder)) == ["a", "b"]
    module = nn.ParameterDict({"a": torch.zeros(3), "b": torch.zeros(4)})  # as inference loads them
    load_weights(module, resolve_run({"from_pretrained": str(tmp_path)}, "model", True)["from_pretrained"])
    assert torch.equal(module["b"], torch.arange(4.0)) and torch.equal(module["a"], torch.ones(3))
    turn_a_bit(folder / "model-00002-of-00002.safetensors")
    assert "model-00002-of-00002" in find_damage(folder) and not find_damage(folder, stem="model_optimizer")


def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_only_what_is_used_is_read(tmp_path):
    """A process cuts its piece of each tensor; with the whole ones, all processes would hold a checkpoint."""
    save_checkpoint(tmp_path, RunState(1), {"model": {"w": torch.zeros(1000, 16000)}})  # 61 MiB
    before = resident_mib()
    piece = read_checkpoint(tmp_path)[1]["model"]["w"].reshape(-1)[4_000_000:5_000_000].clone()
    assert len(piece) == 1_000_000 and resident_mib() - before < 30


@pytest.mark.parametrize("fails", [0, 1])
def test_one_process_that_cannot_write_fails_the_checkpoint_on_all(tmp_path, monkeypatch, fails):
    save_checkpoint(tmp_path, RunState(1), tensors())
    write = checkpoint_writer.save_safetensors

    def full(state, path):
        if f"-0000{fails + 1}-of" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(state, path)

    monkeypatch.setattr(checkpoint_writer, "save_safetensors", full)
    writers = two_writers(tmp_path)
    for writer, parts in zip(writers, shares(), strict=True):
        writer.save(RunState(4), parts)
    said = writers[fails].wait()
    assert f"no checkpoint of step 4 (process 0: OSError: [Errno {errno.ENOSPC}] No space left" in said
    assert said.endswith("the newest is that of step 1. Free space on that disk.")
    if fails:
        assert "another process could not write its part" in writers[0].wait()
    assert find_checkpoint(tmp_path).name == "epoch0-global_step1"
    writers[1 - fails].leave()
    assert names(tmp_path) == ["epoch0-global_step1"]


def test_a_process_that_is_gone_is_not_waited_for_after_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "_LONGEST_WHEN_LEAVING_S", 0.05)
    writer, _ = two_writers(tmp_path)
    writer.save(RunState(4), shares()[0])
    writer.leave()
    assert "no part came from process 1); none yet." in writer.wait()


def test_a_disk_that_is_too_small_is_named_before(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with caplog.at_level("WARNING", logger="opensora"):
        save_checkpoint(tmp_path, RunState(1), tensors())
    assert "takes about" in caplog.text and "GiB left; free space there" in caplog.text


def test_an_empty_place_says_what_was_expected(tmp_path):
    assert list_checkpoints(tmp_path / "no") == []
    for path in (tmp_path, tmp_path / "no"):
        with pytest.raises(FileNotFoundError, match="no checkpoint here. Expected a folder with state.json"):
            find_checkpoint(path)
