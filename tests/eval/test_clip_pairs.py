"""Pairs of clips: who belongs to whom, and which frames are read."""

import pytest
import torch

from eval.clip_pairs import PairOptions, find_pairs
from opensora.datasets.video_io import write_image, write_video


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return two folders with clips a (9 frames) and b (5), equal but for b's brightness, and an image c."""
    root = tmp_path_factory.mktemp("pairs")
    noise = torch.rand(3, 9, 32, 48, generator=torch.Generator().manual_seed(0)) - 0.5
    for name, change in (("one", 0.0), ("two", 0.2)):
        write_video(noise, root / name / "a.mp4", 24)
        write_video(noise[:, :5] + change, root / name / "b.mp4", 24)
        write_image(noise[:, 0] + change, root / name / "c.png")
    return root / "one", root / "two"


def test_files_of_one_name_are_pairs(folders):
    pairs = find_pairs(*folders)
    assert [pair.name for pair in pairs] == ["a", "b", "c"]
    assert all(pair.reference.name == pair.other.name for pair in pairs)
    assert [pair.name for pair in find_pairs(*folders, subset_size=2)] == ["a", "b"]
    assert find_pairs(folders[0] / "a.mp4", folders[1] / "b.mp4")[0].name == "a"


def test_pieces_join_to_the_whole_clip(folders):
    pair, options = find_pairs(*folders)[0], PairOptions()
    ((whole, other),) = pair.pieces(options, 100)
    assert whole.shape == (9, 3, 32, 48) and torch.equal(whole, other)
    assert torch.equal(torch.cat([a for a, _ in pair.pieces(options, 4)]), whole)
    shared = [a for a, _ in pair.pieces(options, 4, overlap=1)]
    assert [len(a) for a in shared] == [4, 4, 3]
    assert torch.equal(torch.cat([shared[0], *(a[1:] for a in shared[1:])]), whole)


@pytest.mark.parametrize(
    ("changes", "frames", "size"),
    [
        ({"num_frames": 3}, 3, (32, 48)),
        ({"sample_rate": 4}, 3, (32, 48)),
        ({"sample_rate": 2, "num_frames": 2}, 2, (32, 48)),
        ({"resolution": 64}, 9, (64, 96)),
        ({"crop_size": 20}, 9, (20, 20)),
        ({"resolution": 16, "crop_size": 16}, 9, (16, 16)),
    ],
)
def test_options_choose_frames_and_sizes(folders, changes, frames, size):
    ((a, b),) = find_pairs(*folders)[0].pieces(PairOptions(**changes), 100)
    assert a.shape == b.shape == (frames, 3, *size)


def test_images_are_clips_of_one_frame(folders):
    ((a, b),) = find_pairs(*folders)[2].pieces(PairOptions(), 100)
    assert a.shape == (1, 3, 32, 48) and float((b - a).mean()) == pytest.approx(0.1, abs=0.01)


def test_what_does_not_fit_is_refused(folders, tmp_path):
    one, two = folders
    odd = find_pairs(one / "a.mp4", two / "b.mp4")[0]
    with pytest.raises(ValueError, match="a: 9 frames in .*, 5 in .*; give --num-frames, at most 5"):
        odd.frames(PairOptions())
    assert odd.frames(PairOptions(num_frames=5)) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="5 frames can be compared, --num-frames asks for 6"):
        odd.frames(PairOptions(num_frames=6))
    with pytest.raises(ValueError, match="--crop-size 40 is larger"):
        list(find_pairs(one, two)[0].pieces(PairOptions(crop_size=40), 4))
    with pytest.raises(FileNotFoundError, match="nowhere: does not exist"):
        find_pairs(one, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="3 have no partner of the same name, such as a, b, c"):
        find_pairs(one, tmp_path)
    with pytest.raises(ValueError, match="sample_rate=0"):
        PairOptions(sample_rate=0)
    write_image(torch.zeros(3, 40, 40), tmp_path / "a.png")
    with pytest.raises(ValueError, match="32 x 48 pixels in .*, 40 x 40 in"):
        list(find_pairs(one / "c.png", tmp_path / "a.png")[0].pieces(PairOptions(), 4))
