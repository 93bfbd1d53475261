import json
import os
from pathlib import Path

import pytest

from opensora.datasets.resolutions import (
    ASPECT_RATIOS,
    FRAME_COUNTS,
    area,
    even_size,
    frame_count,
    image_size,
    nearest_ratio,
    sizes,
)

NAMES = ("144p", "240p", "360p", "480p", "720p", "1080p", "2k", "4k", "256", "512", "1024", "2048", "2880")


@pytest.fixture(scope="module")
def golden() -> dict:
    folder = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parents[1] / "golden" / "vectors"))
    file = folder / "buckets_and_aspects.json"
    if not file.exists():
        pytest.skip(f"{file} is not there; GOLDEN_DIR names a folder with it")
    return json.loads(file.read_text())["functions"]


def test_table_is_whole():
    assert sum(len(sizes(name)) for name in NAMES) == 336
    for name in NAMES:
        for key, (height, width) in sizes(name).items():
            assert height > 0 and width > 0
            # 50:27 has the key 2.08, and some entries are rounded coarsely.
            assert float(key) == pytest.approx(height / width, rel=0.05), (name, key)
            # The square tables step in 16 pixels, so their areas vary more.
            assert height * width == pytest.approx(area(name), rel=0.13), (name, key)


@pytest.mark.parametrize(
    ("resolution", "ratio", "size"),
    [
        ("360p", "9:16", (360, 640)),
        ("720p", "16:9", (1280, 720)),
        ("480p", "1:1", (640, 640)),
        ("144p", "0.56", (144, 256)),
        ("720p", "50:27", (1386, 666)),
        ("360p_16d", "9:16", (352, 640)),
        ("360p_16d", "0.38", (288, 784)),
        ("512", "1:1", (512, 512)),
        ("2880", "4.00", (5760, 1408)),
    ],
)
def test_image_size(resolution, ratio, size):
    assert image_size(resolution, ratio) == size


def test_every_aspect_name_has_a_size_in_the_video_resolutions():
    for name in NAMES[:8]:
        assert list(ASPECT_RATIOS.values()) == sorted(sizes(name), key=float)


def test_multiples_of_16_are_the_same_table_rounded_down():
    for name in NAMES:
        assert area(f"{name}_16d") == area(name)
        for key, (height, width) in sizes(f"{name}_16d").items():
            assert (height, width) == tuple(side // 16 * 16 for side in sizes(name)[key])


def test_sizes_cannot_be_changed_from_outside():
    sizes("360p").clear()
    assert len(sizes("360p")) == 17


def test_nearest_ratio():
    for name in NAMES:
        for key, (height, width) in sizes(name).items():
            found = nearest_ratio(name, height, width)
            assert abs(float(found) - height / width) <= abs(float(key) - height / width)
    assert nearest_ratio("720p", 1, 1000) == "0.38"
    assert nearest_ratio("720p", 1000, 1) == "2.08"


def test_frame_count():
    assert frame_count("4s") == frame_count("2x") == 102
    assert frame_count("113") == frame_count(113) == 113
    assert frame_count(1) == 1
    assert len(FRAME_COUNTS) == 10


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: area("361p"), ["'361p'", "nearest is '360p'", "144p", "resolutions.csv"]),
        (lambda: area(512), ["512", "1024"]),
        (lambda: sizes("nothing"), ["'nothing'", "Use one of"]),
        (lambda: image_size("360p", "9:15"), ["'9:15'", "nearest is '0.62'", "16:9", "0.56"]),
        (lambda: image_size("512", "9:16"), ["'9:16'", "512", "1:1", "0.57", "image_size"]),
        (lambda: image_size("360p", "1.0"), ["'1.0'", "1.00"]),
        (lambda: nearest_ratio("360p", 0, 10), ["height=0"]),
        (lambda: frame_count("3s"), ["'3s'", "2s", "--seconds"]),
        (lambda: frame_count(""), ["''"]),
        (lambda: frame_count(0), ["0", "from 1"]),
        (lambda: frame_count(None), ["None"]),
    ],
)
def test_errors_name_value_choices_and_remedy(call, parts):
    with pytest.raises(ValueError) as error:
        call()
    for part in parts:
        assert part in str(error.value)


def test_golden_tables(golden):
    out = golden["aspect_tables"]["cases"][0]["out"]
    assert len(out["tables"]) == 26
    for name, table in out["tables"].items():
        assert area(name) == table["num_pixels"]
        assert [(k, list(v)) for k, v in sizes(name).items()] == list(table["sizes"].items())
    assert ASPECT_RATIOS == out["aspect_names"]
    assert FRAME_COUNTS == out["num_frames_names"]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("get_num_pixels", lambda name: area(name)),
        ("get_closest_ratio", lambda height, width, resolution: nearest_ratio(resolution, height, width)),
        ("get_image_size", lambda resolution, ar_ratio: list(image_size(resolution, ar_ratio))),
        ("get_num_frames", lambda num_frames: frame_count(num_frames)),
    ],
)
def test_golden_functions(golden, name, call):
    cases = golden[name]["cases"]
    assert cases
    for case in cases:
        if "error" in case:
            with pytest.raises(ValueError):
                call(**case["args"])
        else:
            assert call(**case["args"]) == case["out"], case["args"]


def test_even_sizes_for_other_ratios():
    assert even_size(230_400, 0.5625) == (360, 640) and even_size(230_400, 1.0) == (480, 480)
    for ratio in (0.2, 0.7, 1.3, 3.0):
        height, width = even_size(230_400, ratio)
        assert height % 2 == width % 2 == 0
        assert height * width == pytest.approx(230_400, rel=0.02)
        assert height / width == pytest.approx(ratio, rel=0.02)
    with pytest.raises(ValueError, match="positive"):
        even_size(0, 1.0)
    with pytest.raises(ValueError, match=r"or give image_size, such as \(214, 1070\)"):
        image_size("360p", "1:5")
