"""VideoDataset: clips and images from a table, each as a sample of a batch."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from opensora.datasets.buckets import MIN_AREA, ClipIndex, hashed_bits
from opensora.datasets.captions import Captions
from opensora.datasets.decoding import import_torchcodec
from opensora.datasets.manifest import read_manifest
from opensora.datasets.quarantine import read_quarantine
from opensora.datasets.reading import ClipError, ReadOptions
from opensora.datasets.transforms import TRANSFORMS, Cut, apply_cut, flip, plan_cut, temporal_indices
from opensora.datasets.video_io import IMAGE_FPS, clip_fps, is_image, read_clip, read_image
from opensora.registry import DATASETS
from opensora.utils.random import Draws

SCALINGS = ("torch", "swscale")

_ATTEMPTS = 10  # files tried in the place of one
_DRAWN = 16  # images from which one is taken
_REPLACING, _IMAGES = -5, -6  # streams of `hashed_bits`; the planner uses -1 to -4


@DATASETS.register_module()
class VideoDataset(Dataset):
    """Clips and images of a table.

    A file that cannot be read is replaced by another of the same shape. Which one follows from the seed, the
    epoch and the row, so a resumed run reads the same.

    Args:
        data_path: Table, or folder of clips; see docs/data.md.
        num_frames: Frames per clip, when all have the same size; None with a `bucket_config`.
        frame_interval: Take every n-th frame.
        image_size: (height, width) in pixels, when all have the same size; None with a `bucket_config`.
        transform: "resize_crop", "center", "random_crop" or "rand_size_crop"; see
            `opensora.datasets.transforms.plan_cut`.
        flip: Probability that a clip is mirrored left to right, in [0, 1].
        num_images: Images behind each clip of more than one frame, drawn from the table's images.
        reader: "pyav", or "torchcodec", which must be installed.
        scaling: "torch" scales full frames as the published training did, "swscale" lets FFmpeg scale them,
            with a low-pass filter.
        timeout_s: Seconds that one file may take.
        retries: How often a file is read again after an error that may pass.
        probe: Read sizes that the table lacks from the files.
        layout: How a folder is laid out: "captions", "classes" or "frames".
        columns: From our names of columns to the table's; None keeps its names.
        root: Folder that relative paths start at; None is where Python started.
        cache: Folder for what is kept of large tables and of probing; None keeps it in memory.
        check_files: Files that `check` looks for.
        quarantined: A run's quarantine.jsonl: what it lists is not tried, from the epoch on that it says.
        clean_captions: Clean captions, as prompts of released weights are.
        score_format: Append the scores of the columns aes, flow and cmotion to captions, as "words" or
            "numbers"; None appends none.
        score_dropout: Probability that a score is left out, each for itself.
        seed: Seed of the run.

    Attributes:
        manifest: The table.
        replacements: For a clip, the rows that could stand in for it; None replaces nothing, so a file that
            cannot be read is an error.
        unreadable: Reasons by row: files that are not tried.
        reading: What each worker reads, float64 [workers, 3]: the row (-1 for none), since when, and the
            worker's process. None keeps no account.

    Raises:
        FileNotFoundError: There is no such table.
        ImportError: The reader is not installed.
        ValueError: An argument or the table is wrong.
    """

    def __init__(
        self,
        data_path: str | None,
        num_frames: int | None = None,
        frame_interval: int = 1,
        image_size: tuple[int, int] | None = None,
        transform: str = "resize_crop",
        flip: float = 0.0,
        num_images: int = 0,
        reader: str = "pyav",
        scaling: str = "torch",
        timeout_s: float = 60.0,
        retries: int = 2,
        probe: bool = False,
        layout: str = "captions",
        columns: Mapping[str, str] | None = None,
        root: str | None = None,
        cache: str | None = "cache/tables",
        check_files: int = 1000,
        quarantined: str | None = None,
        clean_captions: bool = False,
        score_format: str | None = None,
        score_dropout: float = 0.2,
        seed: int = 0,
    ) -> None:
        if data_path is None:
            raise ValueError("dataset.data_path is None; give a table or a folder with --data-path.")
        if (Path(data_path) / "features.json").is_file():
            raise ValueError(
                f"data_path={str(data_path)!r} is a folder of features: set dataset to "
                "dict(type='FeatureDataset', data_path=...)."
            )
        if frame_interval < 1:
            raise ValueError(f"frame_interval={frame_interval}: take every n-th frame, with n from 1.")
        if (num_frames is None) != (image_size is None):
            raise ValueError(
                f"num_frames={num_frames}, image_size={image_size}: give both, or neither and buckets."
            )
        self.options = ReadOptions(reader, timeout_s, retries)
        _check_pixels(transform, image_size, flip, reader, scaling)
        self.manifest = read_manifest(
            data_path, probe, layout=layout, columns=columns, root=root, cache=cache
        )
        self.captions = Captions(self.manifest, seed, clean_captions, score_format, score_dropout)
        self.check_files = check_files
        self.num_frames = num_frames
        self.frame_interval = frame_interval
        self.image_size = image_size
        self.transform, self.flip, self.scaling = transform, flip, scaling
        self.num_images = num_images
        self.seed = seed
        self.replacements: Callable[[ClipIndex], np.ndarray] | None = None
        self.unreadable: dict[int, str] = {}
        lines = [] if quarantined is None else read_quarantine(quarantined)
        self._quarantined = {line["row"]: (line["epoch"], line["reason"]) for line in lines}
        self.reading: Tensor | None = None
        self._images: np.ndarray | None = None
        if num_images < 0 or (num_images and not (self.sizes()[0] == 1).any()):
            raise ValueError(
                f"num_images={num_images}: it takes images from the table, and there are "
                f"{int((self.sizes()[0] == 1).sum())} (num_frames is 1); add some, or use 0."
            )

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.manifest)

    def sizes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return length, height and width of each file. Each of shape [N]."""
        return self.manifest.columns

    @property
    def cuts_at_random(self) -> bool:
        """Whether the pixels of the same frames differ from epoch to epoch."""
        return self.transform.startswith("rand") or 0 < self.flip < 1

    def check(self) -> None:
        """Look at some files before a run starts; errors as for `Manifest.check_files`."""
        self.manifest.check_files(self.check_files)

    def __getitem__(self, clip: ClipIndex) -> dict[str, Any]:
        """Read a clip.

        Returns:
            The keys of a batch (`opensora.datasets`) for one sample; `replaced`, how many of its files stand
            for others; and `failures`, the row and the reason of each file that could not be read.

        Raises:
            ClipError: The file cannot be read, and nothing can replace it.
        """
        failures: list[tuple[int, str]] = []
        row, (video, fps) = self._first_readable(
            clip, lambda: stand_ins(self.seed, clip, self.replacements), failures
        )
        sample = {
            "video": video,
            "fps": fps,
            "num_frames": clip.num_frames,
            "height": video.shape[2],
            "width": video.shape[3],
            "sample": clip.row,  # of the row asked for: no two samples of an epoch share their random numbers
            "epoch": clip.epoch,
            "replaced": int(row != clip.row),
            "failures": failures,
        }
        if self.manifest.text is not None:
            sample["text"] = self.captions(row, clip.row, clip.epoch)
        if self.manifest.label is not None:
            sample["label"] = int(self.manifest.label[row])
        if self.num_images and clip.num_frames > 1:
            self._add_images(sample, clip)
        return sample

    def frame_indices(self, clip: ClipIndex, row: int | None = None) -> list[int]:
        """Return the frames that a clip takes: a random start, by seed, epoch and the row asked for.

        Args:
            clip: The clip.
            row: Row of the file that is read instead of the clip's own.
        """
        total = int(self.manifest.num_frames[clip.row if row is None else row])
        u = Draws(self.seed, [clip.row], clip.epoch).uniform("crop_start", 0, (1,)).item()
        return temporal_indices(total, clip.num_frames, self.frame_interval, u)

    def _add_images(self, sample: dict[str, Any], clip: ClipIndex) -> None:
        """Add independent images of the clip's size, with their captions."""
        size, pictures, captions = sample["video"].shape[2:], [], []
        for place in range(self.num_images):
            numbers = range(place, (_ATTEMPTS + 1) * self.num_images, self.num_images)
            rows = [self._draw_image(clip, number, *size) for number in numbers]
            one = ClipIndex(rows[0], 1, *size, clip.epoch)
            row, (picture, _) = self._first_readable(one, lambda rows=rows: rows[1:], sample["failures"])
            sample["replaced"] += int(row != one.row)
            pictures.append(picture)
            captions.append(
                None if self.manifest.text is None else self.captions(row, clip.row, clip.epoch, place + 1)
            )
        sample["images"] = torch.cat(pictures, dim=1)  # [C, n, H, W]
        if self.manifest.text is not None:
            sample["image_text"] = captions

    def _draw_image(self, clip: ClipIndex, number: int, height: int, width: int) -> int:
        """Draw a row with an image: of a few, the first that is large enough, or the largest."""
        lengths, heights, widths = self.sizes()
        if self._images is None:
            self._images = np.flatnonzero(lengths == 1)
        names = np.arange(_DRAWN) + _DRAWN * number
        bits = hashed_bits(self.seed, clip.epoch, names, _IMAGES, clip.row)
        rows = self._images[(bits % np.uint64(len(self._images))).astype(np.int64)]
        area = heights[rows].astype(np.int64) * widths[rows]
        return int(rows[np.argmax(np.minimum(area, MIN_AREA * height * width))])

    def _first_readable(
        self, clip: ClipIndex, others: Callable[[], list[int]], failures: list[tuple[int, str]]
    ) -> tuple[int, tuple[Tensor, float]]:
        """Read a clip's row, or the first of the others that can be read."""
        try:
            return clip.row, self._watched(clip, clip.row)
        except ClipError as error:
            failures.append((clip.row, str(error)))
        rows = others()
        for row in rows:
            try:
                return row, self._watched(clip, row)
            except ClipError as error:
                failures.append((row, str(error)))
        raise ClipError(f"{failures[-1 - len(rows)][1]} {len(rows)} rows could take its place, and none did.")

    def _watched(self, clip: ClipIndex, row: int) -> tuple[Tensor, float]:
        """Read a row, and keep account of it for who waits."""
        if row in self.unreadable:
            raise ClipError(self.unreadable[row])
        if row in self._quarantined and clip.epoch >= self._quarantined[row][0]:
            raise ClipError(self._quarantined[row][1])
        worker = get_worker_info()
        if worker is None or self.reading is None:
            return self._read(clip, row)
        self.reading[worker.id] = torch.tensor([row, time.monotonic(), os.getpid()], dtype=torch.float64)
        try:
            return self._read(clip, row)
        finally:
            self.reading[worker.id, 0] = -1

    def _read(self, clip: ClipIndex, row: int) -> tuple[Tensor, float]:
        """Return the video and its frames per second. Shape [C, T, H, W]."""
        path, draws = self.manifest.path[row], Draws(self.seed, [clip.row], clip.epoch)
        image, u = is_image(path), draws.uniform("crop", 0, (1, 4))[0].tolist()
        cuts: list[Cut] = []

        def cut(rows: int, columns: int) -> tuple[int, int]:
            cuts[:] = [plan_cut(self.transform, (rows, columns), clip.height, clip.width, image, u)]
            return cuts[0].scaled

        if image:
            if clip.num_frames != 1:
                raise ClipError(
                    f"{path}: an image as a clip of {clip.num_frames} frames; correct num_frames in the "
                    "table."
                )
            frames, fps = read_image(path, self.options), IMAGE_FPS
        else:
            scale = cut if self.scaling == "swscale" else None
            frames = read_clip(path, self.frame_indices(clip, row), self.options, scale)
            known = None if self.manifest.fps is None else float(self.manifest.fps[row])
            fps = clip_fps(path, self.options) if known is None or np.isnan(known) else known
            fps /= self.frame_interval
        if not cuts:
            cut(*frames.shape[1:3])
        video = apply_cut(frames, cuts[0], image, halve=self.transform == "center")
        return flip(video) if draws.uniform("flip", 0, (1,)).item() < self.flip else video, fps


def stand_ins(
    seed: int, clip: ClipIndex, replacements: Callable[[ClipIndex], np.ndarray] | None
) -> list[int]:
    """Return the rows to try, in order, in the place of a clip that cannot be read.

    Args:
        seed: Seed of the run.
        clip: The clip.
        replacements: Gives the rows of the clip's shape; None has none.
    """
    rows = np.zeros(0, dtype=np.int64) if replacements is None else replacements(clip)
    rows = rows[rows != clip.row]
    order = np.argsort(hashed_bits(seed, clip.epoch, rows, _REPLACING, clip.row), kind="stable")
    return rows[order[:_ATTEMPTS]].tolist()


def _check_pixels(
    transform: str, image_size: tuple[int, int] | None, flip: float, reader: str, scaling: str
) -> None:
    """Check what can be wrong before a file is read."""
    if transform not in TRANSFORMS:
        raise ValueError(f"transform={transform!r}: use one of {', '.join(TRANSFORMS)}.")
    if image_size is not None:
        plan_cut(transform, (64, 64), *image_size)
    elif transform == "rand_size_crop":
        raise ValueError(
            "transform='rand_size_crop' draws its sizes: set image_size=(smallest, largest side)."
        )
    if not 0 <= flip <= 1:
        raise ValueError(f"flip={flip}: a probability is from 0 to 1.")
    if scaling not in SCALINGS:
        raise ValueError(f"scaling={scaling!r}: use one of {', '.join(SCALINGS)}.")
    if reader == "torchcodec":
        if scaling == "swscale":
            raise ValueError("scaling='swscale' needs reader='pyav'; use one of them, or scaling='torch'.")
        import_torchcodec()
