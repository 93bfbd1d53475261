"""Frame masks: shapes of each kind, frequencies, and refused ratios."""

import pytest
import torch

from opensora.schedulers.frame_masks import NAMES, FrameMask
from opensora.utils.random import Draws


def given(name, frames, count=200):
    mask = FrameMask({name: 1.0}).draw(torch.empty(count, 1, frames, 1, 1), Draws(0, range(count)))
    assert mask.shape == (count, frames) and set(mask.unique().tolist()) <= {0.0, 1.0}
    return mask == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 15])
def test_something_is_always_generated(name, frames):
    rows = given(name, frames)
    assert not rows.all(1).any()
    if frames == 1:
        assert not rows.any()


@pytest.mark.parametrize("frames", [8, 15])
def test_kinds_give_what_their_names_say(frames):
    quarter = frames // 4
    for family, longest in (("quarter", quarter), ("image", 1)):
        for place in ("head", "tail", "random"):
            rows = given(f"{family}_{place}", frames)
            lengths = rows.sum(1)
            assert lengths.min() == 1 and lengths.max() == longest
            runs = (rows.int().diff(dim=1, prepend=torch.zeros(len(rows), 1, dtype=torch.int)) == 1).sum(1)
            assert (runs == 1).all()
            assert (
                rows[:, 0].all()
                if place == "head"
                else rows[:, -1].all()
                if place == "tail"
                else rows.any(0).all()
            )
        both = given(f"{family}_head_tail", frames)
        assert both[:, 0].all() and both[:, -1].all() and torch.equal(both, both.flip(1))
    every_second = given("interpolate", frames)
    assert {tuple(row) for row in every_second.int().tolist()} == {
        tuple(i % 2 == k for i in range(frames)) for k in (0, 1)
    }
    share = given("random", frames, 2000).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.03)


def test_ratios_are_frequencies_and_the_rest_is_identity():
    mask = FrameMask({"image_head": 0.25, "image_tail": 0.25}).draw(
        torch.empty(4000, 1, 6, 1, 1), Draws(1, range(4000))
    )
    rows = mask == 0
    assert rows[:, 0].float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (~rows.any(1)).float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_a_sample_has_the_same_mask_in_any_batch():
    mask = FrameMask({"random": 0.5, "quarter_random": 0.5})
    whole = mask.draw(torch.empty(9, 1, 12, 1, 1), Draws(5, range(9), 1))
    assert torch.equal(mask.draw(torch.empty(2, 1, 12, 1, 1), Draws(5, [7, 2], 1)), whole[[7, 2]])


def test_refused_ratios():
    with pytest.raises(ValueError, match="unknown mask_head; choose from identity, random"):
        FrameMask({"mask_head": 0.5})
    with pytest.raises(ValueError, match="they add up to 1.2"):
        FrameMask({"random": 0.6, "image_head": 0.6})
    with pytest.raises(ValueError, match=r"'random': -0.1"):
        FrameMask({"random": -0.1})
