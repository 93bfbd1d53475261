"""ImageVAE: frames of a video through a 2D autoencoder."""

import builtins
import math
from typing import Any

import pytest
import torch
from torch import nn

from opensora.registry import MODELS, build
from opensora.utils.random import Draws

SMALL = dict(type="ImageVAE", block_out_channels=(8, 8, 8), layers_per_block=1, norm_num_groups=4)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small(**settings: Any) -> nn.Module:
    return build(MODELS, SMALL | settings).eval()


def test_published_layout() -> None:
    with torch.device("meta"):
        vae = build(MODELS, dict(type="ImageVAE"))
    state = {key: tuple(value.shape) for key, value in vae.state_dict().items()}
    assert len(state) == 248
    assert sum(math.prod(shape) for shape in state.values()) == 83_653_863
    assert all(key.startswith("module.") for key in state)
    assert state["module.encoder.conv_out.weight"] == (8, 512, 3, 3)
    assert state["module.quant_conv.weight"] == (8, 8, 1, 1)
    assert vae.stride == (1, 8, 8)
    assert vae.latent_std == pytest.approx(1 / 0.18215)


def test_keys_of_the_bare_package_are_renamed() -> None:
    vae = small()
    for key in vae.module.state_dict():
        renamed = [new + key[len(old) :] for old, new in vae.renames if key.startswith(old)]
        assert renamed == [f"module.{key}"]


@pytest.mark.parametrize("micro_batch_size", [None, 1, 4])
def test_a_video_is_its_frames(micro_batch_size: int | None) -> None:
    vae, video = small(micro_batch_size=micro_batch_size), torch.rand(2, 3, 3, 8, 12) * 2 - 1
    z = vae.encode(video)
    assert tuple(z.shape) == (2, 4, 3, 2, 3)
    assert vae.latent_shape(3, 8, 12) == (3, 2, 3)
    for t in range(3):
        mean = vae.module.encode(video[:, :, t]).latent_dist.mean
        torch.testing.assert_close(z[:, :, t], mean * 0.18215, atol=1e-5, rtol=1e-5)
        image = vae.module.decode(z[:, :, t] / 0.18215).sample
        torch.testing.assert_close(vae.decode(z)[:, :, t], image, atol=1e-5, rtol=1e-5)


def test_latent_shape_is_the_shape_of_latents() -> None:
    vae = small()
    for height in range(4, 14):
        z = vae.encode(torch.zeros(1, 3, 1, height, 17 - height + 4))
        assert vae.latent_shape(1, height, 17 - height + 4) == tuple(z.shape[2:])


def test_statistics_and_samples() -> None:
    vae, video, draws = small(), torch.rand(2, 3, 2, 8, 8), Draws(0, [0, 1])
    posterior = vae.posterior(video)
    noise = draws.normal("posterior", 0, posterior.mean.shape)
    out = vae(video, draws)
    expected = (posterior.mean + torch.exp(posterior.logvar / 2) * noise - vae.latent_mean) / vae.latent_std
    torch.testing.assert_close(out.z, expected)
    torch.testing.assert_close(vae.denormalize(vae.normalize(video)), video)
    torch.testing.assert_close(out.video, vae.decode(out.z))
    assert out.regularizer.shape == (2,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small(micro_batch_size=0), r"micro_batch_size=0: expected a whole number from 1, or None"),
        (lambda: small().legal_length(0), r"num_frames=0: a video has at least 1 frame"),
        (
            lambda: small().encode(torch.zeros(1, 3, 1, 3, 8)),
            r"height=3: too small for the autoencoder; use 4 pixels",
        ),
        (
            lambda: small().encode(torch.zeros(3, 1, 8, 8)),
            r"video has shape \(3, 1, 8, 8\); expected \[B, 3, T, H",
        ),
        (
            lambda: small().decode(torch.zeros(1, 4, 2, 2, 2), 3),
            r"num_frames=3: 2 latent frames give as many frames",
        ),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_diffusers(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "diffusers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_diffusers)
    with pytest.raises(ImportError, match=r"ImageVAE needs the package diffusers: pip install diffusers"):
        small()
