"""Decoding: clips per second on one core, by our reader and by four others, with few and many key frames.

A clip is 16 frames, every third one, from a random start; 1280 x 720 scaled and cropped to 256 x 256. Files
are new to every reader: none keeps an index or an open file from one clip to the next.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Measure, interleaved
from opensora.datasets.reading import ReadOptions
from opensora.datasets.transforms import Cut, apply_cut, plan_cut
from opensora.datasets.video_io import read_clip

FRAMES, HEIGHT, WIDTH, SIDE = 300, 720, 1280, 256
LENGTH, INTERVAL = 16, 3
GOPS = (12, 60, 250)
ROUNDS, STARTS = 5, 3  # clips of a round start in the first, the second and the last third of the file


def run() -> Iterator[Measure]:
    """Measure all readers on files of each length of a group of pictures."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for gop in GOPS:
                path = write_file(Path(folder) / f"{gop}.mp4", gop, FRAMES)
                yield from _measure(str(path), gop)
    finally:
        torch.set_num_threads(threads)


def write_file(path: Path, gop: int, frames: int) -> Path:
    """Write an H.264 file: a camera over a texture, with an object that moves, and noise."""
    random = np.random.default_rng(0)
    texture = random.integers(0, 256, (HEIGHT // 8 + 50, WIDTH // 8 + 50, 3)).astype(np.float32)
    texture = torch.from_numpy(texture).permute(2, 0, 1)[None]
    texture = torch.nn.functional.interpolate(texture, scale_factor=8, mode="bicubic")[0].permute(1, 2, 0)
    texture = texture.clamp(0, 255).byte().numpy()
    side = HEIGHT // 4
    grain = random.integers(0, 5, (8, HEIGHT, WIDTH, 1)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"g": str(gop), "crf": "23"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number in range(frames):
            top, left = int(190 + 180 * np.sin(number / 23)), int(190 + 180 * np.cos(number / 31))
            image = texture[top : top + HEIGHT, left : left + WIDTH] // 2 + grain[number % 8]
            x = 7 * number % (WIDTH - side)
            image[side : 2 * side, x : x + side] = texture[:side, :side]
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"))
            )
        container.mux(stream.encode())
    return path


def ours(path: str, numbers: list[int], options: ReadOptions = ReadOptions()) -> Tensor:  # noqa: B008
    """Read as VideoDataset does."""
    return _cut(read_clip(path, numbers, options))


def ours_scaled_by_ffmpeg(path: str, numbers: list[int]) -> Tensor:
    """Read as VideoDataset does with `scaling="swscale"`."""
    cuts: list[Cut] = []

    def scale(rows: int, columns: int) -> tuple[int, int]:
        cuts[:] = [plan_cut("resize_crop", (rows, columns), SIDE, SIDE)]
        return cuts[0].scaled

    return apply_cut(read_clip(path, numbers, scale=scale), cuts[0])


def naive(path: str, numbers: list[int]) -> Tensor:
    """Decode everything to pixels, and take the frames from it."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    return _cut(torch.from_numpy(np.stack(frames))[numbers])


def stop_at_the_last(path: str, numbers: list[int]) -> Tensor:
    """Decode from the start to the last frame that is needed, and make only needed ones to pixels."""
    frames = []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for number, frame in enumerate(container.decode(stream)):
            if number in numbers:
                frames.append(frame.to_ndarray(format="rgb24"))
            if number == numbers[-1]:
                break
    return _cut(torch.from_numpy(np.stack(frames)))


def opencv(path: str, numbers: list[int]) -> Tensor:
    """Let OpenCV seek to the first frame, and go on from there."""
    import cv2

    cv2.setNumThreads(1)
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    capture.set(cv2.CAP_PROP_POS_FRAMES, numbers[0])
    frames = []
    for number in range(numbers[0], numbers[-1] + 1):
        capture.grab()
        if number in numbers:
            frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
    capture.release()
    return _cut(torch.from_numpy(np.stack(frames)))


def torchcodec(path: str, numbers: list[int]) -> Tensor:
    """Let torchcodec do it, with its exact index."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
    return _cut(decoder.get_frames_at(numbers).data)


def _cut(frames: Tensor) -> Tensor:
    return apply_cut(frames, plan_cut("resize_crop", tuple(frames.shape[1:3]), SIDE, SIDE))


def _installed() -> tuple[dict[str, Callable[[str, list[int]], Tensor]], dict[str, str]]:
    """Return the readers that load here, and for the others why not."""
    readers = {"ours": ours, "naive": naive, "stop at the last": stop_at_the_last}
    missing = {}
    for name, reader, module in (
        ("opencv", opencv, "cv2"),
        ("torchcodec", torchcodec, "torchcodec.decoders"),
    ):
        try:
            __import__(module)
            readers[name] = reader
        except (ImportError, OSError, RuntimeError) as error:
            missing[name] = str(error).strip().splitlines()[0]
    return {**readers, "ours, swscale": ours_scaled_by_ffmpeg}, missing


def _measure(path: str, gop: int) -> Iterator[Measure]:
    readers, missing = _installed()
    random = np.random.default_rng(gop)
    third = (FRAMES - (LENGTH - 1) * INTERVAL) / STARTS
    turns = [[int((place + random.random()) * third) for place in range(STARTS)] for _ in range(ROUNDS + 1)]

    def read(reader: Callable[[str, list[int]], Tensor], turn: Iterator[list[int]]) -> None:
        for start in next(turn):
            os.utime(path)  # as another file: what our reader kept of this one does not count
            reader(path, list(range(start, start + LENGTH * INTERVAL, INTERVAL)))

    _check_pixels(path, readers, turns[0][1])
    calls = {name: partial(read, reader, iter(turns)) for name, reader in readers.items()}
    seconds = {name: time / STARTS for name, time in interleaved(calls, ROUNDS).items()}
    conditions = {"gop": gop, "threads": 1, "rounds": ROUNDS, "clips of a round": STARTS}
    for name, time in seconds.items():
        yield Measure(f"decode/gop{gop}/{name}", 1 / time, "clips/s", conditions=conditions)
    for name, why in missing.items():
        yield Measure(f"decode/gop{gop}/{name}", 0.0, "clips/s", conditions={"not installed": why})
    own = seconds["ours"]
    others = {name: time for name, time in seconds.items() if not name.startswith("ours")}
    faster = 3.0 if gop < 250 else None
    name = f"decode/gop{gop}/ours"
    yield Measure(f"{name} over naive", seconds["naive"] / own, "x", at_least=faster, conditions=conditions)
    stop = own / seconds["stop at the last"]
    yield Measure(f"{name}, time over stop at the last", stop, "x", at_most=1.05, conditions=conditions)
    fastest = min(others, key=others.__getitem__)
    against = {**conditions, "fastest": fastest}
    yield Measure(
        f"{name}, time over the fastest other", own / others[fastest], "x", at_most=1.05, conditions=against
    )


def _check_pixels(path: str, readers: Mapping[str, Callable[[str, list[int]], Tensor]], start: int) -> None:
    """See that all readers give the same frames."""
    numbers = list(range(start, start + LENGTH * INTERVAL, INTERVAL))
    expected = readers["naive"](path, numbers)
    for name, reader in readers.items():
        difference = (reader(path, numbers) - expected).abs()
        assert difference.mean() < (0.05 if "swscale" in name else 0.01), f"{name} reads other frames"
