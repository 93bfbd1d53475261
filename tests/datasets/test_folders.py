"""Folders of clips: captions beside files, a folder per class, a folder per clip."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opensora.datasets.buckets import ClipIndex
from opensora.datasets.folders import class_caption
from opensora.datasets.frame_folder import natural, read_frames
from opensora.datasets.manifest import read_manifest
from opensora.datasets.video import VideoDataset
from opensora.datasets.video_io import ClipError, clip_fps, probe, read_clip


@pytest.fixture
def place(tmp_path, write_clip, write_picture):
    """Return a function that puts clips, pictures and texts below a folder, and gives the folder."""
    clip, image = Path(write_clip(num_frames=9)).read_bytes(), Path(write_picture()).read_bytes()

    def put(*names: str, **texts: str) -> Path:
        folder = tmp_path / "data"
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(clip if name.endswith(".mp4") else image)
        for name, text in texts.items():
            (folder / f"{name.replace('__', '/')}.txt").write_text(text, encoding="utf-8")
        return folder

    return put


def test_captions_lie_beside_files(place):
    folder = place("clip10.mp4", "clip9.mp4", "more/a.png", "more/.hidden.mp4", "._clip9.mp4")
    (folder / "notes.md").write_text("no clip")
    assert read_manifest(folder).text is None  # no caption at all is a table without captions
    place(clip9="nine", clip10="ten,\nof  two lines\n", more__a="a picture")
    manifest = read_manifest(folder)
    assert list(manifest.path) == [f"{folder}/{name}" for name in ("clip9.mp4", "clip10.mp4", "more/a.png")]
    assert list(manifest.text) == ["nine", "ten, of two lines", "a picture"]
    assert [column.tolist() for column in manifest.columns] == [[9, 9, 1], [48] * 3, [64] * 3]
    (folder / "clip9.txt").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 clips have no caption(.|\n)*clip9.mp4\nWrite them"):
        read_manifest(folder)
    place(clip9="  ")
    with pytest.raises(ValueError, match="row 0: column text is empty"):
        read_manifest(folder)


def test_a_folder_that_moved_is_the_same(place, tmp_path):
    folder = place("a.mp4", "b.mp4")
    before = read_manifest(folder).fingerprint
    folder.rename(tmp_path / "elsewhere")
    assert read_manifest(tmp_path / "elsewhere").fingerprint == before


def test_links_do_not_lead_in_circles(place):
    folder = place("in/a.mp4")
    (folder / "in" / "back").symlink_to(folder)
    assert list(read_manifest(folder).path) == [f"{folder}/in/a.mp4"]


def test_class_folders(place):
    folder = place("TennisSwing/v_1.mp4", "ApplyEyeMakeup/g2/v_2.mp4", "ApplyEyeMakeup/g1/v_3.mp4")
    manifest = read_manifest(folder, layout="classes")
    assert [Path(path).name for path in manifest.path] == ["v_3.mp4", "v_2.mp4", "v_1.mp4"]
    assert manifest.label.tolist() == [0, 0, 1]
    assert list(manifest.text) == ["Apply Eye Makeup"] * 2 + ["Tennis Swing"]
    dataset = VideoDataset(str(folder), layout="classes", cache=None, check_files=10)
    dataset.check()
    sample = dataset[ClipIndex(2, 5, 24, 32, 0)]
    assert sample["label"] == 1 and sample["video"].shape == (3, 5, 24, 32)
    place("loose.mp4")
    with pytest.raises(ValueError, match="one folder per class; loose.mp4 lies in none"):
        read_manifest(folder, layout="classes")


@pytest.mark.parametrize("name", ["ApplyEyeMakeup", "apply_eye_makeup", "Apply Eye Makeup"])
def test_class_captions(name):
    assert class_caption(name).lower() == "apply eye makeup"


def test_frame_folders(tmp_path, write_picture, read_number):
    for number in range(12):
        (tmp_path / "sky/one").mkdir(parents=True, exist_ok=True)
        Path(write_picture(f"sky/one/frame_{number}.png", number))
    (tmp_path / "sky/one.txt").write_text("clouds")
    manifest = read_manifest(tmp_path / "sky", layout="frames")
    assert list(manifest.path) == [f"{tmp_path}/sky/one/"] and list(manifest.text) == ["clouds"]
    assert [column.tolist() for column in manifest.columns] == [[12], [48], [64]]
    frames = read_clip(manifest.path[0], [11, 0, 2, 10])  # 10 comes after 9, not after 1
    assert [read_number(frame) for frame in frames.numpy()] == [11, 0, 2, 10]
    assert clip_fps(manifest.path[0]) == 24.0
    dataset = VideoDataset(str(tmp_path / "sky"), layout="frames", frame_interval=2, cache=None)
    dataset.check()
    video = dataset[ClipIndex(0, 6, 48, 64, 0)]["video"]
    numbers = [read_number(frame) for frame in video.permute(1, 2, 3, 0).numpy()]
    assert np.diff(numbers).tolist() == [2] * 5
    with pytest.raises(ClipError, match="frame 12 was asked, the folder has 12 images"):
        read_clip(manifest.path[0], [12])
    Image.new("RGB", (8, 8)).save(tmp_path / "sky/one/frame_3.png")
    with pytest.raises(ClipError, match="its frames differ in size"):
        read_clip(manifest.path[0], [2, 3])
    with pytest.raises(ClipError, match="no such file"):
        probe(f"{tmp_path}/none/")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClipError, match="no image lies in this folder"):
        probe(f"{tmp_path}/empty/")
    with pytest.raises(ValueError, match="no image"):
        read_frames(f"{tmp_path}/empty/", [0])


def test_natural_order():
    names = ["10", "9", "a2b10", "a2b9", "a10", "b"]
    assert sorted(names[::-1], key=natural) == ["9", "10", "a2b9", "a2b10", "a10", "b"]


def test_nothing_found(tmp_path):
    with pytest.raises(ValueError, match="layout='captions' found no clip"):
        read_manifest(tmp_path)
    with pytest.raises(ValueError, match="layout='ucf': use one of captions, classes, frames"):
        read_manifest(tmp_path, layout="ucf")


def test_json_captions_beside_a_folder_of_videos(place, tmp_path):
    folder = place("a/b.mp4", "c.mp4")
    table = tmp_path / "captions.json"
    table.write_text('[{"path": "a/b.mp4", "cap": ["one", "two"]}, {"path": "c.mp4", "cap": ["three"]}]')
    options = dict(columns={"text": "cap"}, root=str(folder))
    manifest = read_manifest(table, True, **options)
    assert list(manifest.text) == ["one", "three"]
    assert list(manifest.path) == [f"{folder}/a/b.mp4", f"{folder}/c.mp4"]
    dataset = VideoDataset(str(table), probe=True, cache=None, **options)
    dataset.check()
    assert dataset[ClipIndex(1, 9, 24, 32, 0)]["text"] == "three"
    with pytest.raises(ValueError, match="dataset.columns says 'text' is called 'caption'; the table has pa"):
        read_manifest(table, True, columns={"text": "caption"})
