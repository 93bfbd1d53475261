"""From videos to files: names, formats, and what stands in the files."""

from pathlib import Path

import pytest

from opensora.engine.output import check_output, file_fps, file_path
from opensora.engine.prompts import Request
from opensora.utils.config import load_config

CONFIG = str(Path(__file__).parents[1] / "data/tiny_inference.py")


@pytest.fixture(scope="module")
def cfg():
    return load_config([CONFIG])


def request(prompt, sample=0, **changes):
    values = {"text": prompt, "negative": None, "index": 0, "num_frames": 5, "height": 16, "width": 24}
    return Request(prompt=prompt, sample=sample, **(values | {"fps": 24.0} | changes))


def test_names(cfg):
    cfg = {**cfg, "save_dir": "out", "prompt_as_path": False, "num_sample": 1}
    assert file_path(request("a", index=3), cfg) == Path("out/sample_0003.mp4")
    assert file_path(request("a", 1, num_frames=1), {**cfg, "num_sample": 2}).name == "sample_0000-1.png"


def test_prompts_as_names_stay_apart_and_in_their_folder(cfg):
    cfg = {**cfg, "save_dir": "out", "prompt_as_path": True, "num_sample": 1}
    assert file_path(request("a cat, on a mat."), cfg) == Path("out/a cat, on a mat..mp4")
    prompts = ["a/b", "a:b", "../b", ".b", "猫" * 200, "猫" * 201, "x" * 300, "x" * 301, "a\nb", "..."]
    paths = [file_path(request(prompt), cfg) for prompt in prompts]
    assert len(set(paths)) == len(prompts)
    for path in paths:
        assert path.parent == Path("out") and not path.name.startswith(".")
        assert len(path.with_name(path.stem + "_sheet.png").name.encode()) < 255 and path.name.isprintable()


def test_the_rate_of_a_file(cfg):
    assert file_fps({**cfg, "fps": 24, "frame_interval": 3, "save_fps": None}) == 8
    assert file_fps({**cfg, "fps": 24, "frame_interval": 3, "save_fps": 30}) == 30


@pytest.mark.parametrize("prompt", ["con", "NUL.txt", "com1", "lpt9 .x", "-rf", "a\u202etxt.exe", "\u200b"])
def test_names_that_some_system_refuses_or_hides_are_changed(cfg, prompt):
    name = file_path(request(prompt), {**cfg, "prompt_as_path": True}).name
    assert name.endswith(f"-{request(prompt).key:014x}.mp4")
    assert name[0] not in "-." and name.isprintable()
    assert name.split(".")[0].split("-")[0].strip().lower() not in ("con", "nul", "com1", "lpt9")


def test_prompts_that_are_good_names_are_the_names(cfg):
    for prompt in ("A cat, on a mat.", "Größe 5 é", "猫と犬", "console", "a - b"):
        path = file_path(request(prompt, 1), {**cfg, "prompt_as_path": True, "num_sample": 2})
        assert path.name == f"{prompt}-1.mp4"


def test_formats_name_their_files(cfg):
    cfg = {**cfg, "sample_name": "x", "save_dir": "out"}
    for kind, name in (("mkv", "x_0000.mkv"), ("webm", "x_0000.webm"), ("png", "x_0000")):
        assert file_path(request("a"), {**cfg, "video_format": kind}) == Path("out") / name
        assert file_path(request("a", num_frames=1), {**cfg, "video_format": kind}).name == "x_0000.png"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("video_format", "avi", "use one of mp4, mkv, webm, png"),
        ("crf", 52, "use a number from 0"),
        ("crf", "best", "use a number from 0"),
        ("sample_name", "../x", "use a plain file name"),
        ("sample_name", ".x", "use a plain file name"),
        ("sample_name", 5, "use a plain file name"),
    ],
)
def test_what_is_wrong_with_files_is_said(cfg, key, value, said):
    with pytest.raises(ValueError, match=said):
        check_output({**cfg, key: value})
