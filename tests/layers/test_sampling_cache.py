"""SamplingCache: a run that computes once what its steps share gives the bits of one that does not."""

from functools import partial

import pytest
import torch

from opensora.layers.attention import CrossAttention
from opensora.layers.sampling_cache import SamplingCache
from opensora.registry import MODELS, build
from opensora.schedulers.guidance import Guidance
from opensora.schedulers.rectified_flow import RectifiedFlow
from opensora.utils.random import Draws

CONDITIONS = {
    "text": {"type": "TextCondition", "text_width": 6, "text_length": 5},
    "size": {"type": "SizeCondition"},
    "frames": {"type": "FrameCondition"},
}
# Branches come and go: none is useless, some are, those of odd steps are, and weights per frame.
SCALES = {
    "none": {},
    "text": {"text": 4.0},
    "useless": {"frames": 1.0, "text": 4.0},
    "oscillating": {
        "frames": {"scale": 2.0, "oscillate_from": 1},
        "text": {"scale": 4.0, "oscillate_from": 2},
    },
    "ramp": {"frames": {"scale": 3.0, "ramp_from": 1.0}, "text": 4.0},
}


@pytest.fixture(scope="module")
def model():
    cfg = {"type": "STDiT3", "hidden_size": 24, "depth": 2, "num_heads": 2, "conditions": CONDITIONS}
    built = build(MODELS, {**cfg, "window_size": (-1, 2, 2), "spatial_rope": True}, in_channels=4).eval()
    for number, (name, parameter) in enumerate(sorted(built.named_parameters())):
        parameter.data = Draws(3, [number]).normal(name, 0, (1, *parameter.shape))[0] * 0.2
    return built


def prompt(model, frames, seed=0, **extra):
    draws = Draws(seed, (0, 1))
    batch = {"text_features": draws.normal("text", 0, (2, 5, 6)), "fps": torch.tensor([24.0, 30.0])}
    batch |= {name: torch.full((2,), 32.0) for name in ("height", "width", "num_frames")} | extra
    if frames:
        mask = torch.tensor([[1.0, 0, 0], [0, 0, 1]])
        batch |= {"reference": draws.normal("reference", 0, (2, 4, 3, 4, 4)), "reference_mask": mask}
    cond = dict(batch)
    for condition in model.conditions.values():
        cond |= condition.prepare(batch, None, None)
    return {name: value for name, value in cond.items() if not name.startswith("reference") or frames}


def run(model, cond, scales, reuse, **kw):
    scheduler = RectifiedFlow(4, shift_time=True, reuse_conditions=reuse)
    noise = Draws(1, (0, 1)).normal("noise", 0, (2, 4, 3, 4, 4))
    return scheduler.sample(model, noise, cond, Guidance(scales), draws=Draws(2, (0, 1)), **kw)


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("frames", [False, True])
def test_a_run_keeps_its_bits(model, scales, frames, monkeypatch):
    texts = {"text_mask": torch.tensor([[True] * 5, [True] * 3 + [False] * 2])}
    texts |= {"negative": torch.ones(2, 4, 6), "negative_mask": torch.ones(2, 4)} if scales == "ramp" else {}
    cond = prompt(model, frames, **texts)
    edits = {"frame_mask": torch.tensor([[0.0, 0.5, 1], [1, 1, 1]]), "known": torch.ones(2, 4, 3, 4, 4)}
    for kw in ({}, edits):
        plain = run(model, cond, SCALES[scales], False, **kw)
        kept = run(model, cond, SCALES[scales], True, **kw)
        torch.testing.assert_close(kept, plain, atol=1e-5, rtol=1e-5)
        # All times in one product round differently; one by one, nothing is left that could.
        with monkeypatch.context() as patch:
            patch.setattr(type(model), "_embed_times", partial(_one_by_one, model))
            assert torch.equal(run(model, cond, SCALES[scales], True, **kw), plain)


def _one_by_one(model, times, vector):
    steps = [model._embed_time(t, vector) for t in times]
    return [torch.stack(tables) for tables in zip(*steps, strict=True)]


def test_keys_are_computed_once_and_no_run_sees_those_of_another(model, monkeypatch):
    calls = []
    keys = CrossAttention.keys
    monkeypatch.setattr(CrossAttention, "keys", lambda *args: calls.append(len(args[1])) or keys(*args))
    first, other = prompt(model, False), prompt(model, False, seed=5)
    out = run(model, first, SCALES["text"], True)
    assert calls == [4] * 4  # two branches of two samples, in four blocks, for all steps
    assert not torch.equal(run(model, other, SCALES["text"], True), out)
    assert torch.equal(run(model, first, SCALES["text"], True), out)
    calls.clear()
    run(model, first, SCALES["text"], False)
    assert len(calls) == 16
    calls.clear()
    run(model, first, SCALES["oscillating"], True)
    assert sorted(calls) == [2] * 4 + [4] * 4 + [6] * 4  # step 3 has one branch, 1 and 2 have two, 0 three


def test_memory_is_counted_without_what_is_shared():
    cache = SamplingCache(torch.ones(3, 2))
    part = cache.at(1, [0, 2])
    assert part.times.shape == (3, 4) and part.step == 1 and part is cache.at(2, (0, 2)) and part.step == 2
    whole = torch.zeros(10, 4)
    part.keep("views", lambda: (whole[:5], {"half": whole[5:]}))
    assert cache.num_bytes == 160
    assert cache.at(0, [2]).keep("views", lambda: "other") == "other"
