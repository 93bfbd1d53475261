"""VideoDataset: samples, and what happens to files that cannot be read."""

from pathlib import Path

import numpy as np
import pytest
import torch

from opensora.datasets.buckets import ClipIndex
from opensora.datasets.video import VideoDataset
from opensora.datasets.video_io import ClipError
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
        fps=25.0, num_frames=8, height=48, width=64, sample=0, epoch=2, replaced=0, text="a clip"
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
    made = dataset()
    assert [made[clip]["replaced"] for _ in range(5)] == [1] * 5  # early on, a share says nothing
    assert len(made.replaced) == 5 and "bad.mp4" in made.replaced[0]


def test_nothing_to_replace_it_with(write_table):
    dataset = VideoDataset(write_table(HEADER, "gone.mp4,a,30,48,64"))
    with pytest.raises(ClipError, match="gone.mp4: no such file.* 0 rows could take its place"):
        dataset[ClipIndex(0, 8, 48, 64, 0)]
    dataset.replacements = lambda clip: np.zeros(1, dtype=np.int64)
    with pytest.raises(ClipError, match="0 rows could take its place"):
        dataset[ClipIndex(0, 8, 48, 64, 0)]


def test_too_many_bad_files_stop_the_run(table, write_table, monkeypatch):
    table = write_table(*Path(table).read_text().splitlines(), "gone.mp4,bad,30,48,64", name="bad.csv")
    dataset = VideoDataset(table)
    dataset.replacements = lambda clip: np.array([0])
    good, bad = ClipIndex(0, 2, 48, 64, 0), ClipIndex(3, 2, 48, 64, 0)
    assert dataset[bad]["replaced"] == 1
    for _ in range(198):
        dataset[good]
    assert dataset[bad]["replaced"] == 1  # 2 of 200 are one percent
    with pytest.raises(RuntimeError, match=r"3 of 201 samples could not be read(.|\n)*gone.mp4"):
        dataset[bad]


def test_a_table_that_promises_too_much(write_clip, write_table):
    """The file has 30 frames, the table says 200: the crop may lie beyond the end."""
    dataset = VideoDataset(write_table(HEADER, f"{write_clip()},a,200,48,64"))
    with pytest.raises(ClipError, match="the file has 30. Correct num_frames"):
        for epoch in range(20):
            dataset[ClipIndex(0, 8, 48, 64, epoch)]
