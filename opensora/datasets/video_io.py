"""Clips and images as files: reading by exact frame number, and writing.

The only file that sees `uint8 [T, H, W, C]`; everywhere else a video is float `[C, T, H, W]` in [-1, 1].
"""

import bisect
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

VIDEO_EXTENSIONS = (".mp4", ".avi", ".mov", ".mkv")
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
IMAGE_FPS = 120.0  # the published networks learned this number as the mark of an image
UNKNOWN_FPS = 24.0  # of a file that does not say

_SEEK_GAP = 8  # frames: across a smaller gap, decoding is cheaper than another seek
_CACHED_FRAMES = 1 << 20  # the indices that a process keeps, in frames of 8 bytes each
_UNREADABLE = (av.FFmpegError, OSError, ValueError, EOFError, Image.DecompressionBombError)


class ClipError(Exception):
    """A clip or image cannot be read as asked. The message names the file and the remedy."""


class ClipInfo(NamedTuple):
    """What a file says about itself. Sizes are as displayed, after rotation; an image has one frame."""

    num_frames: int
    height: int
    width: int
    fps: float


@dataclass(frozen=True)
class _Index:
    """Presentation times of a file.

    Args:
        pts: Times of all frames in order of presentation. int64, shape [T].
        keys: Positions in `pts` where decoding can start.
        exact: Whether `pts` names every frame; else frames are only countable by decoding from the start.
        fps: Average frames per second.
    """

    pts: np.ndarray
    keys: list[int]
    exact: bool
    fps: float


_indices: OrderedDict[tuple[str, int, int], _Index] = OrderedDict()


def is_image(path: str) -> bool:
    """Say whether a path has an image's extension."""
    return Path(path).suffix.lower() in IMAGE_EXTENSIONS


def is_video(path: str) -> bool:
    """Say whether a path has a video's extension."""
    return Path(path).suffix.lower() in VIDEO_EXTENSIONS


def probe(path: str) -> ClipInfo:
    """Read length, size and rate of a clip or image.

    The length is counted from the packets, since the count in a header is often wrong. One frame is decoded
    for the displayed size.

    Raises:
        ClipError: The file is missing, has another format, or has no picture.
    """
    if is_image(path):
        with _reading(path), Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 lie on their side
            width, height = image.size[::-1] if turned else image.size
        return ClipInfo(1, height, width, IMAGE_FPS)
    index = _index(path)
    with _reading(path):
        first = next(_decode(path, None), None)
    if first is None:
        raise ClipError(f"{path}: no frame can be decoded; remove the file from the table or re-encode it.")
    height, width = (first.width, first.height) if first.rotation % 180 else (first.height, first.width)
    num_frames = len(index.pts)
    if not index.exact:
        with _reading(path):
            num_frames = sum(1 for _ in _decode(path, None))
    return ClipInfo(num_frames, height, width, index.fps)


def clip_fps(path: str) -> float:
    """Return the average frames per second of a file; 120 for an image, 24 if a video does not say.

    Raises:
        ClipError: The file cannot be read.
    """
    return IMAGE_FPS if is_image(path) else _index(path).fps


def read_clip(path: str, indices: Sequence[int]) -> Tensor:
    """Read frames of a video by their numbers.

    A table of presentation times, made once per file without decoding, turns numbers into times. Reading
    seeks to the key frame before the first one and decodes what lies between. A file whose times do not name
    its frames is decoded from the start.

    Args:
        path: A video file.
        indices: Frame numbers from 0, in any order; a number may repeat. Length T.

    Returns:
        uint8 RGB, rotated as the file asks. Shape [T, H, W, 3].

    Raises:
        ClipError: The file is missing or damaged, or is shorter than asked.
        ValueError: There are no numbers, or one is negative.
    """
    wanted = [int(i) for i in indices]
    if not wanted or min(wanted) < 0:
        raise ValueError(f"{path}: frame numbers {wanted}; give at least one, from 0.")
    index = _index(path)
    if index.exact and max(wanted) >= len(index.pts):
        raise _too_short(path, max(wanted), len(index.pts))
    with _reading(path):
        frames = _seek_frames(path, index, wanted) if index.exact else None
        if frames is None:
            frames = _count_frames(path, wanted)
    shapes = {frame.shape for frame in frames.values()}
    if len(shapes) > 1:
        raise ClipError(f"{path}: the picture changes its size, {sorted(shapes)}; re-encode the file.")
    return torch.from_numpy(np.stack([frames[i] for i in wanted]))  # [T, H, W, 3]


def read_image(path: str) -> Tensor:
    """Read an image as a video of one frame.

    Returns:
        uint8 RGB, turned as its EXIF orientation asks. Shape [1, H, W, 3].

    Raises:
        ClipError: The file is missing or is no image.
    """
    with _reading(path), Image.open(path) as image:
        array = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    return torch.from_numpy(array)[None]  # [1, H, W, 3]


def to_uint8(video: Tensor) -> Tensor:
    """Turn a video in [-1, 1] into bytes.

    Args:
        video: Float, shape [C, T, H, W]; values beyond [-1, 1] are cut.

    Returns:
        uint8 on the CPU, shape [T, H, W, C].

    Raises:
        ValueError: The shape is another one, or a value is not finite.
    """
    if video.ndim != 4 or video.shape[0] != 3:
        raise ValueError(
            f"video has shape {tuple(video.shape)}; expected [3, T, H, W]. Write one sample at a time."
        )
    if not torch.isfinite(video).all():
        raise ValueError(
            "video has values that are not finite; look for NaN in the latents, or decode in float32."
        )
    frames = [((f.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu() for f in video.unbind(1)]
    return rearrange(torch.stack(frames), "T C H W -> T H W C")


def write_video(video: Tensor, path: str | Path, fps: float) -> Path:
    """Write an H.264 file that every player shows (mp4, yuv420p).

    That format has even sizes only: an odd height or width is padded by one repeated row or column. The file
    appears under its name when it is whole.

    Args:
        video: Float in [-1, 1], shape [3, T, H, W].
        path: Ends in .mp4. Missing folders are made.
        fps: Frames per second, above 0.

    Returns:
        The path.

    Raises:
        ValueError: The suffix, the rate, or the video is wrong.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"path={str(path)!r}: videos are written as .mp4; change the suffix.")
    if not 0 < fps < float("inf"):
        raise ValueError(f"fps={fps!r}: give a number above 0.")
    frames = to_uint8(video).numpy()
    height, width = frames.shape[1:3]
    padding = ((0, height % 2), (0, width % 2), (0, 0))

    def write(temporary: Path) -> None:
        with av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            rate = Fraction(fps).limit_denominator(1001)
            stream = container.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast"})
            stream.height, stream.width = height + height % 2, width + width % 2
            stream.pix_fmt = "yuv420p"
            for frame in frames:
                image = av.VideoFrame.from_ndarray(np.pad(frame, padding, mode="edge"), format="rgb24")
                container.mux(stream.encode(image))
            container.mux(stream.encode())

    return _atomic(path, write)


def write_image(image: Tensor, path: str | Path) -> Path:
    """Write an image; the suffix decides the format.

    Args:
        image: Float in [-1, 1], shape [3, H, W] or [3, 1, H, W].
        path: Ends in .png, .jpg or another image suffix. Missing folders are made.

    Returns:
        The path.

    Raises:
        ValueError: The suffix or the shape is wrong.
    """
    frames = to_uint8(image if image.ndim == 4 else image[:, None])
    if len(frames) != 1:
        raise ValueError(f"image has {len(frames)} frames; give one, or use write_video.")
    return _save_image(Image.fromarray(frames[0].numpy()), Path(path))


def contact_sheet(video: Tensor, path: str | Path, columns: int = 4, rows: int = 2) -> Path:
    """Write one image with evenly spaced frames of a video, each with its number.

    Args:
        video: Float in [-1, 1], shape [3, T, H, W].
        path: Ends in .png or another image suffix.
        columns: Frames in a row, at least 1.
        rows: Rows at most; a short video needs fewer.

    Returns:
        The path.

    Raises:
        ValueError: `columns` or `rows` is below 1, or the video is wrong.
    """
    if columns < 1 or rows < 1:
        raise ValueError(f"columns={columns}, rows={rows}: both are at least 1.")
    frames = to_uint8(video).numpy()
    total, height, width = frames.shape[:3]
    count = min(total, columns * rows)
    numbers = np.linspace(0, total - 1, count).round().astype(int)
    sheet = Image.new("RGB", (width * min(columns, count), height * -(-count // columns)))
    draw = ImageDraw.Draw(sheet)
    for place, number in enumerate(numbers):
        x, y = place % columns * width, place // columns * height
        sheet.paste(Image.fromarray(frames[number]), (x, y))
        draw.text((x + 2, y + 1), str(number), fill="white", stroke_width=1, stroke_fill="black")
    return _save_image(sheet, Path(path))


def _save_image(image: Image.Image, path: Path) -> Path:
    if not is_image(str(path)):
        raise ValueError(f"path={str(path)!r}: use one of the suffixes {', '.join(IMAGE_EXTENSIONS)}.")
    return _atomic(path, lambda temporary: image.save(temporary))


def _atomic(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` make a file beside `path`, then give it that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turn what the readers raise for a bad file into a ClipError."""
    try:
        yield
    except FileNotFoundError:
        raise ClipError(
            f"{path}: no such file. Correct the column path of the table; relative paths start at "
            f"{os.getcwd()}."
        ) from None
    except _UNREADABLE as error:
        raise ClipError(
            f"{path}: cannot be read ({error}); remove it from the table or re-encode it."
        ) from error


def _too_short(path: str, number: int, total: int) -> ClipError:
    return ClipError(
        f"{path}: frame {number} was asked, the file has {total}. Correct num_frames in the table, "
        "or leave the column out and set dataset.probe=True."
    )


def _index(path: str) -> _Index:
    """Return the index of a file, from the cache if the file has not changed."""
    if not is_video(path):
        raise ClipError(
            f"{path}: unknown extension. Videos are {' '.join(VIDEO_EXTENSIONS)}, images "
            f"{' '.join(IMAGE_EXTENSIONS)}."
        )
    with _reading(path):
        stat = os.stat(path)
        key = (path, stat.st_mtime_ns, stat.st_size)
        if key not in _indices:
            _indices[key] = _make_index(path)
    _indices.move_to_end(key)
    while len(_indices) > 1 and sum(len(index.pts) for index in _indices.values()) > _CACHED_FRAMES:
        _indices.popitem(last=False)
    return _indices[key]


def _make_index(path: str) -> _Index:
    times, keys, exact = [], [], True
    with av.open(path) as container:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        stream = container.streams.video[0]
        fps = float(stream.average_rate or stream.guessed_rate or UNKNOWN_FPS)
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:  # the end, and frames that the file says to skip
                continue
            exact = exact and packet.pts is not None
            times.append(packet.pts or 0)
            if packet.is_keyframe:
                keys.append(packet.pts or 0)
    if not times:
        raise ValueError("it has no frames")
    exact = exact and bool(keys) and len(set(times)) == len(times)
    pts = np.array(sorted(times), dtype=np.int64)
    return _Index(pts, np.searchsorted(pts, sorted(keys)).tolist() if exact else [], exact, fps)


def _decode(path: str, start: int | None) -> Iterator[av.VideoFrame]:
    """Decode from the key frame at the time `start`, or from the first frame."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # many workers decode at once; threads would only compete
        if start is not None:
            container.seek(start, stream=stream)
        yield from container.decode(stream)


def _seek_frames(path: str, index: _Index, wanted: Sequence[int]) -> dict[int, np.ndarray] | None:
    """Read frames by seeking; None when the file does not give what its index promises."""
    found: dict[int, np.ndarray] = {}
    for run in _runs(sorted(set(wanted)), index.keys):
        key = bisect.bisect_right(index.keys, run[0]) - 1
        # In an open group of pictures the first frames need the group before: try one key frame earlier.
        for start in (key, key - 1):
            if start < 0:
                return None
            part = _read_run(path, index, run, index.keys[start])
            if len(part) == len(run):
                found |= part
                break
        else:
            return None
    return found


def _runs(numbers: list[int], keys: list[int]) -> Iterator[list[int]]:
    """Split sorted frame numbers where seeking to a later key frame saves decoding."""
    run = numbers[:1]
    for number in numbers[1:]:
        key = keys[bisect.bisect_right(keys, number) - 1]
        if key - run[-1] > _SEEK_GAP:
            yield run
            run = []
        run.append(number)
    yield run


def _read_run(path: str, index: _Index, run: list[int], start: int) -> dict[int, np.ndarray]:
    numbers = {int(index.pts[i]): i for i in run}
    last, found = int(index.pts[run[-1]]), {}
    frames = _decode(path, int(index.pts[start]) if start else None)
    try:
        for frame in frames:
            if frame.pts in numbers and not frame.is_corrupt:
                found[numbers[frame.pts]] = _pixels(frame)
            if frame.pts is None or frame.pts >= last:
                break
    finally:
        frames.close()
    return found


def _count_frames(path: str, wanted: Sequence[int]) -> dict[int, np.ndarray]:
    """Read frames by decoding from the start and counting."""
    numbers, found, total = set(wanted), {}, 0
    frames = _decode(path, None)
    try:
        for total, frame in enumerate(frames, start=1):
            if total - 1 in numbers:
                found[total - 1] = _pixels(frame)
            if len(found) == len(numbers):
                return found
    finally:
        frames.close()
    raise _too_short(path, max(numbers), total)


def _pixels(frame: av.VideoFrame) -> np.ndarray:
    array = frame.to_ndarray(format="rgb24")
    return np.rot90(array, k=round(frame.rotation / 90)) if frame.rotation else array  # [H, W, 3]
