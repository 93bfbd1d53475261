"""Sequence parallelism: processes that share the tokens of a clip compute what one process computes."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from opensora.acceleration import parallel
from opensora.acceleration.collectives import even_sizes, exchange, gather_parts
from opensora.layers.sequence import choose_layouts, localize, set_sequence_parallel
from opensora.layers.windows import plan_windows, token_order

ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "tests/acceleration/workers/sequence_run.py"
CPU = torch.device("cpu")
needs_colossalai = pytest.mark.skipif(
    importlib.util.find_spec("colossalai") is None, reason="colossalai is not installed"
)


@pytest.fixture(scope="module")
def groups(tmp_path_factory, launch):
    """Runs the worker with so many processes and such groups; returns what each process found."""
    done = {}

    def start(world, sp_size):
        if (world, sp_size) not in done:
            done[world, sp_size] = None  # processes that fail once are not started for each test
            folder = tmp_path_factory.mktemp(f"sp{sp_size}of{world}")
            launch(WORKER, world, folder, sp_size, world, "few" if world == 2 else "all")
            files = [folder / f"{rank}.json" for rank in range(world)]
            done[world, sp_size] = [json.loads(file.read_text()) for file in files]
        assert done[world, sp_size], "its processes failed before"
        return done[world, sp_size]

    return start


SIZES = [(2, 2), pytest.param((4, 2), marks=pytest.mark.slow), pytest.param((4, 4), marks=pytest.mark.slow)]
pytestmark = pytest.mark.dist


@needs_colossalai
@pytest.mark.parametrize("size", SIZES)
def test_ranks_of_a_group_follow_each_other(groups, size):
    world, sp = size
    found = [process["state"] for process in groups(*size)]
    assert found == [[rank, rank // sp, world // sp, rank % sp, sp] for rank in range(world)]


@needs_colossalai
@pytest.mark.parametrize("size", SIZES)
def test_outputs_and_gradients_are_those_of_one_process(groups, size):
    for process in groups(*size):
        assert len(process["errors"]) == 30
        for case, (output, gradient) in process["errors"].items():
            assert output <= 1e-5 and gradient <= 1e-5, case


@needs_colossalai
@pytest.mark.parametrize("size", SIZES)
def test_training_is_that_of_one_process(groups, size):
    for process in groups(*size):
        runs = {name: values for name, values in process.items() if "/" in name}
        assert len(runs) == (2 if size == (2, 2) else 8)
        for name, (losses, weights, fallen) in runs.items():
            assert weights <= 1e-5 if name.endswith("sgd") else losses <= 1e-4, name
            assert fallen > 0.01  # it trains


@needs_colossalai
@pytest.mark.parametrize("size", SIZES)
def test_a_group_generates_the_video_of_one_process(groups, size):
    """Each process decodes and encodes some of the chunks."""
    for process in groups(*size):
        assert process["made"] == [[2, 4, 9, 9, 13], [2, 3, 13, 18, 26], [2, 4, 8, 9, 13]]
        assert process["latents"] <= 1e-4
        assert process["frames"] <= 2 / 255  # one grey level
        assert process["encoded"] <= 1e-5


@needs_colossalai
@pytest.mark.parametrize("size", SIZES)
def test_a_group_codes_one_stream_together(groups, size):
    """Each process codes a run of frames; what precedes them it gets from the one before, layer by layer."""
    for process in groups(*size):
        assert len(process["streamed"]) == 4 and max(process["streamed"]) <= 1e-5
        runs = 132 // size[1]  # latent frames of one process; the calls of the one with chunks are shorter
        assert process["longest"] in (2 * runs, 2 * (runs - 1) + 1)


@needs_colossalai
@pytest.mark.parametrize("size", SIZES)
def test_each_process_gets_what_the_one_before_has(groups, size):
    for rank, process in enumerate(groups(*size)):
        before = (rank % size[1] - 1) % size[1]
        assert process["passed"] == [[before, before]] * 2


@needs_colossalai
@pytest.mark.parametrize("size", SIZES)
def test_parts_are_computed_in_turn(groups, size):
    for rank, process in enumerate(groups(*size)):
        assert process["computed"] == list(range(rank % size[1], 5, size[1]))
        assert process["spread"] == [[2.0 * n] * n for n in range(5)]


@needs_colossalai
@pytest.mark.parametrize("size", SIZES)
def test_a_group_shares_the_batches_of_its_first_process(groups, size):
    for process in groups(*size):
        video, half = [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], [1.0, 1.0]
        assert process["shared"] == [
            {"video": video, "flag": [True], "text": ["é", ""], "n": 3},
            {"half": half},
        ]
        assert process["dtypes"] == ["torch.bool", "torch.bfloat16"] and process["nothing"] == []


@pytest.mark.parametrize("world", [1, 3])
def test_a_group_must_fit_the_number_of_processes(monkeypatch, world):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    for size in (0, 2):
        with pytest.raises(ValueError, match=f"sp_size={size}: it must divide the number .* {world}"):
            parallel.init_distributed("cpu", sp_size=size)


def test_modes_and_models_are_checked(monkeypatch):
    with pytest.raises(ValueError, match="sequence_parallel='ring': use one of auto, ulysses, axis"):
        set_sequence_parallel(torch.nn.Linear(1, 1), "ring")
    set_sequence_parallel(torch.nn.Linear(1, 1), "axis")
    monkeypatch.setattr(parallel.ParallelState, "sequence_size", 2)
    with pytest.raises(ValueError, match="sp_size=2: Linear cannot share out its tokens"):
        set_sequence_parallel(torch.nn.Linear(1, 1), "axis")


def test_one_process_keeps_its_tensor():
    x = torch.ones(2, 3)
    assert exchange(x, 0, (2,), 1, (3,)) is x and gather_parts(x, 0, (2,)) is x


@pytest.mark.parametrize(("total", "parts"), [(7, 3), (2, 4), (0, 2), (6, 6)])
def test_even_sizes(total, parts):
    sizes = even_sizes(total, parts)
    assert sum(sizes) == total and len(sizes) == parts and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("window", [(-1, 2, 3), (2, 2, 3), (-1, 1, 1), (-1, -1, -1), (1, 4, 4)])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("mode", ["axis", "ulysses"])
def test_local_windows_are_those_of_the_grid(window, shift, size, mode):
    """Together the processes attend within the windows of the grid: each once, with the same tokens."""
    grid = (5, 5, 7)
    plan = plan_windows(grid, window, shift)
    [layout] = choose_layouts([plan], mode, size, CPU)
    order = token_order(plan, CPU)
    tokens = torch.arange(175) if order is None else order[0]
    want = {tuple(t.tolist()) for t in windows(tokens, plan.runs)}
    assert sum(layout.sizes) == (grid[0] if layout.dim == 1 else 35)
    found = []
    for rank in range(size):
        local, _ = localize(plan, None, layout, rank, CPU)
        parts = [layout.tokens(grid, r, CPU) for r in range(size)]
        held = parts[rank] if local.tokens is None else torch.cat(parts)
        held = held if local.table is None else held[local.table[0]]
        found.append([tuple(t.tolist()) for t in windows(held, local.runs)])
    if local.tokens is None:
        assert sorted(sum(found, [])) == sorted(want)
    else:  # Ulysses: every process has all tokens, of some heads
        assert all(set(part) == want and len(part) == len(want) for part in found)


def windows(tokens, runs):
    start = 0
    for count, length in runs:
        yield from tokens[start : start + count * length].view(count, length)
        start += count * length
    assert start == len(tokens)


def test_auto_takes_the_switch_where_it_is_even():
    plans = [plan_windows((8, 16, 16), w) for w in ((1, -1, -1), (-1, 8, 8))]
    assert [layout.dim for layout in choose_layouts(plans, "auto", 4, CPU)] == [1, 2]
    assert choose_layouts(plans, "auto", 4, CPU)[1].sizes == (64,) * 4
    plans = [plan_windows((1, 16, 16), w) for w in ((1, -1, -1), (-1, 8, 8))]
    one, two = choose_layouts(plans, "auto", 4, CPU)
    assert one is two and one.dim == 2  # an image: Ulysses
