"""What a model is asked: prompts of combinations that training never shows, with their truth."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from eval.lab.judge import Reading
from opensora.datasets.shape_captions import describe
from opensora.datasets.shape_scene import DIRECTIONS, Scene
from opensora.datasets.shape_world import World, one_object
from opensora.datasets.shapes import ShapesDataset
from opensora.utils.random import Draws

_NUMBERS = 96
_ROWS = 100_000  # of the unseen split, more than anybody asks


@dataclass(frozen=True)
class Case:
    """A prompt and a clip that it tells of.

    Args:
        text: The prompt.
        scene: One of the clips that obey it; its beginning is given to a model that continues images.
    """

    text: str
    scene: Scene


def make_cases(world: Mapping[str, Any], number: int, num_frames: int, fps: float) -> list[Case]:
    """Return the first of a fixed list of prompts, no two alike.

    A world of single straight paths over plain backgrounds is asked for each held-out combination in turn, in
    canonical words and then, with the same combinations, in others. Of other worlds clips are drawn.

    Args:
        world: Keys of `ShapesDataset`.
        number: How many.
        num_frames: Frames of the clips.
        fps: Frames per second.

    Raises:
        ValueError: Nothing is held out of this world, or a key is wrong.
    """
    if number < 1:
        raise ValueError(f"prompts={number}: ask for at least one.")
    settings = {"num_frames": num_frames, "image_size": (32, 32), "fps": fps, **world}
    data = ShapesDataset(**{**settings, "split": "unseen", "size": _ROWS})
    texts: set[str] = set()
    every = _combinations(data.world, num_frames, fps) if is_simple(data.world) else _drawn(data)
    fresh = (case for case in every if not (case.text in texts or texts.add(case.text)))
    return list(islice(fresh, number))


def is_simple(world: World) -> bool:
    """Say whether a world has single objects on straight paths over plain backgrounds only."""
    plain = (tuple(world.patterns), tuple(world.cameras), tuple(world.objects)) == (
        ("plain",),
        ("static",),
        (1,),
    )
    return plain and set(world.motions) <= set(DIRECTIONS) and len(world.speeds) == 1


def asked(case: Case, world: World) -> dict[str, str]:
    """Return by attribute what a case asks for, in words."""
    scene, things = case.scene, case.scene.things
    found = {
        name: ", ".join(getattr(thing, name) for thing in things) for name in ("shape", "color", "motion")
    }
    found["background"] = scene.background
    found["count"] = str(len(things))
    if len(world.speeds) > 1 and any(thing.motion in DIRECTIONS for thing in things):
        found["speed"] = ", ".join(thing.speed or "-" for thing in things)
    if len(world.cameras) > 1:
        found["camera"] = scene.camera
    return found


def answered(case: Case, reading: Reading, world: World) -> dict[str, str]:
    """Return by attribute what was seen of what a case asks for, in the words of `asked`; "?" is not sure.

    Objects are told apart by their colours. If a single object has another colour than asked, its other
    attributes count all the same.
    """
    things, places = case.scene.things, []
    for thing in things:
        same = [i for i, color in enumerate(reading.colors) if color == thing.color]
        alone = [0] if len(things) == 1 and reading.colors else []
        places.append(next(iter(same or alone), None))

    def of(values: tuple[Any, ...]) -> str:
        return ", ".join("?" if i is None or values[i] is None else str(values[i]) for i in places)

    found = {"shape": of(reading.shapes), "color": of(reading.colors), "motion": of(reading.motions)}
    found |= {"background": reading.background or "?", "camera": reading.camera or "?"}
    found["count"] = "?" if reading.count is None else str(reading.count)
    speeds = [None if i is None else reading.speeds[i] for i in places]
    words = [
        _word_of(speed, world) if thing.speed or thing.motion in DIRECTIONS else "-"
        for speed, thing in zip(speeds, things, strict=True)
    ]
    found["speed"] = ", ".join(words)
    return {name: found[name] for name in asked(case, world)}


def _word_of(speed: float | None, world: World) -> str:
    """Return the word of the nearest speed, by ratio."""
    if not speed:
        return "?"
    return (
        min(world.speeds, key=lambda word: max(speed / world.speeds[word], world.speeds[word] / speed)) or "-"
    )


def _combinations(world: World, num_frames: int, fps: float) -> Iterator[Case]:
    every = [
        (kind, background)
        for kind in world.kinds["unseen"]
        for background in world.backgrounds
        if background != kind[1]
    ]
    if not every:
        raise ValueError("world: nothing is held out of it, so there is nothing unseen to ask for.")
    every.sort(key=lambda pair: hashlib.blake2b(repr(pair).encode()).digest())
    place = Counter()  # one shape after the other, so that the first few ask for all
    turn = {pair: (place.update([pair[0][0]]) or place[pair[0][0]]) for pair in every}
    every.sort(key=turn.get)
    for number in count():
        kind, background = every[number % len(every)]
        draws = Draws(0, [number])
        place = draws.uniform("case", 0, (1, _NUMBERS))[0].double().tolist()
        scene = one_object(world, kind, background, place, num_frames, fps)
        words = draws.uniform("words", 0, (1, _NUMBERS))[0].double().tolist()
        yield Case(describe(scene, words if number >= len(every) else None), scene)


def _drawn(data: ShapesDataset) -> Iterator[Case]:
    for row in range(len(data)):
        yield Case(data.caption(row), data.scene(row))
