"""What a model is asked, and how an answer is compared with it."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from eval.lab.cases import answered, asked, make_cases
from eval.lab.judge import judge
from eval.lab.measures import diversity, drift, nearest, path_scatter, psnr
from opensora.datasets.shape_world import WORLDS, is_held_out
from opensora.datasets.shapes import ShapesDataset


def test_prompts_are_unseen_distinct_and_the_same_every_time():
    cases = make_cases({"world": "small"}, 500, 9, 8.0)
    assert len({case.text for case in cases}) == 500
    assert cases[:8] == make_cases({"world": "small"}, 8, 9, 8.0)
    things = [case.scene.things[0] for case in cases]
    assert all(is_held_out(thing.shape, thing.color, thing.motion) for thing in things)
    assert set(Counter(thing.shape for thing in things[:8]).values()) == {2}
    combinations = {
        (t.shape, t.color, t.motion, c.scene.background) for t, c in zip(things, cases, strict=True)
    }
    assert len(combinations) == 193  # 40 triples, five backgrounds, but none like the object


def test_full_world_asks_for_more():
    world = WORLDS["full"]
    cases = make_cases({"world": "full"}, 60, 17, 24.0)
    wanted = [asked(case, world) for case in cases]
    assert {"2", "1"} == {one["count"] for one in wanted}
    assert all("camera" in one for one in wanted) and any("speed" in one for one in wanted)
    for case, one in zip(cases, wanted, strict=True):
        for word in one["color"].split(", "):
            assert word in case.text or word in ("gray", "purple", "cyan")


def test_a_true_clip_is_right_and_another_is_not():
    world = WORLDS["small"]
    cases = make_cases({"world": "small"}, 12, 9, 8.0)
    readings = [judge(case.scene.draw(9, 32, 32), 8.0, world) for case in cases]
    for case, reading in zip(cases, readings, strict=True):
        assert answered(case, reading, world) == asked(case, world)
        assert path_scatter(reading, case.scene, 32) < 0.2
    other = answered(cases[0], readings[1], world)
    thing, seen = cases[0].scene.things[0], cases[1].scene.things[0]
    assert other["shape"] == seen.shape and (other["color"] == thing.color) == (seen.color == thing.color)


def test_a_world_without_held_out_clips_is_refused():
    with pytest.raises(ValueError, match="unseen"):
        make_cases({"world": "small", "held_out": False}, 5, 9, 8.0)
    with pytest.raises(ValueError, match="prompts=0"):
        make_cases({"world": "small"}, 0, 9, 8.0)


def test_measures():
    data = ShapesDataset(num_frames=9, image_size=(32, 32), size=50)
    clips = (np.stack([data.scene(row).draw(9, 32, 32) for row in (3, 4)]) * 255).round().astype(np.uint8)
    assert nearest(clips, data, 50).max() < 1 < nearest(clips, data, 3).min()
    assert psnr(clips[0, 0], clips[0, 0]) == 100
    assert psnr(np.zeros((4, 4, 3)), np.full((4, 4, 3), 255)) == pytest.approx(0)
    assert diversity([[clips[0], clips[0]]]) == 0 < diversity([[clips[0], clips[1]]])
    scene = data.scene(3)
    darker = replace(scene, background="gray").draw(9, 32, 32)
    grey = (darker * 255).round().astype(np.uint8)
    assert drift(np.concatenate([grey, grey]), "gray", 9) == 0
    assert drift(np.concatenate([grey, grey + np.uint8(3)]), "gray", 9) == pytest.approx(3)
