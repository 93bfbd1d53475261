"""Any plugin and any number of processes give what one process gives, for a real network, task and trainer.

One process takes the four batches of a step one after another, two take two each, four take one each.
"""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from opensora.engine.checkpoint import list_checkpoints
from opensora.engine.optimizer import LrSchedule

WORKER = Path(__file__).parent / "workers/exactness_run.py"
COLOSSALAI = importlib.util.find_spec("colossalai") is not None
PLUGINS = ("ddp", "zero1", "zero2", "fsdp2") if COLOSSALAI else ("ddp", "fsdp2")


@pytest.fixture(scope="module")
def worker():
    spec = importlib.util.spec_from_file_location("exactness_run", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def one(worker, tmp_path_factory):
    """What one process gives."""
    folder = tmp_path_factory.mktemp("one")
    results, tensors, own = worker.run("none", folder)
    return SimpleNamespace(results=results, tensors=tensors, own=own, folder=folder)


def read(folder, world):
    own = {}
    for rank in range(world):
        own |= load_file(folder / f"own{rank}.safetensors")
    results = json.loads((folder / "results.json").read_text())
    return SimpleNamespace(
        results=results, tensors=load_file(folder / "tensors.safetensors"), own=own, folder=folder
    )


@pytest.fixture(scope="module")
def two(one, launch, tmp_path_factory):
    """What two processes give; each plugin also goes on from the one before, the first from one process."""
    folder = tmp_path_factory.mktemp("two")
    launch(WORKER, 2, folder, ",".join(PLUGINS), list_checkpoints(one.folder)[-1])
    return {plugin: read(folder / plugin, 2) for plugin in PLUGINS}


@pytest.fixture(scope="module")
def four(two, launch, tmp_path_factory):
    """What four processes give; each plugin goes on from two runs of two processes and the one before."""
    folder = tmp_path_factory.mktemp("four")
    origins = [list_checkpoints(two[plugin].folder)[-1] for plugin in (PLUGINS[-1], PLUGINS[-2])]
    launch(WORKER, 4, folder, ",".join(PLUGINS), *origins, timeout_s=1200)
    return {plugin: read(folder / plugin, 4) for plugin in PLUGINS}


RUNS = [
    pytest.param(name, plugin, marks=[pytest.mark.dist, *([pytest.mark.slow] if name == "four" else [])])
    for name in ("two", "four")
    for plugin in PLUGINS
]
every_run = pytest.mark.parametrize(("name", "plugin"), RUNS)


@pytest.fixture
def many(request, name, plugin):
    return request.getfixturevalue(name)[plugin]


def part(tensors, name):
    return {key: value for key, value in tensors.items() if key.startswith(f"{name}.")}


def assert_close(found, expected, tolerance):
    """Compare tensors of the same names by the largest value of all."""
    assert found.keys() == expected.keys() and found
    largest = max(float(value.abs().max()) for value in expected.values())
    for key, value in expected.items():
        error = float((found[key] - value).abs().max())
        assert error <= tolerance * largest, f"{key}: {error:.3g} of {largest:.3g}"


def near(found, expected, tolerance):
    assert found == pytest.approx(expected, abs=tolerance, rel=0)


@every_run
def test_outputs_and_losses_are_those_of_one_process(one, many):
    assert_close(part(many.own, "output"), part(one.own, "output"), 1e-5)
    assert_close(part(many.own, "loss"), part(one.own, "loss"), 1e-5)


@every_run
def test_gradients_are_those_of_one_process(one, many):
    assert_close(part(many.tensors, "gradient"), part(one.tensors, "gradient"), 1e-5)
    assert not [key for key in many.tensors if key.startswith("gradient.conditions.text.y_proj.fc1")]


@every_run
def test_twenty_steps_of_sgd_give_the_weights_of_one_process(one, many):
    assert_close(part(many.tensors, "sgd"), part(one.tensors, "sgd"), 1e-5)
    near(many.results["sgd"], one.results["sgd"], 1e-5)


@every_run
def test_twenty_steps_of_adamw_give_the_losses_of_one_process(one, many):
    near(many.results["loss"], one.results["loss"], 1e-4)
    assert many.results["grad_norm_model"] == pytest.approx(one.results["grad_norm_model"], rel=1e-3)
    assert min(one.results["grad_norm_model"]) > 0.1  # the limit, so every step is clipped
    assert len(set(one.results["loss"])) == 20


@every_run
def test_the_schedule_advances_once_per_step(many):
    schedule = LrSchedule(2e-3, 20, warmup_steps=4, cosine=True)
    assert many.results["lr"] == pytest.approx([schedule(step) for step in range(20)], rel=1e-6)


@every_run
def test_averages_in_pieces_are_averages_of_the_whole(one, many):
    assert one.results["ema is whole"] and many.results["ema is whole"]


@every_run
def test_checkpoints_of_others_go_on(one, many, plugin):
    later = one.results["loss"][10:13]
    found = [losses for key, losses in many.results.items() if key.startswith("from")]
    assert len(found) == many.results["origins"]
    for losses in found:
        near(losses, later, 1e-4)


@pytest.mark.dist
@pytest.mark.parametrize("plugin", PLUGINS)
def test_one_process_goes_on_from_two(worker, one, two, plugin):
    setup = worker.Setup("none", one.folder)
    setup.trainer.load(list_checkpoints(two[plugin].folder)[-1])
    near([setup.step()["loss"] for _ in range(2)], one.results["loss"][10:12], 1e-4)


@every_run
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_gives_nearly_the_losses(one, many, dtype):
    assert many.results[dtype] == pytest.approx(one.results["sgd"][:2], rel=0.03)
    assert many.results[dtype] != one.results["sgd"][:2]
    assert many.results[f"scale_{dtype}"] == (256 if dtype == "fp16" else 1)


@every_run
def test_batches_that_add_up_are_reduced_once(many, plugin):
    first, third = many.results["collectives"]
    assert sum(first.values()) > 0
    if plugin == "zero2":  # it has no room for whole gradients
        assert sum(third.values()) > sum(first.values())
    elif plugin == "fsdp2":  # weights are gathered again, gradients are not reduced
        gathers = {key for key in first if "gather" in key}
        assert {k: n for k, n in first.items() if k not in gathers} == {
            k: n for k, n in third.items() if k not in gathers
        }
    else:
        assert first == third
