"""Golden cases of names for sizes, buckets, the batch sampler and temporal crops.

A case's arguments stand under `args`, its expectation under `out`, or `error` where the reference raises.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from opensora.datasets import resolutions, video_io
from opensora.datasets.assignment import Assignment
from opensora.datasets.buckets import Buckets
from opensora.datasets.planner import Planner, PlanRules
from opensora.datasets.samplers import BucketSampler
from opensora.datasets.transforms import temporal_indices
from opensora.engine.prompt_files import is_url


def _read_config(published: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[int, Any]]:
    """Undo what JSON does to keys and tuples."""
    return {
        name: {int(frames): tuple(entry) for frames, entry in lengths.items()}
        for name, lengths in published.items()
    }


def _aspect_tables(case: Mapping[str, Any], inputs: Any, weights: Any) -> dict[str, Any]:
    names = case["out"]["tables"]
    tables = {
        name: {
            "num_pixels": resolutions.area(name),
            "sizes": {key: list(size) for key, size in resolutions.sizes(name).items()},
        }
        for name in names
    }
    published = {
        "tables": tables,
        "aspect_names": resolutions.ASPECT_RATIOS,
        "num_frames_names": resolutions.FRAME_COUNTS,
    }
    return {"out": {key: published.get(key) for key in case["out"]}}


def _bucket_info(case: Mapping[str, Any], inputs: Any, weights: Any) -> dict[str, Any]:
    buckets = Buckets(_read_config(case["args"]["bucket_config"]))
    order = [[bucket.resolution, bucket.num_frames, b] for b, bucket in enumerate(buckets.buckets)]
    by_name = {
        (buckets.buckets[s.bucket].resolution, s.num_frames, s.aspect_ratio): s for s in buckets.shapes
    }
    examples = []
    for example in case["out"]["examples"]:
        shape = by_name[tuple(example["bucket"])]
        bucket = buckets.buckets[shape.bucket]
        keep = bucket.keep if bucket.length is None else [bucket.keep, bucket.length]
        thw = [shape.num_frames, shape.height, shape.width]
        examples.append(
            {"bucket": example["bucket"], "thw": thw, "batch_size": shape.batch_size, "prob": keep}
        )
    return {"out": {"num_bucket": len(buckets.shapes), "order_and_index": order, "examples": examples}}


def _bucket_ids(case: Mapping[str, Any], inputs: Any, weights: Any) -> dict[str, Any]:
    args = case["args"]

    def draws(seed: int, epoch: int, rows: np.ndarray, bucket: int, step: int) -> np.ndarray:
        return np.array(
            [np.random.default_rng(args["seeds"][r] + bucket).random(step + 1)[step] for r in rows]
        )

    buckets = Buckets(_read_config(args["bucket_config"]), keep_draws=draws)
    columns = tuple(np.array(args["rows"]).T)
    table = Assignment.of(buckets, columns, args["frame_interval"]).draw(seed=0, epoch=0)
    found: list[Any] = [None] * len(table.shape)
    for row, number in enumerate(table.shape):
        if number >= 0:
            shape = buckets.shapes[number]
            found[row] = [buckets.buckets[shape.bucket].resolution, shape.num_frames, shape.aspect_ratio]
    return {"out": found}


def _temporal_random_crop(case: Mapping[str, Any], inputs: Any, weights: Any) -> dict[str, Any]:
    args = case["args"]
    total, num_frames, interval = args["total_frames"], args["num_frames"], args["frame_interval"]
    starts = max(1, total - (num_frames - 1) * interval)
    if args["begin"] is not None:
        u = (args["begin"] + 0.5) / starts
        return {"out": {"indices": temporal_indices(total, num_frames, interval, u)}}
    lowest = temporal_indices(total, num_frames, interval, 0.0)
    highest = temporal_indices(total, num_frames, interval, math.nextafter(1.0, 0.0))
    return {"out": {"start_range_inclusive": [lowest[0], highest[0]], "indices_at_lowest": lowest}}


def _get_num_frames(case: Mapping[str, Any], inputs: Any, weights: Any) -> dict[str, Any]:
    return {"out": resolutions.frame_count(case["args"]["num_frames"])}


def _get_closest_ratio(case: Mapping[str, Any], inputs: Any, weights: Any) -> dict[str, Any]:
    args = case["args"]
    return {"out": resolutions.nearest_ratio(args["resolution"], args["height"], args["width"])}


def _get_image_size(case: Mapping[str, Any], inputs: Any, weights: Any) -> dict[str, Any]:
    return {"out": list(resolutions.image_size(case["args"]["resolution"], case["args"]["ar_ratio"]))}


def _get_h_w(case: Mapping[str, Any], inputs: Any, weights: Any) -> dict[str, Any]:
    return {"out": list(resolutions.even_size(case["args"]["ts"], case["args"]["a"]))}


def _is_img_vid(case: Mapping[str, Any], inputs: Any, weights: Any) -> dict[str, Any]:
    path = case["args"]["path"]
    return {"out": [video_io.is_image(path), video_io.is_video(path)]}


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "aspect_tables": _aspect_tables,
    "get_num_pixels": lambda case, inputs, weights: {"out": resolutions.area(case["args"]["name"])},
    "get_closest_ratio": _get_closest_ratio,
    "get_image_size": _get_image_size,
    "get_num_frames": _get_num_frames,
    "bucket_info": _bucket_info,
    "bucket_ids": _bucket_ids,
    "temporal_random_crop": _temporal_random_crop,
    "get_h_w": _get_h_w,
    "is_img_vid": _is_img_vid,
    "is_url": lambda case, inputs, weights: {"out": is_url(case["args"]["url"])},
    "sampler_epoch": lambda case, inputs, weights: {},
}


def _of_a_bucket_length(case: Mapping[str, Any], output: str, expected: Any) -> Any:
    """Mark the rows whose length is exactly that of an entry for which they are large enough."""
    args = case["args"]
    entries = [
        (0.8 * resolutions.area(name), int(frames) * args["frame_interval"])
        for name, lengths in args["bucket_config"].items()
        for frames in lengths
        if frames != "1"
    ]
    return np.array(
        [any(t == frames and h * w >= least for least, frames in entries) for t, h, w in args["rows"]]
    )


def _crop_differs(case: Mapping[str, Any], output: str, expected: Any) -> Any:
    """Mark the keys of a temporal crop that the two reasons below touch. The runner compares sorted keys."""
    if not isinstance(expected, Mapping):
        return None
    args = case["args"]
    has_all = (args["num_frames"] - 1) * args["frame_interval"] < args["total_frames"]
    more_starts = args["total_frames"] > args["num_frames"] and has_all
    spread = args["frame_interval"] > 1 and has_all
    marks = {"start_range_inclusive": more_starts, "indices_at_lowest": spread, "indices": spread}
    return np.array([marks[key] for key in sorted(expected)])


def _check_sampler(case: Mapping[str, Any]) -> str:
    """Plan the case's epoch by our rules, and check them."""
    args = case["args"]
    buckets = Buckets(_read_config(args["bucket_config"]))
    columns = tuple(np.array(args["rows"]).T)
    ranks = args["num_replicas"]
    rules = PlanRules(starved="drop", max_dropped=1.0)
    planner = Planner("golden", columns, buckets, ranks, args["seed"], rules=rules)
    plan = planner.plan(args["epoch"])
    parts = [list(BucketSampler(planner, rank, ranks, plan)) for rank in range(ranks)]
    rows = [clip.row for part in parts for batch in part for clip in batch]
    same = len({len(part) for part in parts}) == 1
    batch_size = {(shape.num_frames, shape.height, shape.width): shape.batch_size for shape in buckets.shapes}
    full = all(len(batch) == batch_size[batch[0][1:4]] for part in parts for batch in part)
    if not (same and full and len(rows) == len(set(rows))):
        raise AssertionError(f"our plan breaks its rules: equal ranks {same}, full batches {full}")
    return f"{plan.num_steps} steps on {ranks} ranks, all batches full, no clip twice"


DEVIATIONS: list[dict[str, Any]] = [
    {
        "name": "inclusive length",
        "reason": "The reference refuses clips of exactly a bucket's length; ours belong to it.",
        "kinds": {"bucket_ids"},
        "excused": _of_a_bucket_length,
    },
    {
        "name": "temporal crop",
        "reason": "The reference never draws the last starts and stretches the step beyond frame_interval; "
        "ours draws every start and steps by exactly frame_interval.",
        "kinds": {"temporal_random_crop"},
        "excused": _crop_differs,
    },
    {
        "name": "epoch plan",
        "reason": "The reference repeats or drops clips at the end of buckets and lets ranks work on "
        "unequal batches; "
        "ours is an explicit plan of full batches with balanced costs.",
        "kinds": {"sampler_epoch"},
        "excused": lambda case, output, expected: np.ones(
            np.shape(np.array(expected, dtype=object)), dtype=bool
        ),
        "check": _check_sampler,
    },
]
