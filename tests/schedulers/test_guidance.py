"""Guidance: identities of the nested sum, branches that are skipped, schedules."""

import pytest
import torch

from opensora.schedulers.guidance import Guidance, GuidanceScale, clip_dynamically, rescale_spread


class Network:
    """Answers 1 for nothing, +10 with frames, +100 with text, and counts its rows."""

    def __init__(self):
        self.rows = []

    def __call__(self, x, t, cond, drop, known=None):
        self.rows.append(x.shape[0])
        keep = {
            name: 1.0 - drop[name].float() if name in drop else torch.ones(x.shape[0])
            for name in ("frames", "text")
        }
        value = 1 + 10 * keep["frames"] + 100 * keep["text"]
        return value.view(-1, 1, 1, 1, 1) * torch.ones_like(torch.cat((x, x), 1))


def guide(scales, step=0, steps=20, frames=1, **kw):
    network = Network()
    x = torch.zeros(2, 3, frames, 1, 1)
    v = Guidance(scales, **kw)(network, x, torch.ones(2), {"fps": torch.ones(2)}, step, steps)
    assert v.shape == x.shape
    return v[0, 0, :, 0, 0].tolist(), network.rows[0] // 2


def test_nested_sum():
    assert guide({"frames": 3.0, "text": 7.0}) == ([1 + 3 * 10 + 7 * 100], 3)
    assert guide({"text": 7.0}) == ([11 + 7 * 100], 2)


def test_branches_with_coefficient_zero_are_not_computed():
    assert guide({}) == ([111], 1)
    assert guide({"text": 1.0}) == ([111], 1)
    assert guide({"frames": 1.0, "text": 1.0}) == ([111], 1)
    assert guide({"frames": 1.0, "text": 7.0}) == ([11 + 700], 2)
    assert guide({"frames": 5.0, "text": 5.0}) == ([1 + 5 * 110], 2)
    assert guide({"frames": 3.0, "text": 1.0}) == ([1 + 30 + 100], 3)
    assert guide({"text": 0.0}) == ([11], 1)


def test_oscillation_follows_every_second_step():
    scale = {"scale": 7.0, "oscillate_from": 10}
    values = [guide({"text": scale}, step=i)[0][0] for i in range(14)]
    assert values == [711.0] * 10 + [711.0, 111.0, 711.0, 111.0]


def test_ramp_falls_over_steps_and_rises_over_frames():
    scale = GuidanceScale(5.0, ramp_from=1.0)
    assert scale.at(0, 5, 3).tolist() == [1.0, 3.0, 5.0]
    assert scale.at(4, 5, 3).tolist() == [1.0, 1.0, 1.0]
    values, branches = guide({"frames": {"scale": 5.0, "ramp_from": 1.0}}, steps=5, frames=3)
    assert (values, branches) == ([101 + 10, 101 + 30, 101 + 50], 2)


def test_an_interval_of_the_steps_is_guided_and_the_rest_takes_one_branch():
    scale = {"scale": 7.0, "interval": (0.15, 0.5)}
    found = [guide({"text": scale}, step=i, steps=12) for i in range(12)]
    assert found == 2 * [([111.0], 1)] + 4 * [([711.0], 2)] + 6 * [([111.0], 1)]
    assert guide({"text": {"scale": 7.0, "interval": (0, 1)}}, step=11, steps=12) == ([711.0], 2)


@pytest.mark.parametrize("wrong", [(0.5, 0.5), (-0.1, 1), (0, 1.1), (1, 0), (0.5,), 0.5, "ab"])
def test_an_interval_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match=r"guidance interval=.*two shares of the steps"):
        Guidance({"text": {"scale": 7.0, "interval": wrong}})


def test_rescaling_brings_the_spread_back():
    torch.manual_seed(0)
    v, cond = 5 * torch.randn(2, 3, 2, 8, 8), torch.randn(2, 3, 2, 8, 8)
    out = rescale_spread(v, cond, 1.0)
    torch.testing.assert_close(out.flatten(1).std(1), cond.flatten(1).std(1))
    torch.testing.assert_close(rescale_spread(v, cond, 0.0), v)


def test_dynamic_threshold_is_per_sample():
    v = torch.randn(2, 1, 1, 50, 50) * torch.tensor([10.0, 1.0]).view(2, 1, 1, 1, 1)
    out = clip_dynamically(v, 0.95, 6.0)
    assert out[0].abs().max() == pytest.approx(6.0)
    torch.testing.assert_close(out[1], v[1])
    edge = torch.quantile(v[0].abs().flatten(), 0.95)
    torch.testing.assert_close(out[0], v[0].clamp(-edge, edge) / edge * 6.0)


def test_a_schedule_of_your_own_is_accepted():
    class Late:
        def at(self, step, num_steps, num_frames):
            return 1.0 if step < 10 else 9.0

    assert guide({"text": Late()}, step=0)[0] == [111.0]
    assert guide({"text": Late()}, step=10)[0] == [911.0]
