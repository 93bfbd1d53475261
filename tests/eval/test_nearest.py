"""eval.nearest: which group of clips a generated clip looks like."""

import json
import sys

import pytest
import torch

from eval import nearest as module
from eval.nearest import fit, nearest, read
from opensora.datasets.video_io import write_video


def scene(kind, shift, frames=5, side=32):
    """Return stripes that move, in one of two colours and directions. Shape [3, T, H, W], in [-1, 1]."""
    line = torch.linspace(0, 12, side)
    wave = torch.stack([torch.sin(line + shift + t / 3) for t in range(frames)])  # [T, side]
    if kind == 0:
        grid = wave[:, :, None].expand(-1, -1, side)
        return torch.stack([grid, -grid, torch.full_like(grid, -0.8)])
    grid = wave[:, None, :].expand(-1, side, -1)
    return torch.stack([torch.full_like(grid, -0.8), 0.2 * grid, grid])


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Return a generated clip and two references for each of two scenes."""
    folder = tmp_path_factory.mktemp("clips")
    made = [str(write_video(scene(k, 0.4), folder / f"made{k}.mp4", 8)) for k in (0, 1)]
    # References may have another length and size.
    groups = [
        [
            str(write_video(scene(k, shift, frames, side), folder / f"group{k}_{shift}.mp4", 8))
            for shift, frames, side in ((0.0, 5, 32), (0.8, 9, 48))
        ]
        for k in (0, 1)
    ]
    return made, groups


def test_clips_are_nearest_to_their_own_scene(clips):
    made, groups = clips
    found = nearest(made, groups)
    assert (found["nearest to own group"], found["of"]) == (2, 2)
    assert all(0 < ratio < 0.8 for ratio in found["over noise"])
    swapped = nearest(made[::-1], groups)
    assert swapped["nearest to own group"] == 0
    assert swapped["distances"] == found["distances"][::-1]


def test_a_clip_among_the_references_is_at_distance_0(clips):
    made, groups = clips
    found = nearest(made[:1], [[*groups[0], made[0]], groups[1]][:1])
    assert found["distances"] == [[0.0]] and found["over noise"] == [0.0]


def test_fit_repeats_and_cuts_frames_and_scales():
    video = torch.arange(3.0).reshape(1, 3, 1, 1).expand(3, 3, 8, 8)
    longer = fit(video, torch.zeros(3, 5, 4, 4))
    assert longer.shape == (3, 5, 4, 4) and longer[0, :, 0, 0].tolist() == [0, 0, 1, 2, 2]
    shorter = fit(video, torch.zeros(3, 2, 8, 8))
    assert shorter[0, :, 0, 0].tolist() == [0, 2]


def test_read_gives_the_whole_clip(clips):
    made, _ = clips
    video = read(made[0])
    assert video.shape == (3, 5, 32, 32) and -1 <= video.min() and video.max() <= 1
    assert (video - scene(0, 0.4)).abs().mean() < 0.1


def test_the_command_prints_json_and_wants_a_group_for_each_clip(clips, capsys, monkeypatch):
    made, groups = clips
    words = ["nearest", "--generated", made[0], "--references", *groups[0]]
    monkeypatch.setattr(sys, "argv", words)
    module.main()
    assert json.loads(capsys.readouterr().out)["of"] == 1
    monkeypatch.setattr(sys, "argv", [*words, "--references", *groups[1]])
    with pytest.raises(SystemExit) as caught:
        module.main()
    assert caught.value.code == 2
    assert "1 generated clips and 2 groups; give as many of each" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["nearest", "--generated", "no.mp4", "--references", *groups[0]])
    with pytest.raises(SystemExit) as caught:
        module.main()
    assert caught.value.code == 2
    assert "no.mp4: no such file" in capsys.readouterr().err
