"""Where an object was on each frame, and what motion that is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opensora.datasets.shape_scene import CAMERAS, DIRECTIONS
from opensora.datasets.shape_world import World

_STILL = 0.05  # sides: what moves less, stays
_STRAIGHT = 0.15  # scatter around a line, over its length
_SURE = math.cos(math.radians(19))  # directions are 45 degrees apart
_GROWTH = 1.5  # of the radius, from which it is one
_TURN = 100.0  # degrees, from which it spins; a clip shows 180
_LEAST_SEEN = 0.002  # area in sides squared


@dataclass(frozen=True)
class Track:
    """An object through a clip.

    Args:
        seen: Whether it is there. Bool, shape [T].
        pixels: Column and row of its centroid. Shape [T, 2].
        places: The same in sides from the centre of the frame, less what the camera did. Shape [T, 2].
        radius: Of a disc of its area, in pixels. Shape [T].
        size: The same in sides, less what the camera did. Shape [T].
        spread: Its extent over that of a disc of its area, about 1 to 2 for one object.
        seconds: Time of each frame. Shape [T].
    """

    seen: np.ndarray
    pixels: np.ndarray
    places: np.ndarray
    radius: np.ndarray
    size: np.ndarray
    spread: float
    seconds: np.ndarray

    @classmethod
    def of(cls, cover: np.ndarray, fps: float, camera: str) -> "Track":
        """Follow an object.

        Args:
            cover: How far it covers each pixel. Shape [T, H, W].
            fps: Frames per second.
            camera: What the camera does.
        """
        length, height, width = cover.shape
        unit = min(height, width)
        area = cover.sum((1, 2))
        safe = np.maximum(area, 1e-6)
        x = (cover.sum(1) * np.arange(width)).sum(1) / safe
        y = (cover.sum(2) * np.arange(height)).sum(1) / safe
        across = (cover.sum(1) * (np.arange(width) - x[:, None]) ** 2).sum(1) / safe
        down = (cover.sum(2) * (np.arange(height) - y[:, None]) ** 2).sum(1) / safe
        seen = area > _LEAST_SEEN * unit**2
        spread = 2 * math.pi * (across + down) / safe
        seconds = np.arange(length) / fps
        right, below, growth = CAMERAS[camera]
        since = seconds - seconds[-1] / 2
        zoom = np.exp(growth * since)
        places = np.stack([(x + 0.5 - width / 2) / unit, (y + 0.5 - height / 2) / unit], axis=1)
        places = places / zoom[:, None] + since[:, None] * np.array([right, below])
        radius = np.sqrt(safe / math.pi)
        middle = float(np.median(spread[seen])) if seen.any() else 0.0
        pixels = np.stack([x, y], axis=1)
        return cls(seen, pixels, places, radius, radius / unit / zoom, middle, seconds)

    @property
    def line(self) -> tuple[np.ndarray, float]:
        """Velocity in sides per second of the straight line that fits best, and the scatter around it."""
        return fit_line(self.seconds[self.seen], self.places[self.seen])

    @property
    def speed(self) -> float | None:
        """Sides per second along the line."""
        return float(np.hypot(*self.line[0])) if self.seen.sum() > 1 else None


def fit_line(t: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the slope of the line that fits places best, and the root mean square of what it leaves.

    Args:
        t: Times. Shape [T].
        places: Shape [T, 2].
    """
    if len(t) < 2:
        return np.zeros(2), 0.0
    since, away = t - t.mean(), places - places.mean(0)
    slope = (since @ away) / (since**2).sum()
    return slope, float(np.sqrt(((away - since[:, None] * slope) ** 2).sum(1).mean()))


def read_motion(track: Track, angles: Sequence[float], shape: str | None, world: World) -> str | None:
    """Return the motion of an object, None if it is not sure.

    Args:
        track: Where it was.
        angles: Its angle on the frames on which it was seen, in degrees; empty if it was not looked for.
        shape: What it is.
        world: What there can be.
    """
    if track.seen.mean() < 0.7 or track.seen.sum() < 3:
        return None
    found = _motion(track, angles, shape, "spin" in world.motions)
    return found if found in world.motions else None


def _motion(track: Track, angles: Sequence[float], shape: str | None, turns: bool) -> str | None:
    places, size = track.places[track.seen], track.size[track.seen]
    third = max(1, len(size) // 3)
    growth = float(np.median(size[-third:]) / np.median(size[:third]))
    if max(growth, 1 / growth) > _GROWTH:
        return "grow" if growth > 1 else "shrink"
    across, down = np.ptp(places, axis=0)
    velocity, scatter = track.line
    way = velocity * (track.seconds[track.seen][-1] - track.seconds[track.seen][0])
    length = float(np.hypot(*way))
    if length > _STILL and scatter < _STRAIGHT * length:
        names = list(DIRECTIONS)
        cosines = np.array([DIRECTIONS[name] for name in names]) @ (way / length)
        return names[int(cosines.argmax())] if cosines.max() > _SURE else None
    if max(across, down) < 1.5 * _STILL:
        turn = abs(_turn(angles, shape)) if turns else 0.0
        return "spin" if turn > _TURN else "stay" if turn < _TURN / 2 else None
    if min(across, down) < 0.25 * max(across, down):
        return "bounce sideways" if across > down else "bounce up and down"
    return "orbit" if _circles(places) else None


def _turn(angles: Sequence[float], shape: str | None) -> float:
    """Return by how many degrees a shape turned, whose angles repeat."""
    period = {"square": 90, "cross": 90, "triangle": 120, "star": 72}.get(shape or "")
    if not period or len(angles) < 2:
        return 0.0
    steps = (np.diff(angles) + period / 2) % period - period / 2
    return float(steps.sum())


def _circles(places: np.ndarray) -> bool:
    """Say whether places go most of the way around a circle."""
    x, y = places.T
    fit, *_ = np.linalg.lstsq(np.stack([x, y, np.ones_like(x)], 1), x**2 + y**2, rcond=None)
    middle = fit[:2] / 2
    away = np.hypot(*(places - middle).T)
    radius = float(away.mean())
    turn = np.diff(np.unwrap(np.arctan2(y - middle[1], x - middle[0]))).sum()
    return 0.05 < radius < 0.5 and float(away.std()) < 0.2 * radius and abs(turn) > math.radians(240)
