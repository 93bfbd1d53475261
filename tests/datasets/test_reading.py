"""Limits of reading: files that never end, disks that fail for a moment, and what is no file."""

import errno
import os
import time
from pathlib import Path

import av
import pytest

from opensora.datasets import decoding, reading, video_io
from opensora.datasets.reading import ClipError, Deadline, ReadOptions, guarded
from opensora.datasets.video_io import probe, read_clip, read_image


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(reader="opencv"), "use one of pyav, torchcodec"),
        (dict(timeout_s=0), "above 0"),
        (dict(timeout_s=float("nan")), "above 0"),
        (dict(retries=-1), "0 for none"),
    ],
)
def test_wrong_options(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReadOptions(**arguments)


def test_a_slow_decoder_is_stopped(write_clip, monkeypatch):
    path = write_clip(num_frames=40)
    read_clip(path, [0])  # the index is there
    real = decoding._shown
    shown = []
    monkeypatch.setattr(decoding, "_shown", lambda *a, **k: shown.append(time.sleep(0.05)) or real(*a, **k))
    with pytest.raises(ClipError, match=r"clip.mp4: reading took longer than 0.2 s; .* dataset.timeout_s"):
        read_clip(path, list(range(40)), ReadOptions(timeout_s=0.2))
    assert len(shown) <= 5  # of 40


@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_a_file_that_never_ends_is_stopped(write_clip, tmp_path, suffix):
    """After a whole head come 2 TiB of nothing, in which FFmpeg searches for the next frame."""
    path = tmp_path / f"endless{suffix}"
    options = {"bf": "0"} if suffix == ".avi" else {}
    content = Path(write_clip(f"whole{suffix}", num_frames=20, options=options)).read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    os.truncate(path, 2 << 40)
    with pytest.raises(
        ClipError, match=f"endless{suffix}: (reading took longer than 0.5 s|cannot be read|frame)"
    ):
        read_clip(str(path), [19], ReadOptions(timeout_s=0.5))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ClipError, match="pipe.mp4: cannot be read .it is no regular file"):
        read_clip(str(tmp_path / "pipe.mp4"), [0])
    with pytest.raises(ClipError, match="no regular file"):
        read_image(str(tmp_path / "pipe.png"))
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(ClipError, match="no regular file"):
        probe(str(tmp_path / "folder.mp4"))


def test_names_with_a_colon_and_names_that_are_addresses(write_clip, tmp_path):
    assert read_clip(write_clip("a:b.mp4"), [3]).shape == (1, 48, 64, 3)
    with pytest.raises(ClipError, match="no such file"):
        read_clip("http://127.0.0.1:9/clip.mp4", [0])
    other = write_clip("other.mp4")
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {Path(other).name}\n")
    with pytest.raises(ClipError, match="list.mp4: cannot be read"):
        read_clip(str(tmp_path / "list.mp4"), [0])


@pytest.fixture
def failing(monkeypatch):
    """Return a function that lets opening a video fail some times; it returns the attempts."""

    def fail(times, error):
        tried = []
        real = av.open

        def opening(*arguments, **names):
            tried.append(arguments)
            if len(tried) <= times:
                raise error
            return real(*arguments, **names)

        monkeypatch.setattr(reading.av, "open", opening)
        monkeypatch.setattr(reading, "_FIRST_PAUSE_S", 0.001)
        return tried

    return fail


def test_an_error_that_passes_is_retried(write_clip, failing):
    path = write_clip()
    failing(2, OSError(errno.EIO, "Input/output error"))
    assert read_clip(path, [3]).shape == (1, 48, 64, 3)


def test_retries_are_bounded(write_clip, failing):
    path = write_clip()
    tried = failing(9, OSError(errno.ESTALE, "Stale file handle"))
    with pytest.raises(ClipError, match="Stale file handle"):
        read_clip(path, [3], ReadOptions(retries=3))
    assert len(tried) == 4


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "Permission denied"), av.InvalidDataError(1094995529, "bad")]
)
def test_an_error_that_stays_is_not_retried(write_clip, failing, error):
    path = write_clip()
    tried = failing(1, error)
    with pytest.raises(ClipError, match="clip.mp4: cannot be read"):
        read_clip(path, [3])
    assert len(tried) == 1


def test_there_is_no_pause_beyond_the_deadline(monkeypatch):
    """The pause before a retry would end after it."""
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"a pause of {seconds} s"))
    path, calls = __file__, []

    def read(deadline: Deadline) -> None:
        calls.append(deadline.left)
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(ClipError, match="Input/output error"):
        guarded(path, ReadOptions(timeout_s=0.1, retries=5), read)
    assert len(calls) == 1


def test_files_stay_closed(write_clip):
    path = write_clip(num_frames=30)
    folder = Path("/proc/self/fd")
    read_clip(path, [3])
    before = len(list(folder.iterdir()))
    for number in range(20):
        read_clip(path, [number])
        with pytest.raises(ClipError):
            read_clip(path, [30])
        video_io.probe(path)
    assert len(list(folder.iterdir())) <= before
