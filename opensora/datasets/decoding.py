"""Decoding: seek, decode what chosen frames need, and turn only them into pixels."""

import bisect
from collections.abc import Callable, Iterator, Sequence

import av
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from opensora.datasets.frame_index import FrameIndex
from opensora.datasets.reading import ClipError, Deadline, open_video, video_stream

Scale = Callable[[int, int], tuple[int, int]]  # (height, width) of a file to that of its frames

_SEEK_GAP = 8  # frames: across a smaller gap, decoding is cheaper than another seek
_REORDERED = 64  # packets: a frame is coded at most so far behind where it is shown
# Decoders that leave out single frames on which no other frame depends.
_LEAVES_OUT = ("h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video")


def read_pyav(
    path: str, index: FrameIndex, wanted: Sequence[int], scale: Scale | None, deadline: Deadline
) -> Tensor:
    """Read frames with PyAV. Arguments and result as for `read_clip`.

    From a key frame on, only frames are decoded that are wanted or that others may depend on.

    Raises:
        ClipError: The file is shorter than asked, or its picture changes its size.
    """
    if index.exact:
        frames = _Frames(path, wanted, scale)
        if _seek_frames(path, index, frames, deadline):
            return frames.video
    frames = _Frames(path, wanted, scale)  # the file does not give what its index promises: count
    total = 0
    for total, frame in enumerate(decode_all(path, deadline), start=1):
        frames.add(total - 1, frame)
        if not frames.missing:
            return frames.video
    raise too_short(path, max(wanted), total)


def read_torchcodec(path: str, index: FrameIndex, wanted: Sequence[int], deadline: Deadline) -> Tensor:
    """Read frames with torchcodec. Arguments and result as for `read_clip`, without scaling.

    Raises:
        ValueError: The file cannot be decoded, or torchcodec shows a frame at another time than the index.
    """
    make, places, video = import_torchcodec(), _places(wanted), None
    try:
        decoder = make(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        for number in sorted(places):
            deadline.check()
            frame, time = decoder.get_frame_at(number), float(index.pts[number] * index.time_base)
            if abs(frame.pts_seconds - time) > 1e-3:
                raise ValueError(
                    f"torchcodec shows frame {number} at {frame.pts_seconds:.3f} s, not {time:.3f} s"
                )
            if video is None:
                video = torch.empty((len(wanted), *frame.data.shape), dtype=torch.uint8)
            video[places[number]] = frame.data
    except (RuntimeError, IndexError) as error:  # its own errors, and those of FFmpeg in it
        raise ValueError(f"torchcodec: {str(error).strip().splitlines()[0]}") from error
    return video


def import_torchcodec() -> type:
    """Return torchcodec's decoder.

    Raises:
        ImportError: It is not installed, or finds no FFmpeg.
    """
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(
            f"dataset.reader='torchcodec' does not load ({str(error).strip().splitlines()[0]}). It needs "
            "FFmpeg's shared libraries (apt install ffmpeg) and: pip install torchcodec==0.13.0. Or use "
            "dataset.reader='pyav'."
        ) from None
    return VideoDecoder


def decode_all(path: str, deadline: Deadline) -> Iterator[av.VideoFrame]:
    """Decode from the first frame on."""
    with open_video(path, deadline) as container:
        for packet in container.demux(video_stream(container)):
            deadline.check()
            yield from packet.decode()


def too_short(path: str, number: int, total: int) -> ClipError:
    """Return the error for a frame behind the end."""
    return ClipError(
        f"{path}: frame {number} was asked, the file has {total}. Correct num_frames in the table, "
        "or leave the column out and set dataset.probe=True."
    )


class _Frames:
    """Where the pixels of wanted frames go.

    Attributes:
        video: uint8, shape [T, H, W, 3].
        missing: Numbers without pixels yet.
    """

    def __init__(self, path: str, wanted: Sequence[int], scale: Scale | None) -> None:
        self.path, self.length, self.scale = path, len(wanted), scale
        self.places = _places(wanted)
        self.missing = set(self.places)
        self.video: Tensor | None = None
        self._reformatter = VideoReformatter()

    def add(self, number: int, frame: av.VideoFrame) -> None:
        """Take a frame, if it is wanted."""
        if number not in self.missing:
            return
        quarters = round(frame.rotation / 90) % 4
        size = (frame.height, frame.width)
        if self.scale is not None:
            size = self.scale(*size[::-1])[::-1] if quarters % 2 else self.scale(*size)
        image = self._reformatter.reformat(frame, size[1], size[0], "rgb24", threads=1)
        pixels = torch.frombuffer(image.planes[0], dtype=torch.uint8).view(size[0], -1)  # rows are padded
        pixels = pixels[:, : 3 * size[1]].unflatten(1, (size[1], 3))
        pixels = torch.rot90(pixels, quarters) if quarters else pixels  # [H, W, 3]
        if self.video is None:
            self.video = torch.empty((self.length, *pixels.shape), dtype=torch.uint8)
        if pixels.shape != self.video.shape[1:]:
            shapes = sorted([tuple(pixels.shape), tuple(self.video.shape[1:])])
            raise ClipError(f"{self.path}: the picture changes its size, {shapes}; re-encode the file.")
        for place in self.places[number]:
            self.video[place] = pixels
        self.missing.discard(number)


def _places(wanted: Sequence[int]) -> dict[int, list[int]]:
    places: dict[int, list[int]] = {}
    for place, number in enumerate(wanted):
        places.setdefault(number, []).append(place)
    return places


def _seek_frames(path: str, index: FrameIndex, frames: _Frames, deadline: Deadline) -> bool:
    """Read frames by seeking; say whether the file gave all that its index promises."""
    for run in _runs(sorted(frames.missing), index.keys):
        key = bisect.bisect_right(index.keys, run[0]) - 1
        # In an open group of pictures the first frames need the group before: try one key frame earlier.
        for start, frugal in ((key, True), (key - 1, False)):
            if start < 0:
                return False
            _read_run(path, index, run, index.keys[start], frames, deadline, frugal)
            if frames.missing.isdisjoint(run):
                break
        else:
            return False
    return True


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


def _read_run(
    path: str,
    index: FrameIndex,
    run: list[int],
    start: int,
    frames: _Frames,
    deadline: Deadline,
    frugal: bool,
) -> None:
    """Decode from a key frame to the last frame of a run."""
    numbers = {int(index.pts[i]): i for i in run}
    coming = set(numbers)
    with open_video(path, deadline, analyse=not frugal) as container:
        stream = video_stream(container)
        decoder = stream.codec_context
        leaves_out = frugal and decoder.name in _LEAVES_OUT
        if start:
            container.seek(int(index.pts[start]), stream=stream)
        for count, packet in enumerate(container.demux(stream)):
            deadline.check()
            if leaves_out:
                decoder.skip_frame = "DEFAULT" if packet.pts in coming else "NONREF"
            coming.discard(packet.pts)
            for frame in _shown(decoder, packet, last=not coming):
                if frame.pts in numbers and not frame.is_corrupt:
                    frames.add(numbers[frame.pts], frame)
            if not coming or count > run[-1] + _REORDERED:
                return


def _shown(decoder: av.VideoCodecContext, packet: av.Packet, last: bool) -> list[av.VideoFrame]:
    """Decode a packet; after the last one that is needed, take out what the decoder still holds."""
    frames = decoder.decode(packet)
    return frames + decoder.decode(None) if last and packet.size else frames
