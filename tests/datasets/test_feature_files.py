"""What features were made from: files and folders of frames that changed are noticed, and nothing else."""

import os

import pytest

from opensora.datasets.buckets import ClipIndex
from opensora.datasets.feature_files import describe_file, is_unchanged, stamp, stamp_if_there, why_stale
from opensora.datasets.frame_folder import frame_files

CLIP = ClipIndex(3, 1, 8, 8, 0)


def test_files_that_changed_since_are_noticed_if_their_bytes_did(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    known = describe_file(path)
    assert is_unchanged(path, known)
    os.utime(path, ns=(5, 5))
    assert is_unchanged(path, known)  # another time, the same bytes
    path.write_bytes(b"two")
    assert not is_unchanged(path, known)


@pytest.fixture
def frames(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"frame %d" % number)
    frame_files.cache_clear()
    yield f"{tmp_path}/"
    frame_files.cache_clear()


def test_a_folder_of_frames_is_its_names_and_bytes(frames, tmp_path):
    known = describe_file(frames)
    assert {name: known[name] for name in ("bytes", "mtime_ns")} == stamp(frames) and known["bytes"] == 21
    os.utime(tmp_path / "1.png", ns=(2**62, 2**62))
    (tmp_path / "notes.txt").write_text("no frame")
    assert stamp(frames) != {name: known[name] for name in ("bytes", "mtime_ns")}
    assert is_unchanged(frames, known)
    (tmp_path / "1.png").write_bytes(b"frame X")
    assert not is_unchanged(frames, known)
    (tmp_path / "1.png").write_bytes(b"frame 1")
    assert is_unchanged(frames, known)
    (tmp_path / "1.png").rename(tmp_path / "3.png")
    frame_files.cache_clear()
    assert not is_unchanged(frames, known)


def test_a_folder_without_frames_is_none(tmp_path):
    with pytest.raises(OSError, match="no image lies in this folder"):
        stamp(f"{tmp_path}/")
    assert stamp_if_there(f"{tmp_path}/") is None


def test_shards_are_stale_if_their_clips_or_files_are_others(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    known = describe_file(path)
    entry = {"row": 3, "path": str(path), "key": f"3 {known['hash']}", "file": known}

    def key_of(clip, file_hash):
        return f"{clip.row} {file_hash}"

    assert why_stale([entry], [CLIP], key_of) is None
    assert why_stale([entry], [CLIP, CLIP], key_of) == "it holds clips of other rows"
    assert why_stale([{**entry, "key": "4"}], [CLIP], key_of) == f"it holds another clip of {path}"
    path.write_bytes(b"two")
    assert why_stale([entry], [CLIP], key_of) == f"{path} has changed"
    path.unlink()
    assert why_stale([entry], [CLIP], key_of) is None


def test_a_file_that_could_not_be_read_is_tried_again_once_it_has_changed(tmp_path):
    path = tmp_path / "a.mp4"
    entry = {"row": 3, "path": str(path), "error": "no such file", "file": stamp_if_there(path)}
    assert why_stale([entry], [CLIP], str) is None
    path.write_bytes(b"broken")
    assert why_stale([entry], [CLIP], str) == f"{path} could not be read, and has changed since"
    entry["file"] = stamp_if_there(path)
    assert why_stale([entry], [CLIP], str) is None
    path.write_bytes(b"mended now")
    assert why_stale([entry], [CLIP], str) is not None
