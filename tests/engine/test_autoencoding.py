"""Training an autoencoder: the loss, mixed lengths, frozen parts, both families."""

import pytest
import torch
from PIL import Image

from opensora.engine.autoencoding import Autoencoding
from opensora.registry import MODELS, build
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
LOSS = {"l1_weight": 1.0, "mse_weight": 2.0, "kl_weight": 0.5}


def task(vae=VIDEO, **settings):
    torch.manual_seed(0)
    return Autoencoding(build(MODELS, vae), **{"loss": LOSS, **settings})


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
