"""Conditions: what `prepare` keeps, what `forward` injects, and what is refused."""

import pytest
import torch

from opensora.conditions.frames import CLASSES, FrameCondition
from opensora.conditions.size import SizeCondition
from opensora.conditions.text import TextCondition
from opensora.layers.interfaces import inject
from opensora.utils.random import Draws


def text_condition(**kw):
    torch.manual_seed(0)
    return TextCondition(hidden_size=8, text_width=6, text_length=5, **kw)


def test_captions_are_trimmed_and_masked_only_where_lengths_differ():
    features = torch.randn(2, 5, 6)
    mask = torch.arange(5) < torch.tensor([[3], [2]])
    cond = text_condition().prepare({"text_features": features, "text_mask": mask}, None, None)
    assert cond["text_features"].shape == (2, 3, 6)
    assert torch.equal(cond["text_mask"], mask[:, :3])
    same = torch.arange(5) < torch.tensor([[3], [3]])
    assert "text_mask" not in text_condition().prepare(
        {"text_features": features, "text_mask": same}, None, None
    )
    hole = torch.tensor([[True, False, True, False, False]] * 2)
    kept = text_condition().prepare({"text_features": features, "text_mask": hole}, None, None)
    assert torch.equal(kept["text_mask"], hole[:, :3])


def test_a_negative_prompt_replaces_dropped_text_with_its_own_mask():
    condition = text_condition()
    batch = {"text_features": torch.randn(2, 5, 6), "text_mask": torch.arange(5) < torch.tensor([[2], [2]])}
    batch |= {"negative": torch.randn(2, 5, 6), "negative_mask": torch.arange(5) < torch.tensor([[4], [1]])}
    cond = condition.prepare(batch, None, None)
    out = condition(cond, torch.tensor([True, False]))
    assert out.context_mask.sum(1).tolist() == [4, 2]
    torch.testing.assert_close(out.context[0], condition.y_proj(batch["negative"][0, :4]))
    torch.testing.assert_close(out.null_context[0], condition.y_proj(condition.y_embedding[:4]))


def test_projected_features_skip_the_projection():
    condition, features = text_condition(projected=True), torch.randn(2, 4, 8)
    out = condition(condition.prepare({"text_features": features}, None, None), torch.tensor([False, True]))
    assert torch.equal(out.context[0], features[0])
    torch.testing.assert_close(out.context[1], condition.y_proj(condition.y_embedding[:4]))


def test_captions_that_do_not_fit():
    with pytest.raises(ValueError, match="a caption has 7 tokens; this model was built for 5"):
        text_condition().prepare({"text_features": torch.zeros(1, 7, 6)}, None, None)
    mask = torch.tensor([[True, False], [False, False]])
    with pytest.raises(ValueError, match="text_mask: caption 1 of the batch has no token"):
        text_condition().prepare({"text_features": torch.zeros(2, 2, 6), "text_mask": mask}, None, None)


def test_sizes_add_up_and_a_dropped_sample_has_none():
    condition = SizeCondition(8, fields=("fps", "height"))
    for parameter in condition.parameters():
        torch.nn.init.normal_(parameter)
    cond = {"fps": torch.tensor([24.0, 30.0]), "height": torch.tensor([360.0, 720.0])}
    vector = condition(cond, None).vector
    torch.testing.assert_close(
        vector, condition.embedders["fps"](cond["fps"]) + condition.embedders["height"](cond["height"])
    )
    dropped = condition(cond, torch.tensor([False, True])).vector
    assert torch.equal(dropped[0], vector[0])
    assert not dropped[1].any()
    with pytest.raises(
        ValueError, match=r"fields=\('speed',\): choose at least one of fps, height, width, num_frames"
    ):
        SizeCondition(8, fields=("speed",))
    with pytest.raises(KeyError, match="batch has no 'fps'"):
        condition.prepare({}, None, None)


def frame_condition(**kw):
    condition = FrameCondition(8, (1, 2, 2), 4, **kw)
    for parameter in condition.parameters():
        torch.nn.init.normal_(parameter)
    return condition


def test_references_are_zero_outside_given_frames_and_a_drop_keeps_the_mask():
    condition, reference = frame_condition(), torch.randn(2, 4, 3, 4, 4)
    mask = torch.tensor([[1, 0, 0], [1, 0, 1]])
    cond = condition.prepare({"reference": reference, "reference_mask": mask}, None, None)
    assert not cond["reference"][:, :, 1].any()
    kept, dropped = condition(cond, None), condition(cond, torch.tensor([True, True]))
    assert torch.equal(kept.null_frames, dropped.null_frames)
    wide = mask[:, None, :, None, None].float().expand_as(reference)
    nothing = condition.reference_embedder(torch.zeros_like(reference))
    torch.testing.assert_close(dropped.channels, nothing + condition.mask_embedder(wide))


def test_without_a_reference_nothing_or_the_biases_are_injected():
    assert frame_condition()({}, None).channels is None
    condition = frame_condition(always_inject=True)
    empty = {"reference": torch.zeros(1, 4, 2, 4, 4), "reference_mask": torch.zeros(1, 2)}
    torch.testing.assert_close(condition({}, None).channels.expand(1, 8, 8), condition(empty, None).channels)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("frames", [1, 2, 3, 8])
def test_training_classes_give_the_named_frames(name, frames):
    condition = frame_condition(classes={name: 1.0})
    z, draws = torch.ones(16, 4, frames, 2, 2), Draws(0, range(16))
    mask = condition.prepare({}, z, draws)["reference_mask"]
    assert (mask.sum(1) < frames).all()
    if frames == 8:
        head, tail = (
            name in ("i2v_head", "i2v_loop", "v2v_head"),
            name in ("i2v_tail", "i2v_loop", "v2v_tail"),
        )
        if name != "other":
            assert bool(mask[:, 0].all()) == head and bool(mask[:, -1].all()) == tail
            assert (
                mask.sum(1) == {"none": 0, "i2v_loop": 2, "v2v_head": 4, "v2v_tail": 4}.get(name, 1)
            ).all()
        else:
            assert (mask.sum(1) >= 1).all() and len(mask.sum(1).unique()) > 1
            assert mask[:, 0].any() and mask[:, -1].any()


def test_a_sample_draws_the_same_frames_in_any_batch():
    condition = frame_condition(classes={"other": 1.0, "i2v_head": 1.0})
    whole = condition.prepare({}, torch.ones(8, 4, 9, 2, 2), Draws(3, range(8), 2))["reference_mask"]
    part = condition.prepare({}, torch.ones(3, 4, 9, 2, 2), Draws(3, (5, 0, 7), 2))["reference_mask"]
    assert torch.equal(part, whole[[5, 0, 7]])


def test_noisy_classes_get_a_noisy_reference_video():
    condition = frame_condition(classes={"v2v_head_noisy": 1.0}, noise_range=(0.2, 0.2))
    video, draws = torch.randn(2, 3, 5, 8, 8), Draws(0, range(2))
    noise = draws.normal("reference_noise", 0, video.shape)
    torch.testing.assert_close(condition.reference_video({"video": video}, draws), 0.8 * video + 0.2 * noise)
    assert frame_condition(classes={"i2v_head": 1}).reference_video({"video": video}, draws) is None
    with pytest.raises(ValueError, match=r"unknown \['i2v_had'\]; choose from none, i2v_head"):
        frame_condition(classes={"i2v_had": 1})


def test_two_contexts_are_refused():
    conditions = torch.nn.ModuleDict({"a": text_condition(), "b": text_condition()})
    with pytest.raises(ValueError, match="condition 'b': context is given by another condition already"):
        inject(conditions, {"text_features": torch.zeros(1, 2, 6)}, {})


def test_weights_of_classes_are_frequencies():
    weights = dict(
        i2v_head=5, i2v_tail=2, i2v_loop=2, v2v_head=1, v2v_head_noisy=2, v2v_tail=1, other=1, none=2
    )
    condition = frame_condition(classes=weights)
    names = condition._drawn(Draws(7, range(8000), 3), 12)
    for name, weight in weights.items():
        assert names.count(name) / 8000 == pytest.approx(weight / 16, abs=0.015), name  # three deviations
    assert set(condition._drawn(Draws(7, range(50)), 1)) == {"none"}  # images have no given frames
