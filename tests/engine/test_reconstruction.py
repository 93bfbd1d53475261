"""Reconstruction: every frame and pixel comes back, and pieces are the whole."""

import pytest
import torch

from opensora.datasets.video_io import write_image, write_video
from opensora.engine.reconstruction import Original, encode, find_originals, reconstruct
from opensora.registry import MODELS, build

TINY = {"channels": 32, "channel_multipliers": (1, 1, 1, 1), "num_res_blocks": 1, "latent_channels": 4}


def tiny(**settings):
    torch.manual_seed(0)
    return build(MODELS, {"type": "VideoVAE", **TINY, **settings}).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a clip of 21 frames, 20 x 28 pixels, and an image."""
    root = tmp_path_factory.mktemp("originals")
    rows = torch.linspace(-0.8, 0.8, 20)[:, None].expand(20, 28)
    clip = torch.stack([rows.roll(2 * t, 0) for t in range(21)])[None].expand(3, -1, -1, -1)
    write_video(clip, root / "clip.mp4", 24)
    write_image(clip[:, 0], root / "image.png")
    return root


@pytest.mark.parametrize("overlap", [True, False])
def test_latents_in_chunks_are_those_of_the_whole_clip(folder, overlap):
    vae = tiny(micro_frame_size=9, temporal_overlap=overlap)
    original = Original.of(folder / "clip.mp4")
    video = original.read(0, 21)
    length = 25 if overlap else 27  # the next lengths of whole chunks; 20 x 28 decode to 24 x 32
    frames = torch.cat((video, video[:, -1:].expand(-1, length - 21, -1, -1)), dim=1)[None]
    with torch.no_grad():
        assert torch.equal(encode(vae, original), vae.encode(frames))


@pytest.mark.parametrize("settings", [{"micro_frame_size": 9}, {"micro_frame_size": None}])
@pytest.mark.parametrize("name", ["clip.mp4", "image.png"])
def test_every_frame_and_pixel_comes_back(folder, name, settings):
    original = Original.of(folder / name)
    pairs = list(reconstruct(tiny(**settings), original))
    truth, made = (torch.cat(parts, dim=1) for parts in zip(*pairs, strict=True))
    assert truth.shape == made.shape == (3, 1 if name == "image.png" else 21, 20, 28)
    assert torch.equal(truth, original.read(0, truth.shape[1]))


def test_a_part_of_a_clip_at_another_size(folder):
    original = Original.of(folder / "clip.mp4", num_frames=5, frame_interval=4, size=(16, 24))
    ((truth, made),) = reconstruct(tiny(micro_frame_size=None), original)
    assert truth.shape == made.shape == (3, 5, 16, 24)
    with pytest.raises(ValueError, match="6 frames at frame_interval=4, num_frames=7 asked"):
        Original.of(folder / "clip.mp4", num_frames=7, frame_interval=4)


def test_data_is_a_file_a_folder_or_a_table(folder, tmp_path):
    data = {"num_frames": None, "image_size": None, "frame_interval": 1}
    table = tmp_path / "table.csv"
    table.write_text(f"path\n{folder / 'image.png'}\n{folder / 'clip.mp4'}\n")
    found = {}
    for place in (folder / "clip.mp4", folder, table):
        cfg = {"dataset": {**data, "data_path": str(place)}, "num_samples": None}
        found[place] = list(find_originals(cfg))
        assert len(find_originals({**cfg, "num_samples": 1})) == 1
    assert list(found.values()) == [["clip"], ["clip", "image"], ["image", "clip"]]
    with pytest.raises(ValueError, match="no videos or images"):
        find_originals({"dataset": {**data, "data_path": str(tmp_path / "..")}, "num_samples": None})
    with pytest.raises(ValueError, match=r"data_path=None: .* --data-path"):
        find_originals({"dataset": {**data, "data_path": None}, "num_samples": None})
