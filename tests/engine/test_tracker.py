"""The log: what a resumed run keeps, the picture, and packages that are missing."""

import json
import sys

import pytest

from opensora.engine.tracker import Tracker, check_packages, read_log

PNG = b"\x89PNG"


def test_lines_are_numbers_by_step(tmp_path):
    tracker = Tracker(tmp_path / "run")
    tracker.log(1, {"loss": 0.1 + 0.2, "epoch": 0})
    tracker.log(2, {"loss": 1, "validation_loss": 2.0})
    assert read_log(tmp_path / "run") == [
        {"step": 1, "loss": 0.1 + 0.2, "epoch": 0},
        {"step": 2, "loss": 1, "validation_loss": 2.0},
    ]
    assert tracker.close() == tmp_path / "run/loss.png"
    assert (tmp_path / "run/loss.png").read_bytes().startswith(PNG)


def test_a_resumed_run_drops_the_lines_after_its_step(tmp_path):
    tracker = Tracker(tmp_path)
    for step in range(1, 7):
        tracker.log(step, {"loss": step})
    Tracker(tmp_path, step=4).log(5, {"loss": 50})
    assert [(line["step"], line["loss"]) for line in read_log(tmp_path)] == [
        *((step, step) for step in range(1, 5)),
        (5, 50),
    ]


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    Tracker(tmp_path).log(1, {"loss": 1})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    assert [line["step"] for line in read_log(tmp_path)] == [1]
    Tracker(tmp_path, step=1).log(2, {"loss": 2})
    assert (tmp_path / "log.jsonl").read_text().count("\n") == 2
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2]


def test_no_losses_no_picture(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.log(1, {"lr": 1e-3})
    assert tracker.close() is None
    assert not (tmp_path / "loss.png").exists()


def test_tensorboard_files(tmp_path):
    pytest.importorskip("tensorboard")
    tracker = Tracker(tmp_path, tensorboard=True)
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ImportError, match=f"{name}=True: the package is not installed; run pip install {name}"
    ):
        Tracker(tmp_path / "run", **{name: True})
    assert not (tmp_path / "run").exists()
    check_packages(False, False)


def test_wandb_gets_one_name_per_folder_and_works_offline(tmp_path, monkeypatch):
    """The real package talks to a server, so this is a double of the three calls that are made."""
    started, logged = [], []

    class Run:
        def log(self, values, step):
            logged.append((step, values))

        def finish(self):
            logged.append("finished")

    class Package:
        __spec__ = pytest.__spec__

        @staticmethod
        def init(**options):
            started.append(options)
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Package)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for folder in ("one/000-STDiT3", "two/000-STDiT3", "one/000-STDiT3"):
        tracker = Tracker(tmp_path / folder, wandb=True)
        tracker.log(3, {"loss": 1})
        tracker.close()
    first, second, again = (options["id"] for options in started)
    assert first == again != second
    assert started[0]["mode"] == "offline" and started[0]["resume"] == "allow"
    assert logged[:2] == [(3, {"step": 3, "loss": 1.0}), "finished"]
