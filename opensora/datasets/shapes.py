"""A generated world as a dataset: clips of moving shapes, whose truth is known, from no file."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from opensora.datasets.buckets import ClipIndex
from opensora.datasets.captions import Captions
from opensora.datasets.columns import Strings
from opensora.datasets.manifest import Manifest
from opensora.datasets.shape_captions import STYLES, describe, describe_image
from opensora.datasets.shape_scene import Scene
from opensora.datasets.shape_world import WORLDS, World, draw_scene
from opensora.datasets.video_io import IMAGE_FPS
from opensora.registry import DATASETS
from opensora.utils.random import Draws

SPLITS = ("train", "unseen")

_VERSION = 1  # of scenes, pixels and captions: raise it when a row gives others than before
_NUMBERS = 96  # of a scene, and of a caption
_FLOW = 10.0  # motion score of an object that moves one side per second


@DATASETS.register_module()
class ShapesDataset(Dataset):
    """Clips of the generated world. Row n is always the same clip, whatever run asks for it.

    Use it in place of a table: no file is read. `scene(row)` is the truth about a clip. A shorter clip of a
    row is the beginning of the longer one; another size shows the same scene.

        dataset = dict(type="ShapesDataset", world="small", num_frames=9, image_size=(32, 32), size=6000)

    Args:
        world: "small": one of four shapes on a straight path through the centre over a plain background.
            "full": one or two of six shapes, more motions, patterns, speeds, and a camera.
        split: "train", or "unseen": the triples of shape, colour and motion that "train" never shows.
        size: Number of clips.
        num_frames: Frames per clip, when all have the same size; None with a `bucket_config`.
        image_size: (height, width) in pixels; None with a `bucket_config`.
        lengths: Frames of the clips from which buckets are filled, each equally likely; 1 is an image.
        sizes: Their sizes, (height, width) in pixels.
        fps: Frames per second, or several, each equally likely. The speed of objects is one per second.
        caption_style: "canonical" tells all alike, "varied" in changing words, "mixed" every other row in
            canonical ones.
        score_format: "words" or "numbers" appends the scores aes, flow and the camera's motion to captions;
            None appends none, and tells of a camera that moves in a sentence.
        score_dropout: Probability that a score is left out, each for itself.
        label: Parts of the scene that make a class number, of "shape", "color", "motion", "background"; None
            makes none. The class is that of the first object.
        shapes: Narrows the world; None takes the world's own. Names are in `shape_scene`.
        colors: As shapes.
        backgrounds: As shapes.
        patterns: As shapes.
        motions: As shapes.
        cameras: As shapes.
        speeds: As shapes: words of captions, "" for none, to sides per second.
        objects: As shapes: how many objects there may be.
        path: As shapes: "centred", "free" or "endless".
        radius: As shapes: smallest and largest, as part of the shorter side.
        held_out: As shapes: whether the split "unseen" is kept out of "train".
        world_seed: Names the clips; that of the run does not change them.
        seed: Seed of the run, for scores that are left out.

    Attributes:
        manifest: The table that a folder of these clips would have.
        world: The world.

    Raises:
        ValueError: An argument is wrong.
    """

    frame_interval = 1
    num_images = 0
    transform = None  # clips are drawn in the size that is asked for
    cuts_at_random = False

    def __init__(
        self,
        world: str = "small",
        split: str = "train",
        size: int = 6000,
        num_frames: int | None = None,
        image_size: tuple[int, int] | None = None,
        lengths: Sequence[int] = (1, 9, 17),
        sizes: Sequence[tuple[int, int]] = ((64, 64),),
        fps: float | Sequence[float] = 8.0,
        caption_style: str = "varied",
        score_format: str | None = None,
        score_dropout: float = 0.2,
        label: Sequence[str] | None = None,
        shapes: Sequence[str] | None = None,
        colors: Sequence[str] | None = None,
        backgrounds: Sequence[str] | None = None,
        patterns: Sequence[str] | None = None,
        motions: Sequence[str] | None = None,
        cameras: Sequence[str] | None = None,
        speeds: Mapping[str, float] | None = None,
        objects: Sequence[int] | None = None,
        path: str | None = None,
        radius: tuple[float, float] | None = None,
        held_out: bool | None = None,
        world_seed: int = 0,
        seed: int = 0,
    ) -> None:
        own = dict(shapes=shapes, colors=colors, backgrounds=backgrounds, patterns=patterns, motions=motions)
        own |= dict(cameras=cameras, speeds=speeds, objects=objects, path=path, radius=radius)
        own |= dict(held_out=held_out)
        for name, value, values in [
            ("world", world, WORLDS),
            ("split", split, SPLITS),
            ("caption_style", caption_style, STYLES),
        ]:
            if value not in values:
                raise ValueError(f"dataset.{name}={value!r}: use one of {', '.join(values)}.")
        if (num_frames is None) != (image_size is None):
            raise ValueError(
                f"num_frames={num_frames}, image_size={image_size}: give both, or neither and buckets."
            )
        rates = tuple(fps) if isinstance(fps, Sequence) else (fps,)
        if size < 1 or not rates or min(rates) <= 0 or not lengths or min(lengths) < 1 or not sizes:
            raise ValueError(
                f"dataset.size={size}, fps={fps}, lengths={lengths}, sizes={sizes}: none may be empty or 0."
            )
        self.world: World = replace(WORLDS[world], **{k: v for k, v in own.items() if v is not None})
        if not self.world.kinds[split]:
            raise ValueError(f"dataset.split={split!r}: this world has no such clips; use another split.")
        self.split, self.seed, self.world_seed = split, seed, world_seed
        self.num_frames, self.image_size = num_frames, None if image_size is None else tuple(image_size)
        self._style, self._label = caption_style, _checked_label(label)
        self._tells_camera = score_format is None
        fixed = num_frames is not None
        self._rates = rates
        self._lengths = (num_frames,) if fixed else tuple(lengths)
        self._sizes = (self.image_size,) if fixed else tuple(map(tuple, sizes))
        self.manifest = self._table(size, score_format is not None)
        self.captions = Captions(self.manifest, seed, False, score_format, score_dropout)

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.manifest)

    def sizes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return length, height and width of each clip. Each of shape [N]."""
        return self.manifest.columns

    def frame_indices(self, clip: ClipIndex) -> list[int]:
        """Return the frames that a clip takes: always the first ones."""
        return list(range(clip.num_frames))

    def describe_file(self, row: int) -> dict[str, Any]:
        """Return what stands for the file of a row where features are made: a hash of what is drawn."""
        return {"hash": _hash(_VERSION, asdict(self.scene(row))), "bytes": 0, "mtime_ns": 0}

    def scene(self, row: int) -> Scene:
        """Return the truth about a clip."""
        frames = int(self.manifest.num_frames[row])
        fps = self._rates[int(self._draw("rate", row, 1)[0] * len(self._rates))]
        return draw_scene(self.world, self._draw("scene", row, _NUMBERS), frames, fps, self.split)

    def __getitem__(self, clip: ClipIndex) -> dict[str, Any]:
        """Draw a clip.

        Returns:
            The keys of a batch (`opensora.datasets`) for one sample, and as from a table `replaced` and
            `failures`, which never happen.
        """
        scene = self.scene(clip.row)
        sample = {
            "video": to_video(scene.draw(*clip[1:4])),
            "fps": IMAGE_FPS if clip.num_frames == 1 else float(scene.fps),
            "num_frames": clip.num_frames,
            "height": clip.height,
            "width": clip.width,
            "sample": clip.row,
            "epoch": clip.epoch,
            "text": self.captions(clip.row, clip.row, clip.epoch),
            "replaced": 0,
            "failures": [],
        }
        if self.manifest.label is not None:
            sample["label"] = int(self.manifest.label[clip.row])
        return sample

    def caption(self, row: int) -> str:
        """Return the caption of a row, without scores."""
        scene = self.scene(row)
        canonical = self._style == "canonical" or (self._style == "mixed" and row % 2 == 0)
        numbers = None if canonical else self._draw("words", row, _NUMBERS)
        if scene.num_frames == 1:
            return describe_image(scene, numbers)
        text = describe(scene, numbers)
        moves = self._tells_camera and scene.camera != "static"
        return f"{text}, the camera {_camera_words(scene.camera)}" if moves else text

    def _draw(self, name: str, row: int, count: int) -> list[float]:
        draws = Draws(self.world_seed, [row]).other(self.split)
        return draws.uniform(name, 0, (1, count))[0].double().tolist()

    def _table(self, count: int, scores: bool) -> Manifest:
        u = Draws(self.world_seed, [0]).uniform("sizes", 0, (1, 2 * count))[0].reshape(count, 2).numpy()
        frames = np.array(self._lengths, dtype=np.int32)[(u[:, 0] * len(self._lengths)).astype(int)]
        size = np.array(self._sizes, dtype=np.int32)[(u[:, 1] * len(self._sizes)).astype(int)]
        settings = (_VERSION, asdict(self.world), self.world_seed, self.split, self._rates, self._style)
        table = Manifest(
            path=_Rows(count, _name),
            num_frames=frames,
            height=size[:, 0],
            width=size[:, 1],
            text=_Rows(count, self.caption),
            fingerprint=_hash(*settings, self._label, frames.tolist(), size.tolist()),
        )
        self.manifest = table
        if scores or self._label is not None:
            scenes = [self.scene(row) for row in range(count)]
            if scores:
                speed = [max(np.hypot(*thing.velocity) for thing in scene.things) for scene in scenes]
                table.extra["flow"] = Strings([f"{_FLOW * value:.2f}" for value in speed])
                table.extra["cmotion"] = Strings([scene.camera for scene in scenes])
            if self._label is not None:
                table.label = np.array([self._class(scene) for scene in scenes], dtype=np.int64)
        return table

    def _class(self, scene: Scene) -> int:
        number = 0
        for part in self._label:
            names = list(getattr(self.world, f"{part}s"))
            name = scene.background if part == "background" else getattr(scene.things[0], part)
            number = number * len(names) + names.index(name)
        return number


class _Rows(Sequence[str]):
    """A column that is made row by row when it is asked for."""

    def __init__(self, count: int, make: Callable[[int], str]) -> None:
        self.count, self.make = count, make

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> str:
        if not 0 <= row < self.count:
            raise IndexError(f"row {row}: the world has rows 0 to {self.count - 1}.")
        return self.make(row)


def _name(row: int) -> str:
    return f"clip {row} of the generated world"


def to_video(frames: np.ndarray) -> Tensor:
    """Turn frames [T, H, W, 3] in [0, 1] into a video in [-1, 1]. Shape [3, T, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(3, 0, 1, 2))) * 2 - 1


def _camera_words(camera: str) -> str:
    move, way = camera.split()
    return f"{move}s {way}"


def _checked_label(label: Sequence[str] | None) -> tuple[str, ...] | None:
    parts = ("shape", "color", "motion", "background")
    if label is not None and (isinstance(label, str) or not label or not set(label) <= set(parts)):
        raise ValueError(f"dataset.label={label!r}: None, or a list of some of {', '.join(parts)}.")
    return None if label is None else tuple(label)


def _hash(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
