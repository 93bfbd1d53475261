"""One page of plots of a table: sizes, lengths, ratios, captions, hours, and how full the buckets are."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from opensora.datasets.frame_index import UNKNOWN_FPS
from opensora.datasets.manifest import Manifest
from opensora.utils.files import whole_file
from tools.datasets.run_config import RunConfig

_FULL, _REST, _LINE = "#3b6ea5", "#d98c3f", "#888888"
_MOST_BUCKETS = 24  # bars; the fullest ones


def draw_page(manifest: Manifest, run: RunConfig | None, table: Any, path: Path) -> Path:
    """Draw the page.

    Args:
        manifest: The table.
        run: The config whose buckets are drawn; None draws the table alone.
        table: The shape of each row, and why rows have none; None without a config.
        path: The picture.

    Returns:
        The path.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2 if run is None else 3, 3, figsize=(13, 7 if run is None else 12))
    readable = manifest.num_frames > 0
    frames, height, width = (column[readable].astype(np.int64) for column in manifest.columns)
    hours = _hours(manifest)[readable]
    _draw_table(axes[:2], manifest, frames, height, width, hours)
    if run is not None:
        grid = axes[0, 0].get_gridspec()
        for axis in axes[2]:
            axis.remove()
        _draw_lengths_of(axes[0, 1], run)
        _draw_buckets(figure.add_subplot(grid[2, :2]), run, table, hours_of=_hours(manifest))
        _draw_reasons(figure.add_subplot(grid[2, 2]), table)
    clips, unread = int((frames > 1).sum()), len(manifest) - len(frames)
    title = (
        f"{len(manifest):,} rows: {clips:,} clips of {hours.sum():,.1f} hours, {len(frames) - clips:,} images"
    )
    figure.suptitle(title + (f", {unread:,} that cannot be read" if unread else ""))
    figure.tight_layout()
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=70)
    pyplot.close(figure)
    return path


def _hours(manifest: Manifest) -> np.ndarray:
    """Return the length of each clip in hours; images have none. [N]."""
    fps = np.full(len(manifest), np.nan) if manifest.fps is None else manifest.fps
    seconds = manifest.num_frames / np.where(np.isnan(fps), UNKNOWN_FPS, fps)
    return np.where(manifest.num_frames > 1, seconds / 3600, 0.0)


def _draw_table(
    axes: np.ndarray,
    manifest: Manifest,
    frames: np.ndarray,
    height: np.ndarray,
    width: np.ndarray,
    hours: np.ndarray,
) -> None:
    sizes, counts = np.unique(np.stack([width, height]), axis=1, return_counts=True)
    area = 12 + 200 * counts / counts.max() if len(counts) else 1
    axes[0, 0].scatter(*sizes, s=area, alpha=0.5, color=_FULL, linewidths=0)
    axes[0, 0].set(title=f"sizes ({len(counts):,} different)", xlabel="width", ylabel="height")
    _histogram(axes[0, 1], frames[frames > 1], "lengths of clips", "frames")
    _histogram(axes[0, 2], height / np.maximum(width, 1), "ratios", "height / width")
    if manifest.text is None:
        axes[1, 0].set(title="no captions")
    else:
        letters = np.concatenate([pc.utf8_length(chunk).to_numpy() for chunk in manifest.text.chunks])
        _histogram(axes[1, 0], letters, "captions", "characters")
    fps = (
        np.zeros(0) if manifest.fps is None else manifest.fps[(manifest.num_frames > 1) & (manifest.fps > 0)]
    )
    _histogram(axes[1, 1], fps, "rates of clips", "frames per second")
    side = np.minimum(height, width)
    edges = [0, 144, 240, 360, 480, 720, 1080, 2160, np.inf]
    names = ["< 144", "144", "240", "360", "480", "720", "1080", "2160"]
    total = np.histogram(side, edges, weights=hours)[0]
    axes[1, 2].bar(names, total, color=_FULL)
    axes[1, 2].set(title="hours of clips", xlabel="short side, from", ylabel="hours")
    axes[1, 2].tick_params(axis="x", labelrotation=45)


def _histogram(axis: Any, values: np.ndarray, title: str, label: str) -> None:
    axis.set(title=title if len(values) else f"{title}: none", xlabel=label, ylabel="rows")
    if len(values):
        counts, edges = np.histogram(values, bins=60 if np.ptp(values) else 1)
        axis.bar(edges[:-1], counts, np.diff(edges), align="edge", color=_FULL)
        if counts.max() > 50 * np.min(counts[counts > 0]):
            axis.set_yscale("log")
        axis.axvline(np.median(values), color=_LINE, linewidth=1)
        axis.text(0.98, 0.92, f"median {np.median(values):,.3g}", transform=axis.transAxes, ha="right")


def _draw_lengths_of(axis: Any, run: RunConfig) -> None:
    """Mark the lengths of the buckets among the lengths of clips."""
    for length in sorted({bucket.num_frames for bucket in run.buckets.buckets if bucket.num_frames > 1}):
        axis.axvline(length * run.frame_interval, color=_REST, linewidth=1, linestyle=":")
    axis.set(xlabel="frames; dotted: lengths of the buckets")


def fill_of_buckets(run: RunConfig, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the rows of each bucket that fill batches, and those left over in shapes too small for one.

    Args:
        run: The config.
        shape: Number of the shape of each row, -1 for none. Shape [N].

    Returns:
        Rows in full batches, and rows that fill none, in this epoch. Each of shape [buckets].
    """
    count = np.bincount(shape[shape >= 0], minlength=len(run.buckets.shapes))
    size = np.array([max(1, s.batch_size) for s in run.buckets.shapes])
    bucket = np.array([s.bucket for s in run.buckets.shapes])
    full = count // size * size
    total = len(run.buckets.buckets)
    return np.bincount(bucket, full, total).astype(int), np.bincount(bucket, count - full, total).astype(int)


def _draw_buckets(axis: Any, run: RunConfig, table: Any, hours_of: np.ndarray) -> None:
    full, rest = fill_of_buckets(run, table.shape)
    entries = run.buckets.buckets
    taken = np.flatnonzero([bucket.batch_size is not None for bucket in entries])
    fullest = taken[np.argsort(-(full + rest)[taken], kind="stable")][:_MOST_BUCKETS]
    shown = np.sort(fullest)[::-1]  # the largest resolution at the top
    names = [f"{entries[n].resolution}, {entries[n].num_frames} x {entries[n].batch_size}" for n in shown]
    axis.barh(names, full[shown], color=_FULL, label="in full batches")
    axis.barh(names, rest[shown], left=full[shown], color=_REST, label="left over for the next epoch")
    owner = np.array([s.bucket for s in run.buckets.shapes])
    has = table.shape >= 0
    hours = np.bincount(owner[table.shape[has]], hours_of[has], len(entries))
    for place, number in enumerate(shown.tolist()):
        rows = full[number] + rest[number]
        said = f"{rows:,} rows" + (f", {hours[number]:,.1f} h" if hours[number] else "")
        said += "" if full[number] or not rows else ", starved: no full batch"
        axis.text(rows, place, f" {said}" if rows else " empty", va="center")
    axis.margins(x=0.3)
    more = f" ({len(taken) - len(shown)} more)" if len(taken) > len(shown) else ""
    axis.set(title=f"buckets: resolution, frames x batch size{more}", xlabel="rows")
    axis.legend(loc="lower right")


def _draw_reasons(axis: Any, table: Any) -> None:
    counts = {name: n for name, n in table.counts().items() if n}
    bars = axis.barh(
        list(counts), list(counts.values()), color=[_FULL if n == "taken" else _REST for n in counts]
    )
    axis.bar_label(bars, fmt=" {:,.0f}")
    axis.margins(x=0.3)
    axis.invert_yaxis()
    axis.set(title="what became of the rows", xlabel="rows")
