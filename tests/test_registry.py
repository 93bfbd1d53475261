"""Registries: names are found, misspelt ones explained, and configs bound before anything is built."""

import pytest
import torch
from mmengine.registry import Registry
from torch import nn

from opensora.registry import MODELS, SCHEDULERS, bind, build, fill_in, register_preset, resolve
from opensora.utils.weights import save_safetensors


class Small(nn.Module):
    """A component outside the repository."""

    def __init__(self, width: int, bias: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width, bias=bias)


def test_names_are_found_without_a_list():
    assert resolve(MODELS, "VideoVAE").__name__ == "VideoVAE"
    assert resolve(MODELS, Small) is Small
    with pytest.raises(KeyError, match="type='VideoVAEE': no such model. Did you mean .*VideoVAE"):
        resolve(MODELS, "VideoVAEE")
    with pytest.raises(KeyError, match="no such scheduler. Registered: .*RectifiedFlow"):
        resolve(SCHEDULERS, "zzz")


def test_configs_are_bound_before_they_are_built():
    assert bind(MODELS, {"type": Small, "width": 3})[1] == {"width": 3}
    with pytest.raises(TypeError, match="unknown key 'widht' .value 3.; did you mean 'width'"):
        bind(MODELS, {"type": Small, "widht": 3})
    with pytest.raises(TypeError, match="width must be given in the config"):
        bind(MODELS, {"type": Small})
    with pytest.raises(TypeError, match="expected a dict with a key 'type'"):
        build(MODELS, {"width": 3})


def test_facts_win_and_are_only_filled_in_where_they_are_asked_for():
    assert build(MODELS, {"type": Small, "width": 3}, width=5).layer.in_features == 5
    assert fill_in(MODELS, {"type": Small, "width": 3}, width=5, depth=7) == {"type": Small, "width": 3}
    assert build(MODELS, None) is None
    built = Small(2)
    assert build(MODELS, built) is built


def test_presets_have_the_signature_of_their_class():
    registry = Registry("thing")
    register_preset(registry, "Small-2/1", Small, width=2)
    assert build(registry, {"type": "Small-2/1"}).layer.in_features == 2
    assert build(registry, {"type": "Small-2/1", "width": 4}).layer.in_features == 4
    with pytest.raises(TypeError, match="Small-2/1: unknown key 'depth'"):
        build(registry, {"type": "Small-2/1", "depth": 4})


def test_weights_are_compared_before_they_are_read(tmp_path):
    source = Small(3)
    save_safetensors(source.state_dict(), tmp_path / "small.safetensors")
    cfg = {"type": Small, "width": 3, "from_pretrained": str(tmp_path / "small.safetensors")}
    assert torch.equal(build(MODELS, cfg).layer.weight, source.layer.weight)
    with pytest.raises(ValueError, match="layer.weight"):
        build(MODELS, {**cfg, "width": 4})
    kept = build(MODELS, {**cfg, "width": 4, "ignore_keys": ("layer.",)})
    assert kept.layer.weight.shape == (4, 4) and torch.isfinite(kept.layer.weight).all()
