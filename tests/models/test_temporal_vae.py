"""TemporalVAE: published layout, sizes, padding in front, errors."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensora.registry import MODELS, build
from opensora.utils.random import Draws

SMALL = dict(type="TemporalVAE", channels=8, num_res_blocks=1, channel_multipliers=(1, 2, 2, 3), num_groups=4)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small(**settings: Any) -> nn.Module:
    return build(MODELS, SMALL | settings).eval()


def test_published_layout() -> None:
    with torch.device("meta"):
        vae = build(MODELS, dict(type="TemporalVAE"))
    state = {key: tuple(value.shape) for key, value in vae.state_dict().items()}
    assert len(state) == 267
    assert sum(math.prod(shape) for shape in state.values()) == 309_687_144
    assert state["encoder.conv_in.conv.weight"] == (128, 4, 3, 3, 3)
    assert "encoder.conv_in.conv.bias" not in state
    assert state["encoder.block_res_blocks.3.0.conv3.conv.weight"] == (512, 256, 1, 1, 1)
    assert state["encoder.conv_blocks.2.conv.bias"] == (256,)
    assert state["decoder.conv_blocks.2.conv.weight"] == (1024, 512, 3, 3, 3)
    assert state["decoder.block_res_blocks.0.0.conv3.conv.weight"] == (128, 256, 1, 1, 1)
    assert state["post_quant_conv.conv.weight"] == (4, 4, 1, 1, 1)
    assert vae.stride == (4, 1, 1)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 8, 9, 17])
def test_every_length_comes_back(frames: int) -> None:
    vae, video = small(), torch.randn(1, 4, frames, 3, 2)
    z = vae.encode(video)
    assert vae.latent_shape(frames, 3, 2) == tuple(z.shape[2:]) == (math.ceil(frames / 4), 3, 2)
    assert vae.decode(z, frames).shape == video.shape
    assert vae.legal_length(frames) == frames


def test_a_clip_is_filled_up_in_front() -> None:
    vae, video = small(), torch.randn(1, 4, 5, 3, 2)
    z = vae.encode(video)
    torch.testing.assert_close(vae.encode(F.pad(video, (0, 0, 0, 0, 3, 0))), z)
    torch.testing.assert_close(vae.decode(z, 5), vae.decode(z)[:, :, 3:])


def test_convolutions_are_causal() -> None:
    vae, video = small(), torch.randn(1, 4, 8, 3, 2)
    for part in vae.modules():
        for name, child in part.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(part, name, nn.Identity())  # norms see all frames
    torch.testing.assert_close(vae.encode(video[:, :, :4]), vae.encode(video)[:, :, :1])
    z = torch.randn(1, 4, 3, 3, 2)
    torch.testing.assert_close(vae.decode(z[:, :, :2]), vae.decode(z)[:, :, :8])


def filler(j: int, shape: tuple[int, ...]) -> Tensor:
    """Numbers in [-1, 1) that depend on `j` and the position only."""
    mask = np.uint64(0xFFFFFFFF)
    h = (
        np.arange(math.prod(shape), dtype=np.uint64) * np.uint64(2654435761) + np.uint64(j * 40503 + 12345)
    ) & mask
    h ^= h >> np.uint64(16)
    h = (h * np.uint64(0x45D9F3B)) & mask
    h ^= h >> np.uint64(16)
    return torch.from_numpy(2.0 * h.astype(np.float64) / 2**32 - 1.0).reshape(shape)


def fill(vae: nn.Module) -> nn.Module:
    for j, (key, value) in enumerate(sorted(vae.state_dict().items())):
        numbers = filler(j, tuple(value.shape))
        if value.ndim > 1:
            numbers = numbers * math.sqrt(3 / math.prod(value.shape[1:]))
        else:
            numbers = 0.1 * numbers + (1.0 if key.endswith(".weight") else 0.0)
        value.copy_(numbers)
    return vae


def summary(x: Tensor) -> list[float]:
    flat = x.flatten()
    n = len(flat)
    picked = [flat[i].item() for i in (0, 1, 2, n // 3, n // 2, n - 1)]
    return [flat.mean().item(), flat.std().item(), flat.abs().max().item(), *picked]


@torch.no_grad()
def test_numbers_of_a_small_network() -> None:
    vae = fill(small())
    mean = vae.encode(filler(2005, (1, 4, 5, 4, 4)).float())
    expected = [0.08057, 0.47221, 1.56817, 0.02462, 0.00607, -0.01093, 0.14871, -0.04814, 0.09995]
    assert summary(mean) == pytest.approx(expected, abs=2e-5)
    video = vae.decode(filler(2006, (1, 4, 2, 4, 4)).float(), 5)
    expected = [0.04282, 0.55028, 3.14773, 0.35277, 0.12601, -0.03893, 0.12514, -0.22233, 0.78071]
    assert summary(video) == pytest.approx(expected, abs=2e-5)


@pytest.mark.slow
@torch.no_grad()
def test_numbers_of_the_published_network() -> None:
    with torch.device("meta"):
        vae = build(MODELS, dict(type="TemporalVAE"))
    vae = fill(vae.to_empty(device="cpu")).eval()
    x = F.pad(filler(2005, (1, 4, 5, 4, 4)).float(), (0, 0, 0, 0, 3, 0))
    moments = [0.209069, 0.751142, 3.840664, -0.02226, 0.06999, 0.11389, 0.48052, 0.18291, 0.28896]
    assert summary(vae.quant_conv(vae.encoder(x))) == pytest.approx(moments, abs=2e-5)
    video = [0.113179, 0.534728, 2.887209, -0.06534, 0.11172, 0.01730, 0.29974, -0.19689, 0.42360]
    assert summary(vae.decode(filler(2006, (1, 4, 2, 4, 4)).float(), 5)) == pytest.approx(video, abs=2e-5)


def test_samples_and_reconstruction() -> None:
    vae, video, draws = small(), torch.randn(2, 4, 5, 3, 2), Draws(0, [0, 1])
    posterior = vae.posterior(video)
    noise = draws.normal("posterior", 0, posterior.mean.shape)
    out = vae(video, draws)
    torch.testing.assert_close(out.z, posterior.mean + torch.exp(posterior.logvar / 2) * noise)
    torch.testing.assert_close(out.video, vae.decode(out.z, 5))
    out.video.mean().backward()
    assert vae.encoder.conv_in.conv.weight.grad.abs().max() > 0


def test_latents_may_have_other_channels_than_the_inside() -> None:
    vae = small(in_channels=6, latent_channels=5, embed_channels=3)
    z = vae.encode(torch.randn(1, 6, 4, 2, 2))
    assert z.shape[1] == vae.latent_channels == 3
    assert vae.decode(z, 4).shape[1] == 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: small(temporal_down=(True,)),
            r"temporal_down=\(True,\): expected 3 entries, one for each of channel",
        ),
        (lambda: small().legal_length(0), r"num_frames=0: a video has at least 1 frame"),
        (
            lambda: small().encode(torch.zeros(1, 3, 1, 2, 2)),
            r"video has shape \(1, 3, 1, 2, 2\); expected \[B, 4, T",
        ),
        (
            lambda: small().decode(torch.zeros(1, 4, 2, 2, 2), 9),
            r"num_frames=9: 2 .* a clip of 5 to 8 frames\.",
        ),
        (
            lambda: small().decode(torch.zeros(1, 4, 2, 2, 2), 4),
            r"num_frames=4: 2 .* a clip of 5 to 8 frames\.",
        ),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
