"""Which clips of the generated world there are, and how random numbers become one."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from opensora.datasets.shape_scene import (
    BACKGROUNDS,
    CAMERAS,
    COLORS,
    DIRECTIONS,
    MARGIN,
    MOTIONS,
    PATTERNS,
    ROUND,
    SHAPES,
    Scene,
    Thing,
    seconds_of,
)

_OFF_CENTRE = 1 / 16  # of a centred path
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
    endless = world.path == "endless"
    duration = seconds_of(num_frames, fps, endless)
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
    return Scene(tuple(things), background, pattern, camera, num_frames, fps, phase, endless)


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
    duration = seconds_of(num_frames, fps, endless)
    thing = _place(world, kind, words[int(speed * len(words))], size, duration, tuple(place))
    return Scene((thing,), background, "plain", "static", num_frames, fps, endless=endless)


def _fits(shape: str, motion: str, camera: str, count: int) -> bool:
    """Say whether a motion can be seen: round things do not spin, a moving camera hides a straight path."""
    if motion == "spin" and shape in ROUND:
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
    room = max(0.0, 0.5 / math.exp(growth) - max(right, down) - MARGIN - reach * radius * SHAPES[shape])
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


def _pick(values: Sequence[Any], u: Iterator[float]) -> Any:
    return values[int(next(u) * len(values))]
