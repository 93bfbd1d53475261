"""What the camera does, from what is behind the objects."""

from collections.abc import Sequence

import numpy as np

from opensora.datasets.shape_scene import CAMERAS

_STEP_S = 0.16  # between the frames that are compared: less than half of a pattern's period at any speed
_FLAT = 0.02  # deviation of brightness below which nothing shows a camera that moves
_LEAST = 0.003  # by how much a move must explain frames better than none, as brightness of a pixel
_SECOND = 0.93  # difference of the best over that of the next


def read_camera(frames: np.ndarray, foreground: np.ndarray, fps: float, cameras: Sequence[str]) -> str | None:
    """Return the move that makes each frame from the one before, None if two do.

    Args:
        frames: Shape [T, H, W, 3], in [0, 1].
        foreground: Pixels that belong to objects. Bool, shape [T, H, W].
        fps: Frames per second.
        cameras: What there can be, of `CAMERAS`.
    """
    if tuple(cameras) == ("static",) or len(frames) < 2:
        return "static"
    light = frames.mean(-1)
    if light[~foreground].std() < _FLAT:
        return "static"
    score = {name: _difference(light, foreground, CAMERAS[name], fps) for name in cameras}
    ranked = sorted(score, key=lambda name: score[name])
    best, still = ranked[0], score["static"]
    if best == "static" or still - score[best] < _LEAST:
        return "static"
    return best if score[best] < _SECOND * score[ranked[1]] else None


def _difference(
    light: np.ndarray, foreground: np.ndarray, move: tuple[float, float, float], fps: float
) -> float:
    """Return how far frames are from those shortly before, moved: mean absolute difference."""
    step = min(max(1, round(_STEP_S * fps)), len(light) - 1)
    _, height, width = light.shape
    unit = min(height, width)
    right, down, growth = (part * step / fps for part in move)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    total, count = 0.0, 1e-6
    zoom, shift = np.exp(growth), (right * unit, down * unit)  # no camera does both
    for t in range(len(light) - step):
        # A point of the later frame, where it was before.
        before_x = (x + 0.5 - width / 2) / zoom + width / 2 - 0.5 + shift[0]
        before_y = (y + 0.5 - height / 2) / zoom + height / 2 - 0.5 + shift[1]
        inside = (before_x >= 0) & (before_x <= width - 1) & (before_y >= 0) & (before_y <= height - 1)
        column = np.clip(before_x, 0, width - 1.001)
        row = np.clip(before_y, 0, height - 1.001)
        left, top = column.astype(int), row.astype(int)
        a, b = column - left, row - top
        one = light[t]
        moved = (one[top, left] * (1 - a) + one[top, left + 1] * a) * (1 - b)
        moved = moved + (one[top + 1, left] * (1 - a) + one[top + 1, left + 1] * a) * b
        free = inside & ~foreground[t + step] & ~foreground[t][top, left] & ~foreground[t][top + 1, left + 1]
        total += float(np.abs(light[t + step] - moved)[free].sum())
        count += int(free.sum())
    return total / count
