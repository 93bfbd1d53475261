"""A clip of the generated world, and how it is drawn: shapes that move over a background.

Lengths are in sides: parts of the shorter side of the frame. x goes right and y down, from the centre.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COLORS = {
    "red": (230, 40, 40),
    "yellow": (250, 215, 40),
    "green": (40, 180, 70),
    "cyan": (40, 210, 220),
    "blue": (40, 80, 235),
    "purple": (200, 60, 220),
}
BACKGROUNDS = {
    "black": (10, 10, 12),
    "white": (245, 245, 245),
    "gray": (128, 128, 128),
    "blue": (40, 55, 140),
    "pink": (245, 175, 190),
}
PATTERNS = ("plain", "gradient", "striped", "checkered", "dotted")
DIRECTIONS = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up left": (-math.sqrt(0.5), -math.sqrt(0.5)),
    "up right": (math.sqrt(0.5), -math.sqrt(0.5)),
    "down left": (-math.sqrt(0.5), math.sqrt(0.5)),
    "down right": (math.sqrt(0.5), math.sqrt(0.5)),
}
MOTIONS = (*DIRECTIONS, "bounce sideways", "bounce up and down", "spin", "grow", "shrink", "orbit", "stay")
CAMERAS = {  # sides per second that the camera goes, and growth of what it sees
    "static": (0.0, 0.0, 0.0),
    "pan left": (-0.4, 0.0, 0.0),
    "pan right": (0.4, 0.0, 0.0),
    "tilt up": (0.0, -0.4, 0.0),
    "tilt down": (0.0, 0.4, 0.0),
    "zoom in": (0.0, 0.0, 0.6),
    "zoom out": (0.0, 0.0, -0.6),
}
# Points; how far corners outside and inside lie, as multiples of the radius; degrees that it is turned.
_POLYGONS = {
    "square": (4, 1.2, 1.2 * math.cos(math.pi / 4), 45.0),
    "triangle": (3, 1.3, 1.3 * math.cos(math.pi / 3), 0.0),
    "star": (5, 1.3, 0.5, 0.0),
}
SHAPES = {"circle": 1.0, "square": 1.2, "triangle": 1.3, "star": 1.3, "ring": 1.1, "cross": 1.2}  # reach
ROUND = ("circle", "ring")  # turning them changes nothing
MARGIN = 0.01  # between a shape and the edge of the frame
_LAP = 1.0  # seconds in which an endless path passes the centre


@dataclass(frozen=True)
class Thing:
    """An object and its path.

    Args:
        shape: Of `SHAPES`.
        color: Of `COLORS`.
        motion: Of `MOTIONS`.
        speed: Word for how fast it moves; "" says nothing.
        radius: In sides.
        middle: Where it is in the middle of the clip.
        velocity: In sides per second, of a straight path.
        aside: Where it lies along a frame that is longer than its shorter side, from -1 to 1.
        phase: Angle at which turning, bouncing and orbiting start, in radians.
    """

    shape: str
    color: str
    motion: str
    speed: str
    radius: float
    middle: tuple[float, float]
    velocity: tuple[float, float] = (0.0, 0.0)
    aside: float = 0.0
    phase: float = 0.0

    def at(self, seconds: np.ndarray, duration: float) -> tuple[np.ndarray, ...]:
        """Return x, y, radius and angle. Each of shape [T].

        Args:
            seconds: Time since the beginning. Shape [T].
            duration: Seconds of the whole clip: what goes round goes round once in it.
        """
        part = seconds / duration if duration else np.full_like(seconds, 0.5)
        x = self.middle[0] + self.velocity[0] * (seconds - duration / 2)
        y = self.middle[1] + self.velocity[1] * (seconds - duration / 2)
        radius, angle = np.full_like(part, self.radius), np.zeros_like(part)
        swing = (0.5 - MARGIN - SHAPES[self.shape] * self.radius) * (2 * np.abs(2 * (part % 1) - 1) - 1)
        if self.motion == "bounce sideways":
            x = x + swing * math.copysign(1, self.phase)
        elif self.motion == "bounce up and down":
            y = y + swing * math.copysign(1, self.phase)
        elif self.motion == "orbit":
            x = x + 0.22 * np.cos(2 * math.pi * part + self.phase)
            y = y + 0.22 * np.sin(2 * math.pi * part + self.phase)
        elif self.motion == "spin":
            angle = self.phase + math.pi * part
        elif self.motion in ("grow", "shrink"):
            radius = self.radius * (0.6 + 0.7 * (part if self.motion == "grow" else 1 - part))
        return x, y, radius, angle


@dataclass(frozen=True)
class Scene:
    """A clip: its objects, what is behind them, and the camera.

    Args:
        things: One or two objects; later ones lie before earlier ones.
        background: Of `BACKGROUNDS`.
        pattern: Of `PATTERNS`.
        camera: Of `CAMERAS`.
        num_frames: Frames of the whole clip.
        fps: Frames per second.
        phase: Where the pattern starts, two numbers in [0, 1).
        endless: Whether what leaves the frame comes back on the other side.
    """

    things: tuple[Thing, ...]
    background: str
    pattern: str
    camera: str
    num_frames: int
    fps: float
    phase: tuple[float, float] = (0.0, 0.0)
    endless: bool = False

    @property
    def duration(self) -> float:
        """Seconds in which objects make their way, see `seconds_of`."""
        return seconds_of(self.num_frames, self.fps, self.endless)

    def draw(self, num_frames: int, height: int, width: int) -> np.ndarray:
        """Draw the first frames of the clip, with smooth edges.

        Returns:
            float32 in [0, 1]. Shape [T, H, W, 3].
        """
        unit = min(height, width)
        seconds = np.arange(num_frames) / self.fps
        since = seconds - self.duration / 2
        right, down, growth = CAMERAS[self.camera]
        zoom = np.exp(growth * since).astype(np.float32)[:, None, None]
        x = ((np.arange(width, dtype=np.float32) + 0.5 - width / 2) / unit)[None, None, :]
        y = ((np.arange(height, dtype=np.float32) + 0.5 - height / 2) / unit)[None, :, None]
        x = x / zoom + (right * since).astype(np.float32)[:, None, None]
        y = y / zoom + (down * since).astype(np.float32)[:, None, None]
        frames = self._background(x, y)
        room = (0.5 * width / unit - 0.5, 0.5 * height / unit - 0.5)
        for thing in self.things:
            place = [v.astype(np.float32)[:, None, None] for v in thing.at(seconds, self.duration)]
            dx, dy = x - place[0] - thing.aside * room[0], y - place[1] - thing.aside * room[1]
            if self.endless:
                dx, dy = _nearest(dx, width / unit), _nearest(dy, height / unit)
            part = cover(thing.shape, dx / place[2], dy / place[2], place[3], place[2] * zoom * unit)
            frames = frames + part[..., None] * (_color(COLORS[thing.color]) - frames)
        return np.broadcast_to(frames, (num_frames, height, width, 3))

    def _background(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return what is behind the objects. float32, shape [T, H, W, 3] or what broadcasts to it."""
        base, other = shades(self.background)
        if self.pattern == "plain":
            return base.reshape(1, 1, 1, 3)
        x, y = x + 0.25 * self.phase[0], y + 0.25 * self.phase[1]
        if self.pattern == "gradient":
            share = np.clip(0.5 + 0.7 * (x if self.phase[0] < 0.5 else y), 0, 1)
        elif self.pattern == "striped":
            share = _steep(np.sin(8 * math.pi * (x if self.phase[0] < 0.5 else y)))
        elif self.pattern == "checkered":
            share = _steep(np.sin(4 * math.pi * x) * np.sin(4 * math.pi * y))
        else:
            share = _steep(np.cos(8 * math.pi * x) + np.cos(8 * math.pi * y) - 0.6)
        return base + (np.zeros_like(x + y) + share)[..., None] * (other - base)


def seconds_of(num_frames: int, fps: float, endless: bool) -> float:
    """Return the seconds of a path: from a clip's first frame to its last, or once through the centre."""
    return _LAP if endless else (num_frames - 1) / fps


def shades(background: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the two colours between which the patterns of a background lie, in [0, 1]. Shape [3] each."""
    base = _color(BACKGROUNDS[background])
    return base, base + 0.22 if base.mean() < 0.1 else 0.72 * base


def cover(
    shape: str, x: np.ndarray, y: np.ndarray, angle: np.ndarray | np.float32, pixels: np.ndarray | float
) -> np.ndarray:
    """Return how far a shape of radius 1 covers the pixels at some points, in [0, 1].

    Args:
        shape: Of `SHAPES`.
        x: Places, right of its centre.
        y: Places, below it; they broadcast with x.
        angle: By which it is turned, in radians.
        pixels: Pixels of its radius.
    """
    return np.clip(0.5 - _distance(shape, x, y, angle) * pixels, 0, 1)


def _distance(shape: str, x: np.ndarray, y: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Return how far points lie outside a shape of radius 1, negative inside; exact near its edges."""
    if shape == "circle":
        return np.hypot(x, y) - 1
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.8) - 0.3
    if shape == "cross":
        across, along = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        across, along = np.abs(across), np.abs(along)
        arms = (np.maximum(across - 0.38, along - 1.15), np.maximum(across - 1.15, along - 0.38))
        return np.minimum(*arms)
    points, outer, inner, turned = _POLYGONS[shape]
    half = np.float32(math.pi / points)
    # Fold the plane into half a sector: there the edge is one line, from an outer to an inner corner.
    sector = np.arctan2(x, -y) - angle + np.float32(math.radians(turned)) + half
    folded = np.abs(sector % (2 * half) - half)
    distance = np.hypot(x, y)
    edge = np.array([inner * math.cos(half) - outer, inner * math.sin(half)])
    normal = (np.array([edge[1], -edge[0]]) / np.hypot(*edge)).tolist()
    return distance * (normal[0] * np.cos(folded) + normal[1] * np.sin(folded)) - normal[0] * outer


def _nearest(away: np.ndarray, side: float) -> np.ndarray:
    """Return distances to the nearest of the copies that lie a side apart."""
    return away - side * np.round(away / side)


def _steep(wave: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + 3 * wave, 0, 1)


def _color(rgb: Sequence[int]) -> np.ndarray:
    return np.array(rgb, dtype=np.float32) / 255
