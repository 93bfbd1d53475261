"""A sheet of random clips per bucket, cut as training cuts them."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from opensora.datasets.manifest import Manifest
from opensora.datasets.reading import ClipError
from opensora.datasets.transforms import resize_crop
from opensora.datasets.video_io import is_image, read_clip, read_image, to_uint8
from opensora.utils.files import whole_file
from tools.datasets.run_config import RunConfig

_TILE = (160, 96)  # width and height in pixels
_LINE = 14  # of text, in pixels
_MOST_GROUPS = 40


def draw_sheet(
    manifest: Manifest, run: RunConfig | None, table: Any, clips: int, seed: int, path: Path
) -> Path:
    """Draw the middle frame of some random clips of each bucket, with the beginning of their captions.

    Args:
        manifest: The table.
        run: The config whose buckets are drawn; None groups clips by their own sizes.
        table: The shape of each row; None without a config.
        clips: Clips of a bucket.
        seed: Of the choice.
        path: The picture.

    Returns:
        The path.
    """
    groups = _by_size(manifest) if run is None else _by_bucket(run, table.shape)
    groups = groups[:_MOST_GROUPS]
    draws = np.random.Generator(np.random.PCG64(seed))
    high = _TILE[1] + 3 * _LINE
    sheet = Image.new("RGB", (clips * _TILE[0], max(1, len(groups)) * high), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (title, rows, size) in enumerate(groups):
        top = place * high
        draw.text((2, top), f"{title}: {len(rows):,} rows", fill="black")
        chosen = np.sort(draws.choice(rows, min(clips, len(rows)), replace=False))
        for column, row in enumerate(chosen.tolist()):
            left = column * _TILE[0]
            sheet.paste(_tile(manifest, row, size), (left, top + _LINE))
            caption = "" if manifest.text is None else manifest.text[row].replace("\n", " ")
            draw.text((left + 2, top + _LINE + _TILE[1]), f"{row} {caption}"[:26], fill="black")
    with whole_file(path) as temporary:
        sheet.save(temporary)
    return path


def _by_bucket(run: RunConfig, shape: np.ndarray) -> list[tuple[str, np.ndarray, tuple[int, int]]]:
    """Return title, rows and size of each bucket; of its shapes the fullest is drawn."""
    found = []
    for number, bucket in enumerate(run.buckets.buckets):
        shapes = [n for n, s in enumerate(run.buckets.shapes) if s.bucket == number]
        rows = [np.flatnonzero(shape == n) for n in shapes]
        fullest = int(np.argmax([len(part) for part in rows]))
        if len(rows[fullest]):
            height, width = run.buckets.shapes[shapes[fullest]][3:5]
            title = f"{bucket.resolution}, {bucket.num_frames} frames, {height} x {width}"
            found.append((title, rows[fullest], (height, width)))
    return found


def _by_size(manifest: Manifest) -> list[tuple[str, np.ndarray, tuple[int, int]]]:
    """Return title, rows and size of the most frequent sizes."""
    frames, height, width = manifest.columns
    readable = np.flatnonzero(frames > 0)
    sizes, which, counts = np.unique(
        np.stack([height[readable], width[readable]]), axis=1, return_inverse=True, return_counts=True
    )
    return [
        (f"{sizes[0, n]} x {sizes[1, n]}", readable[which.reshape(-1) == n], tuple(sizes[:, n].tolist()))
        for n in np.argsort(-counts, kind="stable").tolist()
    ]


def _tile(manifest: Manifest, row: int, size: tuple[int, int]) -> Image.Image:
    """Return the middle frame of a clip, cut to the size of its bucket, within a tile."""
    tile = Image.new("RGB", _TILE, "white")
    path = manifest.path[row]
    scale = min(_TILE[0] / size[1], _TILE[1] / size[0])
    height, width = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    try:
        middle = int(manifest.num_frames[row]) // 2
        frame = read_image(path) if is_image(path) else read_clip(path, [middle])
    except ClipError:
        ImageDraw.Draw(tile).text((4, 4), "cannot be read", fill="red")
        return tile
    # As an image: with a low-pass filter, since the tile is far smaller than the clip.
    picture = to_uint8(resize_crop(frame, height, width, image=True))[0].numpy()
    tile.paste(Image.fromarray(picture), (0, 0))
    return tile
