"""The judge: reads from pixels alone what a clip of the generated world shows.

Plain image analysis, no network. What it is not sure of it does not say: such an answer is None, and counts
as wrong. So its figures are lower bounds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from eval.lab.camera import read_camera
from eval.lab.motion import Track, read_motion
from opensora.datasets.shape_scene import BACKGROUNDS, COLORS, cover, shades
from opensora.datasets.shape_world import World

_NEAR = 0.3  # distance in RGB, of [0, 1], at which a pixel has a colour for sure
_BACKGROUND = 0.2  # and half of the frame a background
_LEAST = 0.003  # area of an object, in sides squared
_SHARE = 0.25  # area of the smaller object over that of the larger one
_APART = 2.8  # spread of one colour, over that of a disc of its area, from which it is two objects
_EDGE = 1 / 16  # how far an object reaches beyond pixels of its colour, in sides
_GRID = 28  # pixels of a template, which covers
_REACH = 2.1  # radii of a disc of the same area to each side
_ALIKE, _CLEAR = 0.72, 0.015  # overlap with a template, and lead over the next shape
_BLURS = (0.0, 0.15, 0.3)  # of templates, in radii
_FAINT = 0.15  # cover that is noise
_NOISE = 1.8  # times the distance from the background that half of the pixels keep


@dataclass(frozen=True)
class Reading:
    """What the judge saw of a clip; None where it is not sure.

    Args:
        background: Of `BACKGROUNDS`.
        camera: Of `CAMERAS`.
        count: Objects; None for more than two.
        shapes: Of each object, the largest first.
        colors: Of each.
        motions: Of each.
        speeds: Sides per second of each that goes straight.
        tracks: Where each was: x, y, in sides from the centre. Shape [T, 2] each.
    """

    background: str | None = None
    camera: str | None = None
    count: int | None = None
    shapes: tuple[str | None, ...] = ()
    colors: tuple[str | None, ...] = ()
    motions: tuple[str | None, ...] = ()
    speeds: tuple[float | None, ...] = ()
    tracks: tuple[np.ndarray, ...] = ()


def judge(frames: np.ndarray, fps: float, world: World) -> Reading:
    """Read a clip.

    Args:
        frames: Bytes, or float in [0, 1]. Shape [T, H, W, 3].
        fps: Frames per second.
        world: What there can be.
    """
    frames = frames.astype(np.float32) / (255 if frames.dtype == np.uint8 else 1)
    background, off = _read_background(frames, world)
    if background is None:
        return Reading()
    covers = _objects(frames, off, world)
    if not covers:
        return Reading(background=background, count=0)
    foreground = np.max(list(covers.values()), axis=0)
    camera = read_camera(frames, foreground > _FAINT, fps, world.cameras)
    tracks = [Track.of(part, fps, camera or "static") for part in covers.values()]
    turns = "spin" in world.motions
    pairs = zip(covers.values(), tracks, strict=True)
    looks = [_read_shape(part, track, world.shapes, turns) for part, track in pairs]
    motions = [
        read_motion(track, angles, shape, world) for track, (shape, angles) in zip(tracks, looks, strict=True)
    ]
    apart = max(track.spread for track in tracks) > _APART
    return Reading(
        background=background,
        camera=camera,
        count=None if len(covers) > 2 else len(covers) + apart,
        shapes=tuple(shape for shape, _ in looks),
        colors=tuple(covers),
        motions=tuple(motions),
        speeds=tuple(track.speed for track in tracks),
        tracks=tuple(track.places for track in tracks),
    )


def _read_background(frames: np.ndarray, world: World) -> tuple[str | None, np.ndarray]:
    """Return the background whose shades most pixels have, and how far each pixel is from them."""
    best, off = None, np.zeros(0)
    level = math.inf
    for name in BACKGROUNDS:
        base, other = shades(name)
        if set(world.patterns) == {"plain"}:
            distance = np.linalg.norm(frames - base, axis=-1)
        else:
            along = other - base
            place = np.clip((frames - base) @ along / (along @ along), 0, 1)
            distance = np.linalg.norm(frames - base - place[..., None] * along, axis=-1)
        middle = float(np.median(distance))
        if middle < level:
            best, off, level = name, distance, middle
    known = level < _BACKGROUND and best in world.backgrounds
    return best if known else None, np.maximum(0, off - _NOISE * level)


def _objects(frames: np.ndarray, off: np.ndarray, world: World) -> dict[str, np.ndarray]:
    """Return how far each colour that is there covers each pixel, by colour, the largest first.

    Args:
        frames: Shape [T, H, W, 3].
        off: Distance from the background. Shape [T, H, W].
        world: What there can be.
    """
    names = list(COLORS)
    palette = np.array([COLORS[name] for name in names], dtype=np.float32) / 255
    solid = off > 0.5 * _NEAR
    distance = np.linalg.norm(frames[solid][:, None] - palette, axis=-1)  # [N, colours]
    nearest = distance.argmin(1)
    sure = distance.min(1) < np.minimum(_NEAR, off[solid])
    unit = min(frames.shape[1:3])
    area = np.bincount(nearest[sure], minlength=len(names)) / (len(frames) * unit**2)
    order = [n for n in np.argsort(-area, kind="stable") if area[n] >= max(_LEAST, _SHARE * area.max())]
    covers, away = {}, []
    for number in order:
        own = frames[solid][sure & (nearest == number)].mean(0)
        away.append(np.linalg.norm(frames - own, axis=-1))
    for place, number in enumerate(order):
        others = [away[i] for i in range(len(order)) if i != place]
        part = off / np.maximum(off + away[place], 1e-6)
        if others:
            part = np.where(away[place] <= np.min(others, axis=0), part, 0)
        core = np.zeros(off.shape, dtype=bool)
        core[solid] = sure & (nearest == number)
        near = _widen(core, max(1, round(_EDGE * unit)))
        covers[names[number]] = np.where(near & (part > _FAINT), part, 0).astype(np.float32)
    return covers


def _widen(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Return which pixels are near marked ones of their frame. Bool, shape [T, H, W]."""
    for axis in (1, 2):
        sums = np.cumsum(
            np.pad(
                mask, [(0, 0)] + [(pixels + (a == axis), pixels) if a == axis else (0, 0) for a in (1, 2)]
            ),
            axis=axis,
        )
        width = 2 * pixels + 1
        mask = np.take(sums, range(width, sums.shape[axis]), axis) > np.take(
            sums, range(sums.shape[axis] - width), axis
        )
    return mask


def _read_shape(
    part: np.ndarray, track: Track, shapes: Sequence[str], turns: bool
) -> tuple[str | None, list[float]]:
    """Return the shape whose template a clip's frames overlap most, and its angle on each frame in degrees.

    Args:
        part: Cover of the object. Shape [T, H, W].
        track: Its path.
        shapes: What it can be.
        turns: Whether it may be turned.
    """
    seen = np.flatnonzero(track.seen)
    if len(seen) < max(1, len(part) // 2):
        return None, []
    patches = np.stack([_patch(part[t], *track.pixels[t], track.radius[t]) for t in seen])
    scores = {}
    for shape in shapes:
        angles, templates = _templates(shape, turns)
        overlap = _overlap(patches, templates).max(1)  # of all blurs. [T, angles]
        best = overlap.argmax(1)
        scores[shape] = (float(np.median(overlap.max(1))), [angles[n] for n in best])
    if not turns:
        mean = patches.mean(0)[None]
        scores = {shape: (float(_overlap(mean, _templates(shape, False)[1]).max()), []) for shape in shapes}
    ranked = sorted(scores, key=lambda shape: -scores[shape][0])
    score = scores[ranked[0]][0]
    lead = score - scores[ranked[1]][0] if len(ranked) > 1 else 1.0
    return (ranked[0] if score > _ALIKE and lead > _CLEAR else None), scores[ranked[0]][1]


def _patch(part: np.ndarray, x: float, y: float, radius: float) -> np.ndarray:
    """Sample a frame around a place, in radii. Shape [G, G]."""
    steps = (np.arange(_GRID) + 0.5) / _GRID * 2 * _REACH - _REACH
    return bilinear(part, (y + steps * radius)[:, None], (x + steps * radius)[None, :])


def bilinear(image: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Sample an image between its pixels; outside it is 0.

    Args:
        image: Shape [H, W].
        y: Rows, which broadcast with x.
        x: Columns.
    """
    padded = np.pad(image, 1)
    y = np.clip(y + 1, 0, padded.shape[0] - 1.001)
    x = np.clip(x + 1, 0, padded.shape[1] - 1.001)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    down, right = y - top, x - left
    upper = padded[top, left] * (1 - right) + padded[top, left + 1] * right
    lower = padded[top + 1, left] * (1 - right) + padded[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def _overlap(patches: np.ndarray, templates: np.ndarray) -> np.ndarray:
    """Return shared over joined area. Shape [T, blurs, angles] of [T, G, G] and [blurs, angles, G, G]."""
    flat = templates.reshape(*templates.shape[:2], -1)
    one = patches.reshape(len(patches), 1, 1, -1)
    return np.minimum(one, flat).sum(-1) / np.maximum(one, flat).sum(-1)


@cache
def _templates(shape: str, turns: bool) -> tuple[tuple[float, ...], np.ndarray]:
    """Draw a shape at some angles and blurs, of the area of a unit disc around its centroid."""
    fine = 4 * _GRID
    steps = ((np.arange(fine) + 0.5) / fine * 2 * _REACH - _REACH).astype(np.float32)
    period = {"circle": 0, "ring": 0, "square": 90, "cross": 90, "triangle": 120, "star": 72}[shape]
    angles = tuple(np.arange(0, period, 9.0).tolist()) if turns and period else (0.0,)
    found = []
    for angle in angles:
        x, y = np.meshgrid(steps, steps)
        turned = np.float32(math.radians(angle))
        inside = cover(shape, x, y, turned, fine / (2 * _REACH))
        radius = math.sqrt(float(inside.sum()) * (2 * _REACH / fine) ** 2 / math.pi)
        found.append(cover(shape, x * radius, y * radius, turned, fine / (2 * _REACH) / radius))
    rows = [[_shrink(_blur(one, width * fine / (2 * _REACH))) for one in found] for width in _BLURS]
    return angles, np.array(rows, dtype=np.float32)


def _blur(image: np.ndarray, width: float) -> np.ndarray:
    if width == 0:
        return image
    steps = np.arange(-int(3 * width), int(3 * width) + 1)
    kernel = np.exp(-0.5 * (steps / width) ** 2)
    kernel /= kernel.sum()
    rows = np.apply_along_axis(np.convolve, 0, image, kernel, mode="same")
    return np.apply_along_axis(np.convolve, 1, rows, kernel, mode="same")


def _shrink(image: np.ndarray) -> np.ndarray:
    return image.reshape(_GRID, 4, _GRID, 4).mean((1, 3))
