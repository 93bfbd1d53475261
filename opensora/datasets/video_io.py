"""Clips and images as files: reading by exact frame number, and writing.

The only file that gives `uint8 [T, H, W, C]`; everywhere else a video is float `[C, T, H, W]` in [-1, 1].
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from opensora.datasets.decoding import Scale, decode_all, read_pyav, read_torchcodec, too_short
from opensora.datasets.frame_folder import IMAGE_EXTENSIONS, frame_files, is_frame_folder, read_frames
from opensora.datasets.frame_index import UNKNOWN_FPS, frame_index
from opensora.datasets.reading import ClipError, Deadline, ReadOptions, guarded, open_video
from opensora.utils.files import whole_file

VIDEO_EXTENSIONS = (".mp4", ".avi", ".mov", ".mkv")  # what tables and folders call a video, as published
_READABLE = (*VIDEO_EXTENSIONS, ".webm")
IMAGE_FPS = 120.0  # the published networks learned this number as the mark of an image

# How videos are written, by suffix: codec, quality, its other options, and those of the container.
_ENCODERS = {
    ".mp4": ("libx264", 18, {"preset": "veryfast"}, {"movflags": "+faststart"}),
    ".mkv": ("libx264", 18, {"preset": "veryfast"}, {}),
    ".webm": ("libvpx-vp9", 24, {"b": "0", "cpu-used": "5", "row-mt": "0"}, {}),
}
WRITTEN_VIDEOS = tuple(_ENCODERS)
# Encoders cut their work by this number, not by the machine's cores, so that bytes do not depend on them.
_ENCODER_THREADS = 4
_NOTE = "Comment"  # where files carry text about themselves

_PUBLISHED = ReadOptions()  # as the published training read: PyAV


class ClipInfo(NamedTuple):
    """What a file says about itself. Sizes are as displayed, after rotation; an image has one frame."""

    num_frames: int
    height: int
    width: int
    fps: float


def is_image(path: str) -> bool:
    """Say whether a path has an image's extension."""
    return Path(path).suffix.lower() in IMAGE_EXTENSIONS


def is_video(path: str) -> bool:
    """Say whether a path has a video's extension."""
    return Path(path).suffix.lower() in VIDEO_EXTENSIONS


def probe(path: str, options: ReadOptions = _PUBLISHED) -> ClipInfo:
    """Read length, size and rate of a clip or image.

    The length is counted from the packets, since the count in a header is often wrong. One frame is decoded
    for the displayed size.

    Raises:
        ClipError: The file is missing, has another format, has no picture, or takes too long.
    """
    if is_image(path):
        return guarded(path, options, lambda deadline: _probe_image(path))
    if is_frame_folder(path):
        return guarded(path, options, lambda deadline: _probe_frames(path))
    _check_extension(path)
    return guarded(path, options, lambda deadline: _probe_video(path, deadline))


def clip_fps(path: str, options: ReadOptions = _PUBLISHED) -> float:
    """Return the average frames per second of a file; 120 for an image, 24 if a video does not say.

    Raises:
        ClipError: The file cannot be read.
    """
    if is_image(path):
        return IMAGE_FPS
    if is_frame_folder(path):
        return UNKNOWN_FPS
    _check_extension(path)
    return guarded(path, options, lambda deadline: frame_index(path, deadline).fps)


def read_clip(
    path: str, indices: Sequence[int], options: ReadOptions = _PUBLISHED, scale: Scale | None = None
) -> Tensor:
    """Read frames of a video by their numbers.

    A table of presentation times, made once per file without decoding, turns numbers into times. Reading
    seeks to the key frame before the first one and decodes what the wanted frames need. A file whose times do
    not name its frames is decoded from the start.

    Args:
        path: A video file.
        indices: Frame numbers from 0, in any order; a number may repeat. Length T.
        options: Back end and limits.
        scale: Called with the displayed (height, width); gives those that FFmpeg scales the frames to, with a
            low-pass filter. None keeps their size.

    Returns:
        uint8 RGB, rotated as the file asks. Shape [T, H, W, 3].

    Raises:
        ClipError: The file is missing or damaged, takes too long, or is shorter than asked.
        ImportError: The back end is not installed.
        ValueError: There are no numbers, one is negative, or the back end does not scale.
    """
    wanted = [int(i) for i in indices]
    if not wanted or min(wanted) < 0:
        raise ValueError(f"{path}: frame numbers {wanted}; give at least one, from 0.")
    if scale is not None and options.reader != "pyav":
        raise ValueError(f"reader={options.reader!r} does not scale; use reader='pyav'.")
    if is_frame_folder(path):
        return guarded(path, options, lambda deadline: read_frames(path, wanted, scale, deadline.check))
    _check_extension(path)

    def read(deadline: Deadline) -> Tensor:
        index = frame_index(path, deadline)
        if index.exact and max(wanted) >= len(index.pts):
            raise too_short(path, max(wanted), len(index.pts))
        if options.reader == "torchcodec" and index.exact:
            return read_torchcodec(path, index, wanted, deadline)
        return read_pyav(path, index, wanted, scale, deadline)

    return guarded(path, options, read)


def read_image(path: str, options: ReadOptions = _PUBLISHED) -> Tensor:
    """Read an image as a video of one frame.

    Returns:
        uint8 RGB, turned as its EXIF orientation asks. Shape [1, H, W, 3].

    Raises:
        ClipError: The file is missing or is no image.
    """

    def read(deadline: Deadline) -> Tensor:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB")))

    return guarded(path, options, read)[None]  # [1, H, W, 3]


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


def write_video(
    video: Tensor | Iterable[Tensor],
    path: str | Path,
    fps: float,
    crf: int | None = None,
    note: str | None = None,
) -> Path:
    """Write a file that every player shows, without sound: H.264 in mp4 or mkv, VP9 in webm, yuv420p.

    That format has even sizes only: an odd height or width is padded by one repeated row or column. The file
    appears under its name when it is whole. The same video makes the same bytes on any number of cores.

    Args:
        video: Float in [-1, 1], shape [3, T, H, W]; or its parts in time, which are encoded as they come.
        path: Ends in .mp4, .mkv or .webm. Missing folders are made.
        fps: Frames per second, above 0.
        crf: Quality, from 0 (best) to 51; None takes one that looks like the original.
        note: Text that the file carries, see `read_note`.

    Returns:
        The path.

    Raises:
        ValueError: The suffix, the rate, the quality, or the video is wrong.
    """
    path = Path(path)
    if path.suffix.lower() not in _ENCODERS:
        raise ValueError(
            f"path={str(path)!r}: videos are written as {', '.join(_ENCODERS)}; change the suffix."
        )
    if not 0 < fps < float("inf"):
        raise ValueError(f"fps={fps!r}: give a number above 0.")
    codec, usual, options, container_options = _ENCODERS[path.suffix.lower()]
    crf = usual if crf is None else crf
    if not 0 <= crf <= 51:
        raise ValueError(f"crf={crf!r}: use a number from 0, the best, to 51.")
    frames = _frames(video)
    first = next(frames)
    height, width = first.shape[:2]
    padding = ((0, height % 2), (0, width % 2), (0, 0))

    def write(temporary: Path) -> None:
        # Without bitexact, files of one video differ: the container numbers its tracks at random.
        whole = {**container_options, "fflags": "+bitexact"}
        with av.open(str(temporary), "w", options=whole) as container:
            if note is not None:
                container.metadata[_NOTE.lower()] = note
            rate = Fraction(fps).limit_denominator(1001)
            settings = {"crf": str(crf), **options, **_repeatable(codec)}
            stream = container.add_stream(codec, rate=rate, options=settings)
            stream.codec_context.thread_count, stream.codec_context.thread_type = _ENCODER_THREADS, "FRAME"
            stream.height, stream.width = height + height % 2, width + width % 2
            stream.pix_fmt = "yuv420p"
            for frame in chain((first,), frames):
                image = av.VideoFrame.from_ndarray(np.pad(frame, padding, mode="edge"), format="rgb24")
                container.mux(stream.encode(image))
            container.mux(stream.encode())

    return _atomic(path, write)


def _repeatable(codec: str) -> dict[str, str]:
    """Return options with which an encoder writes the same bytes each time.

    With AVX-512, libx264 looks ahead in a way that does not repeat: of 150 files of one video 89 were others
    than the most frequent one, with one thread 1. With the instructions before it, none.
    """
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return {"x264-params": "asm=avx2"} if codec == "libx264" and has_avx512 else {}


def read_note(path: str | Path) -> str | None:
    """Return the text that a video or PNG carries about itself, or None.

    Raises:
        ClipError: The file is missing, damaged, or of another format.
    """

    def read(deadline: Deadline) -> str | None:
        if is_image(str(path)):
            with Image.open(path) as image:
                return getattr(image, "text", {}).get(_NOTE)
        with open_video(str(path), deadline, analyse=False) as container:
            found = {name.lower(): text for name, text in container.metadata.items()}
            return found.get(_NOTE.lower())

    if not is_image(str(path)):
        _check_extension(str(path))
    return guarded(str(path), _PUBLISHED, read)


def write_image(image: Tensor, path: str | Path, note: str | None = None) -> Path:
    """Write an image; the suffix decides the format.

    Args:
        image: Float in [-1, 1], shape [3, H, W] or [3, 1, H, W].
        path: Ends in .png, .jpg or another image suffix. Missing folders are made.
        note: Text that a PNG carries, see `read_note`.

    Returns:
        The path.

    Raises:
        ValueError: The suffix or the shape is wrong.
    """
    frames = to_uint8(image if image.ndim == 4 else image[:, None])
    if len(frames) != 1:
        raise ValueError(f"image has {len(frames)} frames; give one, or use write_video.")
    return _save_image(Image.fromarray(frames[0].numpy()), Path(path), note)


def write_frames(video: Tensor | Iterable[Tensor], folder: str | Path, note: str | None = None) -> Path:
    """Write each frame of a video as a PNG, numbered from 0. The folder appears when it is whole.

    Args:
        video: Float in [-1, 1], shape [3, T, H, W]; or its parts in time.
        folder: What is there already is replaced.
        note: Text that each frame carries.

    Returns:
        The folder.

    Raises:
        ValueError: The video is wrong.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for number, frame in enumerate(_frames(video)):
            _save_image(Image.fromarray(frame), temporary / f"{number:06d}.png", note)
        temporary.chmod(0o755)
        if folder.is_dir():
            shutil.rmtree(folder)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


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
    for _ in through_sheet((video,), video.shape[1], path, columns, rows):
        pass
    return Path(path)


def through_sheet(
    video: Iterable[Tensor], num_frames: int, path: str | Path, columns: int = 4, rows: int = 2
) -> Iterator[Tensor]:
    """Pass the parts of a video on, and write their contact sheet once the last one has been asked for.

    Args:
        video: Parts that follow each other in time. Float in [-1, 1], shape [3, T, H, W].
        num_frames: Frames of all parts.
        path: Ends in .png or another image suffix.
        columns: Frames in a row, at least 1.
        rows: Rows at most; a short video needs fewer.

    Raises:
        ValueError: `columns` or `rows` is below 1, or the video is wrong or shorter.
    """
    if columns < 1 or rows < 1:
        raise ValueError(f"columns={columns}, rows={rows}: both are at least 1.")
    count = min(num_frames, columns * rows)
    numbers = np.linspace(0, num_frames - 1, count).round().astype(int)
    picked, start = [], 0
    for part in video:
        inside = numbers[(numbers >= start) & (numbers < start + part.shape[1])] - start
        picked += list(to_uint8(part[:, inside.tolist()]).numpy()) if len(inside) else []
        start += part.shape[1]
        yield part
    if len(picked) < count:
        raise ValueError(f"num_frames={num_frames}: the video has {start} frames; give its length.")
    height, width = picked[0].shape[:2]
    sheet = Image.new("RGB", (width * min(columns, count), height * -(-count // columns)))
    draw = ImageDraw.Draw(sheet)
    for place, (number, frame) in enumerate(zip(numbers, picked, strict=True)):
        x, y = place % columns * width, place // columns * height
        sheet.paste(Image.fromarray(frame), (x, y))
        draw.text((x + 2, y + 1), str(number), fill="white", stroke_width=1, stroke_fill="black")
    _save_image(sheet, Path(path))


def _frames(video: Tensor | Iterable[Tensor]) -> Iterator[np.ndarray]:
    """Yield frames as bytes. Shape [H, W, 3]."""
    for part in (video,) if isinstance(video, Tensor) else video:
        yield from to_uint8(part).numpy()


def _save_image(image: Image.Image, path: Path, note: str | None = None) -> Path:
    if not is_image(str(path)):
        raise ValueError(f"path={str(path)!r}: use one of the suffixes {', '.join(IMAGE_EXTENSIONS)}.")
    options = {}
    if note is not None and path.suffix.lower() == ".png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt(_NOTE, note)
    return _atomic(path, lambda temporary: image.save(temporary, **options))


def _atomic(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` make a file beside `path`, then give it that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        write(temporary)
    return path


def _check_extension(path: str) -> None:
    if Path(path).suffix.lower() not in _READABLE:
        raise ClipError(
            f"{path}: unknown extension. Videos are {' '.join(_READABLE)}, images "
            f"{' '.join(IMAGE_EXTENSIONS)}."
        )


def _probe_frames(path: str) -> ClipInfo:
    height, width = read_frames(path, [0]).shape[1:3]
    return ClipInfo(len(frame_files(path)), height, width, UNKNOWN_FPS)


def _probe_image(path: str) -> ClipInfo:
    with Image.open(path) as image:
        turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 lie on their side
        width, height = image.size[::-1] if turned else image.size
    return ClipInfo(1, height, width, IMAGE_FPS)


def _probe_video(path: str, deadline: Deadline) -> ClipInfo:
    index = frame_index(path, deadline)
    frames = decode_all(path, deadline)
    first = next(frames, None)
    if first is None:
        raise ClipError(f"{path}: no frame can be decoded; remove the file from the table or re-encode it.")
    height, width = (first.width, first.height) if first.rotation % 180 else (first.height, first.width)
    num_frames = len(index.pts) if index.exact else 1 + sum(1 for _ in frames)
    frames.close()
    return ClipInfo(num_frames, height, width, index.fps)
