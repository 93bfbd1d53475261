"""From videos to files: names, formats, and what stands in the files."""

from pathlib import Path

import pytest

from opensora.engine.output import file_fps, file_path
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
