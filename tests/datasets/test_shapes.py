"""The generated world: the same row is the same clip, and what its caption says is what is drawn."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch

from opensora.datasets.buckets import ClipIndex
from opensora.datasets.features import ClipSource
from opensora.datasets.loader import build_buckets
from opensora.datasets.planner import Planner
from opensora.datasets.shape_scene import DIRECTIONS, MOTIONS, SHAPES
from opensora.datasets.shape_world import is_held_out
from opensora.datasets.shapes import ShapesDataset

FULL = dict(world="full", num_frames=9, image_size=(48, 32), fps=(8, 12))


def small(**changes):
    return ShapesDataset(**{"num_frames": 9, "image_size": (32, 32), "size": 200, **changes})


def clip(row, frames=9, height=32, width=32, epoch=0):
    return ClipIndex(row, frames, height, width, epoch)


def test_a_row_is_a_clip_whatever_the_run():
    one, other = small(seed=1), copy.deepcopy(small(seed=2))
    for row in (0, 7, 199):
        first, again = one[clip(row)], other[clip(row, epoch=3)]
        assert torch.equal(first["video"], again["video"]) and first["text"] == again["text"]
        assert first["video"].shape == (3, 9, 32, 32) and first["video"].dtype == torch.float32
        assert -1 <= first["video"].min() and first["video"].max() <= 1
    assert not torch.equal(small(world_seed=1)[clip(0)]["video"], one[clip(0)]["video"])
    assert one.manifest.fingerprint == other.manifest.fingerprint != small(fps=9).manifest.fingerprint


@pytest.mark.parametrize("settings", [{}, FULL], ids=["small", "full"])
def test_a_shorter_clip_is_the_beginning(settings):
    data = small(**settings)
    for row in range(12):
        whole = data[clip(row, 9, 48, 32)]["video"]
        assert torch.equal(data[clip(row, 5, 48, 32)]["video"], whole[:, :5])


def test_another_size_shows_the_same_scene():
    data = small()
    for row in range(8):
        large = data[clip(row, 9, 128, 128)]["video"]
        shrunk = torch.nn.functional.avg_pool2d(large.transpose(0, 1), 4).transpose(0, 1)
        assert (shrunk - data[clip(row)]["video"]).abs().mean() < 0.01


def test_held_out_triples_are_spread_evenly():
    kinds = small(split="unseen").world.kinds["unseen"]
    assert len(kinds) == 40
    assert set(Counter(kind[0] for kind in kinds).values()) == {10}
    assert set(Counter(kind[2] for kind in kinds).values()) == {5}
    assert set(Counter(kind[1] for kind in kinds).values()) == {6, 7}
    for split in ("train", "unseen"):
        data = small(split=split)
        things = [data.scene(row).things[0] for row in range(200)]
        assert {is_held_out(t.shape, t.color, t.motion) for t in things} == {split == "unseen"}


def test_objects_stay_inside_and_centred_paths_pass_the_centre():
    for row in range(100):
        scene = small().scene(row)
        times = np.array([0, scene.duration / 2, scene.duration])
        x, y, radius, _ = scene.things[0].at(times, scene.duration)
        reach = radius * SHAPES[scene.things[0].shape]
        assert (np.abs([x, y]) + reach).max() < 0.5
        assert max(abs(x[1]), abs(y[1])) <= 1 / 16
        along = DIRECTIONS[scene.things[0].motion]
        assert np.allclose(np.sign(np.round([x[2] - x[0], y[2] - y[0]], 6)), np.sign(along))


def test_an_endless_clip_begins_like_a_short_one_and_comes_back_on_the_other_side():
    endless = small(path="endless", num_frames=33, size=20)
    for row in range(20):
        video = endless[clip(row, 33)]["video"]
        inner = video[:, :9, 1:-1, 1:-1]  # a smooth edge that ends at the border shows on the other side
        assert torch.equal(inner, small(size=20)[clip(row)]["video"][..., 1:-1, 1:-1])
        if 0.0 in DIRECTIONS[endless.scene(row).things[0].motion]:  # once round in 1 / 0.42 seconds
            rounds = small(path="endless", size=20, fps=0.42)[clip(row, 3)]["video"]
            assert torch.allclose(rounds[:, 0], rounds[:, 1], atol=1e-4)
        background = video[:, 0, 0, 0]
        shown = (video - background[:, None, None, None]).abs().sum((0, 2, 3))
        assert shown.min() > 0.97 * shown.max()  # no part of the object is ever lost


def test_speed_is_per_second():
    slow, fast = small(fps=8.0), small(fps=16.0)
    for row in range(20):
        one, other = slow.scene(row).things[0], fast.scene(row).things[0]
        assert np.hypot(*other.velocity) >= np.hypot(*one.velocity) - 1e-9


def test_captions():
    data = small(caption_style="canonical")
    for row in range(20):
        scene = data.scene(row)
        thing = scene.things[0]
        way = thing.motion.replace(" ", " and ")
        wanted = f"a {thing.color} {thing.shape} moves {way} over a {scene.background} background"
        assert data.manifest.text[row] == wanted
        assert thing.color != scene.background
    varied = [small().manifest.text[row] for row in range(200)]
    assert len(set(varied)) > 190


def test_full_world_shows_everything():
    data = small(**FULL, size=600)
    scenes = [data.scene(row) for row in range(600)]
    assert {thing.motion for scene in scenes for thing in scene.things} == set(MOTIONS)
    assert {len(scene.things) for scene in scenes} == {1, 2}
    assert {scene.camera for scene in scenes} == set(data.world.cameras)
    assert {scene.fps for scene in scenes} == {8, 12}
    pairs = [scene.things for scene in scenes if len(scene.things) == 2]
    assert all(a.shape != b.shape and a.color != b.color for a, b in pairs)


def test_scores_and_labels():
    data = small(**FULL, score_format="words", score_dropout=0.0, label=("shape", "color"))
    for row in range(30):
        sample, scene = data[clip(row)], data.scene(row)
        assert f"camera motion: {scene.camera}." in sample["text"]
        assert "motion strength is" in sample["text"]
        place = list(data.world.shapes).index(scene.things[0].shape), scene.things[0].color
        assert sample["label"] == place[0] * 6 + list(data.world.colors).index(place[1])


def test_rows_for_buckets():
    data = ShapesDataset(size=300, lengths=(1, 9), sizes=((32, 32), (32, 64)))
    frames, height, width = data.sizes()
    assert set(frames.tolist()) == {1, 9} and set(width.tolist()) == {32, 64} and set(height) == {32}
    row = int(np.flatnonzero(frames == 1)[0])
    image = data[clip(row, 1, 32, 64)]
    assert image["video"].shape == (3, 1, 32, 64) and image["fps"] == 120
    assert "move" not in image["text"]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"world": "big"}, {"split": "test"}, {"size": 0}, {"fps": 0}, {"shapes": ("cube",)}),
        *({"num_frames": None}, {"label": "shape"}, {"radius": (0.3, 0.2)}, {"path": "any"}),
        *({"split": "unseen", "held_out": False}, {"score_format": "other"}, {"speeds": {"": 0}}),
    ],
    ids=str,
)
def test_wrong_arguments(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        small(**wrong)


@pytest.mark.parametrize("other", [{"motions": ["spin"]}, {"objects": (2,)}, {"world": "full"}])
def test_endless_paths_are_for_single_objects_that_go_straight(other):
    with pytest.raises(ValueError, match=r"dataset.path='endless': motions=.*give the eight directions"):
        small(path="endless", **other)


def test_features_are_named_by_what_is_drawn():
    clips = np.array([clip(row) for row in (3, 4)])
    files = [
        ClipSource(small(**changes), clips)[0]["file"] for changes in ({}, {"seed": 5}, {"world_seed": 1})
    ]
    assert files[0] == files[1] and files[0]["hash"] != files[2]["hash"]
    sample = ClipSource(small(), clips)[1]
    assert sample["frames"] == list(range(9)) and sample["path"] == "clip 4 of the generated world"


def test_images_and_clips_of_several_shapes_fill_buckets():
    data = ShapesDataset(size=240, lengths=(1, 5, 9), sizes=((64, 64), (48, 80), (80, 48)), fps=(8, 16))
    buckets = build_buckets(data, {"64px": {1: (1.0, 8), 5: (1.0, 4), 9: (1.0, 4)}})
    plan = Planner(data.manifest.fingerprint, data.sizes(), buckets, 1, seed=0).plan(0)
    assert len({tuple(size) for size in plan.sizes.tolist()}) == 9
    assert plan.counts["used"] + plan.counts["carried over"] == 240


def test_mixed_captions_are_canonical_in_every_other_row():
    data = {style: small(caption_style=style) for style in ("canonical", "varied", "mixed")}
    rows = {style: [set_.caption(row) for row in range(20)] for style, set_ in data.items()}
    assert rows["mixed"][::2] == rows["canonical"][::2]
    assert rows["mixed"][1::2] == rows["varied"][1::2]
    assert rows["mixed"][1::2] != rows["canonical"][1::2]
