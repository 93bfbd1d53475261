"""What each autoencoder keeps exactly, in float64: causality, chunks, streams, tiles, images, sizes.

`python -m pytest tests/models/test_autoencoder_identities.py -k table -s` prints the table of
docs/autoencoders.md.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from opensora.layers.causal_conv3d import BareCausalConv3d, set_tiling
from opensora.layers.streaming import StreamState, streaming
from opensora.layers.tiles import in_tiles
from opensora.models.causal_video_vae import CausalVideoVAE, inflate
from opensora.registry import MODELS, build
from opensora.utils.config import load_config

EXACT = 1e-9
_VIDEO = dict(
    type="VideoVAE", latent_channels=4, channels=32, channel_multipliers=(1, 1, 1), num_res_blocks=1
)
_VIDEO |= dict(temporal_down=(1,), temporal_up=(2,), micro_batch_size=None, micro_batch_size_2d=None)
_VIDEO |= dict(micro_frame_size=None, temporal_overlap=False)
_PLAN = dict(type="CausalVideoVAE", channels=32, channel_multipliers=(1, 1, 2), num_res_blocks=1)
_PLAN |= dict(
    spatial_down=("SpatialDownsample2x", "SpatialDownsample2x", ""), time_down=("TimeDownsample2x", "", "")
)
_PLAN |= dict(spatial_up=("", "SpatialUpsample2x", "SpatialUpsample2x"), time_up=("", "", "TimeUpsample2x"))
_PLAN |= dict(micro_frame_size=None, micro_batch_size=None)
_VQ = dict(type="VQVAE", latent_channels=8, num_codes=16, channels=16, num_res_layers=1, downsample=(2, 4, 4))
_IMAGE = dict(type="ImageVAE", block_out_channels=(32, 32, 64), layers_per_block=1, scaling_factor=1.0)
_TIME = dict(
    type="TemporalVAE", channels=32, num_res_blocks=1, channel_multipliers=(1, 1), temporal_down=(True,)
)
FAMILIES = {
    "VideoVAE, as published": _VIDEO,
    "VideoVAE, streaming preset": {**_VIDEO, "norm": "pixel", "attention": "frame"},
    "VideoVAE, frame norms": {**_VIDEO, "norm": "frame", "attention": "frame"},
    "VideoVAE, patches of 2 x 4 x 4": {
        **_VIDEO, "norm": "pixel", "attention": "none", "patch_size": (2, 4, 4),
        "channel_multipliers": (1,), "temporal_down": (), "temporal_up": (),
    },
    "VideoVAE, patches and linear maps": {
        **_VIDEO, "norm": "pixel", "attention": "none", "patch_size": (2, 4, 4), "patch_shortcut": True,
        "channel_multipliers": (1,), "temporal_down": (), "temporal_up": (),
    },
    "VideoVAE, patches of 1 x 2 x 2": {
        **_VIDEO, "norm": "pixel", "attention": "none", "patch_size": (1, 2, 2),
        "channel_multipliers": (1, 1), "temporal_down": (0,),
        "temporal_up": (1,),
    },
    "StackedVAE (1.2)": dict(type="StackedVAE", spatial=_IMAGE, temporal=_TIME, micro_frame_size=None),
    "CausalVideoVAE": _PLAN,
    "CausalVideoVAE, residual blocks": {
        **_PLAN, "time_down": ("TimeDownsampleRes2x", "", ""), "time_up": ("", "", "TimeUpsampleRes2x"),
    },
    "CausalVideoVAE, as released": {**_PLAN, "norm": "clip", "time_upsample": "linear"},
    "VQVAE": _VQ,
    "VQVAE, causal": {**_VQ, "causal": True, "norm": "pixel"},
}  # fmt: skip
STREAMS = [name for name, cfg in FAMILIES.items() if cfg.get("norm") in ("pixel", "frame") or cfg is _PLAN]
STREAMS += ["CausalVideoVAE, residual blocks"]
FRAMES = 9


def made(name: str, **changes: object) -> nn.Module:
    cfg = FAMILIES[name]
    if cfg["type"] == "StackedVAE":
        pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = build(MODELS, {**cfg, **changes}).double().eval()
    with torch.no_grad():  # biases and shares that are not 0 or equal, so that a mistake shows
        for parameter in vae.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return vae


def clip(frames: int = FRAMES, height: int = 16, width: int = 16) -> Tensor:
    numbers = torch.Generator().manual_seed(1)
    return torch.rand(1, 3, frames, height, width, dtype=torch.float64, generator=numbers) * 2 - 1


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@torch.no_grad()
def measure(name: str) -> dict[str, float]:
    """Return by how much a family misses each identity."""
    vae, video = made(name), clip()
    stride = vae.stride[0]
    head = 1 + 2 * stride if vae.legal_length(2) == 1 else 2 * stride  # frames of some latents
    kept = vae.latent_shape(head, 16, 16)[0]
    z = vae.encode(video)
    found = {"causal encoder": apart(vae.encode(video[:, :, :head]), z[:, :, :kept])}
    whole = vae.decode(z, FRAMES)
    shorter = vae.decode(z[:, :, :kept], head)
    found["causal decoder"] = apart(shorter, whole[:, :, :head])
    found["image = first frame"] = apart(vae.encode(video[:, :, :1]), z[:, :, :1])
    if getattr(vae, "streams", False):
        streamed = [torch.cat(list(vae.encode_stream(video.split(n, 2))), 2) for n in (1, 3)]
        found["streamed = whole"] = max(apart(one, z) for one in streamed)
        parts = [torch.cat(list(vae.decode_stream(z.split(n, 2))), 2) for n in (1, 2)]
        found["streamed = whole"] = max(found["streamed = whole"], *(apart(one, whole) for one in parts))
    return found


def test_table(capsys: pytest.CaptureFixture) -> None:
    """Every family misses an identity or keeps it as the documentation says."""
    columns = ("causal encoder", "causal decoder", "image = first frame", "streamed = whole")
    lines = [f"| layout | {' | '.join(columns)} |", "|---" * 5 + "|"]
    for name in FAMILIES:
        found = measure(name)
        cells = [
            "none" if c not in found else "exact" if found[c] < EXACT else f"{found[c]:.2g}" for c in columns
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        exact = [value < EXACT for value in found.values()]
        assert all(exact) if name in STREAMS else not all(exact), (name, found)
        assert ("streamed = whole" in found) == (name in STREAMS)
    with capsys.disabled():
        print("\n" + "\n".join(lines))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_convolution_is_causal(name: str) -> None:
    layers = [m for m in made(name).modules() if isinstance(m, BareCausalConv3d)]
    assert layers or name == "VQVAE"
    seen = set()
    for layer in layers:
        kind = (layer.kernel_size, layer.stride, layer.repeat_first)
        if kind in seen:
            continue
        seen.add(kind)
        x = torch.randn(1, layer.in_channels, 7, 6, 6, dtype=torch.float64)
        out, changed = layer(x), x.clone()
        changed[:, :, 5:] += 1
        untouched = (5 + layer.pads[0][0] - layer.kernel_size[0]) // layer.stride[0] + 1
        assert apart(layer(changed)[:, :, :untouched], out[:, :, :untouched]) < EXACT
        assert apart(layer(changed), out) > 1e-3


@pytest.mark.parametrize("name", STREAMS)
@torch.no_grad()
def test_chunks_parts_and_the_whole_are_one_function(name: str) -> None:
    whole, chunked = made(name), made(name, micro_frame_size=5)
    video = clip(11)  # the last frames have no latent
    z = whole.encode(video)
    assert apart(chunked.encode(video), z) < EXACT
    assert apart(chunked.decode(z), whole.decode(z)) < EXACT
    assert apart(torch.cat(list(chunked.encode_stream(video)), 2), z) < EXACT
    assert (
        apart(torch.cat(list(chunked.decode_stream(iter(z.split(2, 2)), 4)), 2), whole.decode(z, 4)) < EXACT
    )


def test_gradients_through_chunks_are_those_of_the_whole() -> None:
    name, grads = "VideoVAE, streaming preset", []
    for changes in ({}, {"micro_frame_size": 5}):
        vae = made(name, **changes)
        vae(clip()).video.square().mean().backward()
        grads.append([p.grad for p in vae.parameters()])
    assert max(apart(a, b) for a, b in zip(*grads, strict=True)) < EXACT


@pytest.mark.parametrize("name", ["VideoVAE, as published", "StackedVAE (1.2)"])
def test_layouts_that_see_the_clip_say_so(name: str) -> None:
    vae = made(name)
    assert not getattr(vae, "streams", False)
    if hasattr(vae, "encode_stream"):
        with pytest.raises(ValueError, match="see the whole clip, so it cannot be encoded in parts"):
            next(vae.encode_stream(clip()))


def test_chunks_that_continue_each_other_share_no_frame() -> None:
    for changes in ({"micro_frame_size": 5, "temporal_overlap": True}, {"micro_frame_size": 4}):
        with pytest.raises(ValueError, match="use temporal_overlap=False, 2k \\+ 1 frames"):
            made("VideoVAE, streaming preset", **changes)


@pytest.mark.parametrize("name", STREAMS)
@torch.no_grad()
def test_a_run_of_a_group_needs_just_as_many_frames_as_a_layer_keeps(name: str) -> None:
    """Parts of the shortest run go through layers that see no fewer frames than they keep; less does not."""
    kept = []

    class Watch(StreamState):
        def follow(self, owner, x, keep, start):
            kept.append(x.shape[2] - keep)
            return super().follow(owner, x, keep, start)

    vae = made(name)
    for decodes in (False, True):
        shortest, least = vae._shortest_run(decodes), []
        for frames in (shortest, shortest - 1):
            kept.clear()
            parts = [vae.stride[0] * (frames - 1) + 1, vae.stride[0] * frames]
            parts, call = ([frames] * 2, vae._decode) if decodes else (parts, vae._encode)
            channels, side = (vae.latent_channels, 2) if decodes else (3, 16)
            if not frames:
                continue
            with streaming(Watch()):
                for length in parts:
                    call(torch.zeros(1, channels, length, side, side, dtype=torch.float64))
            least.append(min(kept))
        assert least[0] >= 0 and (len(least) == 1 or least[1] < 0), (name, decodes)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("name", STREAMS)
def test_a_group_gives_what_one_process_gives(name: str, chunked: bool, group) -> None:
    vae = made(name)
    stride = vae.stride[0]
    video = clip(stride * 10 + 1, 16, 16)
    with torch.no_grad():
        z = vae.encode(video)
        whole = vae.decode(z)
    if chunked:
        vae = made(name, micro_frame_size=2 * stride + 1)
    calls: list[int] = []
    vae.decoder.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[2]))
    for size in (2, 3):
        assert max(apart(found, z) for found in group(size, lambda: vae.encode(video))) < EXACT
        assert max(apart(found, whole) for found in group(size, lambda: vae.decode(z))) < EXACT
        assert max(calls[-size:]) <= -(-z.shape[2] // size), "a process coded more than its share"


@torch.no_grad()
def test_runs_cover_the_video_and_all_processes_have_one_in_each_turn(monkeypatch) -> None:
    monkeypatch.setattr(
        "opensora.layers.autoencoder.parallel_state", lambda: SimpleNamespace(sequence_size=3)
    )
    for vae in (made(STREAMS[0]), made(STREAMS[0], micro_frame_size=9)):
        shortest, chunk = vae._shortest_run(True), vae.pieces.frames and 5
        for frames in range(1, 70):
            runs = vae._runs(frames, decodes=True)
            assert [n for run in runs for n in range(*run)] == list(range(frames))
            lengths = [stop - start for start, stop in runs]
            if len(runs) == 1:
                assert frames < 3 * shortest
                continue
            assert len(runs) % 3 == 0 and min(lengths) >= shortest
            assert max(lengths) <= (max(chunk, 2 * shortest) if chunk else -(-frames // 3))


# Memory


@torch.no_grad()
def test_what_a_stream_keeps_does_not_grow() -> None:
    vae, sizes = made("VideoVAE, streaming preset"), []
    network, state = vae.decoder, StreamState()
    for _ in range(3):
        with streaming(state):
            network(torch.randn(1, 4, 2, 4, 4, dtype=torch.float64))
        sizes.append(sum(x.numel() for x in state.frames.values()))
        assert all(x.untyped_storage().nbytes() == 8 * x.numel() for x in state.frames.values())
    assert sizes[0] == sizes[1] == sizes[2] > 0


# Images


@pytest.mark.parametrize("how", ["tail", "centre", "mean"])
@torch.no_grad()
def test_an_inflated_model_reconstructs_images_as_the_2d_one(how: str) -> None:
    pytest.importorskip("diffusers")
    torch.manual_seed(2)
    flat = build(MODELS, _IMAGE).double().eval().module
    vae = made("CausalVideoVAE")
    inflate(vae, flat.state_dict(), how)
    image = clip(1, 16, 24)
    moments = flat.encode(image[:, :, 0]).latent_dist.parameters
    assert apart(vae.posterior(image).mean[:, :, 0], moments[:, :4]) < EXACT
    z = torch.randn(1, 4, 1, 4, 6, dtype=torch.float64)
    assert apart(vae.decode(z)[:, :, 0], flat.decode(z[:, :, 0]).sample) < EXACT


@torch.no_grad()
def test_tail_keeps_every_frame_and_centre_looks_back() -> None:
    pytest.importorskip("diffusers")
    flat, frames = build(MODELS, _IMAGE).double().eval().module, clip(4)[0].transpose(0, 1)
    expected = flat.encode(frames).latent_dist.mean
    never = ("", "", "")
    found = {}
    for how in ("tail", "centre", "mean"):
        vae = made("CausalVideoVAE", time_down=never, time_up=never)
        inflate(vae, flat.state_dict(), how)
        found[how] = vae.encode(clip(4))[0].transpose(0, 1)
    assert apart(found["tail"], expected) < EXACT
    assert apart(found["centre"], expected) > 0.01 and apart(found["mean"], expected) > 0.01
    layer = BareCausalConv3d(3, 3, repeat_first=True, bias=False).double()
    layer.weight.zero_()[:, :, 1, 1, 1] = torch.eye(3)  # the middle tap in time is the frame before
    assert apart(layer(clip(4))[:, :, 1:], clip(4)[:, :, :-1]) < EXACT


def test_weights_of_another_image_model_are_refused() -> None:
    vae = made("CausalVideoVAE")
    assert isinstance(vae, CausalVideoVAE)
    with pytest.raises(
        ValueError, match="encoder.conv_in.weight .* does not fit encoder.conv_in.conv.weight"
    ):
        inflate(vae, {"encoder.conv_in.weight": torch.zeros(64, 3, 3, 3)})
    with pytest.raises(ValueError, match="does not fit anything here"):
        inflate(vae, {"encoder.extra.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="inflation='head'"):
        inflate(vae, {}, "head")


# Tiles


@pytest.mark.parametrize("size", [(3, 5, 7), (1, 6, 6), (8, 4, 9)])
@torch.no_grad()
def test_tiled_convolutions_are_plain_ones(size: tuple[int, int, int]) -> None:
    plain, tiled = (BareCausalConv3d(4, 4, repeat_first=True).double() for _ in range(2))
    tiled.load_state_dict(plain.state_dict())
    x = torch.randn(1, 4, *size, dtype=torch.float64, requires_grad=True)  # not by slabs
    with torch.enable_grad():
        for axis in (2, 3, 4, None):
            set_tiling(tiled, 2, axis)
            assert apart(tiled(x), plain(x)) < EXACT


def local(x: Tensor, place: tuple[int, int]) -> Tensor:
    """A blur of 3 x 3 with zeros outside, then twice the size."""
    kernel = torch.ones(3, 1, 1, 3, 3, dtype=x.dtype) / 9
    x = nn.functional.conv3d(x, kernel, padding=(0, 1, 1), groups=3)
    return x.repeat_interleave(2, 3).repeat_interleave(2, 4)


@pytest.mark.parametrize(("tile", "overlap"), [(6, 3), (7, 3), (8, 4)])
def test_tiles_with_room_for_the_reach_are_exact(tile: int, overlap: int) -> None:
    x = clip(2, 19, 13)
    assert apart(in_tiles(local, x, tile, overlap, (1, 2)), local(x, (0, 0))) < EXACT


def test_a_constant_stays_constant_and_blending_is_linear() -> None:
    same: Callable = lambda x, place: x  # noqa: E731
    flat = torch.full((1, 3, 2, 21, 17), 0.3)
    torch.testing.assert_close(in_tiles(same, flat, 6, 2, (1, 1)), flat)
    steps = in_tiles(lambda x, place: torch.full_like(x, float(place[1])), clip(1, 4, 20), 10, 6, (1, 1))
    row = steps[0, 0, 0, 0]
    assert row[0] == 0 and row[-1] == row.max() and (row.diff() >= 0).all() and row.diff().max() <= 0.51


@pytest.mark.parametrize("name", STREAMS)
@torch.no_grad()
def test_tiles_in_a_stream_are_tiles_of_the_whole(name: str) -> None:
    vae = made(name, spatial_tile=6, spatial_overlap=2, micro_frame_size=None)
    video = clip(5, 32, 40)
    z = vae.encode(video)
    assert tuple(z.shape[2:]) == vae.latent_shape(5, 32, 40) == (3, 8, 10)
    assert apart(torch.cat(list(vae.encode_stream(video.split(2, 2))), 2), z) < EXACT
    assert apart(torch.cat(list(vae.decode_stream(z.split(1, 2))), 2), vae.decode(z)) < EXACT


@torch.no_grad()
def test_tiles_of_a_local_layout_are_exact_with_room() -> None:
    """Without attention and with norms of single places, only convolutions reach over a tile's border."""
    local = dict(attention="none", norm="pixel")
    whole, z = made("VideoVAE, streaming preset", **local), torch.randn(1, 4, 2, 50, 4, dtype=torch.float64)
    tiled = made("VideoVAE, streaming preset", **local, spatial_tile=46, spatial_overlap=20)
    assert apart(tiled.decode(z), whole.decode(z)) < EXACT  # neighbours share 42 cells, the network sees 14
    with pytest.raises(ValueError, match="an overlap of 0 to 5"):
        made("VideoVAE, streaming preset", spatial_tile=10, spatial_overlap=6)


@torch.no_grad()
def test_tiles_of_the_shipped_preset_are_close_to_the_whole() -> None:
    preset = load_config([str(Path(__file__).parents[2] / "configs/vae/train/streaming.py")]).vae
    own = dict(norm=preset.norm, attention=preset.attention)
    deep = dict(channel_multipliers=(1, 1, 1, 1), temporal_down=(1, 2), temporal_up=(2, 3), **own)
    torch.manual_seed(0)
    whole = build(MODELS, {**_VIDEO, **deep}).eval()
    tiled = build(MODELS, {**_VIDEO, **deep, "spatial_tile": 18, "spatial_overlap": 9}).eval()
    tiled.load_state_dict(whole.state_dict())
    z = nn.functional.interpolate(torch.randn(1, 4, 1, 6, 2), size=(1, 24, 4), mode="trilinear")
    expected = whole.decode(z)
    error = (tiled.decode(z) - expected).square().mean()  # the tiles share 12 cells, as the preset has it
    assert 20 * torch.log10((expected.max() - expected.min()) / error.sqrt()) > 45


# Sizes


def check_sizes(name: str, lengths: range) -> None:
    device = "cpu" if name.startswith("VQVAE") else "meta"  # windows of attention need numbers
    with torch.device(device):
        vae = build(MODELS, FAMILIES[name]).eval()
    for frames in lengths:
        height, width = 8 + frames % 5, 13 - frames % 4
        with torch.no_grad():
            z = vae.encode(torch.zeros(1, 3, frames, height, width, device=device))
        assert tuple(z.shape[2:]) == vae.latent_shape(frames, height, width), frames


@pytest.mark.parametrize("name", FAMILIES)
def test_latent_shape_is_the_real_one(name: str) -> None:
    check_sizes(name, range(1, 7))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_latent_shape_is_the_real_one_for_any_length(name: str) -> None:
    check_sizes(name, (*range(7, 21), 33, 34, 49, 51, 52, 65, 68, 97, 102, 113, 129, 130))
