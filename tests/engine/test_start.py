"""Where a run starts: `load`, `run_name`, `start_from_scratch`, and starts that would destroy something."""

import pytest
import torch

from opensora.engine.checkpoint import RunState
from opensora.engine.checkpoint_writer import save_checkpoint
from opensora.engine.start import find_start


def cfg_of(outputs, **changes):
    return {"outputs": str(outputs), "run_name": None, "load": None, "start_from_scratch": False, **changes}


@pytest.fixture
def outputs(tmp_path):
    """Runs "old" with steps 10 and 20, and "new" without any."""
    for step in (10, 20):
        save_checkpoint(tmp_path / "old", RunState(step), {"model": {"w": torch.zeros(1)}})
    return tmp_path


def place(outputs, run, step):
    return outputs / run / f"checkpoints/epoch0-global_step{step}"


def test_without_a_name_a_run_is_fresh(outputs):
    start = find_start(cfg_of(outputs))
    assert (start.checkpoint, start.state, start.step) == (None, None, 0)


@pytest.mark.parametrize("load", [None, "latest"])
def test_a_named_run_goes_on(outputs, load):
    start = find_start(cfg_of(outputs, run_name="old", load=load))
    assert start.checkpoint == place(outputs, "old", 20) and start.step == 20
    assert find_start(cfg_of(outputs, run_name="new", load=load)).checkpoint is None


def test_a_path_is_loaded(outputs):
    for path, step in ((outputs / "old", 20), (place(outputs, "old", 10), 10)):
        start = find_start(cfg_of(outputs, load=str(path)))
        assert start.checkpoint == place(outputs, "old", step) and start.step == step


def test_from_scratch_takes_weights_only(outputs):
    start = find_start(cfg_of(outputs, load=str(outputs / "old"), start_from_scratch=True))
    assert start.checkpoint == place(outputs, "old", 20)
    assert start.state is None and start.step == 0


@pytest.mark.parametrize("scratch", [False, True])
def test_the_same_command_again_goes_on_with_the_run_itself(outputs, scratch):
    command = cfg_of(outputs, run_name="new", load=str(outputs / "old"), start_from_scratch=scratch)
    assert find_start(command).checkpoint == place(outputs, "old", 20)
    save_checkpoint(outputs / "new", RunState(3), {"model": {"w": torch.zeros(1)}})
    start = find_start(command)
    assert start.checkpoint == place(outputs, "new", 3) and start.step == 3


@pytest.mark.parametrize("changes", [{"start_from_scratch": True}, {"step": 10}])
def test_checkpoints_of_later_steps_are_not_mixed_with_new_ones(outputs, changes):
    load = place(outputs, "old", changes.pop("step", 20))
    with pytest.raises(
        ValueError, match="checkpoints up to epoch0-global_step20, .* give another --run-name"
    ):
        find_start(cfg_of(outputs, run_name="old", load=str(load), **changes))
    assert find_start(cfg_of(outputs, run_name="fork", load=str(load), **changes)).checkpoint == load


def test_nothing_to_load(outputs):
    with pytest.raises(ValueError, match="load='latest' needs run_name"):
        find_start(cfg_of(outputs, load="latest"))
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        find_start(cfg_of(outputs, load=str(outputs)))


def test_a_damaged_newest_one_is_set_aside_and_the_one_before_taken(outputs):
    """It may not count as one that is kept, nor be taken later."""
    (place(outputs, "old", 20) / "model.safetensors").write_bytes(b"")
    assert find_start(cfg_of(outputs, load=str(outputs / "old"))).step == 10  # another run's is left as it is
    assert place(outputs, "old", 20).exists()
    with pytest.raises(
        ValueError, match="global_step20: a damaged checkpoint: .*such as epoch0-global_step10"
    ):
        find_start(cfg_of(outputs, load=str(place(outputs, "old", 20))))
    assert find_start(cfg_of(outputs, run_name="old")).checkpoint == place(outputs, "old", 10)
    assert sorted(path.name for path in (outputs / "old/checkpoints").iterdir()) == [
        "damaged-epoch0-global_step20",
        "epoch0-global_step10",
    ]
    (place(outputs, "old", 10) / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="global_step10: a damaged checkpoint"):
        find_start(cfg_of(outputs, run_name="old"))
