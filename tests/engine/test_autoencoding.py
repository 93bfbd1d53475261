"""Training an autoencoder: the loss, mixed lengths, frozen parts, stages, the discriminator's turn."""

import pytest
import torch
from PIL import Image

from opensora.datasets.buckets import Shape
from opensora.engine.adversary import Adversary, adaptive_weight
from opensora.engine.autoencoding import Autoencoding
from opensora.models.perceptual import PerceptualDistance
from opensora.registry import MODELS, build
from opensora.utils.config_defaults import base_configs
from opensora.utils.random import Draws

VIDEO = {
    "type": "VideoVAE",
    "latent_channels": 4,
    "channels": 32,
    "channel_multipliers": (1, 1, 1, 1),
    "num_res_blocks": 1,
    "micro_frame_size": 5,
}
STACKED = {
    "type": "StackedVAE",
    "spatial": {"type": "ImageVAE", "block_out_channels": (32,) * 4, "layers_per_block": 1},
    "temporal": {
        "type": "TemporalVAE",
        "channels": 32,
        "num_res_blocks": 1,
        "channel_multipliers": (1, 1, 1, 1),
    },
    "micro_frame_size": 5,
}
BASE = base_configs()["autoencoder"]
LOSS = {**BASE["loss"], "perceptual_weight": 0.0, "l1_weight": 1.0, "mse_weight": 2.0, "kl_weight": 0.5}
DISCRIMINATOR = {"type": "PatchDiscriminator", "channels": 4, "num_layers": 2}


def task(vae=VIDEO, loss=None, gan=None, discriminator=None, **settings):
    torch.manual_seed(0)
    vae, adversary = build(MODELS, vae), None
    if gan is not None:
        patches = build(MODELS, {**DISCRIMINATOR, **(discriminator or {})})
        adversary = Adversary(patches, {**BASE["gan"], **gan})
    return Autoencoding(vae, loss={**LOSS, **(loss or {})}, adversary=adversary, **settings)


def batch(frames=9, height=16, width=16):
    video = Draws(1, [3, 4]).normal("video", 0, (2, 3, frames, height, width)).clamp(-1, 1)
    return {"video": video, "sample": torch.tensor([3, 4]), "epoch": torch.tensor([0, 0])}


def losses(one, data, step=0):
    ((name, values),) = one.losses(data, step)
    assert name == "vae"
    return values


def test_the_loss_is_the_weighted_sum():
    one, data = task(), batch()
    values = losses(one, data)
    with torch.no_grad():
        out = one.vae(data["video"], Draws(0, [3, 4], [0, 0]))
    error = out.video - data["video"]
    kl = out.regularizer.mean() / out.z[0].numel()
    expected = error.abs().mean() + 2 * error.square().mean() + 0.5 * kl
    torch.testing.assert_close(values["loss"].detach(), expected)
    torch.testing.assert_close(values["psnr"], 10 * torch.log10(4 / error.square().mean()))


@pytest.mark.parametrize(
    ("vae", "size"),
    [(VIDEO, (5, 16, 16)), (VIDEO, (7, 17, 27)), (STACKED, (7, 16, 16))],
    ids=["video", "odd", "stacked"],
)
def test_every_family_and_size_trains_and_is_measured(vae, size, tmp_path):
    if vae is STACKED:
        pytest.importorskip("diffusers")
    one, data = task(vae), batch(*size)
    losses(one, data)["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in one.vae.parameters())
    measured = one.evaluate(data, 1, Draws(0, [3, 4]))
    assert 0 < measured["l1"] < 5 and measured["psnr"] == measured["psnr"]
    one.show(data, tmp_path / "sample")
    with Image.open(tmp_path / "sample.png") as picture:
        assert picture.width > size[2]


def test_a_part_of_the_batches_keeps_its_first_frame():
    one, video = task(mixed_frames={"strategy": "image", "image_ratio": 0.3}), batch()["video"]
    lengths = [one._cut(video, step).shape[2] for step in range(300)]
    assert set(lengths) == {1, 9}
    assert lengths.count(1) / 300 == pytest.approx(0.3, abs=0.07)
    assert lengths == [one._cut(video[:1], step).shape[2] for step in range(300)]  # on every process


def test_random_lengths_are_legal_ones():
    one, video = task(mixed_frames={"strategy": "random", "image_ratio": 0.0}), batch(9)["video"]
    assert {one._cut(video, step).shape[2] for step in range(100)} == {1, 5, 9}


def test_frozen_parts_get_no_gradient():
    one = task(frozen=("encoder.",))
    losses(one, batch())["loss"].backward()
    assert all((p.grad is None) == name.startswith("encoder.") for name, p in one.vae.named_parameters())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"frozen": ("encodr.",)}, "frozen: no parameter starts with 'encodr.'; .* decoder, encoder"),
        ({"mixed_frames": {"strategy": "both", "image_ratio": 0.1}}, "mixed_frames.strategy='both'"),
    ],
)
def test_wrong_settings(settings, said):
    with pytest.raises(ValueError, match=said):
        task(**settings)


def test_the_perceptual_distance_joins_the_loss():
    distance = PerceptualDistance("efficientnet")
    plain, more = task(), task(loss={"perceptual_weight": 0.1}, perceptual=distance)
    a, b = losses(plain, batch()), losses(more, batch())
    torch.testing.assert_close(b["loss"], a["loss"] + 0.1 * b["perceptual"])
    b["loss"].backward()
    assert all(p.grad is not None for p in more.vae.parameters())
    assert all(p.grad is None for p in distance.parameters())


def test_learned_variance_follows_the_error():
    one = task(loss={"learned_logvar": True, "kl_weight": 0.0, "logvar_init": 1.0})
    (_, values), (name, variance) = one.losses(batch(), 0)
    error = values["l1"] + 2 * 4 / 10 ** (values["psnr"] / 10)
    torch.testing.assert_close(values["loss"].detach(), error / torch.e + 1, atol=1e-5, rtol=1e-5)
    assert name == "variance" and set(one.trainable()) == {"vae", "variance"}
    variance["loss"].backward()
    # d (error e^-s + s) / ds = 1 - error e^-s
    torch.testing.assert_close(one.variance.logvar.grad, 1 - error / torch.e, atol=1e-5, rtol=1e-5)
    assert set(task().trainable()) == {"vae"}


# The discriminator


@pytest.mark.parametrize(
    ("gan", "discriminator"),
    [
        ({"start": 2}, {"dims": 3}),
        ({"start": 2, "loss": "vanilla", "generator_loss": "non-saturating"}, {"dims": 2, "kernel_size": 4}),
        ({"start": 2, "adaptive": False}, {"dims": 3}),
    ],
    ids=["hinge", "vanilla", "fixed"],
)
def test_the_discriminator_is_untouched_before_its_start(gan, discriminator):
    one, data = task(gan=gan, discriminator=discriminator), batch(5)
    patches = one.adversary.discriminator
    before = {key: value.clone() for key, value in patches.state_dict().items()}
    for step in (0, 1):
        assert [name for name, _ in one.losses(data, step)] == ["vae"]
    assert all(torch.equal(value, before[key]) for key, value in patches.state_dict().items())
    (name, values), (other, found) = one.losses(data, 2)
    assert (name, other) == ("vae", "discriminator") and patches.main[-1].weight.grad is None
    ours = torch.autograd.grad(values["loss"], list(one.vae.parameters()), retain_graph=True)
    assert all(g.isfinite().all() for g in ours)
    found["loss"].backward()
    assert all(p.grad is not None for p in patches.parameters())
    assert all(p.grad is None for p in one.vae.parameters())  # the decoded video was cut off


@pytest.mark.parametrize(
    ("settings", "least"),
    [({"kernel_size": 3}, 1), ({"kernel_size": 4}, 16), ({"kernel_size": 4, "time_halvings": 1}, 10)],
)
def test_clips_shorter_than_the_kernels_stand_still(settings, least):
    patches = build(MODELS, {**DISCRIMINATOR, "num_layers": 3, "dims": 3, **settings}).eval()
    assert patches.least_frames == least
    clip = torch.rand(1, 3, 9, 32, 32)
    assert patches(clip[:, :, :1]).shape[2] == 1 and patches(clip).isfinite().all()
    longer = torch.cat((clip, clip[:, :, -1:].expand(-1, -1, 7, -1, -1)), dim=2)
    if least == 16:
        torch.testing.assert_close(patches(clip), patches(longer))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("kernel", "layers", "least"), [(3, 3, 9), (4, 2, 12), (4, 3, 24)])
def test_clips_too_small_for_the_discriminator_are_refused(dims, kernel, layers, least):
    sizes = {"dims": dims, "kernel_size": kernel, "num_layers": layers}
    one = task(gan={"start": 100}, discriminator=sizes)
    assert one.adversary.discriminator.least_side == least
    enough = -(-least // 8) * 8  # the autoencoder gives whole cells back
    one.check_shapes([Shape(0, "1.00", 5, enough, enough + 7, 2)])
    said = f"dimensions with these layers, which needs {least} x {least}; use larger clips"
    with pytest.raises(ValueError, match=f"{enough - 8} x {enough} pixels.*{said}"):
        one.check_shapes([Shape(0, "1.00", 5, enough - 8, enough, 2)])
    patches, image = one.adversary.discriminator.train(), torch.rand(1, 3, *(1,) * (dims - 2), least, least)
    assert patches(image).isfinite().all()
    with pytest.raises((ValueError, RuntimeError), match="Kernel size|more than 1 value"):
        patches(image[..., 1:, 1:])


def test_the_adaptive_weight_is_the_ratio_of_gradients():
    layer = torch.tensor([1.0, 2.0], requires_grad=True)
    weight = adaptive_weight((layer * torch.tensor([3.0, 4.0])).sum(), 0.5 * layer[0], layer)
    assert weight.item() == pytest.approx(5 / (0.5 + 1e-4)) and not weight.requires_grad
    assert adaptive_weight((1e9 * layer).sum(), layer[0], layer).item() == 1e4
    one, data = (
        task(gan={"start": 0, "generator_weight": 0.25, "discriminator_weight": 0.5}),
        batch(5),
    )
    plain = losses(task(), data)["loss"]
    values = next(one.losses(data, 0))[1]
    expected = plain + 0.25 * 0.5 * values["adaptive_weight"] * values["generator"]
    torch.testing.assert_close(values["loss"], expected)


def test_losses_of_the_discriminator_by_hand():
    yes, no = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, -0.5, 1.0])
    patches = build(MODELS, DISCRIMINATOR)
    clip = torch.zeros(1, 3, 1, 2, 2)
    for name, value in (("hinge", 0.5 * (2.5 / 3 + 2.5 / 3)), ("vanilla", None), ("non-saturating", None)):
        scores = iter((yes, no))
        one = Adversary(patches, {**BASE["gan"], "loss": name})
        found = one.discriminator_loss(lambda video, scores=scores: next(scores), clip, clip)["loss"]
        softplus = 0.5 * (torch.log1p(torch.exp(-yes)).mean() + torch.log1p(torch.exp(no)).mean())
        assert found.item() == pytest.approx(softplus.item() if value is None else value, abs=1e-6)


# The stages of 1.2


def test_stages_compare_what_they_say():
    pytest.importorskip("diffusers")
    data, image = batch(5), batch(1)
    first = {"real_reconstruction": False, "latent_reconstruction": True, "image_identity": True}
    one = task(STACKED, first, frozen=("spatial_vae.",))
    values, single = losses(one, data), losses(one, image)
    torch.testing.assert_close(values["loss"].detach(), values["latent_l1"])
    torch.testing.assert_close(single["loss"].detach(), single["latent_l1"] + single["identity_l1"])
    with torch.no_grad():
        out = one.vae(image["video"], Draws(0, [3, 4], [0, 0]))
        again = one.vae(image["video"], Draws(0, [3, 4], [0, 0]), pixels=False)
    torch.testing.assert_close(single["identity_l1"], (one.vae.denormalize(out.z) - out.latents).abs().mean())
    assert again.video is None and torch.equal(again.z, out.z) and out.video.shape == image["video"].shape
    single["loss"].backward()
    assert all((p.grad is None) == name.startswith("spatial_vae.") for name, p in one.vae.named_parameters())
    both = task(STACKED, {"latent_reconstruction": True})
    values = losses(both, data)
    assert {"l1", "latent_l1", "kl"} <= set(values) and "identity_l1" not in values


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss": {"image_identity": True}}, "two parts of a StackedVAE; VideoVAE has one"),
        ({"loss": {"real_reconstruction": False}}, "nothing else is compared"),
        ({"gan": {"loss": "wgan"}}, "gan.loss='wgan': use one of hinge, vanilla"),
        ({"gan": {}, "frozen": ("decoder.conv_out",)}, "set gan.adaptive=False"),
    ],
)
def test_settings_that_contradict(settings, said):
    with pytest.raises(ValueError, match=said):
        task(**settings)
