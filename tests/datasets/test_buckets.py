import json
import os
from pathlib import Path

import pytest

from opensora.datasets.buckets import Bucket, Buckets


def test_entries_largest_first():
    buckets = Buckets({"360p": {1: (1.0, 60), 49: (1.0, 5)}, "720p": {49: (0.25, 2), 65: ((0.5, 0.5), 1)}})
    assert len(buckets) == 4
    assert buckets.buckets == [
        Bucket("720p", 65, 0.5, 0.5, 1),
        Bucket("720p", 49, 0.25, None, 2),
        Bucket("360p", 49, 1.0, None, 5),
        Bucket("360p", 1, 1.0, None, 60),
    ]


def test_equal_areas_keep_the_order_of_the_config():
    def order(*names: str) -> list[str]:
        return [bucket.resolution for bucket in Buckets({name: {1: (1.0, 1)} for name in names}).buckets]

    assert order("144p", "4k", "2880") == ["4k", "2880", "144p"]
    assert order("144p", "2880", "4k") == ["2880", "4k", "144p"]


def test_zero_probability_needs_no_batch_size():
    assert Buckets({"360p": {102: (0.0, None)}}).buckets == [Bucket("360p", 102, 0.0, None, None)]


def test_lists_are_pairs_too():
    assert Buckets({"360p": {49: [[1.0, 0.5], 2]}}).buckets == [Bucket("360p", 49, 1.0, 0.5, 2)]


def test_evaluation_may_leave_out_probability_and_batch_size():
    config = {"360p": {49: (None, 3), 65: (None, None), 81: (0.5, 2)}}
    found = Buckets(config, purpose="evaluate").buckets
    assert [(bucket.keep, bucket.batch_size) for bucket in found] == [(0.5, 2), (None, None), (None, 3)]
    with pytest.raises(ValueError, match="None is for evaluation"):
        Buckets(config)


def test_search_reads_guess_and_variance():
    found = Buckets({"240p": {1: (297, 200), 51: (20, 0)}}, purpose="search").buckets
    assert found == [Bucket("240p", 51, None, None, 20), Bucket("240p", 1, None, None, 297, 200)]
    with pytest.raises(ValueError, match="probability 297"):
        Buckets({"240p": {1: (297, 200)}})


@pytest.mark.parametrize(
    ("config", "purpose", "parts"),
    [
        ({"361p": {1: (1.0, 2)}}, "train", ["bucket_config['361p']", "unknown", "'360p'", "resolutions.csv"]),
        ({"360p": {0: (1.0, 2)}}, "train", ["['360p'][0]", "at least 1"]),
        ({"360p": {"49": (1.0, 2)}}, "train", ["['360p']['49']", "integer"]),
        ({"360p": {True: (1.0, 2)}}, "train", ["[True]", "integer"]),
        ({"360p": {49: (1.5, 2)}}, "train", ["[49]", "1.5", "[0, 1]"]),
        ({"360p": {49: (-0.1, 2)}}, "train", ["-0.1"]),
        ({"360p": {49: ((1.0, 2.0), 2)}}, "train", ["(1.0, 2.0)", "[0, 1]"]),
        ({"360p": {49: (float("nan"), 2)}}, "train", ["nan"]),
        ({"360p": {1: ((1.0, 0.5), 2)}}, "train", ["[1]", "images"]),
        ({"360p": {49: (1.0, None)}}, "train", ["batch size None", "probability 0.0"]),
        ({"360p": {49: (1.0, 0)}}, "train", ["batch size 0", "at least 1"]),
        ({"360p": {49: (1.0, 2.0)}}, "train", ["batch size 2.0"]),
        ({"360p": {49: 5}}, "train", ["(probability, batch size)"]),
        ({"360p": {49: (1.0, 2, 3)}}, "train", ["(1.0, 2, 3)"]),
        ({"360p": [49]}, "train", ["['360p']", "dict"]),
        ({}, "train", ["{}", "at least one"]),
        (None, "train", ["None"]),
        ({"360p": {49: (0.5, 2)}}, "search", ["(guess, variance)"]),
        ({"360p": {49: (5, -1)}}, "search", ["(5, -1)"]),
        ({"360p": {49: (1.0, 2)}}, "dance", ["'dance'", "evaluate"]),
    ],
)
def test_errors_name_the_entry(config, purpose, parts):
    with pytest.raises(ValueError) as error:
        Buckets(config, purpose)
    for part in parts:
        assert part in str(error.value)


def test_golden_order():
    folder = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parents[1] / "golden" / "vectors"))
    file = folder / "buckets_and_aspects.json"
    if not file.exists():
        pytest.skip(f"{file} is not there; GOLDEN_DIR names a folder with it")
    cases = json.loads(file.read_text())["functions"]["bucket_info"]["cases"]
    assert cases
    for case in cases:
        config = case["args"]["bucket_config"]
        config = {
            name: {int(frames): entry for frames, entry in part.items()} for name, part in config.items()
        }
        found = [[bucket.resolution, bucket.num_frames] for bucket in Buckets(config).buckets]
        assert found == [entry[:2] for entry in case["out"]["order_and_index"]]
