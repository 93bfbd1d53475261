"""Decoding: pixels equal to decoding everything, of all kinds of files, by both back ends, with less work."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter

from opensora.datasets import decoding
from opensora.datasets.frame_index import frame_index
from opensora.datasets.reading import Deadline, ReadOptions
from opensora.datasets.video_io import probe, read_clip


def scene(number: int, height: int, width: int) -> np.ndarray:
    """Draw what moves in several directions, so that every frame differs and motion is worth coding."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.sin((x + 3 * number) / 5) + np.cos((y - 2 * number) / 7) + np.sin((x * y) / 97 + number / 3)
    return (
        np.stack([(waves * (30 + 10 * c) + 128 + 5 * c) for c in range(3)], -1).clip(0, 255).astype(np.uint8)
    )


@pytest.fixture
def write_scene(tmp_path: Path):
    """Return a function that writes a moving scene with any codec and pixel format, and gives its path."""

    def write(
        name="scene.mp4", codec="libx264", pixels="yuv420p", size=(48, 80), count=40, times=None, **options
    ):
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25, options={k: str(v) for k, v in options.items()})
            stream.height, stream.width, stream.pix_fmt = *size, pixels
            stream.codec_context.time_base = Fraction(1, 1000)
            for number in range(count):
                frame = av.VideoFrame.from_ndarray(scene(number, *size), format="rgb24")
                frame.pts, frame.time_base = times[number] if times else number * 40, Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return str(path)

    return write


def decode_everything(path: str) -> torch.Tensor:
    """Decode all frames in order, and make all of them to pixels."""
    reformatter = VideoReformatter()
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        frames = [
            reformatter.reformat(f, format="rgb24", threads=1).to_ndarray() for f in container.decode(stream)
        ]
    return torch.from_numpy(np.stack(frames))


X264 = dict(preset="veryfast", crf=23)
VARIABLE = np.cumsum([10 if i % 3 else 250 for i in range(40)]).tolist()
FILES = {
    "intra and forward": dict(X264, g=12, bf=0),
    "B-frames": dict(X264, g=12, bf=3, **{"x264-params": "b-adapt=0"}),
    "B-frames as references": dict(X264, g=24, bf=4, **{"x264-params": "b-pyramid=normal:ref=4:b-adapt=0"}),
    "no B-frame is a reference": dict(X264, g=24, bf=3, **{"x264-params": "b-pyramid=none:b-adapt=0"}),
    "open group of pictures": dict(X264, bf=2, g=8, **{"x264-params": "open-gop=1:scenecut=0:b-adapt=0"}),
    "periodic intra refresh": dict(X264, g=12, bf=0, **{"x264-params": "intra-refresh=1"}),
    "one key frame": dict(X264, g=250, bf=2),
    "every frame a key frame": dict(X264, g=1),
    "interlaced": dict(X264, g=12, bf=2, size=(64, 80), **{"x264-params": "interlaced=1:b-adapt=0"}),
    "variable rate": dict(X264, g=8, bf=2, times=VARIABLE),
    "matroska": dict(X264, name="scene.mkv", g=8, bf=2),
    "mov": dict(X264, name="scene.mov", g=8, bf=2),
    "avi": dict(name="scene.avi", codec="mpeg4", g=8),
    "mpeg4 with B-frames": dict(codec="mpeg4", g=8, bf=2),
    "hevc": dict(
        codec="libx265", preset="ultrafast", **{"x265-params": "keyint=12:bframes=3:log-level=none"}
    ),
    "vp9": dict(name="scene.mkv", codec="libvpx-vp9", g=12, **{"cpu-used": 8, "deadline": "realtime"}),
    "av1": dict(codec="libsvtav1", preset=12, g=12),
    "odd size": dict(X264, pixels="yuv444p", size=(47, 65), g=12, bf=2),
    "10 bit": dict(X264, pixels="yuv420p10le", g=12, bf=2),
    "alpha": dict(name="scene.mkv", codec="ffv1", pixels="yuva420p", g=1),
    "gray": dict(name="scene.mkv", codec="ffv1", pixels="gray", g=4),
    "full range": dict(X264, pixels="yuvj420p", g=12, bf=2),
    "BT.709": dict(X264, g=12, bf=2, colorspace="bt709", color_primaries="bt709", color_trc="bt709"),
}
# FFmpeg 5 and FFmpeg 8 make other colours of these, by so many grey levels.
DIFFERENT = {"10 bit": 8, "interlaced": 32}
# torchcodec shows damaged pictures of files without whole key frames.
DAMAGED = {"periodic intra refresh"}
WANTED = [[0], [39], [11, 12, 13], list(range(7, 40, 3)), [30, 5, 5, 31], list(range(40))]


@pytest.mark.parametrize("kind", FILES)
def test_pixels_are_those_of_decoding_everything(write_scene, kind):
    path = write_scene(**FILES[kind])
    expected = decode_everything(path)
    assert len(expected) == probe(path).num_frames == 40
    for wanted in WANTED:
        assert torch.equal(read_clip(path, wanted), expected[wanted]), wanted


@pytest.mark.parametrize("kind", sorted(set(FILES) - DAMAGED))
def test_back_ends_agree(write_scene, kind):
    pytest.importorskip("torchcodec")
    path = write_scene(**FILES[kind])
    for wanted in WANTED:
        one, other = (read_clip(path, wanted, ReadOptions(reader=name)) for name in ("pyav", "torchcodec"))
        assert one.shape == other.shape
        difference = (one.int() - other.int()).abs()
        assert difference.max() <= DIFFERENT.get(kind, 1), wanted
        assert difference.float().mean() < 2, wanted  # neighbouring frames differ by 20


def count_calls(monkeypatch, name):
    calls = []
    real = getattr(decoding, name)
    monkeypatch.setattr(decoding, name, lambda *args: calls.append(args) or real(*args))
    return calls


@pytest.mark.parametrize("kind", FILES)
def test_one_attempt_is_enough(write_scene, monkeypatch, kind):
    """No file needs a second attempt, or decoding from the start."""
    path = write_scene(**FILES[kind])
    runs, all_of_it = count_calls(monkeypatch, "_read_run"), count_calls(monkeypatch, "decode_all")
    keys = frame_index(path, Deadline(path, 60)).keys
    for wanted in ([0], [39], [11, 12, 13], list(range(7, 20, 3)), [0, 39]):
        runs.clear()
        read_clip(path, wanted)
        assert len(runs) == len(list(decoding._runs(wanted, keys)))
    assert not all_of_it


def test_only_needed_frames_are_decoded(write_clip, monkeypatch):
    path = write_clip(num_frames=120, gop=10)
    packets = []

    def counting(items):
        for number, item in enumerate(items):
            packets.append(item)
            yield number, item

    monkeypatch.setattr(decoding, "enumerate", counting, raising=False)
    for wanted in ([52, 54], [2, 111]):  # from the key frame 50; two runs, each from its own key frame
        packets.clear()
        read_clip(path, wanted)
        assert len([packet for packet in packets if isinstance(packet, av.Packet)]) == 5


def test_frames_on_which_nothing_depends_are_left_out(write_scene, monkeypatch):
    """The decoder shows no B-frame beside the wanted one."""
    path = write_scene(**FILES["no B-frame is a reference"])
    with av.open(path) as container:
        is_b = [frame.pict_type == 3 for frame in container.decode(video=0)]
    wanted = is_b.index(True, 15)
    shown, real = [], decoding._shown

    def recording(*arguments, **names):
        frames = real(*arguments, **names)
        shown.extend(frames)
        return frames

    monkeypatch.setattr(decoding, "_shown", recording)
    read_clip(path, [wanted])
    assert sum(is_b) > 20
    assert sum(frame.pict_type == 3 for frame in shown) == 1
