"""Weights of a component and of the parts in it: which are read, and when there are none."""

from pathlib import Path

import pytest
import torch

from opensora.engine.build import build_components, names_weights, resolve_run, without_weights
from opensora.registry import MODELS, build
from opensora.utils.weights import save_safetensors

SPATIAL = dict(type="ImageVAE", block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4)
TEMPORAL = dict(
    type="TemporalVAE", channels=4, num_res_blocks=1, channel_multipliers=(1, 2, 2, 3), num_groups=4
)
STACK = dict(type="StackedVAE", spatial=SPATIAL, temporal=TEMPORAL)


@pytest.fixture
def stack(tmp_path: Path) -> tuple[dict[str, torch.Tensor], Path, Path]:
    """Weights of a stack, a file with them, and one with those of its image part."""
    torch.manual_seed(0)
    state = build(MODELS, STACK).state_dict()
    whole, image = tmp_path / "whole.safetensors", tmp_path / "image.safetensors"
    save_safetensors(state, whole)
    part = {k.removeprefix("spatial_vae."): v for k, v in state.items() if k.startswith("spatial_vae.")}
    save_safetensors(part, image)
    return state, whole, image


def built(**changes: object) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return build_components({"vae": {**STACK, **changes}}).vae.state_dict()


def with_image(path: Path) -> dict[str, object]:
    return {**SPATIAL, "from_pretrained": str(path)}


def test_weights_of_a_part_are_read(stack):
    state, _, image = stack
    found = built(spatial=with_image(image))
    same = {key: torch.equal(value, state[key]) for key, value in found.items() if value.numel() > 8}
    assert {key for key, equal in same.items() if equal} >= {k for k in same if k.startswith("spatial_vae.")}
    assert not same["temporal_vae.encoder.conv_in.conv.weight"]


def test_weights_of_the_whole_win_and_those_of_parts_need_not_be_there(stack, tmp_path):
    state, whole, _ = stack
    gone = with_image(tmp_path / "gone.safetensors")
    found = built(spatial=gone, from_pretrained=str(whole))
    assert all(torch.equal(value, state[key]) for key, value in found.items())
    kept = resolve_run({**STACK, "spatial": gone, "from_pretrained": str(whole)}, "vae", True)
    assert kept["spatial"]["from_pretrained"] is None
    ignoring = {**STACK, "spatial": gone, "from_pretrained": str(whole), "ignore_keys": ("spatial_vae.",)}
    assert resolve_run(ignoring, "vae", True)["spatial"] == gone


def test_a_part_with_weights_is_not_a_whole_with_weights():
    assert not names_weights({**STACK, "spatial": with_image(Path("a"))})
    assert names_weights({**STACK, "from_pretrained": "a"})
    both = {"spatial": with_image(Path("a")), "temporal": {**TEMPORAL, "from_pretrained": "b"}}
    assert names_weights({**STACK, **both})
    assert not names_weights({"type": "STDiT3", "conditions": {"text": {"type": "TextCondition"}}})


def test_all_names_of_weights_are_taken_out():
    bare = without_weights({**STACK, "spatial": with_image(Path("a")), "from_pretrained": "b"})
    assert bare["from_pretrained"] is None and bare["spatial"]["from_pretrained"] is None
