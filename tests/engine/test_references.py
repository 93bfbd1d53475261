"""References: which frames are encoded, at which place of their chunk, and what comes out."""

from pathlib import Path

import pytest
import torch

from opensora.datasets.video_io import write_image, write_video
from opensora.engine.guides import make_guide
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.engine.references import References
from opensora.layers.known_frames import KnownFrames
from opensora.utils.config import load_config

CONFIG = str(Path(__file__).parents[1] / "data/tiny_inference.py")
SIZE = (16, 24)


@pytest.fixture(scope="module")
def cfg():
    return load_config([CONFIG])


@pytest.fixture(scope="module")
def diffusion(cfg):
    torch.manual_seed(0)
    return LatentDiffusion.from_config(cfg)


@pytest.fixture(scope="module")
def vae(diffusion):
    return diffusion.vae


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("references")
    video = torch.full((3, 20, *SIZE), -0.5)
    for frame in range(20):
        video[:, frame, :, frame : frame + 4] = 0.8
    write_video(video, folder / "clip.mp4", 8)
    write_image(video[:, 0], folder / "a.png")
    return folder


@pytest.fixture
def references(vae, cfg, folder, monkeypatch):
    monkeypatch.chdir(folder)
    return References(vae, cfg, 13, SIZE)


def resolve(references, strategy, files=None):
    return references.resolve(make_guide(files, strategy, None))


@pytest.fixture
def encoded(references, diffusion):
    def encode(strategy, files=None):
        ((entry, piece),) = resolve(references, strategy, files)
        return entry, references.encode(piece, diffusion)

    return encode


@torch.no_grad()
def whole(references, vae, frames=17):
    return vae.encode(references.read("clip.mp4", range(frames))[None])[0]


def test_numbers_count_latents_of_whole_chunks(references, vae, encoded):
    entry, z = encoded("0,0,-3,1,9", "clip.mp4")  # 20 frames: four whole chunks, 17 frames
    assert entry == KnownFrames(0, 0, 0, 1, 3) and torch.equal(z, whole(references, vae)[:, 5:8])
    entry, z = encoded("0,0,0,-1", "a.png")
    assert entry == KnownFrames(target=5) and z.shape == (4, 1, 2, 3)


def test_only_the_chunks_that_are_needed_are_read(references, encoded, monkeypatch):
    read = []
    whole = references.read
    monkeypatch.setattr(references, "read", lambda path, frames: read.append(frames) or whole(path, frames))
    encoded("0,0,4,0,1", "clip.mp4")
    assert read == [tuple(range(8, 13))]
    encoded("0,0,4,0,1", "clip.mp4")
    assert len(read) == 1  # it is remembered


def test_times_give_the_latents_of_that_place(references, vae, encoded):
    z = whole(references, vae, 13)
    for text, first, last in (
        ("keep 0f..5f from clip.mp4 at start", 0, 3),  # frame 4 is latent 2 as well
        ("keep 4f..9f from clip.mp4 at 4f", 2, 5),
        ("keep 0.5s..1.125s from clip.mp4 at 0.5s", 2, 5),
        ("keep 1f..5f from clip.mp4 at 1f", 1, 3),
        ("keep 8f..13f from clip.mp4 at end", 4, 6),
        ("keep 0f..13f from clip.mp4 at start", 0, 6),
        ("keep 2f..3f from clip.mp4 at 2f", 1, 2),  # no latent is covered: the one at that place
    ):
        entry, found = encoded(text)
        assert (entry.target, entry.length) == (first, last - first), text
        assert torch.equal(found, z[:, first:last]), text


@torch.no_grad()
def test_frames_keep_their_place_in_a_chunk_wherever_they_come_from(references, vae, encoded):
    _, found = encoded("keep 3f..8f from clip.mp4 at 8f")
    moved = vae.encode(references.read("clip.mp4", range(3, 8))[None])[0]
    assert torch.equal(found, moved)


def test_rates_differ(references, cfg, vae):
    slow = References(vae, {**cfg, "save_fps": 4}, 13, SIZE)
    ((_, piece),) = resolve(
        slow, "keep 0s..1s from clip.mp4 at start"
    )  # four frames of the clip that is made
    assert piece.frames == (0, 2, 4, 6, 8) and (piece.start, piece.stop) == (0, 1)


def test_images_stand_still(references, encoded):
    for text, target in (("keep a.png at start", 0), ("keep a.png at end", 5), ("keep a.png at 1s", 4)):
        ((entry, piece),) = resolve(references, text)
        assert (entry.target, entry.length, set(piece.frames)) == (target, 1, {0})
    entry, z = encoded("keep 0 at end", "a.png")
    assert entry.target == 5 and z.shape[1] == 1


@pytest.mark.parametrize(
    ("strategy", "files", "said"),
    [
        ("keep 0s..9s from clip.mp4 at start", None, "takes frames 0 to 72 of 20, to frame 0 of 13"),
        ("keep clip.mp4 at 2s", None, "to frame 16 of 13; both must lie within"),
        ("keep 1 at start", "a.png", "it names reference 1, and there are 1, from 0 on"),
        ("0,1", "a.png", "it names reference 1, and there are 1, from 0 on"),
        ("0,0,3", "a.png", "the reference has 1 latent frames, the clip 6"),
        ("1", "a.png", "loops are numbered from 0, and loop=1"),
    ],
)
def test_what_does_not_fit(references, strategy, files, said):
    with pytest.raises(ValueError, match=said):
        resolve(references, strategy, files)


def test_odd_sizes_are_filled_by_their_edge(vae, cfg, folder):
    odd = References(vae, cfg, 13, (17, 25))
    video = odd.read(str(folder / "a.png"), [0])
    assert video.shape[1:] == (1, *odd.read(str(folder / "a.png"), [0]).shape[2:])
    assert torch.equal(video[:, :, 17:], video[:, :, 16:17].expand_as(video[:, :, 17:]))
