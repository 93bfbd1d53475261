"""Files appear whole or not at all."""

import fcntl
import os
import subprocess
import sys
import time

import pytest

from opensora.utils.files import LOCK, alone_in, whole_file, write_text

HOLD = """
import os, sys, time
from pathlib import Path
from opensora.utils.files import alone_in
with alone_in(Path(sys.argv[1])):
    if not os.fork():  # as a worker of data: it outlives its parent, and must not keep the lock
        time.sleep(20)
        os._exit(0)
    print("holds", flush=True)
    time.sleep(20)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that works in the folder, and a worker of it."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, process_group=0
    ) as process:
        assert process.stdout.readline() == b"holds\n"
        yield process
        os.killpg(process.pid, 9)


def test_a_folder_belongs_to_one_process_as_long_as_it_lives(tmp_path, holder):
    with (
        pytest.raises(BlockingIOError, match=rf"process {holder.pid} on \S+ works in this folder"),
        alone_in(tmp_path, patience_s=0.1),
    ):
        pytest.fail("two processes are in the folder")
    start = time.monotonic()
    holder.kill()  # nothing can be cleaned up
    with alone_in(tmp_path, patience_s=10):
        pass
    assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert time.monotonic() - start < 10
    with alone_in(tmp_path, patience_s=0):  # again, now that it is free
        pass


def test_a_file_system_without_locks_keeps_nobody_away(tmp_path, monkeypatch, holder):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with alone_in(tmp_path, patience_s=0):
        pass


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
