"""FeatureDataset: every clip that is planned is found, and what is stale or damaged is refused."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from opensora.datasets.buckets import ClipIndex
from opensora.datasets.feature_plan import not_extracted, pack, plan_features, shorten
from opensora.datasets.features import (
    ENTRIES,
    FEATURE_VERSION,
    HEADER,
    INDEX,
    FeatureDataset,
    content_key,
    holds,
    shard_path,
)
from opensora.datasets.loader import build_buckets, build_dataloader, collate
from opensora.datasets.planner import Planner, PlanRules
from opensora.datasets.samplers import BucketSampler
from opensora.datasets.video import VideoDataset
from opensora.utils.weights import save_safetensors

BUCKETS = {"144p": {1: (1.0, 2), 9: (0.7, 2), 17: ((0.8, 0.5), 3)}, "240p": {9: (0.5, 2)}}
ROWS, SEED, VARIANTS = 60, 5, 3


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> VideoDataset:
    """A table of files that are not there: what is extracted is decided without them."""
    path = tmp_path_factory.mktemp("table") / "clips.csv"
    rows = [
        {
            "path": f"{row}.mp4",
            "text": f"caption {row % 7}",
            "label": row % 5,
            "num_frames": 1 if row % 6 == 0 else 10 + row % 15,
        }
        for row in range(ROWS)
    ]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "height", "width"])
        writer.writeheader()
        writer.writerows(
            {**row, "height": 200 + 150 * (i % 2), "width": 320 + 200 * (i % 2)} for i, row in enumerate(rows)
        )
    return VideoDataset(str(path), frame_interval=1, seed=SEED)


def planner(dataset, per_step=2, seed=SEED, buckets=BUCKETS) -> Planner:
    made = build_buckets(dataset, buckets)
    return Planner(
        dataset.manifest.fingerprint, dataset.sizes(), made, per_step, seed, dataset.frame_interval
    )


def plans(made: Planner, epochs: int):
    carry = None
    for epoch in range(epochs):
        plan = made.plan(epoch, carry)
        carry = plan.carry
        yield plan


def write(folder: Path, videos: VideoDataset, failed=(), variants=VARIANTS) -> Path:
    """Write features whose numbers are row, first frame and size."""
    folder.mkdir()
    clips, table = plan_features(videos, planner(videos), variants)
    groups = pack([1] * len(clips), 25)
    where, keys = np.full(len(clips), -1, dtype=np.int32), np.zeros((len(clips), 16), dtype=np.uint8)
    for number, group in enumerate(groups):
        tensors, entries = {}, []
        for i in group:
            clip = ClipIndex(*clips[i].tolist())
            entry = {"row": clip.row, "path": videos.manifest.path[clip.row]}
            if clip.row in failed:
                entries.append({**entry, "error": "broken"})
                continue
            key = content_key(clips[i].tolist())
            numbers = [clip.row, videos.frame_indices(clip)[0], clip.num_frames, clip.height]
            tensors[key] = torch.tensor(numbers, dtype=torch.float32).reshape(2, 2, 1, 1, 1)
            where[i], keys[i] = number, np.frombuffer(bytes.fromhex(key), dtype=np.uint8)
            entries.append({**entry, "key": key, "file": {"hash": "0", "bytes": 1, "mtime_ns": 1}})
        tensors[ENTRIES] = torch.frombuffer(bytearray(json.dumps(entries).encode()), dtype=torch.uint8)
        save_safetensors(tensors, shard_path(folder, "latents", number))
    texts = {content_key(n): torch.full((2 + n, 3), float(n)) for n in range(7)}
    save_safetensors(texts, shard_path(folder, "text", 0))
    columns = dict(zip(("num_frames", "height", "width"), videos.sizes(), strict=True))
    index = {
        **columns,
        **table,
        "latents_shard": where,
        "latents_key": keys,
        "fps": np.full(len(clips), 24.0, np.float32),
    }
    index |= {
        "label": videos.manifest.label,
        "text": np.arange(ROWS, dtype=np.int32) % 7,
        "text_shard": np.zeros(7, np.int32),
    }
    index["text_key"] = np.stack([np.frombuffer(bytes.fromhex(key), dtype=np.uint8) for key in texts])
    save_safetensors({k: torch.from_numpy(np.array(v)) for k, v in index.items()}, folder / INDEX)
    plan = {"table": videos.manifest.fingerprint, "seed": SEED, "variants": variants, "frame_interval": 1}
    plan |= {"bucket_rule": "resolution", "starved": "merge"}
    plan |= {"bucket_config": BUCKETS, "num_frames": None, "image_size": None, "batch_size": None}
    shards = {"latents": len(groups), "text": 1}
    header = {"feature_version": FEATURE_VERSION, "content": "moments", "plan": plan, "shards": shards}
    (folder / HEADER).write_text(json.dumps(header))
    return folder


@pytest.fixture(scope="module")
def folder(videos, tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("features") / "x", videos)


def test_epochs_that_were_extracted_have_the_clips_and_frames_of_a_run_on_files(videos, folder):
    features = FeatureDataset(str(folder))
    live, cached = plans(planner(videos), VARIANTS), plans(planner(features, buckets=None), VARIANTS)
    count = 0
    for ours, theirs in zip(cached, live, strict=True):
        assert ours.hash == theirs.hash
        for clip in (clip for number in range(len(ours.sizes)) for clip in ours.batch(number)):
            found = features[clip]["moments"].flatten().tolist()
            assert found == [clip.row, videos.frame_indices(clip)[0], clip.num_frames, clip.height]
            count += 1
    assert count > 50


@pytest.mark.parametrize(("per_step", "seed"), [(2, SEED), (1, SEED), (3, 11)])
def test_every_clip_of_later_epochs_is_found_whatever_the_batches_and_the_seed(folder, per_step, seed):
    features = FeatureDataset(str(folder), seed=seed)
    rows = set()
    for plan in plans(planner(features, per_step, seed, buckets=None), 8):
        for clip in (clip for number in range(len(plan.sizes)) for clip in plan.batch(number)):
            found = features[clip]["moments"].flatten().tolist()
            assert [found[0], *found[2:]] == [clip.row, clip.num_frames, clip.height]
            rows.add(clip.row)
    assert len(rows) > 30


def test_contents_that_repeat_are_extracted_once(videos):
    clips, table = plan_features(videos, planner(videos), VARIANTS)
    images = clips[clips[:, 1] == 1]
    assert len(np.unique(images[:, 0])) == len(images)  # an image is the same in every epoch
    assert len(table["clip"]) > len(clips) and (np.diff(table["clip"]) > 0).all()
    assert len(plan_features(videos, planner(videos), VARIANTS, by_epoch=True)[0]) > len(clips)


def test_a_sample_has_the_keys_of_a_batch_and_captions_are_padded(folder):
    features = FeatureDataset(str(folder))
    plan = next(plans(planner(features, buckets=None), 1))
    samples = [features[clip] for clip in plan.batch(0)]
    batch = collate(samples)
    rows = [clip.row for clip in plan.batch(0)]
    assert batch["sample"].tolist() == rows and batch["label"].tolist() == [row % 5 for row in rows]
    lengths = [2 + row % 7 for row in rows]
    assert batch["text_features"].shape == (len(rows), max(lengths), 3)
    assert batch["text_mask"].sum(1).tolist() == lengths
    assert torch.equal(
        batch["text_features"] != 0, batch["text_mask"][:, :, None] & (batch["text_features"] != 0)
    )
    assert batch["fps"].tolist() == [24.0] * len(rows) and batch["replaced"] == 0


def test_workers_read_what_one_process_reads(folder):
    features = FeatureDataset(str(folder))
    samplers = [BucketSampler(planner(features, buckets=None)) for _ in range(2)]
    pairs = zip(
        build_dataloader(features, samplers[0]), build_dataloader(features, samplers[1], 2), strict=True
    )
    for one, two in pairs:
        assert one.keys() == two.keys()
        assert all(
            torch.equal(value, two[key]) for key, value in one.items() if isinstance(value, torch.Tensor)
        )
    state = features.__getstate__()  # a worker maps the index and the shards for itself
    assert state["_index"] is None and not state["_shards"]


def test_a_clip_that_could_not_be_read_has_a_stand_in_of_its_shape(videos, tmp_path):
    features = FeatureDataset(str(write(tmp_path / "x", videos, failed=(7, 13))))
    made = planner(features, buckets=None)
    features.replacements = made.same_shape
    clips = [clip for plan in plans(made, 3) for n in range(len(plan.sizes)) for clip in plan.batch(n)]
    broken = [features[clip] for clip in clips if clip.row in (7, 13)]
    assert broken and all(sample["replaced"] == 1 for sample in broken)
    assert all(sample["sample"] in (7, 13) for sample in broken)
    features.replacements = None
    with pytest.raises(ValueError, match="row 7: its file could not be read, and 0 rows that could take"):
        features[next(clip for clip in clips if clip.row == 7)]


def test_only_batch_sizes_may_change(folder):
    features = FeatureDataset(str(folder))
    larger = {"144p": {1: (1.0, 4), 9: (0.7, 3), 17: ((0.8, 0.5), 5)}, "240p": {9: (0.5, 1)}}
    assert build_buckets(features, larger).buckets[0].batch_size == 1
    for other, said in (
        ({**BUCKETS, "240p": {9: (0.6, 2)}}, r"\['240p'\]\[9\]: probability 0.6 here, 0.5 in"),
        (
            {**BUCKETS, "240p": {9: (0.5, 2), 33: (1.0, 1)}},
            r"\['240p'\]\[33\]: probability 1.0 here, None in",
        ),
        ({"144p": BUCKETS["144p"]}, r"\['240p'\]\[9\]: probability None here, 0.5 in"),
    ):
        with pytest.raises(ValueError, match=said):
            build_buckets(features, other)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_batch_sizes_that_send_clips_to_the_same_sizes_are_taken(folder, batch):
    features = FeatureDataset(str(folder))
    features.check_planner(planner(features, buckets=None))
    other = {"144p": {1: (1.0, batch), 9: (0.7, batch), 17: ((0.8, 0.5), batch)}, "240p": {9: (0.5, 2)}}
    features.check_planner(planner(features, buckets=other))


# What is refused


def test_batch_sizes_that_send_clips_to_other_sizes_end_a_run_before_it_starts(folder):
    features = FeatureDataset(str(folder))
    huge = {"144p": {1: (1.0, 2), 9: (0.7, 2), 17: ((0.8, 0.5), 50)}, "240p": {9: (0.5, 2)}}
    made = planner(features, buckets=huge)
    clips = [clip for plan in plans(made, VARIANTS) for n in range(len(plan.sizes)) for clip in plan.batch(n)]
    lacking = set()
    for clip in clips:
        try:
            features[clip]
        except ValueError:
            lacking.add(clip[:4])
    assert lacking  # else this asks for nothing
    row, frames, height, width = min(lacking)
    said = rf"{frames} x {height} x {width} \(\d+ rows, such as row \d+\).* Take those of the extraction"
    with pytest.raises(ValueError, match=said):
        features.check_planner(made)
    assert (
        row
        in not_extracted(made, {k: features.index[k].numpy() for k in ("clip", "shapes")}, VARIANTS)[
            (frames, height, width)
        ]
    )


def test_other_rules_of_the_plan_are_refused(folder):
    features = FeatureDataset(str(folder))
    made = planner(features, buckets=None)
    made.rules = PlanRules(starved="drop")
    with pytest.raises(ValueError, match="plan.starved='drop': .* was extracted with 'merge'"):
        features.check_planner(made)
    made = planner(features, buckets=None)
    made.buckets = build_buckets(features, None, rule="ratio")
    with pytest.raises(ValueError, match="plan.bucket_rule='ratio': .* was extracted with 'resolution'"):
        features.check_planner(made)


def test_a_folder_that_is_none_not_whole_or_of_another_version(videos, folder, tmp_path):
    with pytest.raises(
        ValueError, match="data_path is None; give the folder that scripts/extract_features.py"
    ):
        FeatureDataset(None)
    with pytest.raises(FileNotFoundError, match="no features.json; --data-path names a folder"):
        FeatureDataset(str(tmp_path))
    whole = write(tmp_path / "x", videos)
    (whole / INDEX).rename(tmp_path / INDEX)
    with pytest.raises(
        FileNotFoundError, match=r"has not finished \(\d of \d shards .*: it makes what is missing"
    ):
        FeatureDataset(str(whole))
    header = json.loads((whole / HEADER).read_text())
    (whole / HEADER).write_text(json.dumps({**header, "feature_version": FEATURE_VERSION + 1}))
    with pytest.raises(ValueError, match="features of version 2, and encoders now give those of version 1"):
        FeatureDataset(str(whole))


@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_a_shard_that_is_damaged_is_named(videos, tmp_path, damage):
    features = FeatureDataset(str(write(tmp_path / "x", videos)))
    clips = [clip for plan in plans(planner(features, buckets=None), 1) for clip in plan.batch(0)]
    for path in (tmp_path / "x").glob("latents-*"):
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:-10])
        elif damage == "gone":
            path.unlink()
        else:
            save_safetensors({"a": torch.zeros(1)}, path)
    said = {"cut": "damaged or cut short", "gone": "this shard is missing", "other": "lacks [0-9a-f]{32}"}[
        damage
    ]
    with pytest.raises(
        ValueError, match=rf"latents-0000\d.safetensors: {said}.* scripts/extract_features.py again"
    ):
        features[clips[0]]


def test_a_clip_that_was_not_extracted_is_named(folder):
    with pytest.raises(ValueError, match="row 3 as 33 x 144 x 256: not in .* extract them with this config"):
        FeatureDataset(str(folder))[ClipIndex(3, 33, 144, 256, 0)]


def test_groups_and_frames():
    assert pack([3, 3, 3, 9, 1], 6) == [[0, 1], [2], [3], [4]]
    assert shorten([4, 6, 8]) == {"first": 4, "step": 2, "count": 3}
    assert shorten([5]) == {"first": 5, "step": 1, "count": 1} and shorten([0, 1, 3]) == [0, 1, 3]


def test_a_shard_holds_the_tensors_that_it_should(tmp_path):
    whole = tmp_path / "x.safetensors"
    save_safetensors({"a": torch.zeros(1), "b": torch.zeros(1)}, whole)
    assert holds(whole, ["b", "a"]) and not holds(tmp_path / "y.safetensors", ["a"])
    assert not holds(whole, ["a"]) and not holds(whole, ["a", "b", "c"])
