"""VideoDataset: samples, and what happens to files that cannot be read."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from opensora.datasets.buckets import ClipIndex
from opensora.datasets.reading import ClipError
from opensora.datasets.video import VideoDataset
from opensora.registry import DATASETS, build

HEADER = "path,text,num_frames,height,width"


@pytest.fixture
def table(write_clip, write_picture, write_table):
    clip, image = write_clip(num_frames=30), write_picture(number=9)
    return write_table(
        HEADER, f"{clip},a clip,30,48,64", f"{image},an image,1,48,64", f"{clip},again,30,48,64"
    )


def test_a_clip(table, read_number):
    dataset = build(DATASETS, dict(type="VideoDataset", data_path=table), seed=3)
    assert len(dataset) == 3
    assert [column.tolist() for column in dataset.sizes()] == [[30, 1, 30], [48] * 3, [64] * 3]
    sample = dataset[ClipIndex(0, 8, 48, 64, epoch=2)]
    video = sample.pop("video")
    assert (video.shape, video.dtype) == ((3, 8, 48, 64), torch.float32)
    assert -1 <= video.min() < -0.9 and 0.9 < video.max() <= 1
    found = [read_number(frame.permute(1, 2, 0).numpy()) for frame in video.unbind(1)]
    assert found == list(range(found[0], found[0] + 8))
    assert sample == dict(
        fps=25.0, num_frames=8, height=48, width=64, sample=0, epoch=2, replaced=0, failures=[], text="a clip"
    )


def test_an_image_is_a_video_of_one_frame(table, read_number):
    sample = VideoDataset(table)[ClipIndex(1, 1, 24, 32, 0)]
    assert sample["video"].shape == (3, 1, 24, 32)
    assert sample["fps"] == 120.0
    assert read_number(sample["video"][:, 0].permute(1, 2, 0).numpy()) == 9


def test_interval_and_rate(table, read_number):
    sample = VideoDataset(table, frame_interval=3)[ClipIndex(0, 6, 48, 64, 0)]
    found = [read_number(frame.permute(1, 2, 0).numpy()) for frame in sample["video"].unbind(1)]
    assert np.diff(found).tolist() == [3] * 5
    assert sample["fps"] == pytest.approx(25 / 3)


def test_the_table_knows_the_rate_better(write_clip, write_table):
    clip = write_clip()
    table = write_table("path,num_frames,height,width,fps", f"{clip},30,48,64,50", f"{clip},30,48,64,")
    dataset = VideoDataset(table)
    assert [dataset[ClipIndex(row, 8, 48, 64, 0)]["fps"] for row in (0, 1)] == [50.0, 25.0]
    assert "text" not in dataset[ClipIndex(0, 8, 48, 64, 0)]


def test_crops_follow_seed_epoch_and_row(table):
    def start(seed, row, epoch):
        return VideoDataset(table, seed=seed)[ClipIndex(row, 3, 48, 64, epoch)]["video"]

    base = start(0, 0, 0)
    assert torch.equal(start(0, 0, 0), base)
    others = [start(seed, row, epoch) for seed, row, epoch in [(1, 0, 0), (0, 2, 0), (0, 0, 1), (0, 0, 2)]]
    assert sum(not torch.equal(other, base) for other in others) >= 3  # 28 starts: one may agree


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(data_path=None), "--data-path"),
        (dict(transform="crop"), "use one of resize_crop, center"),
        (dict(transform="rand_size_crop"), "set image_size="),
        (dict(transform="rand_size_crop", num_frames=1, image_size=(64, 32)), "smaller one first"),
        (dict(flip=1.5), "a probability is from 0 to 1"),
        (dict(scaling="cv2"), "use one of torch, swscale"),
        (dict(reader="decord"), "use one of pyav, torchcodec"),
        (dict(reader="torchcodec", scaling="swscale"), "needs reader='pyav'"),
        (dict(timeout_s=-1), "above 0"),
        (dict(num_images=-1), "num_images=-1"),
        (dict(frame_interval=0), "n from 1"),
        (dict(num_frames=8), "give both, or neither"),
        (dict(num_frames=8, image_size=(8, 16), transform="center"), "makes squares"),
    ],
)
def test_wrong_arguments(table, arguments, message):
    with pytest.raises(ValueError, match=message):
        VideoDataset(**{"data_path": table, **arguments})


def test_bad_file_is_replaced_and_counted(table, write_table, tmp_path, caplog):
    lines = Path(table).read_text().splitlines()
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    table = write_table(*lines, f"{tmp_path}/bad.mp4,bad,30,48,64", name="bad.csv")

    def dataset():
        made = VideoDataset(table)
        made.replacements = lambda clip: np.array([0, 2, 3])
        return made

    clip = ClipIndex(3, 8, 48, 64, 0)
    sample = dataset()[clip]
    assert sample["replaced"] == 1
    assert sample["text"] in ("a clip", "again")
    assert sample["sample"] == 3  # its random numbers stay its own
    assert torch.equal(dataset()[clip]["video"], sample["video"])
    chosen = {dataset()[clip._replace(epoch=epoch)]["text"] for epoch in range(20)}
    assert chosen == {"a clip", "again"}
    [(row, reason)] = dataset()[clip]["failures"]
    assert row == 3 and "bad.mp4: cannot be read" in reason


def test_nothing_to_replace_it_with(write_table):
    dataset = VideoDataset(write_table(HEADER, "gone.mp4,a,30,48,64"))
    with pytest.raises(ClipError, match="gone.mp4: no such file.* 0 rows could take its place"):
        dataset[ClipIndex(0, 8, 48, 64, 0)]
    dataset.replacements = lambda clip: np.zeros(1, dtype=np.int64)
    with pytest.raises(ClipError, match="0 rows could take its place"):
        dataset[ClipIndex(0, 8, 48, 64, 0)]


def test_rows_known_as_unreadable_are_not_tried(table, monkeypatch):
    dataset = VideoDataset(table)
    dataset.replacements = lambda clip: np.array([0, 2])
    dataset.unreadable[0] = "clip.mp4: hangs"
    sample = dataset[ClipIndex(0, 8, 48, 64, 0)]
    assert sample["text"] == "again" and sample["failures"] == [(0, "clip.mp4: hangs")]


def test_what_another_run_quarantined_is_replaced_from_that_epoch_on(table, tmp_path):
    line = {"row": 0, "path": "clip.mp4", "reason": "clip.mp4: was damaged", "epoch": 2}
    (tmp_path / "quarantine.jsonl").write_text(json.dumps(line) + "\n")
    dataset = VideoDataset(table, quarantined=str(tmp_path / "quarantine.jsonl"))
    dataset.replacements = lambda clip: np.array([0, 2])
    before, after = (dataset[ClipIndex(0, 8, 48, 64, epoch)] for epoch in (1, 2))
    assert (before["replaced"], before["failures"], before["text"]) == (0, [], "a clip")
    assert (after["replaced"], after["failures"]) == (1, [(0, "clip.mp4: was damaged")])
    assert after["text"] == "again" and after["sample"] == 0


def test_clips_are_mirrored_whole_with_the_given_probability(table):
    clip = ClipIndex(0, 4, 48, 64, 0)
    plain, mirrored = (VideoDataset(table, flip=flip)[clip]["video"] for flip in (0.0, 1.0))
    assert torch.equal(mirrored, plain.flip(-1))
    dataset = VideoDataset(table, flip=0.25)
    same = VideoDataset(table)
    clips = [clip._replace(epoch=epoch, num_frames=1) for epoch in range(200)]
    flips = [not torch.equal(dataset[c]["video"], same[c]["video"]) for c in clips]
    assert 30 < sum(flips) < 70
    assert flips[:20] == [not torch.equal(dataset[c]["video"], same[c]["video"]) for c in clips[:20]]


def test_random_crops_follow_seed_epoch_and_row(table):
    def sample(seed, epoch):
        return VideoDataset(table, transform="random_crop", seed=seed)[ClipIndex(1, 1, 20, 20, epoch)][
            "video"
        ]

    assert torch.equal(sample(0, 0), sample(0, 0))
    found = [sample(seed, epoch) for seed, epoch in [(0, 0), (1, 0), (0, 1), (0, 2), (0, 3)]]
    assert len({tuple(video.flatten().tolist()) for video in found}) >= 3


def test_random_sizes(table):
    dataset = VideoDataset(table, num_frames=4, image_size=(16, 40), transform="rand_size_crop")
    samples = [dataset[ClipIndex(0, 4, 16, 40, epoch)] for epoch in range(20)]
    assert {sample["height"] for sample in samples} == {16, 24, 32, 40}
    assert all(sample["video"].shape == (3, 4, sample["height"], sample["width"]) for sample in samples)


def test_scaling_by_ffmpeg_smooths_what_torch_leaves_jagged(write_clip, write_table):
    table = write_table("path,num_frames,height,width", f"{write_clip(height=192, width=256)},30,192,256")
    clip = ClipIndex(0, 4, 48, 56, 0)
    torch_video, smooth = (VideoDataset(table, scaling=s)[clip]["video"] for s in ("torch", "swscale"))
    assert torch_video.shape == smooth.shape == (3, 4, 48, 56)
    error = (torch_video - smooth).square().mean().item()
    assert 1e-4 < error < 0.05  # the same picture, other edges


def test_swscale_and_torchcodec_cannot_be_had_without_them(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(ImportError, match="pip install torchcodec"):
        VideoDataset(table, reader="torchcodec")


@pytest.fixture
def joint(write_clip, write_picture, write_table):
    """Return a function that makes a dataset of a clip and five images; one is small, one can be damaged."""

    def make(damaged=False, **arguments):
        images = [write_picture(f"{n}.png", n, 48, 64) for n in range(4)]
        small = write_picture("4.png", 4, 8, 8)
        if damaged:
            Path(images[2]).write_bytes(b"nothing")
        lines = [f"{path},image {n},1,48,64" for n, path in enumerate(images)]
        table = write_table(HEADER, f"{write_clip()},a clip,30,48,64", *lines, f"{small},image 4,1,8,8")
        return VideoDataset(table, **arguments)

    return make


def test_images_stand_behind_a_clip(joint, read_number):
    dataset = joint(num_images=3)
    seen = set()
    for epoch in range(10):
        sample = dataset[ClipIndex(0, 8, 40, 64, epoch)]
        assert sample["video"].shape == (3, 8, 40, 64) and sample["images"].shape == (3, 3, 40, 64)
        numbers = [read_number(image.permute(1, 2, 0).numpy()) for image in sample["images"].unbind(1)]
        assert sample["image_text"] == [f"image {n}" for n in numbers]
        assert torch.equal(sample["images"], dataset[ClipIndex(0, 8, 40, 64, epoch)]["images"])
        assert torch.equal(sample["video"], joint()[ClipIndex(0, 8, 40, 64, epoch)]["video"])
        seen.update(numbers)
    assert seen == {0, 1, 2, 3}  # not the one that is too small
    assert "images" not in dataset[ClipIndex(1, 1, 40, 64, 0)]  # an image has none behind it


def test_a_damaged_image_behind_a_clip_is_replaced(joint):
    dataset = joint(damaged=True, num_images=3)
    samples = [dataset[ClipIndex(0, 8, 40, 64, epoch)] for epoch in range(10)]
    assert sum(sample["replaced"] for sample in samples) > 2
    assert {row for sample in samples for row, _ in sample["failures"]} == {3}
    assert all("image 2" not in sample["image_text"] for sample in samples)


def test_images_behind_clips_need_images(write_clip, write_table):
    table = write_table(HEADER, f"{write_clip()},a clip,30,48,64")
    with pytest.raises(ValueError, match="there are 0"):
        VideoDataset(table, num_images=2)


def test_a_table_that_promises_too_much(write_clip, write_table):
    """The file has 30 frames, the table says 200: the crop may lie beyond the end."""
    dataset = VideoDataset(write_table(HEADER, f"{write_clip()},a,200,48,64"))
    with pytest.raises(ClipError, match="the file has 30. Correct num_frames"):
        for epoch in range(20):
            dataset[ClipIndex(0, 8, 48, 64, epoch)]
