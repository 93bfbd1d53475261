"""Measures of clips that need no opinion: how straight, how stable, how varied, how new."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from eval.lab.judge import Reading
from eval.lab.motion import fit_line
from opensora.datasets.shape_scene import BACKGROUNDS, DIRECTIONS, Scene
from opensora.datasets.shapes import ShapesDataset

_CHUNK = 200  # training clips compared at once


def path_scatter(reading: Reading, scene: Scene, side: int) -> float | None:
    """Return how far the object of a straight path is off the line, root mean square in pixels; smooth is 0.

    Args:
        reading: What was seen.
        scene: What was asked.
        side: Shorter side in pixels.
    """
    if len(scene.things) > 1 or scene.things[0].motion not in DIRECTIONS or not reading.tracks:
        return None
    places = reading.tracks[0]
    return fit_line(np.arange(len(places)), places)[1] * side


def drift(frames: np.ndarray, background: str, first: int) -> float:
    """Return how far the background's colour moves from the first clip to the last, in 1/255.

    Args:
        frames: Bytes. Shape [T, H, W, 3].
        background: The background of the first clip.
        first: Frames of a clip.
    """
    base = np.array(BACKGROUNDS[background])
    ends = []
    for part in (frames[:first], frames[-first:]):
        pixels = part.reshape(-1, 3).astype(np.float64)
        away = np.abs(pixels - base).max(1)
        ends.append(pixels[away <= np.median(away)].mean(0))  # the half that is nearest: no object
    return float(np.abs(ends[1] - ends[0]).max())


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of two frames of bytes in dB, 100 for equal ones."""
    error = float(((one.astype(np.float64) - other) ** 2).mean()) / 255**2
    return 100.0 if error < 1e-10 else -10 * float(np.log10(error))


def diversity(groups: Sequence[Sequence[np.ndarray]]) -> float:
    """Return the mean distance between the clips of a group, root mean square in 1/255, over all groups."""
    found = []
    for clips in groups:
        for one, other in combinations(clips, 2):
            found.append(float(np.sqrt(((one.astype(np.float64) - other) ** 2).mean())))
    return float(np.mean(found))


def nearest(clips: np.ndarray, training: ShapesDataset, count: int) -> np.ndarray:
    """Return the distance of each clip to the nearest training clip, root mean square in 1/255. Shape [N].

    Args:
        clips: Bytes. Shape [N, T, H, W, 3].
        training: The set that was learned.
        count: How many of its clips are compared, from the first on.
    """
    length, height, width = clips.shape[1:4]
    flat = clips.reshape(len(clips), -1).astype(np.float32)
    own = (flat**2).sum(1)
    best = np.full(len(clips), np.inf)
    for start in range(0, count, _CHUNK):
        rows = range(start, min(start + _CHUNK, count))
        drawn = [training.scene(row).draw(length, height, width).ravel() for row in rows]
        other = np.stack(drawn).round(6) * np.float32(255)
        squared = own[:, None] - 2 * flat @ other.T + (other**2).sum(1)
        best = np.minimum(best, squared.min(1))
    return np.sqrt(np.maximum(best, 0) / flat.shape[1])
