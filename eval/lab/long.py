"""What long videos keep: whether clips that continue each other show the same object, on the same path.

The object is followed across the edges of the frame: what leaves it comes back on the other side.
"""

from dataclasses import replace

import numpy as np

from eval.lab.judge import judge
from opensora.datasets.shape_scene import BACKGROUNDS, Scene
from opensora.datasets.shape_world import World

_FAINT = 0.15  # distance from the background, of [0, 1], that is no object


def kept(
    frames: np.ndarray, scene: Scene, background: str, world: World, first: int, rounds: int
) -> dict[str, float]:
    """Return measures of a video of several clips.

    Args:
        frames: Bytes. Shape [T, H, W, 3].
        scene: What was asked.
        background: What the first clip shows behind the object.
        world: What there can be.
        first: Frames of the first clip; the others have equally many of the rest.
        rounds: Number of clips.

    Returns:
        "last shape" and "last color": 1 if the judge sees in the last frames, as many as the first clip has,
        what was asked, else 0; "seam jump px": how far a step of the object from one clip to the next differs
        from its mean step, in pixels, mean over all seams. Nothing of an object that cannot be followed.
    """
    places = follow(frames, background)
    if places is None:
        return {"last shape": 0.0, "last color": 0.0}
    size = np.array(frames.shape[2:0:-1])
    steps = np.diff(places, axis=0)
    steps -= size * np.round(steps / size)
    seams = np.linspace(first, len(frames), rounds)[:-1].round().astype(int) - 1
    off = np.linalg.norm(steps[seams] - np.delete(steps, seams, axis=0).mean(0), axis=1)
    shifts = (size / 2 - places).round().astype(int)
    still = [np.roll(frame, (y, x), (0, 1)) for frame, (x, y) in zip(frames, shifts, strict=True)]
    reading = judge(np.stack(still[-first:]), scene.fps, replace(world, path="free"))
    thing = scene.things[0]
    return {
        "last shape": float(reading.shapes[:1] == (thing.shape,)),
        "last color": float(reading.colors[:1] == (thing.color,)),
        "seam jump px": float(off.mean()),
    }


def follow(frames: np.ndarray, background: str) -> np.ndarray | None:
    """Return where the object is on each frame, x and y in pixels; None if a frame shows none.

    Each axis is taken for a circle, and the object's place is the mean direction of what it covers. What
    covers most of a frame is no object.

    Args:
        frames: Bytes. Shape [T, H, W, 3].
        background: Of `BACKGROUNDS`.

    Returns:
        Shape [T, 2].
    """
    base = np.array(BACKGROUNDS[background]) / 255
    away = np.abs(frames / 255 - base).max(-1)
    cover = np.where(away > _FAINT, away, 0)
    share = (cover > 0).mean((1, 2))
    if share.min() == 0 or share.max() > 0.5:
        return None
    found = []
    for axis in (2, 1):
        side = frames.shape[axis]
        turns = np.exp(2j * np.pi * (np.arange(side) + 0.5) / side)
        mean = (cover.sum(3 - axis) * turns).sum(1)
        found.append(np.angle(mean) / (2 * np.pi) * side % side)
    return np.stack(found, axis=1)
