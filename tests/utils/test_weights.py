import json
import logging
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from opensora.utils import weight_files, weights
from opensora.utils.weights import (
    load_weights,
    published_state_dict,
    read_state_dict,
    save_safetensors,
    to_published,
)


class Inner(nn.Module):
    """Starts at zero, as conditions do; has a buffer that no file holds."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.register_buffer("steps", torch.empty(3), persistent=False)
        self.init_buffers()
        self.reset_parameters()

    def init_buffers(self) -> None:
        self.steps = torch.arange(3.0)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)


class Net(nn.Module):
    """All that models have: parameters, frozen ones, buffers, names published otherwise."""

    renames = (("old.", "blocks."), ("old.0.first.", "head."), ("extra_", "inner.fc."), ("freq", "waves."))

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.head = nn.Linear(3, width)
        self.blocks = nn.ModuleList([nn.Linear(width, width), nn.BatchNorm1d(width)])
        self.inner = Inner(width)
        self.freqs = nn.Parameter(torch.randn(2), requires_grad=False)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(1)
    state = module.state_dict()
    return {k: torch.randn_like(v) if v.is_floating_point() else torch.tensor(7) for k, v in state.items()}


def on_meta(kind: type[nn.Module], *args) -> nn.Module:
    with torch.device("meta"):
        return kind(*args)


def _single(folder: Path, state: dict) -> Path:
    save_file(state, folder / "any.safetensors")
    return folder / "any.safetensors"


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# Loading into modules.


@pytest.mark.parametrize("build", [Net, lambda: on_meta(Net)], ids=["real", "meta"])
@pytest.mark.parametrize("published", [False, True])
def test_both_namings_load(tmp_path, build, published, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("opensora"), "propagate", True)
    state, net = state_of(Net()), build()
    save_safetensors(to_published(state, Net.renames) if published else state, tmp_path / "w.safetensors")
    with caplog.at_level(logging.INFO, "opensora"):
        load_weights(net, tmp_path / "w.safetensors")
    assert same(net.state_dict(), state)
    assert f"{len(state)} of {len(state)} tensors loaded from {tmp_path}" in caplog.text
    assert torch.equal(net.inner.steps, torch.arange(3.0))
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in Net().parameters()]
    assert all(isinstance(p, nn.Parameter) for p in net.parameters())


def test_published_names_are_the_inverse_and_longest_prefix_wins():
    net = Net()
    names = list(published_state_dict(net))
    assert "old.0.first.weight" in names and "old.0.weight" in names and "extra_bias" in names
    assert "freqs" in names and len(names) == len(net.state_dict())


def test_loaded_weights_are_not_tied_to_the_file(tmp_path):
    state = state_of(Net())
    path = _single(tmp_path, state)
    net = on_meta(Net)
    load_weights(net, path)
    with path.open("r+b") as stream:
        stream.seek(-200, os.SEEK_END)
        stream.write(bytes(200))
    assert same(net.state_dict(), state)


def test_floats_take_the_dtype_of_the_module(tmp_path):
    state = state_of(Net())
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()}
    save_safetensors(half, tmp_path / "w.safetensors")
    for net in (Net(), on_meta(Net)):
        load_weights(net, tmp_path / "w.safetensors")
        assert net.head.weight.dtype == torch.float32
        assert torch.equal(net.head.weight, half["head.weight"].float())
        assert net.blocks[1].num_batches_tracked.dtype == torch.int64
    small = on_meta(Net).bfloat16()
    load_weights(small, _single(tmp_path, state))
    assert small.head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("build", [Net, lambda: on_meta(Net)], ids=["real", "meta"])
def test_a_misfit_is_told_before_anything_is_read(tmp_path, build, monkeypatch):
    state = state_of(Net())
    del state["head.bias"], state["inner.fc.weight"]
    state |= {"stray": torch.zeros(2), "head.weight": torch.zeros(9, 3)}
    path, net = _single(tmp_path, state), build()
    before = None if net.head.weight.is_meta else net.head.weight.clone()
    monkeypatch.setattr(weight_files.WeightFiles, "tensors", None)
    with pytest.raises(ValueError) as caught:
        load_weights(net, path)
    said = str(caught.value)
    assert (
        "does not fit Net: 9 of 12 tensors fit, 2 are missing in the file, 1 are in the file only, 1 h"
        in said
    )
    assert "missing: head.bias [4], inner.fc.weight [4, 4]" in said and "in the file only: stray [2]" in said
    assert "other shape: head.weight [9, 3] in the file, [4, 3] here" in said and "ignore_keys" in said
    assert str(path) in said
    assert before is None or torch.equal(net.head.weight, before)


def test_the_file_of_another_model(tmp_path):
    path = _single(tmp_path, {"other": torch.zeros(1)})
    with pytest.raises(ValueError, match="Nothing fits: this is another model's file"):
        load_weights(on_meta(Net), path)


def test_two_names_for_one_tensor(tmp_path):
    state = state_of(Net())
    path = _single(tmp_path, {**state, "extra_bias": torch.zeros(4)})
    with pytest.raises(ValueError, match=r"extra_bias and inner\.fc\.bias are both our inner\.fc\.bias"):
        load_weights(Net(), path)


def test_ignored_tensors_keep_their_values(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("opensora"), "propagate", True)
    state, net = state_of(Net()), Net()
    del state["inner.fc.bias"]
    state |= {"inner.fc.weight": torch.zeros(9, 9), "inner.stray": torch.zeros(1)}
    nn.init.ones_(net.inner.fc.weight)
    with caplog.at_level(logging.INFO, "opensora"):
        load_weights(net, _single(tmp_path, state), ignore_keys=("inner",))
    assert net.inner.fc.weight.eq(1).all() and torch.equal(net.head.weight, state["head.weight"])
    assert "2 tensors kept as initialised: inner.fc.bias, inner.fc.weight" in caplog.text
    assert "1 tensors in the file only: inner.stray" in caplog.text


@pytest.mark.parametrize("keys", [("inner",), "inner"])
def test_ignore_keys_excuse_only_their_prefix(tmp_path, keys):
    state = state_of(Net())
    del state["inner.fc.bias"], state["head.bias"]
    with pytest.raises(ValueError, match=r"1 are missing in the file.*\nmissing: head\.bias \[4\]\n"):
        load_weights(Net(), _single(tmp_path, state), ignore_keys=keys)


# Modules on the meta device.


def test_meta_initialises_what_is_missing_as_its_module_does(tmp_path):
    state = state_of(Net())
    kept = {k: v for k, v in state.items() if not k.startswith(("inner", "blocks.1"))}
    net = on_meta(Net)
    load_weights(net, _single(tmp_path, kept), ignore_keys=("inner.", "blocks.1."))
    assert net.inner.fc.weight.eq(0).all() and net.inner.fc.bias.eq(0).all()  # ours, not torch's
    norm = net.blocks[1]
    assert norm.weight.eq(1).all() and norm.running_var.eq(1).all() and norm.num_batches_tracked == 0
    assert same({k: v for k, v in net.state_dict().items() if k in kept}, kept)


def test_meta_initialises_half_of_a_layer(tmp_path):
    state = state_of(Net())
    bias = state.pop("head.bias")
    net = on_meta(Net)
    load_weights(net, _single(tmp_path, state), ignore_keys=("head",))
    assert torch.equal(net.head.weight, state["head.weight"])
    assert net.head.bias.isfinite().all() and net.head.bias.abs().max() <= 3**-0.5 and net.head.bias.any()
    assert not torch.equal(net.head.bias, bias)


class Outer(Net):
    """The outer class sets all linear layers; an inner class of ours still decides for its own."""

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.constant_(module.weight, 5.0)


class Hooked(Net):
    def reset_missing(self, names: list[str]) -> None:
        self.asked = names
        with torch.no_grad():
            self.freqs.fill_(3.0)


def test_meta_the_nearest_class_decides(tmp_path):
    state = state_of(Net())
    kept = {k: v for k, v in state.items() if not k.startswith(("inner", "head.w"))}
    net = on_meta(Outer)
    load_weights(net, _single(tmp_path, kept), ignore_keys=("inner", "head"))
    assert net.head.weight.eq(5).all() and net.inner.fc.weight.eq(0).all()
    assert torch.equal(net.blocks[0].weight, state["blocks.0.weight"])


def test_meta_a_model_can_initialise_itself(tmp_path):
    state = state_of(Net())
    del state["freqs"]
    path = _single(tmp_path, state)
    net = on_meta(Hooked)
    load_weights(net, path, ignore_keys=("freqs",))
    assert net.asked == ["freqs"] and net.freqs.eq(3).all()
    with pytest.raises(ValueError, match=r"nothing initialises freqs\. Give Net a method reset_missing"):
        load_weights(on_meta(Net), path, ignore_keys=("freqs",))


def test_meta_buffers_that_nobody_rebuilds(tmp_path):
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(1, 1)
            self.register_buffer("table", torch.ones(2), persistent=False)

    path = _single(tmp_path, state_of(Forgetful()))
    with pytest.raises(NotImplementedError, match=r"Forgetful: table .* init_buffers\(\)"):
        load_weights(on_meta(Forgetful), path)


# More latent channels.


class Patches(nn.Module):
    def __init__(self, channels: int, kinds: int = 2, patch: tuple[int, int, int] = (1, 2, 2)) -> None:
        super().__init__()
        self.x_embedder, self.final_layer = nn.Module(), nn.Module()
        self.x_embedder.proj = nn.Conv3d(channels, 6, patch, patch)
        self.final_layer.linear = nn.Linear(6, patch[0] * patch[1] * patch[2] * kinds * channels)

    def forward(self, z: Tensor) -> Tensor:
        return self.final_layer.linear(self.x_embedder.proj(z).flatten(2).mT)


@pytest.mark.parametrize("kinds", [1, 2])
@pytest.mark.parametrize("build", [Patches, lambda *a: on_meta(Patches, *a)], ids=["real", "meta"])
def test_channels_stretch(tmp_path, kinds, build):
    old, new = Patches(4, kinds), build(16, kinds)
    path = _single(tmp_path, old.state_dict())
    load_weights(new, path, adapt_channels=True)
    z = torch.randn(2, 4, 3, 4, 4)
    before = old(z).unflatten(-1, (4, kinds, 1, 4)).expand(-1, -1, -1, -1, 4, -1).flatten(2)
    assert torch.allclose(new(z.repeat(1, 4, 1, 1, 1)), before, atol=1e-6)
    assert torch.equal(new.x_embedder.proj.weight[:, 4:8] * 4, old.x_embedder.proj.weight)


def test_channels_stretch_only_when_asked_and_to_multiples(tmp_path):
    path = _single(tmp_path, Patches(4).state_dict())
    with pytest.raises(ValueError, match="3 have another shape.*\n.*\nadapt_channels=True stretches"):
        load_weights(Patches(16), path)
    with pytest.raises(ValueError, match="6 latent channels are no multiple of the file's 4"):
        load_weights(Patches(6), path, adapt_channels=True)
    same_size = Patches(4)
    load_weights(same_size, path, adapt_channels=True)
    assert same(same_size.state_dict(), load_file(path))


# Writing.


def test_what_is_written_is_read(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = {
        "a": base,
        "tied": base,
        "part": base[1:],
        "turned": base.T,
        "n": torch.tensor(3),
        "e": torch.zeros(0),
    }
    files = save_safetensors(state, tmp_path / "new" / "w.safetensors", metadata={"step": "7"})
    assert same(read_state_dict(files[0]), state)
    with weight_files.safe_open(files[0], "pt") as handle:
        assert handle.metadata() == {"format": "pt", "step": "7"}
    assert os.listdir(tmp_path / "new") == ["w.safetensors"]


def test_shards_and_their_index(tmp_path):
    state, path = state_of(Net()), tmp_path / "model.safetensors"
    files = save_safetensors(state, path, max_shard_bytes=80)
    assert len(files) > 3 and files[-1].name == "model.safetensors.index.json"
    assert all(f.stat().st_size < 1500 for f in files)
    assert json.loads(files[-1].read_text())["metadata"]["total_size"] == sum(
        v.nbytes for v in state.values()
    )
    assert same(read_state_dict(tmp_path), state) and same(read_state_dict(path), state)

    more = {k: v + 1 for k, v in state.items()}
    save_safetensors(more, path, max_shard_bytes=120)  # fewer shards: none of the old ones may stay
    assert same(read_state_dict(tmp_path), more)
    save_safetensors(state, path)
    assert os.listdir(tmp_path) == ["model.safetensors"] and same(read_state_dict(tmp_path), state)
    save_safetensors(more, path, max_shard_bytes=120)
    assert not path.exists() and same(read_state_dict(tmp_path), more)


def test_others_may_read_what_they_may_read_of_new_files(tmp_path):
    (tmp_path / "new").touch()
    save_safetensors({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode


@pytest.mark.parametrize("shards", [None, 80])
@pytest.mark.parametrize("fails_at", ["save_file", "flush_to_disk"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, shards, fails_at):
    old, path = state_of(Net()), tmp_path / "w.safetensors"
    save_safetensors(old, path, max_shard_bytes=shards)
    before, calls, real = sorted(os.listdir(tmp_path)), [], getattr(weights, fails_at)

    def fail(*args, **kwargs):
        calls.append(args)
        if shards is None or len(calls) == 3:
            if fails_at == "save_file":
                Path(args[1]).write_bytes(b"half of")
            raise OSError("no space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(weights, fails_at, fail)
    with pytest.raises(OSError, match="no space left"):
        save_safetensors({k: v + 1 for k, v in old.items()}, path, max_shard_bytes=shards)
    assert sorted(os.listdir(tmp_path)) == before
    assert same(read_state_dict(path), old)


def test_a_crash_between_renames_is_noticed(tmp_path, monkeypatch):
    old, path = state_of(Net()), tmp_path / "w.safetensors"
    save_safetensors(old, path, max_shard_bytes=80)
    calls, real = [], os.replace

    def crash(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(weights.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save_safetensors({k: v + 1 for k, v in old.items()}, path, max_shard_bytes=80)
    with pytest.raises((FileNotFoundError, ValueError), match="several weight files|no such file"):
        read_state_dict(tmp_path)  # never a mixture of old and new


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="end the name with .safetensors"):
        save_safetensors({}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="a on the meta device hold no numbers"):
        save_safetensors({"a": torch.zeros(1, device="meta")}, tmp_path / "w.safetensors")
