"""StackedVAE: two autoencoders in a row, the temporal one in chunks."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from opensora.registry import MODELS, build
from opensora.utils.random import Draws

SPATIAL = dict(type="ImageVAE", block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)
TEMPORAL = dict(
    type="TemporalVAE", channels=4, num_res_blocks=1, channel_multipliers=(1, 2, 2, 3), num_groups=4
)
SMALL = dict(type="StackedVAE", spatial=SPATIAL, temporal=TEMPORAL)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small(**settings: Any) -> nn.Module:
    return build(MODELS, SMALL | settings).eval()


def test_published_layout() -> None:
    with torch.device("meta"):
        cfg = dict(type="StackedVAE", spatial=dict(type="ImageVAE"), temporal=dict(type="TemporalVAE"))
        vae = build(MODELS, cfg)
    state = {key: tuple(value.shape) for key, value in vae.state_dict().items()}
    assert len(state) == 517
    assert sum(math.prod(shape) for shape in state.values()) == 393_341_007 + 8
    assert state["scale"] == state["shift"] == (1, 4, 1, 1, 1)
    assert {key.split(".")[0] for key in state} == {"spatial_vae", "temporal_vae", "scale", "shift"}
    assert vae.stride == (4, 8, 8)
    assert [vae.latent_shape(n, 240, 426) for n in (1, 17, 51, 102, 408)] == [
        (frames, 30, 53) for frames in (1, 5, 15, 30, 120)
    ]


@pytest.mark.parametrize("micro_frame_size", [None, 5, 8, 17])
def test_every_length_comes_back(micro_frame_size: int | None) -> None:
    vae = small(micro_frame_size=micro_frame_size)
    for frames in (1, 2, 4, 5, 6, 10, 18):
        z = vae.encode(torch.zeros(1, 3, frames, 8, 17))
        assert vae.latent_shape(frames, 8, 17) == tuple(z.shape[2:])
        assert vae.decode(z, frames).shape == (1, 3, frames, 8, 16)
        assert vae.legal_length(frames) == frames


@torch.no_grad()
def test_the_two_parts_and_their_chunks() -> None:
    vae, video = small(micro_frame_size=5), torch.rand(2, 3, 8, 8, 16) * 2 - 1
    scale = torch.tensor([3.85, 2.32, 2.33, 3.06]).view(1, 4, 1, 1, 1)
    shift = torch.tensor([-0.10, 0.34, 0.27, 0.98]).view(1, 4, 1, 1, 1)
    frames = vae.spatial_vae.encode(video)
    parts = [vae.temporal_vae.encode(part) for part in (frames[:, :, :5], frames[:, :, 5:])]
    z = vae.encode(video)
    torch.testing.assert_close(z, (torch.cat(parts, dim=2) - shift) / scale)
    raw = z * scale + shift
    chunks = [vae.temporal_vae.decode(raw[:, :, :2], 5), vae.temporal_vae.decode(raw[:, :, 2:], 3)]
    torch.testing.assert_close(vae.decode(z, 8), vae.spatial_vae.decode(torch.cat(chunks, dim=2)))
    torch.testing.assert_close(vae.denormalize(vae.normalize(z)), z)


@torch.no_grad()
def test_both_posteriors_are_sampled() -> None:
    vae, video, draws = small(micro_frame_size=5), torch.rand(2, 3, 6, 8, 8), Draws(0, [0, 1])
    frames = vae.spatial_vae.posterior(video)
    x = frames.sample(draws.normal("spatial_posterior", 0, frames.mean.shape)) * 0.18215
    parts = [vae.temporal_vae.posterior(part) for part in (x[:, :, :5], x[:, :, 5:])]
    mean, logvar = (torch.cat([getattr(p, name) for p in parts], dim=2) for name in ("mean", "logvar"))
    noise = draws.normal("posterior", 0, mean.shape)
    expected = vae.normalize(mean + torch.exp(logvar / 2) * noise)
    torch.testing.assert_close(vae.encode(video, draws), expected)
    out = vae(video, draws)
    torch.testing.assert_close(out.z, expected)
    torch.testing.assert_close(out.video, vae.decode(expected, 6))
    torch.testing.assert_close(out.regularizer, vae.posterior(video, draws).kl())
    assert not torch.allclose(vae.encode(video), expected)


def test_half_precision() -> None:
    vae = small().bfloat16()
    z = vae.encode(torch.rand(1, 3, 2, 8, 8))
    assert z.dtype == vae.decode(z, 2).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small(micro_frame_size=0), r"micro_frame_size=0: expected a whole number from 1, or None"),
        (lambda: small(shift=(0.0,)), r"shift=\(0\.0,\): expected 4 numbers, one per channel"),
        (
            lambda: small(temporal=TEMPORAL | dict(in_channels=3)),
            r"spatial latents have 4 channels, the temporal autoencoder takes 3; set temporal\.in_channels",
        ),
        (lambda: small().legal_length(0), r"num_frames=0: a video has at least 1 frame"),
        (
            lambda: small().encode(torch.zeros(1, 3, 1, 7, 8)),
            r"height=7: too small for the autoencoder; use 8 pixels",
        ),
        (
            lambda: small().decode(torch.zeros(1, 4, 2, 1, 1), 17),
            r"num_frames=17: .* has 5 latent frames, z has 2;",
        ),
        (
            lambda: small().decode(torch.zeros(1, 4, 2, 1, 1), 0),
            r"num_frames=0: a video has at least 1 frame",
        ),
        (
            lambda: small().decode(torch.zeros(1, 3, 1, 1, 1), 1),
            r"z has shape \(1, 3, 1, 1, 1\); expected \[B, 4, T",
        ),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_parts_are_found_by_name() -> None:
    with pytest.raises(KeyError, match=r"type='ImageVEA'.*Did you mean"):
        small(spatial=SPATIAL | dict(type="ImageVEA"))
