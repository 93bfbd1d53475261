"""Degraded clips: what each kind does, to which samples, and what the loss makes of them."""

import pytest
import torch

from opensora.datasets.transforms import downsample_space, downsample_time
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.engine.noise_augmentation import NoiseAugmentation
from opensora.utils.random import Draws

ALL = {
    "gaussian_pixel": {"probability": 0.5, "strength": 0.4},
    "downsample_spatial": {"probability": 0.5, "strength": (2, 4)},
    "downsample_temporal": {"probability": 0.5, "strength": (2,)},
    "gaussian_feature": {"probability": 0.5, "strength": 0.2},
}


def clips(rows, frames=5):
    return Draws(9, rows).normal("clip", 0, (len(rows), 3, frames, 8, 8)).clamp(-1, 1)


def only(name, **changes):
    return NoiseAugmentation({name: {**ALL[name], "probability": 1.0, **changes}})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("downsample_spatial", lambda x: downsample_space(x, 4)),
        ("downsample_temporal", lambda x: downsample_time(x, 4)),
    ],
)
def test_a_blur_is_the_transform_of_that_name(name, expected):
    x = clips([0, 1])
    video, changed = only(name, strength=(4,)).pixels(x, Draws(0, [0, 1]))
    assert changed.all()
    torch.testing.assert_close(video, expected(x))


def test_factors_are_drawn_from_the_list():
    rows = list(range(40))
    x = clips(rows)
    video, _ = only("downsample_spatial", strength=(1, 2, 4)).pixels(x, Draws(0, rows))
    kinds = [
        next(f for f in (1, 2, 4) if torch.allclose(video[i : i + 1], downsample_space(x[i : i + 1], f)))
        for i in rows
    ]
    assert min(kinds.count(f) for f in (1, 2, 4)) > 5


@pytest.mark.parametrize(("method", "name"), [("pixels", "gaussian_pixel"), ("latents", "gaussian_feature")])
def test_noise_is_mixed_in_up_to_the_strength(method, name):
    rows = list(range(200))
    x, draws = torch.full((200, 3, 2, 4, 4), 0.5), Draws(0, rows)
    noised, changed = getattr(only(name, strength=0.4), method)(x, draws)
    noise = draws.normal(f"augment_{name}_noise", 0, x.shape)
    share = ((noised - x) / (noise - x)).flatten(1).median(1).values
    assert changed.all()
    torch.testing.assert_close(noised, torch.lerp(x, noise, share[:, None, None, None, None]))
    assert 0 <= share.min() < 0.05 and 0.35 < share.max() <= 0.4


def test_probabilities_hold_and_kinds_are_independent():
    rows = list(range(2000))
    draws = Draws(0, rows)
    augmentation = NoiseAugmentation(ALL)
    chosen = {name: augmentation._choose(name, draws)[0].float() for name in ALL}
    assert all(c.mean().item() == pytest.approx(0.5, abs=0.05) for c in chosen.values())
    assert torch.corrcoef(torch.stack(list(chosen.values()))).triu(1).abs().max() < 0.08


def test_a_sample_does_not_depend_on_its_batch_and_the_rest_is_left_alone():
    rows = list(range(12))
    augmentation = NoiseAugmentation(ALL)
    x = clips(rows)
    before = x.clone()
    video, changed = augmentation.pixels(x, Draws(3, rows, 1))
    assert torch.equal(x, before)
    assert 0 < changed.sum() < len(rows)
    assert torch.equal(video[~changed], x[~changed])
    assert all(not torch.equal(video[i], x[i]) for i in changed.nonzero().flatten())
    alone, _ = augmentation.pixels(x[7:8], Draws(3, [7], 1))
    assert torch.equal(alone[0], video[7])


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ({"blur": {"probability": 1, "strength": 2}}, "use downsample_spatial, downsample_temporal"),
        ({"gaussian_pixel": {"probability": 1}}, "each with probability and strength"),
        ({"gaussian_pixel": {"probability": 1.5, "strength": 0.1}}, "probability is in"),
        ({"gaussian_pixel": {"probability": 1, "strength": (0.1, 0.2)}}, "one number in"),
        ({"gaussian_feature": {"probability": 1, "strength": 2}}, "one number in"),
        ({"downsample_spatial": {"probability": 1, "strength": (0.5,)}}, "factors from 1"),
        ({"downsample_temporal": {"probability": 1, "strength": ()}}, "factors from 1"),
    ],
)
def test_wrong_kinds_are_refused(kinds, said):
    with pytest.raises(ValueError, match=said):
        NoiseAugmentation(kinds)


# In the loss


@pytest.fixture
def diffusion(tiny):
    """Return a function that builds a task with some degradations."""

    def build(kinds, **scheduler):
        torch.manual_seed(0)
        cfg = {**tiny, "scheduler": {**tiny["scheduler"], **scheduler}, "noise_augmentation": kinds}
        return LatentDiffusion.from_config(cfg)

    return build


def inputs(task, data):
    """Return the noisy latents and the target that the loss is made of, by a model that predicts zero."""
    seen = {}

    def model(x, t, cond, drop, known=None):
        seen.update(x=x, t=t)
        return torch.zeros_like(x)

    task.forward_model = model
    ((_, values),) = task.losses(data)
    return seen["x"], seen["t"], values["per_sample"]


def test_the_velocity_points_to_the_clean_clip(diffusion, batch):
    pixel = {"gaussian_pixel": {"probability": 1.0, "strength": 1.0}}
    x, t, loss = inputs(diffusion(None), batch())
    noisy_x, noisy_t, noisy_loss = inputs(diffusion(pixel), batch())
    assert torch.equal(t, noisy_t)
    assert torch.equal(loss, noisy_loss)  # of a prediction of zero: the square of the target
    z = diffusion(None).encode(batch())[0]
    draws = Draws(0, [0, 1], [0, 0])
    video, _ = NoiseAugmentation(pixel).pixels(batch()["video"], draws)
    degraded = diffusion(None).encode({**batch(), "video": video})[0]
    difference = (1 - t)[:, None, None, None, None] * (degraded - z)
    torch.testing.assert_close(noisy_x - x, difference, atol=1e-5, rtol=1e-4)
    assert difference.abs().max() > 1e-3


def test_above_a_time_the_input_is_clean(diffusion, batch):
    feature = {"gaussian_feature": {"probability": 1.0, "strength": 1.0}}
    clean, t, _ = inputs(diffusion(None), batch())
    middle = float(t.mean())
    x, _, _ = inputs(diffusion(feature, clean_above=middle), batch())
    assert [torch.equal(a, b) for a, b in zip(x, clean, strict=True)] == (t > middle).tolist()


def test_images_and_untouched_batches_are_trained_as_without(diffusion, batch):
    certain = {name: {**kind, "probability": 1.0} for name, kind in ALL.items()}
    assert torch.equal(inputs(diffusion(certain), batch(1))[0], inputs(diffusion(None), batch(1))[0])
    never = {name: {**kind, "probability": 0.0} for name, kind in ALL.items()}
    task = diffusion(never)
    assert torch.equal(inputs(task, batch())[0], inputs(diffusion(None), batch())[0])
    encoded = []
    task.vae.encode = lambda clip, *_: encoded.append(clip) or torch.zeros(1, 4, 2, 2, 2)
    list(task.losses(batch()))
    assert len(encoded) == 2  # once per clip


def test_stored_latents_can_only_get_latent_noise(diffusion, batch):
    data = batch()
    data["latents"] = diffusion(None).encode(data)[0]
    del data["video"]
    feature = {"gaussian_feature": {"probability": 1.0, "strength": 1.0}}
    assert not torch.equal(inputs(diffusion(feature), data)[0], inputs(diffusion(None), data)[0])
    with pytest.raises(ValueError, match="degrades pixels, and this data holds latents"):
        inputs(diffusion(ALL), data)
