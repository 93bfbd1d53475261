"""Blocks of the video autoencoder: the attention mask, in-place arithmetic, upsampling, linear maps."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from opensora.layers.interfaces import Posterior
from opensora.layers.vae_blocks import (
    CausalAttention,
    ResBlock,
    Upsample3D,
    VideoDecoder,
    VideoEncoder,
    draw_latents,
    patch_code,
)
from opensora.registry import MODELS, build
from opensora.utils.random import Draws


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def test_attention_sees_no_later_token_of_the_raster_order() -> None:
    layer, x = CausalAttention(32), torch.randn(2, 32, 2, 3, 2)
    q, k, v = (
        rearrange(part(layer.norm(x)), "B C T H W -> B (T H W) C") for part in (layer.q, layer.k, layer.v)
    )
    scores = q @ k.transpose(1, 2) / 32**0.5
    later = torch.ones(12, 12, dtype=torch.bool).triu(1)
    out = scores.masked_fill(later, float("-inf")).softmax(-1) @ v
    expected = x + layer.proj_out(rearrange(out, "B (T H W) C -> B C T H W", T=2, H=3))
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "block",
    [
        lambda: ResBlock(32, 32),
        lambda: ResBlock(32, 64),
        lambda: CausalAttention(32),
        lambda: Upsample3D(32),
    ],
)
def test_without_gradients_nothing_but_memory_and_rounding_changes(block: type) -> None:
    layer, x = block(), torch.randn(2, 32, 3, 4, 2)
    before = x.clone()
    with torch.no_grad():
        fast = layer(x)
    torch.testing.assert_close(fast, layer(x), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(x, before, atol=0, rtol=0)


def test_upsampling_refines_repeated_values_and_adds_them_twice() -> None:
    layer, x = Upsample3D(32), torch.randn(1, 32, 2, 3, 2)
    u = x.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    block = layer.conv3d
    o = block.norm2(block.conv2(F.silu(block.norm1(block.conv1(u)))))
    torch.testing.assert_close(layer(x), F.silu(o + u) + u)
    assert block.norm1.eps == block.norm2.eps == 1e-5


def test_shortcut_only_where_the_width_changes() -> None:
    assert ResBlock(32, 32).nin_shortcut is None
    assert ResBlock(32, 64).nin_shortcut.conv.kernel_size == (1, 1, 1)
    assert ResBlock(32, 32).norm1.eps == 1e-6


def _without_norms(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm):
            setattr(module, name, nn.Identity())
        else:
            _without_norms(child)
    return module


def test_encoder_without_norms_is_causal() -> None:
    # Group norms see all frames; whatever else is in the network must not look ahead.
    encoder = _without_norms(VideoEncoder(8, 32, (1, 1, 1), 1, (0, 1)))
    video = 0.1 * torch.randn(1, 3, 9, 8, 8)
    z = encoder(video)
    for frames, latents in ((1, 1), (5, 2), (8, 2)):
        torch.testing.assert_close(encoder(video[:, :, :frames]), z[:, :, :latents], atol=1e-6, rtol=1e-4)


def test_decoder_without_norms_is_causal() -> None:
    decoder = _without_norms(VideoDecoder(4, 32, (1, 1, 1), 1, (1, 2)))
    z = 0.1 * torch.randn(1, 4, 4, 2, 3)
    video = decoder(z)
    assert video.shape == (1, 3, 13, 8, 12)
    for latents in (1, 2, 3):
        frames = 4 * latents - 3
        torch.testing.assert_close(decoder(z[:, :, :latents]), video[:, :, :frames], atol=1e-6, rtol=1e-4)


def test_latents_are_the_mean_or_a_sample() -> None:
    posterior = Posterior(torch.randn(2, 1, 1, 2, 2), torch.full((2, 1, 1, 2, 2), 2.0))
    draws = Draws(0, [3, 4])
    noise = draws.normal("posterior", 0, (2, 1, 1, 2, 2))
    assert draw_latents(posterior, None) is posterior.mean
    torch.testing.assert_close(draw_latents(posterior, draws), posterior.mean + torch.e * noise)


def test_a_new_model_with_linear_maps_gives_back_a_rough_picture() -> None:
    """Its networks add nothing yet, so it is the linear code: projection onto an orthonormal basis."""
    torch.manual_seed(0)
    options = dict(temporal_down=(), temporal_up=(), channel_multipliers=(1,), norm="pixel", attention="none")
    options |= dict(channels=32, num_res_blocks=1, micro_frame_size=None, patch_size=(2, 4, 4))
    options |= dict(temporal_overlap=False)
    vae = build(MODELS, dict(type="VideoVAE", latent_channels=12, patch_shortcut=True, **options)).eval()
    code = patch_code((2, 4, 4), 12)
    assert torch.allclose(code @ code.T, torch.eye(12), atol=1e-6)
    # Two colours that drift: smooth in space and time, as videos are.
    y, x, t = (torch.linspace(0, 1, size) for size in (16, 16, 5))
    wave = torch.sin(4 * (x + y[:, None]) + 2 * t[:, None, None])
    video = torch.stack((wave, wave.flip(2) * 0.5, -wave * 0.3))[None]
    with torch.no_grad():
        out = vae(video).video
        bias = vae.encoder.conv_out.conv.bias[:12], vae.decoder.conv_out.bias
    first = torch.cat((video[:, :, :1], video), dim=2)  # as many frames as patches need
    patches = rearrange(first, "B C (T t) (H h) (W w) -> B T H W (C t h w)", t=2, h=4, w=4)
    expected = (patches @ code.T + bias[0]) @ code + bias[1]
    expected = rearrange(expected, "B T H W (C t h w) -> B C (T t) (H h) (W w)", C=3, t=2, h=4, w=4)
    assert torch.allclose(out, expected[:, :, 1:], atol=1e-5)
    plain = build(MODELS, dict(type="VideoVAE", latent_channels=12, **options)).eval()
    with torch.no_grad():
        assert (out - video).square().mean() < 0.05 * (plain(video).video - video).square().mean()
    with pytest.raises(ValueError, match="patch_shortcut=True with .* and 2 levels: it needs larger patches"):
        build(
            MODELS, dict(type="VideoVAE", **{**options, "channel_multipliers": (1, 1)}, patch_shortcut=True)
        )
    with pytest.raises(ValueError, match="latent_channels=97: patches of .* have 96 values"):
        build(MODELS, dict(type="VideoVAE", **options, latent_channels=97, patch_shortcut=True))
