"""Files appear whole or not at all."""

import os

import pytest

from opensora.utils.files import whole_file, write_text


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    with whole_file(path) as place:
        place.write_text("half")
        assert not path.exists() and place.parent == tmp_path and place.suffix == ".txt"
        place.write_text("whole")
    assert path.read_text() == "whole" and os.listdir(tmp_path) == ["a.txt"]


def test_when_writing_fails_the_old_file_is_there(tmp_path):
    path = tmp_path / "a.txt"
    write_text("old", path)
    with pytest.raises(OSError, match="disk full"), whole_file(path) as place:
        place.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_data_and_name_reach_the_disk_before_and_after_the_rename(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace

    def fsync(descriptor):
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def rename(*names):
        done.append("rename")
        replace(*names)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    write_text("text", tmp_path / "a.txt")
    assert done[0].startswith(".a.") and done[1:] == ["rename", tmp_path.name]


def test_permissions_are_those_of_a_new_file(tmp_path):
    write_text("text", tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("text")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode
