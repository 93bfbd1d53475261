"""What a clip of the generated world is, and how it is drawn: shapes that move over a background.

Lengths are in sides: parts of the shorter side of the frame. x goes right and y down, from the centre.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

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
_ROUND = ("circle", "ring")  # turning them changes nothing
_MARGIN = 0.01  # between a shape and the edge of the frame
_OFF_CENTRE = 1 / 16  # of a centred path
_LAP = 1.0  # seconds in which an endless path passes the centre
_TRIES = 16  # places of a second object, of which the freest is taken; without a free one there is none


@dataclass(frozen=True)
class World:
    """Which clips there are. All that is drawn is equally likely.

    Args:
        shapes: Of `SHAPES`.
        colors: Of `COLORS`.
        backgrounds: Of `BACKGROUNDS`; one that is called like the object's colour is not taken.
        patterns: Of `PATTERNS`.
        motions: Of `MOTIONS`.
        cameras: Of `CAMERAS`; they move only where a pattern shows it.
        speeds: From a word of the caption, or none, to sides per second. A clip that is too long for a speed
            takes the highest that keeps the object inside.
        objects: How many there may be, of 1 and 2.
        path: "centred" paths pass the centre in the middle of the clip, "free" ones lie anywhere. "endless"
            ones begin as a centred one of a second does and go on: what leaves the frame comes back on the
            other side. They are for single objects in the eight directions, and a camera that is still.
        radius: Smallest and largest radius in sides.
        held_out: Keep 5 of 24 triples of shape, colour and motion for the split "unseen".

    Raises:
        ValueError: A name is unknown, or a value out of range.
    """

    shapes: Sequence[str] = ("circle", "square", "triangle", "star")
    colors: Sequence[str] = tuple(COLORS)
    backgrounds: Sequence[str] = tuple(BACKGROUNDS)
    patterns: Sequence[str] = ("plain",)
    motions: Sequence[str] = tuple(DIRECTIONS)
    cameras: Sequence[str] = ("static",)
    speeds: Mapping[str, float] = field(default_factory=lambda: {"": 0.42})
    objects: Sequence[int] = (1,)
    path: str = "centred"
    radius: tuple[float, float] = (0.18, 0.22)
    held_out: bool = True

    def __post_init__(self) -> None:
        known = {
            **{"shapes": SHAPES, "colors": COLORS, "backgrounds": BACKGROUNDS, "patterns": PATTERNS},
            **{"motions": MOTIONS, "cameras": CAMERAS, "objects": (1, 2)},
        }
        for name, names in known.items():
            given = getattr(self, name)
            if isinstance(given, str) or not given or not set(given) <= set(names):
                raise ValueError(f"dataset.{name}={given!r}: a list of some of {', '.join(map(str, names))}.")
        if self.path not in ("centred", "free", "endless"):
            raise ValueError(f"dataset.path={self.path!r}: use 'centred', 'free' or 'endless'.")
        straight = set(self.motions) <= set(DIRECTIONS) and tuple(self.objects) == (1,)
        if self.path == "endless" and not (straight and tuple(self.cameras) == ("static",)):
            raise ValueError(
                f"dataset.path='endless': motions={list(self.motions)}, objects={list(self.objects)}, "
                f"cameras={list(self.cameras)}; give the eight directions, one object, and 'static'."
            )
        if not self.speeds or min(self.speeds.values()) <= 0:
            raise ValueError(f"dataset.speeds={self.speeds!r}: words and sides per second, above 0.")
        if not 0.02 <= self.radius[0] <= self.radius[1] <= 0.3:
            raise ValueError(f"dataset.radius={self.radius!r}: two numbers from 0.02 to 0.3, in order.")

    @cached_property
    def kinds(self) -> dict[str, list[tuple[str, str, str]]]:
        """Triples of shape, colour and motion by split."""
        every = list(product(self.shapes, self.colors, self.motions))
        unseen = [kind for kind in every if self.held_out and is_held_out(*kind)]
        return {"train": [kind for kind in every if kind not in unseen], "unseen": unseen}


WORLDS = {
    "small": World(),
    "full": World(
        shapes=tuple(SHAPES),
        patterns=PATTERNS,
        motions=MOTIONS,
        cameras=tuple(CAMERAS),
        speeds={"slowly": 0.15, "": 0.3, "quickly": 0.6},
        objects=(1, 2),
        path="free",
        radius=(0.1, 0.16),
    ),
}


def is_held_out(shape: str, color: str, motion: str) -> bool:
    """Say whether a triple is kept out of training: 5 of 24, spread evenly over each."""
    places = (list(SHAPES).index(shape), list(COLORS).index(color), MOTIONS.index(motion))
    return (5 * places[0] + 4 * places[1] + 3 * places[2]) % 24 < 5


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
        swing = (0.5 - _MARGIN - SHAPES[self.shape] * self.radius) * (2 * np.abs(2 * (part % 1) - 1) - 1)
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
        """Seconds from the first frame to the last; of endless clips those of a path through the centre."""
        return _LAP if self.endless else (self.num_frames - 1) / self.fps

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


def draw_scene(
    world: World, numbers: Sequence[float], num_frames: int, fps: float, split: str = "train"
) -> Scene:
    """Turn random numbers into a scene.

    Args:
        world: Which clips there are.
        numbers: At least 96 numbers in [0, 1).
        num_frames: Frames of the whole clip; 1 is an image.
        fps: Frames per second.
        split: "train", or "unseen" for the triples that are held out.

    Raises:
        ValueError: No object fits.
    """
    u = iter(numbers)
    background, pattern = _pick(world.backgrounds, u), _pick(world.patterns, u)
    camera, count = _pick(world.cameras, u), _pick(world.objects, u)
    if pattern in ("plain", "gradient", "striped"):
        camera = "static"
    phase = (next(u), next(u))
    duration = _LAP if world.path == "endless" else (num_frames - 1) / fps
    things: list[Thing] = []
    while len(things) < count:
        taken = {name for thing in things for name in (thing.shape, thing.color)}
        kinds = [
            (shape, color, motion)
            for shape, color, motion in world.kinds[split]
            if color != background and not {shape, color} & taken and _fits(shape, motion, camera, count)
        ]
        if not kinds:  # such as a world of one shape with two objects
            break
        kind = _pick(kinds, u)
        speed, radius = _pick(list(world.speeds), u), next(u)
        tries = [
            _place(world, kind, speed, radius, duration, (next(u), next(u), next(u), next(u)), camera)
            for _ in range(_TRIES if things else 1)
        ]
        best = max(tries, key=lambda thing: _apart(thing, things, duration))
        if _apart(best, things, duration) < 0:
            break
        things.append(best)
    if not things:
        raise ValueError(
            f"no object of this world fits a {background} background with the camera {camera!r}: give more "
            "colors, motions or backgrounds."
        )
    return Scene(tuple(things), background, pattern, camera, num_frames, fps, phase, world.path == "endless")


def one_object(
    world: World,
    kind: tuple[str, str, str],
    background: str,
    numbers: Sequence[float],
    num_frames: int,
    fps: float,
) -> Scene:
    """Return a scene of one chosen object over a plain background.

    Args:
        world: Says how large it is and where its path may lie.
        kind: Its shape, colour and motion.
        background: Of `BACKGROUNDS`.
        numbers: At least 6 numbers in [0, 1), for the rest.
        num_frames: Frames of the clip.
        fps: Frames per second.
    """
    speed, size, *place = numbers[:6]
    words = list(world.speeds)
    endless = world.path == "endless"
    duration = _LAP if endless else (num_frames - 1) / fps
    thing = _place(world, kind, words[int(speed * len(words))], size, duration, tuple(place))
    return Scene((thing,), background, "plain", "static", num_frames, fps, endless=endless)


def _fits(shape: str, motion: str, camera: str, count: int) -> bool:
    """Say whether a motion can be seen: round things do not spin, a moving camera hides a straight path."""
    if motion == "spin" and shape in _ROUND:
        return False
    if camera != "static":
        return motion in ("spin", "stay")
    return count == 1 or not motion.startswith(("bounce", "orbit"))


def _place(
    world: World,
    kind: tuple[str, str, str],
    speed: str,
    size: float,
    duration: float,
    u: tuple[float, float, float, float],
    camera: str = "static",
) -> Thing:
    """Place an object so that it stays inside the frame."""
    shape, color, motion = kind
    radius = world.radius[0] + size * (world.radius[1] - world.radius[0])
    reach = 1.3 if motion in ("grow", "shrink") else 1.0
    right, down, growth = (abs(part) * duration / 2 for part in CAMERAS[camera])
    room = max(0.0, 0.5 / math.exp(growth) - max(right, down) - _MARGIN - reach * radius * SHAPES[shape])
    along = DIRECTIONS.get(motion, (0.0, 0.0))
    most = 2 * room / (duration * max(map(abs, along))) if duration and any(along) else math.inf
    if world.speeds[speed] > most:  # the fastest that keeps it inside, or slower than the slowest
        speed = max(
            world.speeds, key=lambda word: (world.speeds[word] <= most, -abs(world.speeds[word] - most))
        )
    velocity = min(world.speeds[speed], most)
    spare = [max(0.0, room - abs(part) * velocity * duration / 2) for part in along]
    if motion == "orbit":
        spare = [max(0.0, room - 0.22)] * 2
    if world.path != "free":
        spare = [min(part, _OFF_CENTRE) for part in spare]
    middle = [(2 * number - 1) * part for number, part in zip(u, spare, strict=False)]
    if motion.startswith("bounce"):
        middle["up and down" in motion] = 0.0
    return Thing(
        shape=shape,
        color=color,
        motion=motion,
        speed=speed if motion in DIRECTIONS else "",
        radius=radius,
        middle=(middle[0], middle[1]),
        velocity=(velocity * along[0], velocity * along[1]),
        aside=0.0 if world.path != "free" else 2 * u[2] - 1,
        phase=2 * math.pi * (u[3] - 0.5),
    )


def _apart(thing: Thing, others: Sequence[Thing], duration: float) -> float:
    """Return the smallest distance between the edges of an object and others, in sides."""
    seconds = np.linspace(0, duration, 9)
    x, y, radius, _ = thing.at(seconds, duration)
    gaps = [0.0]  # more than apart is not better
    for other in others:
        ox, oy, other_radius, _ = other.at(seconds, duration)
        reach = radius * SHAPES[thing.shape] + other_radius * SHAPES[other.shape]
        gaps.append(float((np.hypot(x - ox, y - oy) - reach).min()))
    return min(gaps)


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


def _pick(values: Sequence[Any], u: Iterator[float]) -> Any:
    return values[int(next(u) * len(values))]


def _nearest(away: np.ndarray, side: float) -> np.ndarray:
    """Return distances to the nearest of the copies that lie a side apart."""
    return away - side * np.round(away / side)


def _steep(wave: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + 3 * wave, 0, 1)


def _color(rgb: Sequence[int]) -> np.ndarray:
    return np.array(rgb, dtype=np.float32) / 255
