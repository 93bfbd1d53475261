"""VideoVAE: sizes, chunks, statistics, and the numbers of the published network under made-up weights."""

import dataclasses
import json
import math
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from opensora.registry import MODELS, build
from opensora.utils.random import Draws

SMALL = dict(
    type="VideoVAE",
    latent_channels=4,
    channels=32,
    channel_multipliers=(1, 1, 1, 1),
    num_res_blocks=1,
    micro_batch_size=None,
    micro_batch_size_2d=None,
    micro_frame_size=None,
)
CHUNKS = [
    dict(micro_frame_size=None),
    dict(micro_frame_size=5, temporal_overlap=True),
    dict(micro_frame_size=5, temporal_overlap=False),
    dict(micro_frame_size=9, temporal_overlap=True),
    dict(micro_frame_size=17, temporal_overlap=True),
    dict(micro_frame_size=17, temporal_overlap=False),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small(device: str = "cpu", **settings: Any) -> nn.Module:
    with torch.device(device):
        return build(MODELS, SMALL | settings).eval()


def test_published_layout() -> None:
    with torch.device("meta"):
        vae = build(MODELS, dict(type="VideoVAE"))
    state = {key: tuple(value.shape) for key, value in vae.state_dict().items()}
    assert len(state) == 256
    assert sum(math.prod(shape) for shape in state.values()) == 259_163_811
    assert sum(p.numel() for p in vae.encoder.parameters()) == 100_046_496
    assert not list(vae.named_buffers())
    assert state["encoder.down.0.downsample.conv.weight"] == (128, 128, 3, 3)
    assert state["encoder.down.1.downsample.conv.conv.weight"] == (256, 256, 3, 3, 3)
    assert state["encoder.down.2.block.0.nin_shortcut.conv.weight"] == (512, 256, 1, 1, 1)
    assert state["encoder.conv_out.conv.weight"] == (32, 512, 3, 3, 3)
    assert state["decoder.up.3.upsample.conv3d.norm2.bias"] == (512,)
    assert state["decoder.up.1.upsample.conv.weight"] == (256, 256, 3, 3)
    assert state["decoder.mid.attn_1.proj_out.conv.bias"] == (512,)
    assert state["decoder.conv_out.weight"] == (3, 128, 3, 3, 3)
    assert vae.stride == (4, 8, 8)
    assert vae.latent_channels == 16


@pytest.mark.parametrize("chunks", CHUNKS)
def test_latent_shape_is_the_shape_of_latents(chunks: dict) -> None:
    vae = small("meta", **chunks)
    m = chunks["micro_frame_size"] or 5
    for frames in sorted({1, 2, m - 1, m, m + 1, m + 2, 2 * m - 2, 2 * m - 1, 2 * m, 2 * m + 1, 2 * m + 2}):
        z = vae.encode(torch.empty(1, 3, frames, 8, 16, device="meta"))
        assert vae.latent_shape(frames, 8, 16) == tuple(z.shape[2:]), frames


@pytest.mark.parametrize("height", range(2, 27))
def test_latent_shape_for_every_remainder(height: int) -> None:
    width = 29 - height
    z = small("meta").encode(torch.empty(1, 3, 1, height, width, device="meta"))
    assert small("meta").latent_shape(1, height, width) == tuple(z.shape[2:])


@pytest.mark.parametrize("size", [(1, 2, 17), (6, 17, 9), (18, 25, 7)])
def test_latent_shape_with_numbers(size: tuple[int, int, int]) -> None:
    vae = small(micro_frame_size=17)
    z = vae.encode(torch.randn(1, 3, *size))
    assert vae.latent_shape(*size) == tuple(z.shape[2:])
    assert z.isfinite().all()


def test_latent_shape_by_hand() -> None:
    overlap, apart, whole = (small("meta", **c) for c in (CHUNKS[4], CHUNKS[5], CHUNKS[0]))
    assert [overlap.latent_shape(n, 64, 64)[0] for n in (1, 17, 49, 51, 97, 16)] == [1, 5, 15, 16, 30, 4]
    assert [apart.latent_shape(n, 64, 64)[0] for n in (1, 17, 34, 51, 16)] == [1, 5, 10, 15, 4]
    assert [whole.latent_shape(n, 64, 64)[0] for n in (1, 17, 49, 51, 113)] == [1, 5, 13, 13, 29]
    assert whole.latent_shape(1, 241, 426)[1:] == (30, 54)


@pytest.mark.parametrize("chunks", CHUNKS)
def test_legal_lengths_come_back_and_are_the_longest(chunks: dict) -> None:
    vae = small("meta", **chunks)
    size, overlap = chunks["micro_frame_size"], chunks.get("temporal_overlap")
    allowed = {1} | {n for n in range(1, 61) if _whole_chunks(n, size, overlap)}
    for n in range(1, 61):
        legal = vae.legal_length(n)
        assert legal == max(a for a in allowed if a <= n)
        if legal == n and n < 40:
            video = vae.decode(torch.empty(1, 4, *vae.latent_shape(n, 8, 16), device="meta"))
            assert video.shape == (1, 3, n, 8, 16)


def _whole_chunks(n: int, size: int | None, overlap: bool | None) -> bool:
    if size is None:
        return n % 4 == 1
    return (n - 1) % (size - 1) == 0 if overlap else n % size == 0


def test_legal_lengths_fit_the_statistics() -> None:
    table = [[0.0, 1.0, 2.0]] * 4
    whole = small("meta", latent_mean=table, latent_std=table)
    assert [whole.legal_length(n) for n in (1, 8, 9, 20, 21, 35)] == [1, 1, 9, 9, 21, 33]


def test_published_durations() -> None:
    with torch.device("meta"):
        vae = build(MODELS, dict(type="VideoVAE"))
    assert [vae.legal_length(n) for n in (51, 102, 113, 204)] == [49, 97, 113, 193]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vae: vae.legal_length(0), r"num_frames=0: a video has at least 1 frame\."),
        (lambda vae: vae.latent_shape(-1, 8, 8), r"num_frames=-1: a video has at least 1 frame\."),
        (
            lambda vae: vae.latent_shape(1, 1, 8),
            r"height=1: too small for 3 halvings; use 8 pixels or more\.",
        ),
        (
            lambda vae: vae.encode(torch.zeros(1, 3, 1, 8, 1)),
            r"width=1: too small for 3 halvings; use 8 pixels",
        ),
        (
            lambda vae: vae.encode(torch.zeros(1, 3, 8, 8)),
            r"video has shape \(1, 3, 8, 8\); expected \[B, 3, T, H",
        ),
        (
            lambda vae: vae.encode(torch.zeros(1, 4, 1, 8, 8)),
            r"video has shape \(1, 4, 1, 8, 8\); expected \[B, 3,",
        ),
        (
            lambda vae: vae.decode(torch.zeros(1, 3, 1, 1, 1)),
            r"z has shape \(1, 3, 1, 1, 1\); expected \[B, 4, T",
        ),
        (
            lambda vae: vae.decode(torch.zeros(1, 4, 2, 1, 1), 6),
            r"num_frames=6: 2 latent frames give 5 frames; ask",
        ),
        (
            lambda vae: vae.decode(torch.zeros(1, 4, 2, 1, 1), 0),
            r"num_frames=0: 2 latent frames give 5 frames; ask",
        ),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(small())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            dict(temporal_down=(1, 3)),
            r"temporal_down=\(1, 3\): expected different levels from 0 to 2, as many as on",
        ),
        (
            dict(temporal_up=(0, 1)),
            r"temporal_up=\(0, 1\): expected different levels from 1 to 3, as many as on the",
        ),
        (dict(temporal_up=(3,)), r"temporal_down=\(1, 2\): .* as many as on the other side \(1\)"),
        (
            dict(micro_frame_size=0),
            r"micro_frame_size=0: expected a whole number from 1, or None to do without chu",
        ),
        (
            dict(micro_frame_size=1),
            r"micro_frame_size=1 with temporal_overlap: chunks that share a frame need 2",
        ),
        (dict(micro_batch_size=-1), r"micro_batch_size=-1: expected a whole number from 1, or None"),
        (dict(latent_mean=[0.0] * 3), r"latent_mean has 3 entries of lengths \[0\] .* expected 4 numbers"),
        (
            dict(latent_std=[[1.0], [1.0, 2.0]] * 2),
            r"latent_std has 4 entries of lengths \[1, 2\] .* expected 4",
        ),
        (
            dict(latent_mean=[[0.0, 1.0]] * 4, latent_std=[1.0] * 4),
            r"latent_mean is \(4, 2\), latent_std \(4, 1\) \(channels, latent frames\); give both the same",
        ),
    ],
)
def test_configs_that_do_not_fit(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small("meta", **settings)


def test_chunk_length_without_a_legal_length() -> None:
    vae = small("meta", micro_frame_size=16)
    with pytest.raises(ValueError, match=r"micro_frame_size=16: .* use 4k \+ 1, for example 13 or 17\."):
        vae.legal_length(49)


def test_chunks_are_coded_alone() -> None:
    whole, video = small(), torch.randn(1, 3, 11, 16, 8)
    for overlap, spans in ((True, [(0, 5), (4, 9), (8, 11)]), (False, [(0, 5), (5, 10), (10, 11)])):
        vae = small(micro_frame_size=5, temporal_overlap=overlap)
        vae.load_state_dict(whole.state_dict())
        parts = [whole.encode(video[:, :, a:b]) for a, b in spans]
        torch.testing.assert_close(vae.encode(video), torch.cat(parts, dim=2))


def test_decoded_chunks_share_the_mean_of_a_frame() -> None:
    whole, z = small(), torch.randn(1, 4, 5, 1, 2)
    a, b, c = (whole.decode(part) for part in z.split(2, dim=2))
    vae = small(micro_frame_size=5, temporal_overlap=True)
    vae.load_state_dict(whole.state_dict())
    first, second = (a[:, :, -1:] + b[:, :, :1]) / 2, (b[:, :, -1:] + c) / 2
    expected = torch.cat([a[:, :, :-1], first, b[:, :, 1:-1], second], dim=2)
    torch.testing.assert_close(vae.decode(z), expected)
    vae.pieces = dataclasses.replace(vae.pieces, overlap=False)
    torch.testing.assert_close(vae.decode(z), torch.cat([a, b, c], dim=2))


def test_num_frames_cuts_the_end() -> None:
    vae, z = small(micro_frame_size=5), torch.randn(1, 4, 4, 1, 1)
    torch.testing.assert_close(vae.decode(z, 6), vae.decode(z)[:, :, :6], atol=0, rtol=0)
    assert vae.decode(z).shape[2] == vae.decode(z, 9).shape[2] == 9


def test_a_stream_holds_back_one_frame_of_each_chunk() -> None:
    vae, z = small(micro_frame_size=5), torch.randn(2, 4, 6, 1, 1)
    for asked, parts in ((13, [4, 4, 5]), (5, [4, 1]), (4, [4]), (9, [4, 4, 1])):
        stream = list(vae.decode_stream(z, asked))
        assert [part.shape[2] for part in stream] == parts
        torch.testing.assert_close(torch.cat(stream, dim=2), vae.decode(z)[:, :, :asked], atol=0, rtol=0)
    vae.pieces = dataclasses.replace(vae.pieces, overlap=False)
    assert [part.shape[2] for part in vae.decode_stream(z)] == [5, 5, 5]


@pytest.mark.parametrize(
    "settings",
    [
        dict(micro_batch_size=1),
        dict(micro_batch_size=2, micro_batch_size_2d=3),
        dict(tile_size=2),
        dict(tile_size=16),
        dict(num_tiles=3, tile_axis=2),
        dict(tile_size=3, tile_axis=4),
    ],
)
def test_memory_settings_change_nothing(settings: dict) -> None:
    plain, video = small(), torch.randn(3, 3, 5, 16, 8)
    vae = small(**settings)
    vae.load_state_dict(plain.state_dict())
    with torch.no_grad():
        z = plain.encode(video)
        torch.testing.assert_close(vae.encode(video), z, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(vae.decode(z), plain.decode(z), atol=1e-5, rtol=1e-5)


def test_statistics_per_channel_and_per_frame() -> None:
    z = torch.randn(2, 4, 6, 2, 2)
    mean, std = [1.0, 2.0, 3.0, 4.0], [0.5, 1.0, 2.0, 4.0]
    vae = small("meta", latent_mean=mean, latent_std=std)
    shape = (1, 4, 1, 1, 1)
    expected = (z - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    torch.testing.assert_close(vae.normalize(z), expected)
    torch.testing.assert_close(vae.denormalize(vae.normalize(z)), z)

    table = torch.arange(12.0).view(4, 3) + 1
    vae = small("meta", latent_mean=table.tolist(), latent_std=table.tolist())
    for frame in range(6):
        column = table[:, frame % 3].view(shape)
        torch.testing.assert_close(
            vae.normalize(z)[:, :, frame : frame + 1], (z[:, :, [frame]] - column) / column
        )
    image, column = z[:, :, :1], table[:, 0].view(shape)
    torch.testing.assert_close(vae.normalize(image), (image - column) / column)
    torch.testing.assert_close(vae.denormalize(vae.normalize(z)), z)


def test_statistics_per_frame_need_whole_groups() -> None:
    table = [[0.0, 1.0, 2.0]] * 4
    vae = small(latent_mean=table, latent_std=table)
    message = r"2 latent frames: latent_mean and latent_std are given for groups of 3; .* Use a legal length"
    with pytest.raises(ValueError, match=message):
        vae.encode(torch.zeros(1, 3, 5, 8, 8))
    with pytest.raises(ValueError, match=message):
        vae.decode(torch.zeros(1, 4, 2, 1, 1))


def test_half_precision_keeps_statistics_and_returns_fp32() -> None:
    vae = small(latent_mean=[0.1001] * 4, latent_std=[0.9003] * 4).bfloat16()
    z = vae.encode(torch.randn(1, 3, 1, 8, 16))
    assert z.dtype == vae.decode(z).dtype == torch.float32
    assert vae.latent_mean.dtype == torch.float32
    assert float(vae.latent_mean[0, 0]) == pytest.approx(0.1001, abs=1e-7)


def test_samples_follow_the_draws() -> None:
    vae, video = small(latent_mean=[0.5] * 4, latent_std=[2.0] * 4), torch.randn(2, 3, 5, 32, 32)
    posterior, draws = vae.posterior(video), Draws(1, [7, 9])
    noise = draws.normal("posterior", 0, posterior.mean.shape)
    expected = (posterior.mean + torch.exp(posterior.logvar / 2) * noise - 0.5) / 2.0
    torch.testing.assert_close(vae.encode(video, draws), expected)
    torch.testing.assert_close(vae.encode(video), (posterior.mean - 0.5) / 2.0)
    alone = vae.encode(video[1:], Draws(1, [9]))
    torch.testing.assert_close(alone, expected[1:], atol=1e-4, rtol=1e-4)


def test_logvar_is_clamped() -> None:
    vae = small()
    with torch.no_grad():
        vae.encoder.conv_out.conv.weight.mul_(1e4)
    logvar = vae.posterior(torch.randn(1, 3, 1, 16, 16)).logvar
    assert logvar.min() == -30.0
    assert logvar.max() == 20.0


def test_forward_is_encode_then_decode_and_trains_everything() -> None:
    vae, video, draws = small(), torch.randn(2, 3, 5, 8, 8), Draws(0, [0, 1])
    out = vae(video, draws)
    torch.testing.assert_close(out.z, vae.encode(video, draws))
    torch.testing.assert_close(out.video, vae.decode(out.z))
    torch.testing.assert_close(out.regularizer, vae.posterior(video).kl())
    assert out.regularizer.shape == (2,)
    (out.video.square().mean() + 1e-3 * out.regularizer.mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())
    used = [name for name, p in vae.named_parameters() if p.grad.abs().max() > 0]
    assert len(used) > 0.9 * len(list(vae.parameters()))


def test_other_depths() -> None:
    vae = small(channel_multipliers=(1, 1, 2), temporal_down=(1,), temporal_up=(2,))
    assert vae.stride == (2, 4, 4)
    z = vae.encode(torch.randn(1, 3, 3, 8, 12))
    assert z.shape == (1, 4, 2, 2, 3)
    assert vae.decode(z).shape == (1, 3, 3, 8, 12)


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


def test_filler_is_the_agreed_one() -> None:
    expected = torch.tensor([0.05233795, 0.01335565, -0.26487075, -0.10160517], dtype=torch.float64)
    torch.testing.assert_close(filler(0, (4,)), expected, atol=1e-8, rtol=0)


@torch.no_grad()
def test_numbers_of_a_small_network() -> None:
    vae = fill(small(micro_frame_size=5, latent_mean=[0.1, 0.2, 0.3, 0.4], latent_std=[0.9, 0.8, 0.7, 0.6]))
    z = vae.encode(filler(2004, (1, 3, 9, 16, 16)).float())
    latents = [-0.22249, 0.42939, 1.43748, 0.09707, -0.16926, -0.26783, 0.01240, -0.32098, -0.97770]
    assert summary(z) == pytest.approx(latents, abs=2e-5)
    video = [-0.09011, 0.62088, 2.95593, -0.25718, -0.47581, -0.31886, -0.23202, -0.03867, 0.05193]
    assert summary(vae.decode(z)) == pytest.approx(video, abs=2e-5)


@pytest.mark.slow
@torch.no_grad()
def test_numbers_of_the_published_network() -> None:
    table = files("opensora").joinpath("utils", "latent_statistics.json").read_text()
    published = json.loads(table)["video"]
    with torch.device("meta"):
        cfg = dict(type="VideoVAE", latent_mean=published["mean"], latent_std=published["std"])
        vae = build(MODELS, cfg)
    vae = fill(vae.to_empty(device="cpu")).eval()
    x = filler(2001, (1, 3, 5, 16, 16)).float()
    moments = [-0.002940, 0.271035, 1.024086, -0.03926, 0.03155, -0.12608, 0.18578, 0.15805, -0.09614]
    assert summary(vae.encoder(x)) == pytest.approx(moments, abs=2e-5)
    image = [-0.007116, 0.244947, 0.831785, -0.08809, -0.03280, -0.41274, -0.11532, 0.34701, -0.19924]
    assert summary(vae.encoder(x[:, :, :1])) == pytest.approx(image, abs=2e-5)
    video = [0.107300, 0.651168, 2.123526, -0.39972, -0.43070, -0.53680, 0.44905, 0.86969, -0.07991]
    assert summary(vae.decoder(filler(2002, (1, 16, 2, 2, 2)).float())) == pytest.approx(video, abs=2e-5)
    z = vae.encode(filler(2004, (1, 3, 33, 16, 16)).float())
    latents = [0.008220, 0.328564, 1.324161, 0.15501, 0.19078, 0.12578, 0.37051, -0.01631, 0.36126]
    assert z.shape == (1, 16, 10, 2, 2)
    assert summary(z) == pytest.approx(latents, abs=2e-5)
    video = [-0.041746, 0.609329, 4.289031, 0.08005, -0.16929, -0.08496, -0.08251, -0.07495, -0.46216]
    assert summary(vae.decode(z)) == pytest.approx(video, abs=2e-5)
