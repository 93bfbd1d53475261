"""Engines: processes, precision, accumulation, clipping, overflow, checkpoints."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from opensora.acceleration.engine import build_engine, check_plugin
from opensora.acceleration.loss_scale import LossScale

ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "tests/acceleration/workers/engine_run.py"
needs_colossalai = pytest.mark.skipif(
    importlib.util.find_spec("colossalai") is None, reason="colossalai is not installed"
)
# What every plugin must give, whatever the number of processes: plugin, processes, runs that it goes on from.
RUNS = {
    "none": ("none", 1, ()),
    "ddp": ("ddp", 2, ("none",)),
    "fsdp2": ("fsdp2", 2, ("none", "ddp")),
    "zero1": ("zero1", 2, ("none", "fsdp2")),
    "zero2": ("zero2", 2, ("none", "ddp")),
    "back": ("none", 1, ("zero2", "zero1", "ddp", "fsdp2")),
    "zero2-alone": ("zero2", 1, ("zero2", "none")),
}
# Those that the same processes make, one after the other: ColossalAI comes last.
TOGETHER = (("none",), ("ddp", "fsdp2", "zero1", "zero2"), ("back", "zero2-alone"))
PARALLEL = [
    pytest.param(name, marks=[pytest.mark.dist] + ([needs_colossalai] if "zero" in name else []))
    for name in RUNS
    if name not in ("none", "back")
]
ALL = [pytest.param("none"), *PARALLEL]


class Runs:
    """Results of the runs of the worker, made when a test first asks for one."""

    def __init__(self, folder, launch):
        self.folder, self.launch, self.done = folder, launch, {}

    def __call__(self, name):
        if name not in self.done:
            self.make(next(names for names in TOGETHER if name in names))
        assert self.done[name], "its processes failed before"
        return self.done[name]

    def make(self, names):
        names = [name for name in names if "zero" not in name or importlib.util.find_spec("colossalai")]
        self.done |= dict.fromkeys(names)  # processes that fail once are not started for each test
        others = {other for name in names for other in RUNS[name][2]} - {*names}
        for other in sorted(others):
            self(other)
        words = [f"{name}={RUNS[name][0]}:{','.join(RUNS[name][2])}" for name in names]
        self.launch(WORKER, RUNS[names[0]][1], self.folder, *words)
        for name in names:
            folder = self.folder / name
            read = json.loads((folder / "results.json").read_text())
            self.done[name] = read, load_file(folder / "tensors.safetensors")


@pytest.fixture(scope="session")
def runs(tmp_path_factory, launch):
    return Runs(tmp_path_factory.mktemp("engines"), launch)


def part(tensors, name):
    return {
        key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")
    }


def norm(tensors):
    return sum(float(t.double().square().sum()) for t in tensors) ** 0.5


def assert_same_gradient(found, wanted, whole=1e-6, single=1e-5):
    """Norm of the difference against the norm, of everything and of each tensor that is not noise."""
    assert found.keys() == wanted.keys() and found
    total = norm(wanted.values())
    assert norm(found[key] - wanted[key] for key in wanted) <= whole * total
    for key, value in wanted.items():
        if norm([value]) > 1e-6 * total:
            assert norm([found[key] - value]) <= single * norm([value]), key


def assert_near(found, wanted, tolerance):
    assert len(found) == len(wanted)
    assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= tolerance


@pytest.mark.parametrize("name", PARALLEL)
def test_processes_give_the_gradient_of_one(runs, name):
    _, one = runs("none")
    _, many = runs(name)
    assert_same_gradient(part(many, "gradient_whole"), part(one, "gradient_whole"))


@pytest.mark.parametrize("name", PARALLEL)
def test_processes_give_the_losses_of_one(runs, name):
    one, _ = runs("none")
    many, _ = runs(name)
    assert_near(many["sgd"], one["sgd"], 1e-5)
    assert_near(many["adamw"], one["adamw"], 1e-4)
    assert_near(many["norms"], one["norms"], 1e-4)
    assert len(set(one["adamw"])) == 10  # it trains


@pytest.mark.parametrize("name", ALL)
def test_micro_batches_add_up_to_the_batch(runs, name):
    found, tensors = runs(name)
    assert_same_gradient(part(tensors, "gradient_accumulated"), part(tensors, "gradient_whole"))
    assert found["norm_accumulated"] == pytest.approx(found["norm_whole"], rel=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_clip_returns_the_norm_and_scales_to_the_limit(runs, name):
    found, tensors = runs(name)
    whole = part(tensors, "gradient_whole")
    assert found["norm_before"] == pytest.approx(norm(whole.values()), rel=1e-5)
    assert norm(part(tensors, "clipped").values()) == pytest.approx(0.05, rel=1e-5)
    assert_same_gradient(
        part(tensors, "clipped"), {key: g * 0.05 / norm(whole.values()) for key, g in whole.items()}
    )


@pytest.mark.parametrize("name", [p for p in ALL if p.values[0] in ("none", "ddp", "zero1")])
def test_no_sync_needs_no_other_process(runs, name):
    _, tensors = runs(name)
    assert_same_gradient(part(tensors, "alone"), part(tensors, "alone_expected"))


@pytest.mark.parametrize("name", ALL)
def test_processes_may_use_different_layers(runs, name):
    found, tensors = runs(name)
    assert_same_gradient(part(tensors, "partly"), part(tensors, "partly_expected"))
    # Decay would move what nobody used, if it had a gradient of zero.
    assert not found["moved"].pop("never")
    assert all(found["moved"].values())


@pytest.mark.parametrize("name", ALL)
def test_gradients_that_are_not_finite_change_nothing_anywhere(runs, name):
    assert runs(name)[0]["overflow_handled"] == 1.0


@pytest.mark.parametrize("name", ALL)
def test_pieces_join_to_what_was_cut(runs, name):
    found, _ = runs(name)
    assert found["pieces"] == 1.0
    whole = runs("none")[0]["piece_numbers"]
    if name in ("zero1", "zero2", "fsdp2"):  # half, and the padding, or the odd row
        assert whole / 2 <= found["piece_numbers"] < (0.56 if name == "fsdp2" else 0.52) * whole
    else:
        assert found["piece_numbers"] == whole


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ALL)
def test_a_resumed_run_is_the_uninterrupted_one(runs, name, dtype):
    found, _ = runs(name)
    uninterrupted, resumed = found[f"resumed_{dtype}"]
    assert resumed == uninterrupted
    assert found[f"exact_{dtype}"]


@pytest.mark.dist
@pytest.mark.parametrize(
    ("name", "origin"),
    [
        pytest.param(name, origin, marks=needs_colossalai if "zero" in name + origin else [])
        for name, (_, _, others) in RUNS.items()
        for origin in others
    ],
)
def test_a_checkpoint_goes_on_with_another_plugin(runs, name, origin):
    if name == "back":
        pytest.importorskip("colossalai")
    losses, _ = runs(origin)[0]["resumed_fp32"]
    assert_near(runs(name)[0][f"continued_{origin}"], losses, 1e-6)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ALL)
def test_half_precision_rounds_the_forward_pass_only(runs, name, dtype):
    found, _ = runs(name)
    assert found[f"kept_{dtype}"] and found["frozen_kept"]
    assert found[f"buffers_{dtype}"] == "torch.float32"
    exact = runs("none")[0]["adamw"]
    assert found[f"losses_{dtype}"] != exact
    if dtype == "bf16":  # fp16 skips steps until the scale fits
        assert_near(found["losses_bf16"], exact, 0.02)


@pytest.mark.parametrize("name", ALL)
def test_fp16_overflow_halves_the_scale(runs, name):
    found, _ = runs(name)
    assert not found["fp16_stepped"]
    assert found["fp16_scale"] == 0.5


@pytest.mark.parametrize("name", ALL)
def test_a_loss_reaches_only_its_own_module(runs, name):
    found, tensors = runs(name)
    assert found["critic_clean"]
    assert_same_gradient(part(tensors, "gan"), part(runs("none")[1], "gan"))


@pytest.mark.parametrize("name", ALL)
def test_only_zero_needs_colossalai(runs, name):
    # The worker blocks its import for the other plugins.
    assert runs(name)[0]["colossalai"] == ("zero" in name)


def engine(plugin="none", dtype="fp32"):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return build_engine(plugin, dtype, {"model": model}, {"model": torch.optim.AdamW(model.parameters())})


def test_unknown_choices_list_the_known_ones():
    with pytest.raises(ValueError, match="plugin='zero3': use one of none, ddp, fsdp2, zero1, zero2"):
        engine("zero3")
    with pytest.raises(ValueError, match="dtype='half': use one of fp32, bf16, fp16"):
        engine(dtype="half")


def test_what_a_plugin_cannot_do_is_refused_with_another():
    with pytest.raises(ValueError, match="plugin='gemini': .* Use plugin='fsdp2'"):
        engine("gemini")
    for plugin in ("none", "ddp"):
        with pytest.raises(ValueError, match="offload=True .*: only zero1, zero2 and fsdp2"):
            check_plugin(plugin, offload=True)
    check_plugin("zero2-seq", offload=True, processes=4)


def test_an_old_torch_is_named(monkeypatch):
    monkeypatch.delattr("torch.distributed.fsdp.FSDPModule.set_reduce_scatter_unused_params")
    with pytest.raises(ImportError, match=r"plugin='fsdp2' needs torch 2.13.* Use 'zero2' or 'ddp'"):
        engine("fsdp2")


def test_none_refuses_several_processes(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="2 processes: .* plugin='ddp' or plugin='zero2'"):
        engine("none")


@pytest.mark.parametrize("plugin", ["zero1", "zero2"])
def test_without_colossalai_the_error_says_what_to_install(monkeypatch, plugin):
    for name in [name for name in sys.modules if name.split(".")[0] == "colossalai"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "colossalai", None)
    with pytest.raises(ImportError, match="pip install --no-deps colossalai==0.5.0.*plugin='ddp'"):
        engine(plugin)


def test_the_optimizer_must_fit_the_module():
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    for parameters in ([model.weight], [*model.parameters(), *other.parameters()], other.parameters()):
        with pytest.raises(ValueError, match="the module has 2"):
            build_engine("none", "fp32", {"model": model}, {"model": torch.optim.SGD(parameters, lr=1.0)})
    with pytest.raises(ValueError, match="give each module one optimizer"):
        build_engine("none", "fp32", {"model": model}, {})


def test_load_refuses_what_does_not_fit():
    one = engine()
    weights, state = one.weights("model"), one.state("model")
    for wrong, message in (
        ({"weight": weights["weight"]}, "1 missing, such as bias"),
        (weights | {"scale": weights["bias"]}, "1 unknown, such as scale"),
        (weights | {"bias": torch.zeros(3)}, "1 of another shape, such as bias"),
    ):
        with pytest.raises(ValueError, match=message):
            one.load("model", wrong, state)
    with pytest.raises(ValueError, match="'exp_avg.other' belongs to no trainable parameter"):
        one.load("model", weights, {"exp_avg.other": torch.zeros(3)})


def test_weights_are_copies():
    one = engine()
    kept = one.weights("model")
    one.modules["model"].weight.data.zero_()
    assert kept["weight"].abs().sum() > 0


def test_loss_scale_doubles_after_a_while_and_halves_at_once():
    scale = LossScale(True, initial=8.0, growth_interval=2)
    seen = []
    for finite in (True, True, True, False, True, True):
        scale.update(finite)
        seen.append(scale.value)
    assert seen == [8, 16, 16, 8, 8, 16]
    other = LossScale(True)
    other.load(scale.state())
    assert (other.value, other.growth) == (scale.value, scale.growth)
    off = LossScale(False)
    off.update(False)
    assert off.value == 1 and not off.state()
