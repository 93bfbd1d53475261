"""VideoDataset: clips and images from a table, each as a sample of a batch."""

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from opensora.datasets.buckets import ClipIndex, hashed_bits
from opensora.datasets.manifest import read_manifest
from opensora.datasets.transforms import TRANSFORMS, temporal_indices
from opensora.datasets.video_io import IMAGE_FPS, ClipError, clip_fps, is_image, read_clip, read_image
from opensora.registry import DATASETS
from opensora.utils.logging import get_logger
from opensora.utils.random import Draws

_MOST_REPLACED = 0.01  # of the samples so far
_FIRST_SAMPLES = 100  # before them the share says nothing
_ATTEMPTS = 10  # files tried in the place of one
_STREAM = -5  # of `hashed_bits`; the samplers use -1 to -4


@DATASETS.register_module()
class VideoDataset(Dataset):
    """Clips and images of a table.

    A file that cannot be read is replaced by another of the same shape. Which one follows from the seed, the
    epoch and the row, so a resumed run reads the same. When more than one percent of the samples are
    replaced, the dataset stops.

    Args:
        data_path: Table, or folder of clips; see docs/data.md.
        num_frames: Frames per clip, when all have the same size; None with a `bucket_config`.
        frame_interval: Take every n-th frame.
        image_size: (height, width) in pixels, when all have the same size; None with a `bucket_config`.
        transform: "resize_crop" or "center"; see `opensora.datasets.transforms`.
        probe: Read sizes that the table lacks from the files.
        layout: How a folder is laid out: "captions", "classes" or "frames".
        columns: From our names of columns to the table's; None keeps its names.
        root: Folder that relative paths start at; None is where Python started.
        cache: Folder for what is kept of large tables and of probing; None keeps it in memory.
        check_files: Files that `check` looks for.
        seed: Seed of the run.

    Attributes:
        manifest: The table.
        replacements: For a clip, the rows that could stand in for it; None replaces nothing, so a file that
            cannot be read is an error.
        replaced: Files of this process that were replaced.

    Raises:
        FileNotFoundError: There is no such table.
        ValueError: An argument or the table is wrong.
    """

    def __init__(
        self,
        data_path: str | None,
        num_frames: int | None = None,
        frame_interval: int = 1,
        image_size: tuple[int, int] | None = None,
        transform: str = "resize_crop",
        probe: bool = False,
        layout: str = "captions",
        columns: Mapping[str, str] | None = None,
        root: str | None = None,
        cache: str | None = "cache/tables",
        check_files: int = 1000,
        seed: int = 0,
    ) -> None:
        if data_path is None:
            raise ValueError("dataset.data_path is None; give a table or a folder with --data-path.")
        if transform not in TRANSFORMS:
            raise ValueError(f"transform={transform!r}: use one of {', '.join(TRANSFORMS)}.")
        if frame_interval < 1:
            raise ValueError(f"frame_interval={frame_interval}: take every n-th frame, with n from 1.")
        if (num_frames is None) != (image_size is None):
            raise ValueError(
                f"num_frames={num_frames}, image_size={image_size}: give both, or neither and buckets."
            )
        if transform == "center" and image_size is not None and image_size[0] != image_size[1]:
            raise ValueError(f"image_size={image_size}: transform='center' makes squares; use 'resize_crop'.")
        self.manifest = read_manifest(
            data_path, probe, layout=layout, columns=columns, root=root, cache=cache
        )
        self.check_files = check_files
        self.num_frames = num_frames
        self.frame_interval = frame_interval
        self.image_size = image_size
        self.transform = transform
        self.seed = seed
        self.replacements: Callable[[ClipIndex], np.ndarray] | None = None
        self.samples = 0
        self.replaced: list[str] = []

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.manifest)

    def sizes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return length, height and width of each file. Each of shape [N]."""
        return self.manifest.columns

    def check(self) -> None:
        """Look at some files before a run starts; errors as for `Manifest.check_files`."""
        self.manifest.check_files(self.check_files)

    def __getitem__(self, clip: ClipIndex) -> dict[str, str | int | float | Tensor]:
        """Read a clip.

        Returns:
            The keys of a batch (`opensora.datasets`) for one sample, and `replaced`: 1 if it is another file.

        Raises:
            ClipError: The file cannot be read, and nothing can replace it.
            RuntimeError: Too many files could not be read.
        """
        self.samples += 1
        row, read = clip.row, self._try_read(clip, clip.row)
        if isinstance(read, ClipError):
            row, read = self._replace(clip, read)
        video, fps = read
        sample = {
            "video": video,
            "fps": fps,
            "num_frames": clip.num_frames,
            "height": clip.height,
            "width": clip.width,
            "sample": clip.row,  # of the row asked for: no two samples of an epoch share their random numbers
            "epoch": clip.epoch,
            "replaced": int(row != clip.row),
        }
        if self.manifest.text is not None:
            sample["text"] = self.manifest.text[row]
        if self.manifest.label is not None:
            sample["label"] = int(self.manifest.label[row])
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

    def _try_read(self, clip: ClipIndex, row: int) -> tuple[Tensor, float] | ClipError:
        try:
            return self._read(clip, row)
        except ClipError as error:
            return error

    def _read(self, clip: ClipIndex, row: int) -> tuple[Tensor, float]:
        """Return the video and its frames per second. Shape [C, T, H, W]."""
        path = self.manifest.path[row]
        transform = TRANSFORMS[self.transform]
        if is_image(path):
            if clip.num_frames != 1:
                raise ClipError(
                    f"{path}: an image as a clip of {clip.num_frames} frames; correct num_frames in the "
                    "table."
                )
            return transform(read_image(path), clip.height, clip.width, True), IMAGE_FPS
        frames = read_clip(path, self.frame_indices(clip, row))
        known = None if self.manifest.fps is None else float(self.manifest.fps[row])
        fps = clip_fps(path) if known is None or np.isnan(known) else known
        return transform(frames, clip.height, clip.width, False), fps / self.frame_interval

    def _replace(self, clip: ClipIndex, error: ClipError) -> tuple[int, tuple[Tensor, float]]:
        """Read another file in the place of one that cannot be read."""
        self._count(str(error))
        rows = stand_ins(self.seed, clip, self.replacements)
        for row in rows:
            read = self._try_read(clip, row)
            if not isinstance(read, ClipError):
                get_logger().warning("%s Row %d takes its place.", error, row)
                return row, read
        raise ClipError(f"{error} {len(rows)} rows could take its place, and none did.")

    def _count(self, message: str) -> None:
        self.replaced.append(message)
        if self.samples >= _FIRST_SAMPLES and len(self.replaced) > _MOST_REPLACED * self.samples:
            shown = "\n".join(f"  {text}" for text in dict.fromkeys(self.replaced[-10:]))
            raise RuntimeError(
                f"{len(self.replaced)} of {self.samples} samples could not be read, more than "
                f"{_MOST_REPLACED:.0%}. Mend or remove these files:\n{shown}"
            )


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
    order = np.argsort(hashed_bits(seed, clip.epoch, rows, _STREAM, clip.row), kind="stable")
    return rows[order[:_ATTEMPTS]].tolist()
