"""Reading under limits: a time for each file, a few retries, and errors that name the file."""

import errno
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import av
from PIL import Image

READERS = ("pyav", "torchcodec")

# Looking into a file needs no decoder: without one, FFmpeg opens a file in 0.2 ms instead of 14 ms (720p).
_NO_DECODER = {"codec_whitelist": "none"}
# A table names files. Playlists, which name other files or addresses in turn, are not opened.
_FILES_ONLY = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,avi,matroska,mpeg,mpegts,mpegvideo,flv,asf,ogg,h264,hevc,m4v,ivf",
}
_TRANSIENT = {
    getattr(errno, name)
    for name in (
        "EIO",
        "EAGAIN",
        "EINTR",
        "EBUSY",
        "ESTALE",
        "ETIMEDOUT",
        "ECONNRESET",
        "ENETDOWN",
        "EREMOTEIO",
    )
    if hasattr(errno, name)
}
_FIRST_PAUSE_S = 0.2  # before a retry; the next one waits four times as long
_UNREADABLE = (av.FFmpegError, OSError, ValueError, EOFError, Image.DecompressionBombError)

Result = TypeVar("Result")


class ClipError(ValueError):
    """A clip or image cannot be read as asked. The message names the file and the remedy."""


@dataclass(frozen=True)
class ReadOptions:
    """How files are read.

    Args:
        reader: "pyav" or "torchcodec".
        timeout_s: Seconds that one file may take, all retries included.
        retries: How often reading starts again after an error that may pass, such as one of a network disk.

    Raises:
        ValueError: A value is out of range.
    """

    reader: str = "pyav"
    timeout_s: float = 60.0
    retries: int = 2

    def __post_init__(self) -> None:
        if self.reader not in READERS:
            raise ValueError(f"reader={self.reader!r}: use one of {', '.join(READERS)}.")
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s={self.timeout_s}: give the seconds that a file may take, above 0.")
        if self.retries < 0:
            raise ValueError(f"retries={self.retries}: use 0 for none, or more.")


class Deadline:
    """The time at which reading a file must be over.

    Args:
        path: The file, for the message.
        seconds: From now.
    """

    def __init__(self, path: str, seconds: float) -> None:
        self.path, self.seconds, self.end = path, seconds, time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self.end - time.monotonic())

    def check(self) -> None:
        """Stop when the time is over.

        Raises:
            ClipError: It is.
        """
        if time.monotonic() > self.end:
            raise self.passed()

    def passed(self) -> ClipError:
        """Return the error for a file that took too long."""
        return ClipError(
            f"{self.path}: reading took longer than {self.seconds:g} s; re-encode the file with a key frame "
            "every second, remove it from the table, or raise dataset.timeout_s."
        )


def guarded(path: str, options: ReadOptions, read: Callable[[Deadline], Result]) -> Result:
    """Read a file within its time, and again after an error that may pass.

    Args:
        path: A regular file, or a folder of frames, which ends with a slash.
        options: Limits.
        read: Called with the deadline, once or several times.

    Raises:
        ClipError: The file is missing, is no regular file, is damaged, or takes too long.
    """
    deadline = Deadline(path, options.timeout_s)
    pause, left = _FIRST_PAUSE_S, options.retries
    while True:
        try:
            mode = os.stat(path).st_mode
            frames = stat.S_ISDIR(mode) and path.endswith("/")
            if not (stat.S_ISREG(mode) or frames):  # a pipe would wait for its writer, without limit
                raise ValueError("it is no regular file")
            return read(deadline)
        except ClipError:
            raise
        except FileNotFoundError:
            raise ClipError(
                f"{path}: no such file. Correct the column path of the table; relative paths start at "
                f"{os.getcwd()}."
            ) from None
        except av.error.ExitError:  # the time was over while FFmpeg searched in the file
            raise deadline.passed() from None
        except _UNREADABLE as error:
            if getattr(error, "errno", None) in _TRANSIENT and left and deadline.left > pause:
                time.sleep(pause)
                pause, left = 4 * pause, left - 1
                continue
            raise ClipError(
                f"{path}: cannot be read ({error}); remove it from the table or re-encode it."
            ) from error


def open_video(path: str, deadline: Deadline, analyse: bool = True) -> av.container.InputContainer:
    """Open a video file.

    Args:
        path: The file.
        deadline: FFmpeg gives up there, also in the middle of a search through the file.
        analyse: Let FFmpeg decode a few frames to complete what the header says.
    """
    options = _FILES_ONLY if analyse else _FILES_ONLY | _NO_DECODER
    return av.open(f"file:{path}", options=options, timeout=max(deadline.left, 0.001))


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """Return the first video stream.

    Raises:
        ValueError: There is none.
    """
    if not container.streams.video:
        raise ValueError("it has no video stream")
    stream = container.streams.video[0]
    stream.thread_type = "NONE"  # many workers decode at once; threads would only compete
    return stream
