"""Objects of long videos are followed across the edges, and what a seam does to them is measured."""

import numpy as np
import pytest

from eval.lab.long import follow, kept
from eval.lab.trial import to_bytes
from opensora.datasets.shapes import ShapesDataset

FIRST, ROUNDS = 9, 4
LENGTH = FIRST + (ROUNDS - 1) * (FIRST - 1)
WORLD = ShapesDataset(path="endless", num_frames=LENGTH, image_size=(32, 32), size=24)
SMALL = ShapesDataset(num_frames=FIRST, image_size=(32, 32)).world


def clip(row):
    return to_bytes(WORLD.scene(row).draw(LENGTH, 32, 32))


@pytest.mark.parametrize("row", range(24))
def test_a_true_long_clip_keeps_everything(row):
    found = kept(clip(row), WORLD.scene(row), WORLD.scene(row).background, SMALL, FIRST, ROUNDS)
    assert found["last shape"] == found["last color"] == 1
    assert found["seam jump px"] < 0.3


@pytest.mark.parametrize("row", range(4))
def test_places_are_those_of_the_object(row):
    scene = WORLD.scene(row)
    x, y, _, _ = scene.things[0].at(np.arange(LENGTH) / scene.fps, scene.duration)
    off = follow(clip(row), scene.background) - 32 * (np.stack([x, y], axis=1) + 0.5)
    assert np.abs(off - 32 * np.round(off / 32)).max() < 1.5  # the mean of a triangle is not its middle


def test_a_jump_between_clips_is_seen():
    frames = clip(0)
    frames[FIRST:] = np.roll(frames[FIRST:], 5, axis=2)
    found = kept(frames, WORLD.scene(0), WORLD.scene(0).background, SMALL, FIRST, ROUNDS)
    assert found["seam jump px"] == pytest.approx(5 / (ROUNDS - 1), abs=0.4)


def test_another_object_at_the_end_is_seen():
    one = WORLD.scene(0)

    def differs(row):
        scene = WORLD.scene(row)
        thing, first = scene.things[0], one.things[0]
        same_place = scene.background == one.background
        return same_place and thing.shape != first.shape and thing.color != first.color

    frames = clip(0)
    frames[-FIRST:] = clip(next(filter(differs, range(24))))[-FIRST:]
    found = kept(frames, one, one.background, SMALL, FIRST, ROUNDS)
    assert found["last shape"] == found["last color"] == 0


def test_an_object_that_is_lost_keeps_nothing():
    frames = clip(0)
    scene, lost = WORLD.scene(0), {"last shape": 0.0, "last color": 0.0}
    frames[-3] = frames[0, 0, 0]
    assert kept(frames, scene, scene.background, SMALL, FIRST, ROUNDS) == lost
    frames[-3] = 255 - frames[0, 0, 0]  # the whole frame has another colour
    assert kept(frames, scene, scene.background, SMALL, FIRST, ROUNDS) == lost
