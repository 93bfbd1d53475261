"""The judge on true clips, clean and as autoencoders leave them; and on clips that show nothing."""

import numpy as np
import pytest

from eval.lab.judge import bilinear, judge
from opensora.datasets.shapes import ShapesDataset

SMALL = dict(num_frames=9, image_size=(32, 32), size=1000)
FULL = dict(world="full", num_frames=17, image_size=(64, 64), fps=24, size=1000)
ATTRIBUTES = ("shape", "color", "motion", "background", "camera", "count")


def drawn(data, row):
    return data.scene(row).draw(data.num_frames, *data.image_size)


def noisy(frames):
    return frames + np.random.default_rng(0).normal(0, 0.05, frames.shape)  # 0.1 in [-1, 1]


def blurred(frames):
    """Halve the size and double it again."""
    t, h, w, _ = frames.shape
    small = frames.reshape(t, h // 2, 2, w // 2, 2, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    y, x = np.meshgrid(np.arange(h) / 2 - 0.25, np.arange(w) / 2 - 0.25, indexing="ij")
    edges = (np.clip(y, 0, h / 2 - 1), np.clip(x, 0, w / 2 - 1))
    return np.stack([[bilinear(one, *edges) for one in frame] for frame in small]).transpose(0, 2, 3, 1)


def tinted(frames):
    return 0.93 * frames + np.array([0.05, 0.0, 0.02])


def errors(settings, rows, change=lambda frames: frames):
    """Return by attribute which rows are read wrong."""
    data, wrong = ShapesDataset(**settings), {name: [] for name in ATTRIBUTES}
    for row in rows:
        scene = data.scene(row)
        frames = (np.clip(change(drawn(data, row)), 0, 1) * 255).round().astype(np.uint8)
        found = judge(frames, scene.fps, data.world)
        for name in ("background", "camera"):
            if getattr(found, name) != getattr(scene, name):
                wrong[name].append(row)
        if found.count != len(scene.things):
            wrong["count"].append(row)
        for thing in scene.things:
            seen = thing.color in found.colors
            place = found.colors.index(thing.color) if seen else 0
            if not seen:
                wrong["color"].append(row)
            for name in ("shape", "motion"):
                if not seen or getattr(found, f"{name}s")[place] != getattr(thing, name):
                    wrong[name].append(row)
    return wrong


@pytest.mark.parametrize(
    "change", [lambda x: x, noisy, blurred, tinted], ids=["clean", "noisy", "blurred", "tinted"]
)
def test_small_world_is_read_without_error(change):
    assert errors(SMALL, range(16), change) == {name: [] for name in ATTRIBUTES}


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [lambda x: x, noisy, blurred, tinted], ids=["clean", "noisy", "blurred", "tinted"]
)
def test_error_on_a_thousand_clips_of_the_small_world(change):
    assert all(len(rows) < 10 for rows in errors(SMALL, range(1000), change).values())


def test_nothing_is_seen_where_nothing_is():
    world = ShapesDataset(**SMALL).world
    noise = np.random.default_rng(0).random((9, 32, 32, 3))
    empty = np.full((9, 32, 32, 3), 128, dtype=np.uint8)
    assert judge(noise, 8, world).shapes in ((), (None,)) and judge(noise, 8, world).count != 1
    found = judge(empty, 8, world)
    assert (found.background, found.count, found.shapes) == ("gray", 0, ())


def test_what_is_wrong_is_seen():
    """Clips whose pixels were changed no longer pass for what they were."""
    data = ShapesDataset(**SMALL)
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    for row in range(12):
        thing, frames = data.scene(row).things[0], drawn(data, row)
        back = judge(frames[::-1], 8, data.world).motions[0]
        assert back == " ".join(opposite[word] for word in thing.motion.split())
        assert judge(frames[:1].repeat(9, 0), 8, data.world).motions[0] is None
        swapped = judge(frames[..., ::-1], 8, data.world)
        assert thing.color not in swapped.colors or thing.color in ("green", "purple")
        shrunk = judge(np.concatenate([frames, np.roll(frames, 16, axis=1)], axis=2), 8, data.world)
        assert shrunk.count != 1


def test_speed_is_read():
    data = ShapesDataset(**SMALL)
    for row in range(20):
        true = float(np.hypot(*data.scene(row).things[0].velocity))
        assert judge(drawn(data, row), 8, data.world).speeds[0] == pytest.approx(true, rel=0.05)
