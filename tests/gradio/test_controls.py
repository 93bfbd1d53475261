"""The controls of the page are those of the published page, and take no other values."""

import pytest
from controls import make_controls

from opensora.utils.config import load_config

LENGTHS = (1, 49, 65, 81, 97, 113)


def controls_of(config):
    return make_controls(load_config([config]), None)  # lengths are those that the weights have learned


@pytest.fixture(scope="module")
def published(root):
    return controls_of(str(root / "configs/opensora-v1-3/inference/t2v.py"))


# Label, choices or range, and default, as on the page of 1.3; seed, scale and steps start as in the config.
TABLE = {
    "prompt": ("Prompt", None, ""),
    "resolution": ("Resolution", ("360p", "720p"), "720p"),
    "aspect": ("Aspect ratio (H:W)", ("9:16", "16:9", "3:4", "4:3", "1:1"), "9:16"),
    "frames": ("Video length (frames)", LENGTHS, 97),
    "seed": ("Seed", (1, 2048, 1), 42),
    "steps": ("Sampling steps", (1, 200, 1), 30),
    "guidance": ("CFG scale", (0, 10, 0.1), 7.5),
    "motion": (
        "Motion strength",
        ("very low", "low", "fair", "high", "very high", "extremely high"),
        "fair",
    ),
    "aesthetic": (
        "Aesthetic",
        ("terrible", "very poor", "poor", "fair", "good", "very good", "excellent"),
        "excellent",
    ),
    "camera": (
        "Camera motion",
        ("none", "pan right", "pan left", "tilt up", "tilt down", "zoom in", "zoom out", "static"),
        "none",
    ),
    "fps": ("FPS", (1, 60, 1), 24),
    "loops": ("Number of loops", (1, 20, 1), 1),
}


@pytest.mark.parametrize("name", TABLE)
def test_published_controls(published, name):
    control = published[name]
    assert (control.label, control.choices or control.span, control.default) == TABLE[name]


def test_scores_are_on_where_a_model_learned_them(published, root):
    assert published["motion_on"].default is True and published["aesthetic_on"].default is True
    demo = controls_of(str(root / "configs/opensora-v1-3/inference/demo.py"))
    assert demo["motion_on"].default is False and demo["aesthetic_on"].default is False
    assert demo["resolution"].choices == ("32 x 32",) and demo["frames"].choices == (17,)


def test_models_of_1_2_take_scores_as_numbers(root):
    older = controls_of(str(root / "configs/opensora-v1-2/inference/sample.py"))
    assert older["motion"].span == (0, 100, 1) and older["motion"].default == 5
    assert older["aesthetic"].span == (4, 7, 0.1) and older["aesthetic"].default == 6.5
    assert not older["motion_on"].default and older["aesthetic_on"].default
    assert older["resolution"].choices == ("144p", "240p", "360p", "480p", "720p")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("resolution", "8k"),
        ("frames", 50),
        ("frames", None),
        ("seed", 0),
        ("steps", 201),
        ("steps", True),
        ("guidance", "7); import os"),
        ("guidance", float("nan")),
        ("camera", "shake"),
        ("prompt", "a" * 2001),
        ("prompt", ["a"]),
        ("motion_on", "yes"),
        ("loops", 1e9),
    ],
)
def test_other_values_are_refused(published, name, value):
    with pytest.raises(ValueError, match=published[name].label.replace("(", r"\(").replace(")", r"\)")):
        published[name].check(value)


def test_values_come_out_plain(published):
    assert published["steps"].check(30.0) == 30 and isinstance(published["steps"].check(30.0), int)
    assert published["guidance"].check(7.1000000001) == 7.1
    assert published["prompt"].check("  a cat \n") == "a cat"
