"""Parts of longer clips: where they lie, what is given, and that nothing else changes."""

from typing import NamedTuple

import pytest
import torch

from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.engine.latent_window import LatentWindow
from opensora.utils.random import Draws

ROWS = list(range(400))


class Shape(NamedTuple):
    """A bucket."""

    num_frames: int


class Causal:
    """An autoencoder's lengths: 1 frame, then 4 in each latent."""

    stride = (4, 8, 8)
    micro_frame_size = None

    def latent_shape(self, num_frames, height, width):
        return (1 + (num_frames - 1) // 4, height // 8, width // 8)

    def legal_length(self, num_frames):
        return 1 + (num_frames - 1) // 4 * 4


def numbered(frames, rows=ROWS):
    """Latents whose values are the numbers of their frames."""
    z = torch.arange(frames).float()[None, None, :, None, None].expand(len(rows), 2, frames, 1, 1)
    return {"latents": z, "num_frames": torch.full((len(rows),), 1.0 + 4 * (frames - 1))}


def starts_of(out):
    z = out["latents"][:, 0, :, 0, 0]
    assert torch.equal(z, z[:, :1] + torch.arange(z.shape[1]))  # frames that follow each other
    return z[:, 0].long()


@pytest.fixture
def diffusion(tiny):
    """Return a function that builds a task with windows, and a record of what its network sees."""

    def build(window, **others):
        torch.manual_seed(0)
        task = LatentDiffusion.from_config({**tiny, "latent_window": window, **others})
        seen = {}

        def model(x, t, cond, drop, known=None):
            seen.update(x=x, t=t, cond=cond)
            return torch.zeros_like(x)

        task.forward_model = model
        return task, seen

    return build


@pytest.fixture
def features(diffusion, batch):
    """Return the latents of a batch of 17 frames, and the batch without its video."""
    data = batch(17)
    z, _ = diffusion(None)[0].encode(data)
    return z, {k: v for k, v in data.items() if k != "video"}


def test_places_are_drawn_evenly_and_only_later_ones_get_frames():
    out = LatentWindow(3, given=2, begin=0.4).cut(numbered(7), Causal(), Draws(0, ROWS))
    starts = starts_of(out)
    share = [float((starts == n).float().mean()) for n in range(5)]
    assert share[0] == pytest.approx(0.4, abs=0.08)
    assert share[1:] == pytest.approx([0.15] * 4, abs=0.06)
    assert torch.equal(out["given_latents"], torch.where(starts > 0, 2, 0))
    assert out["num_frames"].tolist() == [9.0] * len(ROWS)


def test_a_window_depends_on_its_sample_alone():
    window, some = LatentWindow(3), [7, 3, 300]
    whole = window.cut(numbered(7), Causal(), Draws(0, ROWS))["latents"][some]
    assert torch.equal(window.cut(numbered(7, some), Causal(), Draws(0, some))["latents"], whole)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_short_clips_and_images_are_taken_whole(frames):
    data = numbered(frames)
    out = LatentWindow(3).cut(data, Causal(), Draws(0, ROWS))
    assert out.keys() == data.keys()
    assert torch.equal(out["latents"], data["latents"])


def test_without_draws_each_window_is_the_beginning():
    out = LatentWindow(3, begin=0.0).cut(numbered(7), Causal())
    assert not starts_of(out).any() and "given_latents" not in out


def test_pieces_that_are_coded_at_once_stay_whole(diffusion, tiny):
    vae = Causal()
    vae.micro_frame_size = 5  # two latents
    starts = starts_of(LatentWindow(4, given=2, begin=0.0).cut(numbered(11), vae, Draws(0, ROWS)))
    assert set(starts.tolist()) == {2, 4, 6}
    model = {**tiny["vae"], "micro_frame_size": 17}  # five latents
    with pytest.raises(ValueError, match=r"frames=10, given=1: this vae codes 5 latent frames at once"):
        diffusion({"frames": 10}, vae=model)
    diffusion({"frames": 10, "given": 5}, vae=model)


@pytest.mark.parametrize(
    "wrong", [{"frames": 1}, {"frames": 3, "given": 3}, {"frames": 3, "begin": 1.5}, {"frames": 3.0}]
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="latent_window: frames="):
        LatentWindow(**wrong)


@pytest.mark.parametrize("wrong", [{"given": 1}, {"frames": 3, "start": 0.5}])
def test_unknown_and_missing_keys_are_refused(wrong, diffusion):
    with pytest.raises(ValueError, match="latent_window=.*: give frames"):
        diffusion(wrong)


def test_clips_that_are_never_cut_are_refused(diffusion):
    task, _ = diffusion({"frames": 3})
    task.check_shapes([Shape(5), Shape(25)])
    said = r"the longest clips have 9 frames, 3 latent ones.*at least 13 frames"
    with pytest.raises(ValueError, match=said):
        task.check_shapes([Shape(1), Shape(9)])


def test_the_loss_is_that_of_the_cut_clips_with_their_frames_given(diffusion, features):
    window = {"frames": 2, "given": 1, "begin": 0.0}
    plain, _ = diffusion(None)
    z, data = features
    task, seen = diffusion(window)
    ((_, values),) = task.losses({**data, "latents": z})
    cut = LatentWindow(**window).cut({"latents": z}, task.vae, Draws(0, [0, 1], [0, 0]))
    assert (cut["given_latents"] == 1).all()
    assert torch.equal(seen["x"][:, :, 0], cut["latents"][:, :, 0])  # clean
    assert not torch.equal(seen["x"][:, :, 1], cut["latents"][:, :, 1])
    assert "given_latents" not in seen["cond"]

    class GiveFirst:
        def draw(self, z, draws):
            return torch.tensor([[0.0, 1.0]]).expand(len(z), 2)

    plain.frame_mask = GiveFirst()
    short = {**data, "num_frames": seen["cond"]["num_frames"], "latents": cut["latents"]}
    ((_, expected),) = plain.losses(short)
    assert torch.equal(values["per_sample"], expected["per_sample"])


@pytest.mark.parametrize("ratios", [{"random": 1.0}, {"image_tail": 1.0}, {"image_head_tail": 1.0}])
def test_something_is_always_left_to_generate(ratios, diffusion):
    """Also where a mask gives the rest of a window."""
    task, _ = diffusion({"frames": 3, "given": 2}, frame_mask={"type": "FrameMask", "ratios": ratios})
    draws, given = Draws(0, ROWS), torch.tensor([0, 2]).repeat(200)
    z = numbered(3)["latents"]
    mask, other = task._draw_mask(z, given, draws), task.frame_mask.draw(z, draws)
    assert (mask.sum(1) >= 1).all()
    assert not mask[given > 0, :2].any() and torch.equal(mask[given == 0], other[given == 0])


def test_encoded_on_the_way_equals_stored(diffusion, batch, features):
    task, _ = diffusion({"frames": 2, "given": 1, "begin": 0.3})
    data = batch(17)
    ((_, live),) = task.losses(data)
    z, rest = features
    ((_, stored),) = task.losses({**rest, "latents": z})
    assert torch.equal(live["per_sample"], stored["per_sample"])


def test_evaluation_takes_beginnings(diffusion, features):
    window = {"frames": 2, "given": 1, "begin": 0.0}
    plain, _ = diffusion(None)
    z, data = features
    task, seen = diffusion(window)
    found = task.evaluate({**data, "latents": z}, 2, Draws(1, [0, 1]))
    short = {**data, "latents": z[:, :, :2], "num_frames": seen["cond"]["num_frames"]}
    assert found == plain.evaluate(short, 2, Draws(1, [0, 1]))


@pytest.mark.parametrize("kind", ["none", "i2v_tail", "v2v_head_noisy"])
def test_a_network_with_frames_as_a_condition_gets_them_there(kind, diffusion, tiny, features):
    """Whatever else is given, one frame is left to generate, and the given ones are those of the clip."""
    model = {**tiny["model"], "conditions": {**tiny["model"]["conditions"]}}
    model["conditions"]["frames"] = {"type": "FrameCondition", "classes": {kind: 1.0}}
    task, seen = diffusion({"frames": 2, "given": 1, "begin": 0.0}, model=model)
    z, data = features
    list(task.losses({**data, "latents": z, "reference_latents": z + 1.0}))
    mask, reference = seen["cond"]["reference_mask"], seen["cond"]["reference"]
    assert mask.tolist() == [[1.0, 0.0]] * 2
    cut = LatentWindow(2, 1, 0.0).cut({"latents": z}, task.vae, Draws(0, [0, 1], [0, 0]))["latents"]
    assert torch.equal(reference[:, :, 0], cut[:, :, 0]) and not reference[:, :, 1].any()


def test_whole_clips_of_degraded_pixels_are_refused(diffusion):
    kinds = {"gaussian_pixel": {"probability": 0.5, "strength": 0.4}}
    with pytest.raises(ValueError, match="latent_window cuts latents, and noise_augmentation degrades"):
        diffusion({"frames": 2}, noise_augmentation=kinds)
