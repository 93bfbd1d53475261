"""Uploads are checked before anything reads all of them."""

import numpy as np
import pytest
import torch
from PIL import Image
from uploads import Uploads

from opensora.datasets.video_io import write_video


@pytest.fixture
def uploads(tmp_path):
    return Uploads(tmp_path / "page/uploads", {"megabytes": 0.2, "seconds": 2.0})


def put(uploads, name, content=b""):
    path = uploads.folder / name
    path.write_bytes(content)
    return str(path)


def test_images_and_videos_are_kept_by_their_content(uploads):
    path = uploads.folder / "a cat; rm -rf.PNG"
    Image.new("RGB", (20, 10), "red").save(path)
    kept = uploads.accept(str(path))
    assert kept == uploads.accept(str(path)) and kept.endswith(".png") and ";" not in kept
    video = write_video(torch.zeros(3, 9, 16, 16), uploads.folder / "clip.mp4", 8)
    assert uploads.accept(str(video)).endswith(".mp4")


def test_what_is_refused(uploads, tmp_path):
    big = uploads.folder / "big.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)).save(big)
    long = write_video(torch.zeros(3, 25, 16, 16), uploads.folder / "long.mp4", 8)
    bomb = uploads.folder / "bomb.png"
    Image.new("1", (12_000, 6_000)).save(bomb)
    whole = uploads.folder / "whole.jpg"
    Image.new("RGB", (64, 64), "red").save(whole)
    half = put(uploads, "half.jpg", whole.read_bytes()[:400])
    outside = tmp_path / "secret.png"
    Image.new("RGB", (4, 4)).save(outside)
    link = uploads.folder / "link.png"
    link.symlink_to(outside)
    for path, said in (
        (put(uploads, "notes.txt", b"hello"), "'notes.txt' is neither an image nor a video"),
        (put(uploads, "lie.png", b"hello"), "'lie.png' cannot be read"),
        (put(uploads, "lie.mp4", b"hello"), "'lie.mp4' cannot be read"),
        (str(big), "at most 0.2 MB fit"),
        (str(long), "'long.mp4' lasts 3 s; at most 2 s fit"),
        (str(bomb), "make it smaller|cannot be read"),
        (half, "'half.jpg' cannot be read"),
        (str(outside), "did not come through this page"),
        (str(link), "did not come through this page"),
        (f"{uploads.folder}/../../secret.png", "did not come through this page"),
    ):
        with pytest.raises(ValueError, match=said):
            uploads.accept(path)
