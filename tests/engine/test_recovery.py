"""Steps without finite gradients: skipped, also from a list, reported, and the way back to a checkpoint."""

import errno
import json
import os

import pytest
import torch
from safetensors import SafetensorError

from opensora.engine import checkpoint_writer
from opensora.engine.checkpoint import list_checkpoints, read_state, step_of
from opensora.engine.tracker import read_log

NAN = float("nan")


def at(*steps):
    return lambda step: NAN if step in steps else 0.0


def assert_same(toy, one, two):
    assert toy.same(one, two)
    assert read_log(one) == read_log(two)


def test_a_run_that_is_given_the_list_is_the_one_that_met_the_faults(toy, tmp_path):
    met = toy.trainer_of(tmp_path / "met", task=toy.Task(at(2, 5)))
    met.fit()
    given = toy.trainer_of(tmp_path / "given", skip_steps=(5, 2))
    given.fit()
    assert met.state.skipped == given.state.skipped == [2, 5] and given.state.skip_steps == [2, 5]
    assert not (tmp_path / "given/reports").exists() and {s for s, *_ in given.task.seen} == {
        0,
        1,
        3,
        4,
        6,
        7,
        8,
    }
    met.state.skip_steps = [2, 5]
    met.save()
    assert not met.settle()
    assert_same(toy, tmp_path / "met", tmp_path / "given")


def test_many_in_a_row_lead_back_and_are_passed_over(toy, tmp_path):
    """Only steps that were computed with the lost weights come out as without the detour."""
    back = toy.trainer_of(
        tmp_path / "back", task=toy.Task(at(4, 5, 6)), patience=3, ckpt_every=3, log_every=1
    )

    def spoil(step):  # weights go wrong in memory, and every step after fails
        if step == 4 and not back.recovery._rounds:
            with torch.no_grad():
                back.task.net[0].weight.fill_(NAN)
        return 0.0

    back.task.fault = spoil
    back.fit()
    given = toy.trainer_of(tmp_path / "given", skip_steps=(4, 5, 6), ckpt_every=3, log_every=1)
    given.fit()
    assert [step for step, *_ in back.task.seen if step > 6] == [
        step for step, *_ in given.task.seen if step > 6
    ]
    assert back.state.skipped == [4, 5, 6]
    assert_same(toy, tmp_path / "back", tmp_path / "given")


def test_the_second_way_back_passes_over_all_since_the_checkpoint(toy, tmp_path):
    """Step 3 leads astray whoever does not pass over it."""
    trainer = toy.trainer_of(tmp_path / "back", patience=2, ckpt_every=3, ckpt_keep=1)
    trainer.task.fault = lambda step: NAN if step > 4 and 3 not in trainer.state.skipped else 0.0
    assert trainer.fit().skipped == trainer.state.skip_steps == [3, 4, 5, 6, 7, 8]
    given = toy.trainer_of(tmp_path / "given", skip_steps=trainer.state.skipped, ckpt_every=3)
    given.fit()
    assert_same(toy, tmp_path / "back", tmp_path / "given")


def test_the_third_time_ends_the_run(toy, tmp_path):
    trainer = toy.trainer_of(tmp_path, task=toy.Task(at(*range(3, 99))), patience=2, ckpt_every=3)
    with pytest.raises(FloatingPointError, match="up to step 8, and going back to .*step3 has not"):
        trainer.fit()
    assert [read_state(path).step for path in list_checkpoints(tmp_path)] == [3, 6]  # 6 is no good one


def test_a_run_that_goes_on_leads_back_to_where_it_began(toy, tmp_path):
    toy.trainer_of(tmp_path / "first", max_steps=4).fit()
    trainer = toy.trainer_of(tmp_path / "second", 4, task=toy.Task(at(5, 6)), patience=2)
    trainer.load(tmp_path / "first")
    assert trainer.fit().skipped == [5, 6]


def test_a_report_names_the_clip_and_what_is_not_finite(toy, tmp_path):
    trainer = toy.trainer_of(tmp_path, task=toy.Task(at(2)), max_steps=4)
    trainer.fit()
    report = json.loads((tmp_path / "reports/step000002_rank0.json").read_text())
    assert report["processes"] == [0] and len(report["batches"]) == 2
    asked = [samples for step, samples, _ in trainer.task.seen if step == 2]
    assert [[clip["row"] for clip in batch["clips"]] for batch in report["batches"]] == asked[:2]
    batch = report["batches"][0]
    assert batch["losses"]["model"]["loss"] == "nan"
    assert batch["not_finite"]["losses"] == ["model.loss"] and "inputs" not in batch["not_finite"]
    assert len(batch["clips"][0]["draws"]["n/0"]) == len(batch["clips"][0]["inputs"]["input"]) == 3
    assert all(isinstance(clip["loss"], list) for clip in batch["clips"])  # finite before the fault is added


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.safetensors")


@pytest.mark.parametrize("error", [FULL, SafetensorError("I/O error: No space left on device")])
def test_a_save_that_fails_keeps_the_older_one_and_the_run(toy, tmp_path, monkeypatch, capsys, error):
    whole = toy.trainer_of(tmp_path / "whole", ckpt_every=2)
    whole.fit()
    save, full = checkpoint_writer.save_safetensors, [4, 6]

    def fail(tensors, path):
        if step_of(path.parent) in full:
            raise error
        return save(tensors, path)

    monkeypatch.setattr(checkpoint_writer, "save_safetensors", fail)
    trainer = toy.trainer_of(tmp_path / "full", ckpt_every=2)
    trainer.fit()
    assert [read_state(path).step for path in list_checkpoints(tmp_path / "full")] == [2, 8, 9]
    assert_same(toy, tmp_path / "whole", tmp_path / "full")
    said = capsys.readouterr().out
    assert said.count("the newest is that of step 2. Free space on that disk. Training goes on") == 2
    full[:] = [8, 9]
    with pytest.raises(OSError, match="step 9 is not saved, and the run is over: .*that of step 6"):
        toy.trainer_of(tmp_path / "end", ckpt_every=2).fit()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("cannot take 3 GiB"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
def test_too_little_memory_says_where_and_what_to_change(toy, tmp_path, error):
    def fail(step):
        if step == 3:
            raise error
        return 0.0

    with pytest.raises(MemoryError, match="in encode of step 3, with a batch of 2 clips of") as told:
        toy.trainer_of(tmp_path, task=toy.Task(fail)).fit()
    assert "bucket_config" in str(told.value) and "search_batch_size.py CONFIG" in str(told.value)
    assert str(error)[:20] in str(told.value)


def test_another_error_of_a_step_comes_out_as_it_is(toy, tmp_path):
    def fail(step):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="^shapes do not fit$"):
        toy.trainer_of(tmp_path, task=toy.Task(fail)).fit()
