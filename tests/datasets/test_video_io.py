"""Reading by exact frame number, probing and writing."""

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from opensora.datasets import video_io
from opensora.datasets.reading import ReadOptions
from opensora.datasets.video_io import (
    ClipError,
    clip_fps,
    contact_sheet,
    probe,
    read_clip,
    read_image,
    read_note,
    through_sheet,
    to_uint8,
    write_frames,
    write_image,
    write_video,
)

B_FRAMES = {"bf": "2", "preset": "veryfast"}
OPEN_GOP = {"bf": "2", "preset": "veryfast", "x264-params": "open-gop=1:scenecut=0"}


def numbers(frames, read_number):
    return [read_number(frame) for frame in frames.numpy()]


@pytest.mark.parametrize("options", [{}, B_FRAMES, OPEN_GOP], ids=["ip", "b-frames", "open-gop"])
@pytest.mark.parametrize("wanted", [[0], [39], [11, 12, 13], [3, 20, 37], [30, 5, 5], list(range(40))])
def test_frames_are_exact(write_clip, read_number, options, wanted):
    path = write_clip(num_frames=40, gop=8, options=options)
    assert numbers(read_clip(path, wanted), read_number) == wanted


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi", "clip.mov"])
def test_containers(write_clip, read_number, name):
    path = write_clip(name, num_frames=30, options=B_FRAMES if name != "clip.avi" else {"bf": "0"})
    assert probe(path)[:3] == (30, 48, 64)
    assert numbers(read_clip(path, [0, 13, 29]), read_number) == [0, 13, 29]


def test_variable_rate_counts_frames_not_time(write_clip, read_number):
    times = np.cumsum([10 if i % 3 else 250 for i in range(30)]).tolist()
    path = write_clip(num_frames=30, times=times)
    assert probe(path).num_frames == 30
    assert numbers(read_clip(path, [4, 17, 29]), read_number) == [4, 17, 29]


def test_odd_sizes(write_clip, read_number):
    path = write_clip(height=47, width=65)
    assert probe(path)[:3] == (30, 47, 65)
    assert read_clip(path, [7]).shape == (1, 47, 65, 3)
    assert numbers(read_clip(path, [7]), read_number) == [7]


@pytest.mark.parametrize("reader", ["pyav", "torchcodec"])
def test_rotation_is_applied(write_clip, reader):
    """The matrix of the track header says: turn by a quarter to the right."""
    if reader == "torchcodec":
        pytest.importorskip("torchcodec")
    path = write_clip(height=48, width=96)
    upright = read_clip(path, [5])
    content = bytearray(Path(path).read_bytes())
    start = content.index(b"tkhd") + 4 + 4 + 20 + 16
    content[start : start + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    Path(path).write_bytes(content)
    assert probe(path)[1:3] == (96, 48)
    turned = read_clip(path, [5], ReadOptions(reader=reader))
    assert torch.equal(turned[0], torch.rot90(upright[0], k=-1, dims=(0, 1)))


def test_frames_can_be_scaled_while_they_are_read(write_clip, read_number):
    path = write_clip(height=96, width=128)
    asked = []
    frames = read_clip(path, [3, 9], scale=lambda *size: asked.append(size) or (24, 40))
    assert frames.shape == (2, 24, 40, 3) and set(asked) == {(96, 128)}
    assert numbers(frames, read_number) == [3, 9]
    with pytest.raises(ValueError, match="does not scale"):
        read_clip(path, [3], ReadOptions(reader="torchcodec"), scale=lambda *size: size)


def test_errors_name_file_and_remedy(write_clip, tmp_path):
    path = write_clip(num_frames=20)
    with pytest.raises(ClipError, match=r"clip.mp4: frame 20 was asked, the file has 20. Correct num_frames"):
        read_clip(path, [20])
    with pytest.raises(ValueError, match="from 0"):
        read_clip(path, [-1])
    with pytest.raises(ClipError, match=r"no.mp4: no such file. Correct the column path"):
        read_clip(str(tmp_path / "no.mp4"), [0])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "clip.xyz").write_text("")
    for name in ("empty.mp4", "text.mp4"):
        with pytest.raises(ClipError, match=f"{name}: cannot be read .* remove it from the table"):
            read_clip(str(tmp_path / name), [0])
    with pytest.raises(ClipError, match="text.png"):
        read_image(str(tmp_path / "text.png"))
    with pytest.raises(ClipError, match=r"unknown extension. Videos are .mp4"):
        probe(str(tmp_path / "clip.xyz"))


def test_sound_alone_is_no_video(tmp_path):
    path = str(tmp_path / "sound.mp4")
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ClipError, match="no video stream"):
        read_clip(path, [0])


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv"])
def test_truncated_file(write_clip, tmp_path, name):
    content = Path(write_clip(f"whole{name[3:]}", num_frames=60)).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ClipError, match=name):
        read_clip(str(tmp_path / name), list(range(60)))


def test_image(write_picture, read_number, tmp_path):
    path = write_picture(number=77)
    assert probe(path) == (1, 48, 64, 120.0)
    assert read_image(path).shape == (1, 48, 64, 3)
    assert numbers(read_image(path), read_number) == [77]
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter to the right
    image = Image.open(path)
    image.save(turned, exif=exif, quality=100, subsampling=0)
    assert probe(str(turned))[1:3] == (64, 48)
    expected = np.asarray(image.transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert np.abs(read_image(str(turned))[0].numpy() - expected).max() < 10
    image.convert("L").save(tmp_path / "gray.png")
    assert read_image(str(tmp_path / "gray.png")).shape == (1, 48, 64, 3)


def test_written_video_comes_back(tmp_path):
    t = torch.linspace(-1, 1, 12)[:, None, None] * torch.ones(12, 33, 45)
    video = torch.stack([t, -t, t * 0.5])
    path = write_video(video, tmp_path / "new" / "out.mp4", fps=29.97)
    assert probe(str(path))[:3] == (12, 34, 46)
    assert clip_fps(str(path)) == pytest.approx(29.97)
    frames = read_clip(str(path), range(12))
    assert (frames[:, :33, :45].float() - to_uint8(video).float()).abs().max() < 8
    assert (frames[:, 33].float() - frames[:, 32].float()).abs().max() < 4  # the padding repeats the edge
    assert [p.name for p in path.parent.iterdir()] == ["out.mp4"]


def test_parts_make_the_files_of_the_whole(tmp_path):
    video = torch.rand(3, 21, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_video(video, tmp_path / "whole.mp4", 8)
    contact_sheet(video, tmp_path / "whole.png")
    asked = []

    def parts():
        for part in video.split((1, 8, 7, 5), dim=1):
            assert not (tmp_path / "parts.png").exists()
            asked.append(part.shape[1])
            yield part

    write_video(through_sheet(parts(), 21, tmp_path / "parts.png"), tmp_path / "parts.mp4", 8)
    assert asked == [1, 8, 7, 5]
    for suffix in (".mp4", ".png"):
        assert (tmp_path / f"parts{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    with pytest.raises(ValueError, match="num_frames=22: the video has 21 frames"):
        write_video(through_sheet((video,), 22, tmp_path / "long.png"), tmp_path / "long.mp4", 8)
    bad = torch.full((3, 1, 32, 48), float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        write_video((video, bad), tmp_path / "bad.mp4", 8)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parts.mp4", "parts.png", "whole.mp4", "whole.png"]


@pytest.mark.parametrize("suffix", video_io.WRITTEN_VIDEOS)
def test_formats_carry_notes_and_repeat_their_bytes(tmp_path, suffix):
    video = torch.linspace(-1, 1, 3 * 5 * 32 * 48).reshape(3, 5, 32, 48)
    note = '{"prompt": "猫\\u0000 {a=b};\\n", "long": "' + "x" * 100_000 + '"}'
    first, second = (write_video(video, tmp_path / f"{n}{suffix}", 24, note=note) for n in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert read_note(first) == note
    assert probe(str(first))[:3] == (5, 32, 48) and clip_fps(str(first)) == pytest.approx(24, rel=0.01)
    frames = read_clip(str(first), range(5))
    assert (frames.float() - to_uint8(video).float()).abs().mean() < 4
    coarse = write_video(video, tmp_path / f"coarse{suffix}", 24, crf=50)
    assert coarse.stat().st_size < first.stat().st_size - 100_000 and read_note(coarse) is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_bytes_do_not_depend_on_when_frames_arrive(tmp_path, suffix):
    torch.manual_seed(0)
    small = torch.rand(9, 3, 4, 6) * 2 - 1
    video = torch.nn.functional.interpolate(small, size=(32, 48), mode="bicubic").clamp(-1, 1).transpose(0, 1)

    def arriving(delays: list[float]) -> Iterator[torch.Tensor]:
        for i, delay in enumerate(delays):
            time.sleep(delay)
            yield video[:, i : i + 1]

    found = set()
    for turn in range(12):
        delays = [0.012 * ((3 * i + turn) % 4 == 0) for i in range(9)]
        found.add(write_video(arriving(delays), tmp_path / f"{turn}{suffix}", 8).read_bytes())
    assert len(found) == 1


def test_bytes_do_not_depend_on_the_number_of_cores(tmp_path):
    video = torch.linspace(-1, 1, 3 * 9 * 64 * 96).reshape(3, 9, 64, 96)
    cores = os.sched_getaffinity(0)
    first = write_video(video, tmp_path / "all.mp4", 24)
    try:
        os.sched_setaffinity(0, {min(cores)})
        second = write_video(video, tmp_path / "one.mp4", 24)
    finally:
        os.sched_setaffinity(0, cores)
    assert first.read_bytes() == second.read_bytes()


def test_frames_as_pictures(tmp_path):
    video = torch.linspace(-1, 1, 3 * 3 * 9 * 7).reshape(3, 3, 9, 7)
    folder = write_frames(video, tmp_path / "new/a", "note")
    assert [p.name for p in sorted(folder.iterdir())] == [f"{i:06d}.png" for i in range(3)]
    assert torch.equal(read_clip(f"{folder}/", range(3)), to_uint8(video))
    assert read_note(folder / "000001.png") == "note"
    write_frames(video[:, :2], folder)
    assert len(list(folder.iterdir())) == 2 and [p.name for p in folder.parent.iterdir()] == ["a"]


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    write_video(torch.zeros(3, 2, 16, 16), tmp_path / "out.mp4", 8)
    before = (tmp_path / "out.mp4").read_bytes()

    def broken(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(video_io.np, "pad", broken)
    with pytest.raises(OSError, match="disk full"):
        write_video(torch.ones(3, 2, 16, 16), tmp_path / "out.mp4", 8)
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == before


def test_write_refuses(tmp_path):
    video = torch.zeros(3, 2, 16, 16)
    with pytest.raises(ValueError, match="written as .mp4"):
        write_video(video, tmp_path / "out.avi", 8)
    with pytest.raises(ValueError, match="crf=60: use a number from 0"):
        write_video(video, tmp_path / "out.mp4", 8, crf=60)
    with pytest.raises(ValueError, match="above 0"):
        write_video(video, tmp_path / "out.mp4", 0)
    with pytest.raises(ValueError, match=r"expected \[3, T, H, W\]"):
        write_video(video[None], tmp_path / "out.mp4", 8)
    video[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        write_video(video, tmp_path / "out.mp4", 8)


def test_bytes_round_trip():
    video = torch.arange(256).float().div(127.5).sub(1).expand(3, 1, 1, 256)
    assert torch.equal(to_uint8(video)[0, 0, :, 0], torch.arange(256, dtype=torch.uint8))


def test_images_and_sheets(tmp_path):
    path = write_image(torch.full((3, 8, 6), 0.5), tmp_path / "one.png")
    assert read_image(str(path)).unique().tolist() == [191]
    video = torch.linspace(-1, 1, 9)[None, :, None, None].expand(3, 9, 40, 50)
    sheet = read_image(str(contact_sheet(video, tmp_path / "sheet.png", columns=3, rows=2)))[0]
    assert sheet.shape == (80, 150, 3)
    # Frames 0, 2, 3, 5, 6, 8 of 9: below the numbers, each cell has its frame's gray.
    gray = [int(sheet[40 * r + 30, 50 * c + 30, 0]) for r in range(2) for c in range(3)]
    assert gray == to_uint8(video)[[0, 2, 3, 5, 6, 8], 0, 0, 0].tolist()
    with pytest.raises(ValueError, match="suffixes"):
        contact_sheet(video, tmp_path / "sheet.mp4")
