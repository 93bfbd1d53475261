"""The loop: a resumed run is the uninterrupted one, bit for bit."""

import multiprocessing
import os
import signal
import time
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from opensora.acceleration.engine import build_engine
from opensora.engine import checkpoint_writer
from opensora.engine.checkpoint import list_checkpoints, read_checkpoint, read_state
from opensora.engine.log_window import LogWindow
from opensora.engine.optimizer import LrSchedule, build_optimizer
from opensora.engine.tracker import Tracker, read_log
from opensora.engine.trainer import Trainer, TrainerSettings
from opensora.engine.training_data import TrainingData
from opensora.utils.random import Draws

ROWS, STEPS = 20, 9


class Table:
    """A dataset of ROWS rows of three numbers; row 4 stands for a file that cannot be read."""

    num_frames, image_size, frame_interval = None, None, 1

    def __init__(self, seed=0):
        self.manifest = SimpleNamespace(fingerprint="toy")

    def sizes(self):
        return np.ones(ROWS, np.int32), np.full(ROWS, 144, np.int32), np.full(ROWS, 256, np.int32)

    def __getitem__(self, clip):
        x = Draws(1, [clip.row], clip.epoch).normal("x", 0, (1, 3))[0]
        return {"x": x, "sample": clip.row, "epoch": clip.epoch, "replaced": int(clip.row == 4)}


class Task:
    """Regression with a frozen half and a buffer; `fault(step)` may spoil a loss."""

    def __init__(self, fault=lambda step: 0.0):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.net[0].bias.requires_grad_(False)
        self.net.register_buffer("scale", torch.tensor(2.0))
        self.call, self.fault, self.seen, self.losses_of = self.net, fault, [], []

    def trainable(self):
        return {"model": self.net}

    def use(self, modules):
        self.call = modules["model"]

    def losses(self, batch, step):
        self.seen.append((step, batch["sample"].tolist(), batch["epoch"].tolist()))
        noise = Draws(0, batch["sample"].tolist(), batch["epoch"].tolist()).normal("n", 0, batch["x"].shape)
        per_sample = (self.call(batch["x"] + noise) * self.net.scale - batch["x"].sum(1, True)) ** 2
        loss = per_sample.mean() + self.fault(step)
        self.losses_of.append(loss.item())
        yield "model", {"loss": loss, "per_sample": per_sample.detach()}


def data_of(batch_size=2, per_step=2, workers=0, **changes):
    cfg = {"dataset": {"type": Table}, "bucket_config": {"144p": {1: (0.7, batch_size)}}, "seed": 0}
    plan = {"bucket_rule": "resolution", "remainder": "carry", "starved": "merge", "max_dropped": 0.5}
    cfg |= {"batch_size": None, "plan": {**plan, "costs": None}}
    cfg |= {"num_workers": workers, "prefetch_factor": None, "accumulation_steps": 1}
    cfg |= {"accept_changes": False, "lr_schedule": {"cosine": False}}
    return TrainingData({**cfg, "batches_per_step": per_step, **changes})


def trainer_of(folder, step=0, task=None, data=None, **settings):
    task, data = task or Task(), data or data_of()
    optimizers = {"model": build_optimizer(task.net, {"lr": 0.05, "betas": (0.9, 0.99), "weight_decay": 0.1})}
    engine = build_engine("none", "fp32", task.trainable(), optimizers)
    settings = {
        "epochs": 100,
        "max_steps": STEPS,
        "grad_clip": 1.0,
        "ema_decay": 0.9,
        "log_every": 3,
        **settings,
    }
    schedule = LrSchedule(0.05, STEPS, warmup_steps=2, cosine=True)
    tracker = Tracker(folder, step)
    return Trainer(task, engine, data, optimizers, schedule, TrainerSettings(**settings), tracker)


def same(one, two):
    """Say whether two checkpoints hold the same bits."""
    (state, tensors), (other_state, others) = read_checkpoint(one), read_checkpoint(two)
    assert tensors.keys() == others.keys() == {"model", "model_ema", "model_optimizer"}
    for stem, part in tensors.items():
        assert part.keys() == others[stem].keys()
        for key, value in part.items():
            assert torch.equal(value, others[stem][key]), f"{stem} {key}"
    return state == other_state


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run with a checkpoint at every step."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = trainer_of(folder, ckpt_every=1)
    trainer.fit()
    return SimpleNamespace(folder=folder, task=trainer.task, log=read_log(folder))


def test_the_run_has_several_epochs_of_different_lengths(whole):
    states = [read_state(path) for path in list_checkpoints(whole.folder)]
    assert [state.step for state in states] == list(range(1, STEPS + 1))
    ends = [b.step - a.step for a, b in zip(states, states[1:], strict=False) if b.epoch > a.epoch]
    steps = [max(s.step_in_epoch for s in states if s.epoch == epoch) for epoch in range(states[-1].epoch)]
    assert ends and len(set(steps)) > 1  # so resuming is tried in the middle of an epoch and at its end


@pytest.mark.parametrize("step", range(1, STEPS))
def test_resumed_is_uninterrupted(whole, tmp_path, step):
    (tmp_path / "log.jsonl").write_text((whole.folder / "log.jsonl").read_text())
    trainer = trainer_of(tmp_path, step)
    trainer.load(list_checkpoints(whole.folder)[step - 1])
    trainer.fit()
    assert same(whole.folder, tmp_path)
    assert read_log(tmp_path) == whole.log  # means over steps on both sides of the cut, too
    assert trainer.task.seen == [batch for batch in whole.task.seen if batch[0] >= step]


def test_a_second_seed_is_another_run(whole, tmp_path):
    trainer_of(tmp_path, data=data_of(seed=1)).fit()
    with pytest.raises(AssertionError):
        same(whole.folder, tmp_path)


def test_workers_read_the_same_and_end_with_the_data(whole, tmp_path):
    trainer = trainer_of(tmp_path, data=data_of(workers=1))
    trainer.load(list_checkpoints(whole.folder)[2])
    trainer.fit()
    assert same(whole.folder, tmp_path)
    assert multiprocessing.active_children()
    trainer.data.close()
    assert not multiprocessing.active_children()


def test_a_signal_saves_and_stops_after_the_step(whole, tmp_path):
    before = signal.getsignal(signal.SIGTERM)

    def asked(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return 0.0

    state = trainer_of(tmp_path, task=Task(asked)).fit()
    assert state.step == 4 and [path.name for path in list_checkpoints(tmp_path)] == [
        f"epoch{state.epoch}-global_step4"
    ]
    assert signal.getsignal(signal.SIGTERM) is before
    trainer = trainer_of(tmp_path, 4)
    trainer.load(tmp_path)
    trainer.fit()
    assert same(whole.folder, tmp_path) and read_log(tmp_path) == whole.log


def test_excluded_rows_leave_at_the_next_epoch_and_resuming_leaves_the_same(tmp_path):
    bad, asked = [], []

    def excluded():
        asked.append(len(bad))
        return np.array(bad)

    def run(folder, **settings):
        data = data_of()
        data.excluded = excluded
        return trainer_of(folder, data=data, epochs=3, max_steps=None, **settings)

    def spoil(step):
        bad[:] = [3, 7]
        return 0.0

    whole = run(tmp_path / "whole", ckpt_every=1, task=Task(spoil))
    whole.fit()
    assert asked == [2, 2]  # once for each epoch after the first
    rows = [{n for _, samples, epochs in whole.task.seen if e in epochs for n in samples} for e in range(3)]
    assert {3, 7} & rows[0]  # the plan of the running epoch stands
    assert not {3, 7} & (rows[1] | rows[2])
    step = next(s for s, _, epochs in whole.task.seen if 1 in epochs)
    bad[:] = [3, 7, 9, 11]  # found since: of no concern to the epoch that goes on
    resumed = run(tmp_path / "resumed")
    resumed.load(list_checkpoints(tmp_path / "whole")[step])
    resumed.fit()
    of_epoch = [batch for batch in whole.task.seen if 1 in batch[2] and batch[0] > step]
    assert of_epoch and resumed.task.seen[: len(of_epoch)] == of_epoch


def test_epochs_end_a_run_too(tmp_path):
    state = trainer_of(tmp_path, epochs=2, max_steps=None, ckpt_every=1).fit()
    assert state.epoch == 2
    paths = list_checkpoints(tmp_path)
    assert len({read_state(path).step for path in paths}) == len(paths) == state.step  # none twice


def test_a_checkpoint_is_of_the_step_in_which_it_began(whole, tmp_path, monkeypatch):
    """The weights are updated in place while it is written."""
    go, write = Event(), checkpoint_writer.save_safetensors
    monkeypatch.setattr(checkpoint_writer, "save_safetensors", lambda *a: go.wait(60) and write(*a))
    trainer = trainer_of(tmp_path)
    steps = iter(trainer.data.batches(0, 0))
    trainer.train_step(next(steps))
    trainer.save()
    assert trainer.train_step(next(steps))["seconds_save"] > 0
    go.set()
    assert not trainer.settle()
    wanted = read_checkpoint(list_checkpoints(whole.folder)[0])[1]
    for stem, part in read_checkpoint(tmp_path)[1].items():
        assert all(torch.equal(value, wanted[stem][key]) for key, value in part.items()), stem


def test_an_error_waits_for_the_checkpoint_that_is_written(tmp_path, monkeypatch):
    write = checkpoint_writer.save_safetensors
    monkeypatch.setattr(checkpoint_writer, "save_safetensors", lambda *a: time.sleep(0.2) or write(*a))

    def broken(step):
        if step == 2:
            raise RuntimeError("broken")
        return 0.0

    with pytest.raises(RuntimeError, match="broken"):
        trainer_of(tmp_path, task=Task(broken), ckpt_every=2).fit()
    assert [read_state(path).step for path in list_checkpoints(tmp_path)] == [2]


def test_a_finished_run_does_nothing(whole, tmp_path):
    files = {p: p.stat().st_mtime_ns for p in whole.folder.rglob("*.safetensors")}
    trainer = trainer_of(whole.folder, STEPS)
    trainer.load(whole.folder)
    assert trainer.fit().step == STEPS and trainer.task.seen == []
    assert {p: p.stat().st_mtime_ns for p in whole.folder.rglob("*.safetensors")} == files


def test_a_longer_run_goes_on_after_the_last_epoch(tmp_path):
    for epochs in (1, 3):
        trainer = trainer_of(tmp_path / "parts", epochs=epochs, max_steps=None)
        if epochs == 3:
            trainer.load(tmp_path / "parts")
        trainer.fit()
    trainer_of(tmp_path / "whole", epochs=3, max_steps=None).fit()
    assert same(tmp_path / "parts", tmp_path / "whole")


def test_from_scratch_takes_weights_and_starts_at_step_0(whole, tmp_path):
    trainer = trainer_of(tmp_path, max_steps=1)
    trainer.load(whole.folder, from_scratch=True)
    assert trainer.state.step == 0
    read = read_checkpoint(whole.folder)[1]
    assert torch.equal(trainer.task.net[0].weight, read["model"]["0.weight"])
    assert torch.equal(trainer.averages["model"].whole()["0.weight"], read["model_ema"]["0.weight"])
    trainer.fit()
    assert trainer.task.seen[0] == whole.task.seen[0]


def test_an_average_may_begin_later(whole, tmp_path):
    plain = trainer_of(tmp_path, ema_decay=None, max_steps=2)
    plain.fit()
    assert {p.stem for p in list_checkpoints(tmp_path)[-1].glob("*.safetensors")} == {
        "model",
        "model_optimizer",
    }
    trainer = trainer_of(tmp_path)
    trainer.load(tmp_path)
    assert torch.equal(trainer.averages["model"].whole()["0.weight"], plain.task.net[0].weight)


def test_the_loss_of_a_step_is_the_mean_over_its_batches(whole):
    first = whole.task.losses_of[:2]
    line = whole.log[0]
    assert whole.task.seen[1][0] == 0 and whole.task.seen[2][0] == 1
    assert line["step"] == 3
    assert line["loss"] == pytest.approx(np.mean(whole.task.losses_of[:6]), abs=1e-6)
    trainer = trainer_of(whole.folder / "again")
    values = trainer.train_step(next(iter(trainer.data.batches(0, 0))))
    assert float(values["loss"]) == pytest.approx(np.mean(first), abs=1e-6)


def test_many_small_batches_are_a_few_large_ones(tmp_path):
    x = Draws(1, range(4)).normal("x", 0, (4, 3))
    weights, norms = [], []
    for parts in (4, 2, 1):
        trainer = trainer_of(tmp_path)
        rows = torch.arange(4).chunk(parts)
        batches = [{"x": x[r], "sample": r, "epoch": torch.zeros_like(r)} for r in rows]
        values = [trainer.train_step(batches) for _ in range(3)]
        norms.append([float(v["grad_norm_model"]) for v in values])
        weights.append(torch.cat([p.detach().flatten() for p in trainer.task.net.parameters()]))
    torch.testing.assert_close(weights[1], weights[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weights[2], weights[0], atol=1e-6, rtol=1e-5)
    assert norms[1] == pytest.approx(norms[0], rel=1e-5) and norms[2] == pytest.approx(norms[0], rel=1e-5)


def test_the_rate_of_each_step_is_the_schedules(tmp_path):
    trainer = trainer_of(tmp_path, log_every=1)
    trainer.fit()
    assert [line["lr"] for line in read_log(tmp_path)] == [trainer.schedule(step) for step in range(STEPS)]
    assert trainer.optimizers["model"].param_groups[0]["lr"] == trainer.schedule(STEPS - 1)


def test_replaced_clips_are_counted(whole):
    replaced = sum(line["replaced"] for line in whole.log)
    assert replaced == sum(rows.count(4) for step, rows, _ in whole.task.seen if step < 6) > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_without_finite_gradients_changes_nothing(whole, tmp_path, value):
    spoil = Task(lambda step: value if step in (3, 5) else 0.0)
    state = trainer_of(tmp_path, ckpt_every=1, task=spoil).fit()
    assert state.step == STEPS and state.skipped == [3, 5]
    paths = list_checkpoints(tmp_path)
    assert not same(paths[2], paths[3])  # weights, average and optimizer are equal, the position is not
    with pytest.raises(AssertionError):
        same(paths[3], paths[4])
    lines = read_log(tmp_path)
    assert [line["skipped"] for line in lines] == [0, 2, 0]
    assert all(np.isfinite(number) for line in lines for number in line.values())
    assert lines[0] == whole.log[0]


def test_many_skipped_steps_in_a_row_stop_the_run(tmp_path):
    broken = Task(lambda step: float("nan") if step in (0, 2) or step > 3 else 0.0)
    with pytest.raises(FloatingPointError, match="for 3 steps in a row, up to step 6; there is no"):
        trainer_of(tmp_path, task=broken, patience=3).fit()
    assert not list_checkpoints(tmp_path)  # what was saved before stays the newest


def test_a_resumed_run_remembers_skipped_steps(tmp_path):
    broken = Task(lambda step: float("nan") if step > 1 else 0.0)
    trainer_of(tmp_path, task=broken, max_steps=4, patience=3).fit()
    trainer = trainer_of(tmp_path, 4, task=broken, patience=3)
    trainer.load(tmp_path)
    with pytest.raises(FloatingPointError, match="up to step 4"):
        trainer.fit()


def test_what_a_checkpoint_lacks_is_named(whole, tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.names = ["vae"]
    with pytest.raises(
        ValueError, match="no weights of vae, it holds model, model_ema, model_optimizer; load"
    ):
        trainer.load(whole.folder)


def test_a_changed_setting_is_named_and_may_be_accepted(whole, tmp_path):
    """The plan is another one then, so the next epoch begins; the weights and the step stay."""
    start = list_checkpoints(whole.folder)[2]
    said = "other settings .there -> here.: seed: 0 -> 1. Either restore .* planned anew.* --run-name NEW"
    with pytest.raises(ValueError, match=said):
        trainer_of(tmp_path, data=data_of(seed=1)).load(start)
    trainer = trainer_of(tmp_path, data=data_of(seed=1, accept_changes=True))
    trainer.load(start)
    old = read_state(start)
    assert (trainer.state.epoch, trainer.state.step_in_epoch, trainer.state.step) == (old.epoch + 1, 0, 3)
    trainer.fit()
    assert trainer.task.seen[0][::2] == (3, [old.epoch + 1] * 2)
    assert read_state(tmp_path).data["settings"]["seed"] == 1
    again = trainer_of(tmp_path / "again", data=data_of(seed=1))
    again.load(tmp_path)  # with the new settings nothing differs any more
    assert again.state == read_state(tmp_path)
    moved = trainer_of(tmp_path / "moved", data=data_of(unknown_knob=2))
    with pytest.raises(ValueError, match="unknown_knob: absent -> 2. Either restore(?!.*planned anew)"):
        moved.load(start)
    moved.data = data_of(unknown_knob=2, accept_changes=True)
    moved.load(start)
    assert moved.state.step_in_epoch == old.step_in_epoch  # the plan is the same


def test_validation_is_logged_and_times_on_request(tmp_path):
    trainer = trainer_of(tmp_path, validate_every=2, log_every=2, max_steps=4, record_time=True)
    trainer.validate = lambda step: {"validation_loss": step / 2}
    trainer.fit()
    lines = read_log(tmp_path)
    assert [(line["step"], line.get("validation_loss")) for line in lines] == [
        (2, None),
        (2, 1),
        (4, None),
        (4, 2),
    ]
    assert lines[0]["seconds_step"] > 0 and lines[0]["seconds_data"] > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ema_decay": 1.0}, r"ema_decay=1.0: use a number in \[0, 1\), or None to keep no average"),
        ({"epochs": 0}, "epochs=0: use a number from 1"),
        ({"max_steps": 0}, "max_steps=0: use a number from 1"),
        ({"ckpt_every": -1}, "ckpt_every=-1: use a number from 0"),
        ({"grad_clip": float("nan")}, "grad_clip=nan: use a number from 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        TrainerSettings(**{"epochs": 1, **settings})


def test_the_number_of_steps_is_what_ends_first():
    assert TrainerSettings(epochs=3).total_steps(5) == 15
    assert TrainerSettings(epochs=3, max_steps=7).total_steps(5) == 7
    assert TrainerSettings(epochs=3, max_steps=70).total_steps(5) == 15


def test_a_line_is_the_same_wherever_it_was_cut():
    steps = [{"loss": 0.1 * i, "lr": 1e-4 / 3, "replaced": i % 2} for i in range(7)]
    window = LogWindow()
    for step in steps:
        window.add(step)
    line = window.close()
    assert line == {"loss": pytest.approx(0.3), "lr": pytest.approx(1e-4 / 3), "replaced": 3}
    assert window.close() == {}
    for cut in range(7):
        first = LogWindow()
        for step in steps[:cut]:
            first.add(step)
        second = LogWindow(first.steps())
        for step in steps[cut:]:
            second.add(step)
        assert second.close() == line
