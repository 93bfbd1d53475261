"""Rectified flow: ends of the path, order of the sampler, known frames, loss weights, published figures."""

import math

import pytest
import torch

from opensora.schedulers.guidance import Guidance
from opensora.schedulers.rectified_flow import RectifiedFlow, mean_over_frames
from opensora.utils.random import Draws


def sizes(batch, height=360, width=640, num_frames=113):
    return {
        k: torch.full((batch,), float(v))
        for k, v in zip(("height", "width", "num_frames"), (height, width, num_frames), strict=True)
    }


def test_the_path_starts_at_data_and_ends_at_noise():
    flow, x, noise = RectifiedFlow(), torch.randn(3, 2, 2, 2, 2), torch.randn(3, 2, 2, 2, 2)
    assert torch.equal(flow.interpolate(x, noise, torch.zeros(3)), x)
    assert torch.equal(flow.interpolate(x, noise, torch.ones(3)), noise)
    frames = torch.tensor([[0.0, 1.0]] * 3)
    mixed = flow.interpolate(x, noise, frames)
    assert torch.equal(mixed[:, :, 0], x[:, :, 0]) and torch.equal(mixed[:, :, 1], noise[:, :, 1])


def exact_velocity(std):
    """For data N(0, std^2) and noise N(0, 1) the best velocity is linear in x_t."""

    def model(x, t, cond, drop, known=None):
        t = t.to(x).view(-1, 1, 1, 1, 1)
        return x * ((1 - t) * std**2 - t) / ((1 - t) ** 2 * std**2 + t**2)

    return model


def test_error_of_the_sampler_falls_with_the_step_size():
    noise = torch.randn(1, 1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    errors = []
    for steps in (8, 16, 32, 64):
        flow = RectifiedFlow(num_sampling_steps=steps)
        errors.append(
            (flow.sample(exact_velocity(0.5), noise, {}, Guidance({})) - 0.5 * noise).abs().max().item()
        )
    ratios = [a / b for a, b in zip(errors, errors[1:], strict=False)]
    assert all(1.6 < ratio < 2.4 for ratio in ratios), errors  # Euler is of first order


def test_loss_of_the_exact_velocity_is_the_least():
    x0 = 0.5 * Draws(1, range(4)).normal("data", 0, (4, 1, 1, 64, 64))
    flow, draws = RectifiedFlow(), Draws(0, range(4))
    best = flow.training_loss(exact_velocity(0.5), x0, {}, draws=draws)
    worse = flow.training_loss(lambda *a, **k: 1.1 * exact_velocity(0.5)(*a, **k), x0, {}, draws=draws)
    assert best.shape == (4,)
    assert worse.mean() > best.mean()


def test_known_frames_are_untouched_and_carry_no_gradient():
    seen = []

    def model(x, t, cond, drop, known=None):
        seen.append((x, known))
        return x * weight[None, None, :, None, None]

    weight = torch.ones(5, requires_grad=True)
    mask = torch.tensor([[1.0, 0, 1, 1, 0], [0.0, 1, 1, 1, 1]])
    x0, flow = torch.randn(2, 3, 5, 4, 4), RectifiedFlow()
    loss = flow.training_loss(model, x0, {}, frame_mask=mask, draws=Draws(0, range(2)))
    x_t, known = seen[0]
    given = mask == 0
    assert torch.equal(known, given)
    assert torch.equal(x_t.movedim(2, 1)[given], x0.movedim(2, 1)[given])
    loss[0].backward()
    assert (weight.grad[given[0]] == 0).all() and (weight.grad[~given[0]] != 0).all()
    z = flow.sample(model, torch.randn(2, 3, 5, 4, 4), {}, Guidance({}), known=x0, frame_mask=mask)
    assert torch.equal(z.movedim(2, 1)[given], x0.movedim(2, 1)[given])


def test_edited_frames_start_from_their_noised_content():
    first = {}

    def model(x, t, cond, drop, known=None):
        if not bool(known[0, 0]) and not first:
            first.update(x=x.clone(), t=float(t[0]))
        return torch.zeros_like(x)

    x0, flow = torch.randn(1, 1, 2, 3, 3), RectifiedFlow(num_sampling_steps=10)
    draws = Draws(0, [0])
    flow.sample(
        model,
        torch.randn_like(x0),
        {},
        Guidance({}),
        known=x0,
        frame_mask=torch.tensor([[0.45, 1.0]]),
        draws=draws,
    )
    assert first["t"] == pytest.approx(0.4)
    noise = draws.normal("edit", 6, tuple(x0.shape))
    torch.testing.assert_close(first["x"][:, :, 0], 0.6 * x0[:, :, 0] + 0.4 * noise[:, :, 0])


@pytest.mark.parametrize("shape", [(360, 640, 113), (1080, 1920, 409), (144, 256, 1), (97, 131, 17)])
def test_generated_frames_move_in_every_step_whatever_the_shift_rounds_to(shape):
    steps = []

    def model(x, t, cond, drop, known=None):
        steps.append(known.any().item())
        return torch.ones_like(x)

    flow = RectifiedFlow(num_sampling_steps=7, shift_time=True)
    cond = sizes(1, *shape)
    flow.sample(
        model,
        torch.zeros(1, 1, 2, 2, 2),
        cond,
        Guidance({}),
        known=torch.zeros(1, 1, 2, 2, 2),
        frame_mask=torch.ones(1, 2),
    )
    assert steps == [False] * 7


def test_reference_weights_keep_the_total():
    flow = RectifiedFlow(reference_weight=0.25)
    weights = flow._reference_weights(torch.tensor([[1.0, 0, 0, 1, 0, 0], [0.0, 0, 0, 0, 0, 0]])).flatten(1)
    torch.testing.assert_close(weights.sum(1), torch.tensor([6.0, 6.0]))
    assert weights[0, 0] == 0.25


def test_mean_over_frames_ignores_given_ones():
    x, mask = torch.randn(2, 3, 4, 2, 2), torch.tensor([[1.0, 0, 1, 0], [1, 1, 1, 1]])
    torch.testing.assert_close(mean_over_frames(x, mask)[0], x[0, :, [0, 2]].mean())
    torch.testing.assert_close(mean_over_frames(x, mask)[1], x[1].mean())


def toy(x, t, cond, drop, known=None):
    """`v = y x + t` with y = 0.3 for the prompt and -0.2 for nothing, and a second half to be ignored."""
    y = torch.full((x.shape[0],), 0.3)
    if "text" in drop:
        y = torch.where(drop["text"], -0.2, y)
    v = y.view(-1, 1, 1, 1, 1) * x + t.to(x).view(-1, 1, 1, 1, 1)
    return torch.cat((v, torch.zeros_like(v)), 1)


FIGURES = {  # mean, std, largest magnitude
    (False, 0.0, None): (1.304583, 3.153989, 6.541934),
    (True, 0.0, None): (1.217439, 2.878017, 5.996527),
    (True, 0.7, None): (0.241622, 1.196306, 2.228147),
    (True, 0.0, 10): (0.882354, 2.017605, 4.232685),
}


@pytest.mark.parametrize("settings", FIGURES)
def test_published_sampling_figures(settings):
    shift, rescale, oscillate = settings
    h = (torch.arange(72, dtype=torch.int64) * 2654435761 + 3001 * 40503 + 12345) & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    noise = (2 * (h ^ (h >> 16)).double() / 2**32 - 1).float().view(1, 2, 4, 3, 3)
    guidance = Guidance({"text": {"scale": 4.0, "oscillate_from": oscillate}}, rescale=rescale)
    flow = RectifiedFlow(num_sampling_steps=12, shift_time=shift)
    z = flow.sample(toy, noise, sizes(1), guidance)
    got = (z.mean().item(), z.std().item(), z.abs().max().item())
    assert got == pytest.approx(FIGURES[settings], abs=2e-5)


def test_the_loss_is_a_function_of_the_sample_not_of_the_batch():
    flow, x0 = RectifiedFlow(time_distribution="logit-normal"), torch.randn(4, 1, 2, 4, 4)
    model = exact_velocity(0.7)
    whole = flow.training_loss(model, x0, {}, draws=Draws(0, [4, 5, 6, 7], 2))
    alone = flow.training_loss(model, x0[2:3], {}, draws=Draws(0, [6], 2))
    assert torch.equal(whole[2:3], alone)


def test_refused_settings():
    with pytest.raises(ValueError, match="time_distribution='normal': use one of uniform, logit-normal"):
        RectifiedFlow(time_distribution="normal")
    with pytest.raises(ValueError, match="discrete_time=True needs time_distribution='uniform'"):
        RectifiedFlow(time_distribution="logit-normal", discrete_time=True)
    with pytest.raises(ValueError, match="frame_factor='stride8'"):
        RectifiedFlow(frame_factor="stride8")
    with pytest.raises(ValueError, match="num_sampling_steps=0: use at least 1"):
        RectifiedFlow(num_sampling_steps=0)
    assert math.isfinite(
        RectifiedFlow().training_loss(
            exact_velocity(1.0), torch.zeros(1, 1, 1, 2, 2), {}, draws=Draws(0, [0])
        )
    )
