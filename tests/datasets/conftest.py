"""Clips whose pixels say which frame it is."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

BITS = 8
Writer = Callable[..., str]


def picture(number: int, height: int, width: int) -> np.ndarray:
    """Draw a number as black and white bars from left to right, the lowest bit first."""
    bars = [255 * (number >> bit & 1) for bit in range(BITS)]
    columns = np.repeat(bars, -(-width // BITS))[:width]
    return np.broadcast_to(columns[None, :, None], (height, width, 3)).astype(np.uint8).copy()


@pytest.fixture
def read_number() -> Callable[[np.ndarray], int]:
    """Return a function that reads the number of a picture of shape [H, W, 3], bytes or [-1, 1]."""

    def read(frame: np.ndarray) -> int:
        frame = np.asarray(frame)
        middle = 0.0 if frame.min() < 0 else 127.5
        step = frame.shape[1] / BITS
        return sum(int(frame[:, int((bit + 0.5) * step)].mean() > middle) << bit for bit in range(BITS))

    return read


@pytest.fixture
def write_clip(tmp_path: Path) -> Writer:
    """Return a function that writes a numbered H.264 clip and gives its path."""

    def write(
        name: str = "clip.mp4",
        num_frames: int = 30,
        height: int = 48,
        width: int = 64,
        fps: int = 25,
        gop: int = 12,
        times: Sequence[int] | None = None,
        options: dict[str, str] | None = None,
    ) -> str:
        path = tmp_path / name
        odd = height % 2 or width % 2
        with av.open(str(path), "w") as container:
            stream = container.add_stream(
                "libx264",
                rate=fps,
                options={"crf": "10", "g": str(gop), "preset": "ultrafast", **(options or {})},
            )
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv444p" if odd else "yuv420p"
            stream.codec_context.time_base = Fraction(1, 1000)
            for number in range(num_frames):
                frame = av.VideoFrame.from_ndarray(picture(number, height, width), format="rgb24")
                frame.pts = times[number] if times else number * 1000 // fps
                frame.time_base = Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return str(path)

    return write


@pytest.fixture
def write_picture(tmp_path: Path) -> Writer:
    """Return a function that writes a numbered image and gives its path."""

    def write(name: str = "image.png", number: int = 0, height: int = 48, width: int = 64) -> str:
        Image.fromarray(picture(number, height, width)).save(tmp_path / name)
        return str(tmp_path / name)

    return write


@pytest.fixture
def write_table(tmp_path: Path) -> Writer:
    """Return a function that writes a CSV table from lines and gives its path."""

    def write(header: str, *lines: str, name: str = "table.csv") -> str:
        (tmp_path / name).write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
        return str(tmp_path / name)

    return write
