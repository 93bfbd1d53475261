"""The story of one clip is the one that training lives by."""

import re

import numpy as np
import pytest
from PIL import Image

from opensora.datasets.buckets import Buckets, ClipIndex
from opensora.datasets.manifest import Manifest
from opensora.datasets.video import VideoDataset
from tools.datasets.run_config import RunConfig, rows_by_shape
from tools.datasets.story import box, bucket_story, pixel_story

EXPLAIN = "tools.datasets.explain"
CONFIG = {
    "480p": {1: (0.5, 1), 17: ((0.5, 0.5), 1), 9: (0.7, 1)},
    "240p": {33: (0.0, None), 17: ((1.0, 0.4), 1), 9: (0.8, 1)},
    "144p": {1: (1.0, 1), 9: (1.0, 1)},
}


def test_the_story_ends_where_training_does():
    draws = np.random.default_rng(0)
    frames = draws.integers(1, 80, 150).astype(np.int32)
    frames[::5] = 1
    height, width = draws.integers(60, 700, (2, 150)).astype(np.int32)
    manifest = Manifest([], frames, height, width)
    taken = 0
    for buckets, interval in ((Buckets(CONFIG), 1), (Buckets(CONFIG), 2), (Buckets(CONFIG, rule="ratio"), 1)):
        run = RunConfig(buckets, interval, "resize_crop", 3)
        table = rows_by_shape(run, manifest.columns, 1)
        for row in range(len(frames)):
            lines, clip = bucket_story(run, manifest, row, 1)
            told = [line for line in lines if re.search(r"(: |, )taken(,|$)", line)]
            assert len(lines) == 2 + len(run.buckets) + (clip is not None)
            if table.shape[row] < 0:
                assert clip is None and not told
            else:
                shape = run.buckets.shapes[table.shape[row]]
                bucket = run.buckets.buckets[shape.bucket]
                assert clip == ClipIndex(row, *shape[2:5], 1)
                assert len(told) == 1 and told[0].startswith(f"  {bucket.resolution}, {bucket.num_frames} fr")
                taken += 1
    assert 60 < taken < 400


@pytest.mark.parametrize("keep", [0.1, (0.9, 0.1)])
def test_a_single_bucket_draws_for_the_clip_itself(keep):
    size = (
        np.full(200, 40, dtype=np.int32),
        np.full(200, 144, dtype=np.int32),
        np.full(200, 256, dtype=np.int32),
    )
    run = RunConfig(Buckets({"144p": {17: (keep, 1)}}), 1, "resize_crop", 3)
    taken = 0
    for row in range(200):
        lines, clip = bucket_story(run, Manifest([], *size), row, 1)
        assert "drew" in lines[1] and ("taken" in lines[1]) == (clip is not None)
        taken += clip is not None
    assert 0 < taken < 60


def test_frames_and_pixels_are_those_of_the_dataset(here, make_clip):
    make_clip("a.mp4", 40, 64, 160)
    (here / "t.csv").write_text("path,num_frames,height,width\na.mp4,40,64,160\n")
    for transform in ("resize_crop", "random_crop"):
        options = dict(frame_interval=2, transform=transform, seed=5)
        dataset = VideoDataset("t.csv", cache=None, **options)
        run = RunConfig(Buckets.fixed(9, 32, 48, 1), 2, transform, 5)
        clip = ClipIndex(0, 9, 32, 48, 2)
        _, numbers, cut = pixel_story(run, dataset.manifest, clip)
        assert numbers == dataset.frame_indices(clip)
        top, left, bottom, right = box(cut, 64, 160)
        assert (cut.height, cut.width) == (32, 48) and 0 <= top < bottom <= 64 and 0 <= left < right <= 160


def test_a_clip_from_row_to_picture(here, make_clip, root, run_tool):
    make_clip("a.mp4", 40, 144, 256)
    (here / "t.csv").write_text("path,text,num_frames,height,width,fps\na.mp4,a dog,41,144,256,25\n")
    words = ["--config", root / "configs/opensora-v1-3/train/stage1.py", "--bucket-config"]
    words += ["{'240p': {17: (1.0, 1)}, '144p': {1: (1.0, 1), 65: (1.0, 1), 33: (1.0, 1), 17: (1.0, 1)}}"]
    status, said = run_tool(EXPLAIN, "t.csv", 0, *words, "--picture", "p.png")
    assert status == 0, said
    for line in (
        "text      a dog",
        "table     41 frames, 144 x 256, 25 fps",
        "file      40 frames, 144 x 256, 25 fps; not as in the table, tools.datasets.check mends it",
        "epoch     0, seed 42, frame_interval 1",
        "  240p, 17 frames: too small, 36,864 pixels of at least 81,",
        "  144p, 65 frames: too short, 65 frames are needed",
        "  144p, 33 frames: taken",
        "  144p, 17 frames: not asked any more",
        "  144p, 1 frames: not asked any more",
        "bucket    144p, 33 frames, batches of 1",
        "ratio     0.562, the nearest is 0.56: 144 x 256",
        "scaled    144 x 256 to 144 x 256, resize_crop",
        "cut       144 x 256 from row 0, column 0",
        "of file   rows 0 to 144, columns 0 to 256",
        "p.png",
    ):
        assert line in said, said
    picture = np.asarray(Image.open(here / "p.png")).astype(int)
    assert picture.shape == (2 * 180, 4 * 320, 3)
    assert picture[0, 100].tolist() == [255, 0, 0] and picture[179, 100].tolist() == [255, 0, 0]


def test_other_clips(here, make_clip, run_tool, root):
    make_clip("b.png", 1, 144, 256)
    (here / "t.csv").write_text("path,num_frames,height,width\nb.png,1,144,256\ngone.mp4,9,8,8\n")
    config = ["--config", root / "configs/opensora-v1-3/train/stage1.py", "--bucket-config"]
    said = run_tool(
        EXPLAIN, "t.csv", 0, *config, "{'144p': {1: (1.0, 1), 17: (1.0, 1)}}", "--picture", "p.png"
    )[1]
    assert "frames    0 (1 of 1)" in said and "17 frames: no bucket for images" in said
    said = run_tool(EXPLAIN, "t.csv", 1, *config, "{'144p': {1: (1.0, 1)}}")[1]
    assert "file      gone.mp4: no such file" in said and "bucket    none in this epoch" in said
    assert "epoch" not in run_tool(EXPLAIN, "t.csv", 0)[1]
    assert run_tool(EXPLAIN, "t.csv", 2)[1].endswith("row 2: the table has rows 0 to 1.\n")
    status, said = run_tool(EXPLAIN, "t.csv", 0, "--picture", "p.png")
    assert status == 2 and "--picture needs --config" in said
