"""The story of one clip: its file, its bucket, its frames and pixels, in lines of text and in a picture."""

from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from opensora.datasets.assignment import REASONS, Assignment
from opensora.datasets.buckets import MIN_AREA, Buckets, ClipIndex
from opensora.datasets.manifest import Manifest
from opensora.datasets.reading import ClipError
from opensora.datasets.resolutions import area
from opensora.datasets.transforms import Cut, plan_cut, temporal_indices
from opensora.datasets.video_io import is_image, probe, read_clip, read_image
from opensora.utils.files import whole_file
from opensora.utils.random import Draws
from tools.datasets.run_config import RunConfig, rows_by_shape

_MOST_SHOWN = 8  # frames of a picture
_TILE = 320  # pixels, the longer side of a frame in a picture


def file_story(manifest: Manifest, row: int) -> list[str]:
    """Compare a row with its file."""
    frames, height, width = (int(column[row]) for column in manifest.columns)
    lines = [f"row       {row}", f"path      {manifest.path[row]}"]
    if manifest.text is not None:
        lines.append(f"text      {manifest.text[row]}")
    if manifest.label is not None:
        lines.append(f"label     {manifest.label[row]}")
    rate = "" if manifest.fps is None or np.isnan(manifest.fps[row]) else f", {manifest.fps[row]:g} fps"
    lines.append(f"table     {frames} frames, {height} x {width}{rate}" if frames else "table     nothing")
    try:
        found = probe(manifest.path[row])
    except ClipError as error:
        return [*lines, f"file      {error}"]
    same = found[:3] == (frames, height, width)
    differs = "" if same else "; not as in the table, tools.datasets.check mends it"
    return [*lines, f"file      {found[0]} frames, {found[1]} x {found[2]}, {found[3]:g} fps{differs}"]


def bucket_story(
    run: RunConfig, manifest: Manifest, row: int, epoch: int
) -> tuple[list[str], ClipIndex | None]:
    """Say of each bucket whether the clip takes it in an epoch, and why.

    Returns:
        Lines, and the clip as training asks for it; None if no bucket takes it.
    """
    lines = [f"epoch     {epoch}, seed {run.seed}, frame_interval {run.frame_interval}"]
    taken, considered = "", ""  # the bucket that takes it; the resolution of which a length was considered
    for number, bucket in enumerate(run.buckets.buckets):
        name, said = f"{bucket.resolution}, {bucket.num_frames} frames", ""
        if taken:
            said = "not asked any more"
        elif bucket.resolution == considered:
            said = "not asked, a longer one was considered"
        else:
            said = why_not(run, manifest, row, number)
        if not said:
            said, is_considered, is_kept = draw_bucket(run, row, epoch, number)
            considered = bucket.resolution if is_considered else considered
            taken = name if is_kept else taken
        lines.append(f"  {name}: {said}")
    found = int(rows_by_shape(run, manifest.columns, epoch).shape[row])
    if found < 0:
        closed = ", since the bucket above can never fill a batch" if taken else ""
        return [*lines, f"bucket    none in this epoch{closed}"], None
    shape = run.buckets.shapes[found]
    bucket = run.buckets.buckets[shape.bucket]
    name = f"{bucket.resolution}, {bucket.num_frames} frames"
    moved = "" if taken == name else "; others can never fill a batch"
    ratio = manifest.height[row] / manifest.width[row]
    lines += [
        f"bucket    {name}, batches of {shape.batch_size}{moved}",
        f"ratio     {ratio:.3f}, the nearest is {shape.aspect_ratio}: {shape.height} x {shape.width}",
    ]
    return lines, ClipIndex(row, *shape[2:5], epoch)


def why_not(run: RunConfig, manifest: Manifest, row: int, number: int) -> str:
    """Say why a clip does not fit a bucket; "" if it does."""
    columns = tuple(column[row : row + 1].astype(np.int64) for column in manifest.columns)
    whole = Assignment.of(run.buckets, columns, run.frame_interval)
    if whole.fits[number, whole.kind[0]] >= 0:
        return ""
    bucket, alone = run.buckets.buckets[number], whole
    if len(run.buckets) > 1:
        one = Buckets({bucket.resolution: {bucket.num_frames: (1.0, 1)}}, rule=run.buckets.rule)
        alone = Assignment.of(one, columns, run.frame_interval)
    reason = REASONS[alone.miss[alone.kind[0]]]
    if reason == "too short":
        return f"too short, {bucket.num_frames * run.frame_interval} frames are needed"
    if reason == "too small" and run.buckets.rule == "resolution":
        least = MIN_AREA * area(bucket.resolution)
        return f"too small, {columns[1][0] * columns[2][0]:,} pixels of at least {least:,.0f}"
    return reason


def draw_bucket(run: RunConfig, row: int, epoch: int, number: int) -> tuple[str, bool, bool]:
    """Draw for a clip that fits a bucket.

    Returns:
        What happened; whether this length was considered, so that shorter ones of the resolution are not
        asked; and whether the clip is kept.
    """
    drawn: list[float] = []

    def keep_draws(*names: Any) -> np.ndarray:
        found = run.buckets.keep_draws(*names)
        drawn.extend(found.tolist())
        return found

    watched = copy(run.buckets)
    watched.keep_draws = keep_draws
    considered, kept = (len(rows) > 0 for rows in watched.draw(number, np.array([row]), run.seed, epoch))
    bucket, said = run.buckets.buckets[number], []
    if bucket.length is not None:
        compared = f"drew {drawn.pop(0):.2f} of less than {bucket.length:g}"
        said.append(f"considered, {compared}" if considered else f"passed by, {compared}")
    if considered:
        said.append("taken" if kept else "sent on")
        if drawn:
            said.append(f"drew {drawn.pop():.2f} of less than {bucket.keep:g}")
        elif not kept:
            said.append("probability 0")
    return ", ".join(said), considered, kept


def pixel_story(run: RunConfig, manifest: Manifest, clip: ClipIndex) -> tuple[list[str], list[int], Cut]:
    """Say which frames and pixels of a file become the clip.

    Returns:
        Lines, the frame numbers, and how frames are cut.
    """
    row, image = clip.row, is_image(manifest.path[clip.row])
    draws = Draws(run.seed, [row], clip.epoch)
    total, height, width = (int(column[row]) for column in manifest.columns)
    start = draws.uniform("crop_start", 0, (1,)).item()
    numbers = [0] if image else temporal_indices(total, clip.num_frames, run.frame_interval, start)
    u = draws.uniform("crop", 0, (1, 4))[0].tolist()
    cut = plan_cut(run.transform, (height, width), clip.height, clip.width, image, u)
    shown = numbers if len(numbers) <= _MOST_SHOWN else [*numbers[:3], "...", *numbers[-2:]]
    top, left, bottom, right = box(cut, height, width)
    return (
        [
            f"frames    {' '.join(map(str, shown))} ({len(numbers)} of {total})",
            f"scaled    {height} x {width} to {cut.scaled[0]} x {cut.scaled[1]}, {run.transform}",
            f"cut       {cut.height} x {cut.width} from row {cut.top}, column {cut.left}",
            f"of file   rows {top:.0f} to {bottom:.0f}, columns {left:.0f} to {right:.0f}",
        ],
        numbers,
        cut,
    )


def box(cut: Cut, height: int, width: int) -> tuple[float, float, float, float]:
    """Return top, left, bottom and right of the window in frames of a file."""
    down, across = height / cut.scaled[0], width / cut.scaled[1]
    bottom, right = (cut.top + cut.height) * down, (cut.left + cut.width) * across
    return cut.top * down, cut.left * across, bottom, right


def draw(path: str, numbers: list[int], cut: Cut, picture: Path) -> None:
    """Draw frames of a file side by side, each with its number and the box of the pixels that are used."""
    places = np.linspace(0, len(numbers) - 1, min(_MOST_SHOWN, len(numbers))).round().astype(int)
    chosen = [numbers[place] for place in places]
    frames = (read_image(path) if is_image(path) else read_clip(path, chosen)).numpy()
    height, width = frames.shape[1:3]
    scale = _TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    top, left, bottom, right = (side * scale for side in box(cut, height, width))
    sheet = Image.new("RGB", (min(4, len(chosen)) * size[0], -(-len(chosen) // 4) * size[1]))
    for place, (number, frame) in enumerate(zip(chosen, frames, strict=True)):
        tile = Image.fromarray(frame).resize(size)
        pen = ImageDraw.Draw(tile)
        pen.rectangle((left, top, right - 1, bottom - 1), outline="red", width=2)
        pen.text((5, 3), str(number), fill="white", stroke_width=1, stroke_fill="black")
        sheet.paste(tile, (place % 4 * size[0], place // 4 * size[1]))
    with whole_file(picture) as temporary:
        sheet.save(temporary)
