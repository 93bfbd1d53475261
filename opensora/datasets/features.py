"""Cached features: latents and text features that were computed once, instead of clips.

A folder of features holds `features.json` (what made them), shards `latents-00000.safetensors` and
`text-00000.safetensors`, and `index.safetensors`, which says where each clip of the table lies. A tensor's
name is the hash of everything that it depends on. `scripts/extract_features.py` writes the folder.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from opensora.datasets.buckets import ClipIndex, hashed_uniform
from opensora.datasets.feature_files import describe_file, is_unchanged, stamp_if_there
from opensora.datasets.feature_plan import not_extracted
from opensora.datasets.planner import Planner
from opensora.datasets.reading import ClipError
from opensora.datasets.video import stand_ins
from opensora.registry import DATASETS

# Raise it when a reader, a transform or an encoder gives other numbers than before for the same file and
# weights. tests/regression/test_features.py notices.
FEATURE_VERSION = 1
HEADER, INDEX = "features.json", "index.safetensors"
LATENTS, TEXT = "latents", "text"
ENTRIES = "entries"  # tensor of a shard of latents: JSON that says what each clip is
_OPEN_SHARDS = 64  # at once, in each process
_LOOKED_AT = 200  # source files that are compared with what was extracted, before a run
_REMEDY = "run scripts/extract_features.py again: it makes what is missing."


def shard_path(folder: Path, kind: str, number: int) -> Path:
    """Return the file of a shard; `kind` is "latents" or "text"."""
    return folder / f"{kind}-{number:05d}.safetensors"


def content_key(*parts: Any) -> str:
    """Return the hash of JSON values. 32 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def open_shard(path: Path) -> Any:
    """Open a safetensors file of features.

    Raises:
        ClipError: It is missing, damaged or cut short.
    """
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise ClipError(f"{path}: this shard is missing; {_REMEDY}") from None
    except (SafetensorError, OSError) as error:
        raise ClipError(f"{path}: damaged or cut short ({error}); delete it and {_REMEDY}") from error


def is_whole(path: Path) -> bool:
    """Say whether a shard is there, from end to end."""
    try:
        open_shard(path)
    except ClipError:
        return False
    return True


def holds(path: Path, keys: Sequence[str]) -> bool:
    """Say whether a shard is there, from end to end, with tensors of these names and no others."""
    return is_whole(path) and set(open_shard(path).keys()) == set(keys)


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Return what a shard of latents holds, clip by clip: `row`, `path`, `key`, `frames`, `fps`, `file`.

    A clip that could not be read has `error` instead of key, frames and fps.

    Raises:
        ClipError: The shard is missing, damaged or cut short.
    """
    return json.loads(open_shard(path).get_tensor(ENTRIES).numpy().tobytes())


def join_entries(
    folder: Path, shards: Sequence[Sequence[int]], count: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return where each clip's moments are, and why some could not be read.

    Args:
        folder: Folder of the features.
        shards: Numbers of the clips in each shard of latents.
        count: Clips in all.

    Returns:
        Columns of the index: `latents_shard`, -1 for a clip that could not be read; `latents_key`; `fps`.
    """
    where, keys = np.full(count, -1, dtype=np.int32), np.zeros((count, 16), dtype=np.uint8)
    fps, failed = np.zeros(count, dtype=np.float32), []
    for number, clips in enumerate(shards):
        for clip, entry in zip(clips, read_entries(shard_path(folder, LATENTS, number)), strict=True):
            if "error" in entry:
                failed.append(entry["error"])
                continue
            where[clip], fps[clip] = number, entry["fps"]
            keys[clip] = np.frombuffer(bytes.fromhex(entry["key"]), dtype=np.uint8)
    return {"latents_shard": where, "latents_key": keys, "fps": fps}, failed


class ClipSource(Dataset):
    """The clips to extract, by number, each with what names its content.

    Args:
        dataset: A dataset of clips. One that makes them itself has `describe_file(row)`.
        clips: Fields of `ClipIndex`. int64, shape [N, 5].
    """

    def __init__(self, dataset: Any, clips: np.ndarray) -> None:
        self.dataset, self.clips = dataset, clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return the sample of a clip with its `path`, `frames` and `file`; or `path`, `error`, `file`."""
        clip = ClipIndex(*self.clips[number].tolist())
        path = self.dataset.manifest.path[clip.row]
        try:
            sample = self.dataset[clip]
            frames = self.dataset.frame_indices(clip)
            made = hasattr(self.dataset, "describe_file")
            file = self.dataset.describe_file(clip.row) if made else describe_file(path)
            return {**sample, "path": path, "frames": frames, "file": file}
        except (ClipError, OSError) as error:
            return {"path": path, "error": str(error), "file": stamp_if_there(path)}


@dataclass(frozen=True)
class VariantDraws:
    """Keep draws of epochs that repeat: epoch e has those of epoch e modulo `variants`.

    Args:
        seed: Seed of the extraction.
        variants: How many epochs were extracted.
    """

    seed: int
    variants: int

    def __call__(self, seed: int, epoch: int, rows: np.ndarray, stream: int, step: int) -> np.ndarray:
        """Return one uniform number per row; the run's own seed does not count."""
        return hashed_uniform(self.seed, epoch % self.variants, rows, stream, step)


@dataclass(frozen=True)
class SourceTable:
    """What is kept of the table that features were made from.

    Args:
        fingerprint: Hash of the table.
        columns: Length, height and width of each file. int32, each of shape [N].
    """

    fingerprint: str
    columns: tuple[np.ndarray, np.ndarray, np.ndarray]

    @property
    def path(self) -> Sequence[str]:
        """Names of the files, as far as they matter here."""
        return _Names(len(self.columns[0]))


class _Names(Sequence):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> str:
        return f"the file of row {row}"


@DATASETS.register_module()
class FeatureDataset(Dataset):
    """Latents and text features of the clips that training asks for.

    It plans like the table it was made from, so an epoch has the clips, batches and order of a run on the
    files. Of `variants` extracted epochs, epoch e takes number e modulo `variants`: the crops of time and the
    rows that are kept repeat; noise, times, drops and samples of the posterior do not.

    Args:
        data_path: Folder that scripts/extract_features.py wrote.
        seed: Seed of the run.

    Attributes:
        header: What made the features.
        manifest: What is kept of the table.
        frame_interval: As extracted.
        keep_draws: Makes the keep draws of the run's buckets.
        replacements: For a clip, the rows that could stand in for it.

    Raises:
        FileNotFoundError: There are no features, or the extraction has not finished.
        ValueError: They are of another version.
    """

    def __init__(self, data_path: str | None, seed: int = 0) -> None:
        if data_path is None:
            raise ValueError(
                "dataset.data_path is None; give the folder that scripts/extract_features.py wrote, with "
                "--data-path."
            )
        self.folder, self.seed = Path(data_path), seed
        self.header = read_header(self.folder)
        self._index: dict[str, Tensor] | None = None
        self._shards: OrderedDict[Path, Any] = OrderedDict()
        plan = self.header["plan"]
        self.variants, self.frame_interval = plan["variants"], plan["frame_interval"]
        self.num_frames, self.image_size = plan["num_frames"], plan["image_size"]
        self.keep_draws = VariantDraws(plan["seed"], self.variants)
        columns = tuple(self.index[name].numpy() for name in ("num_frames", "height", "width"))
        self.manifest = SourceTable(plan["table"], columns)
        self.replacements: Callable[[ClipIndex], np.ndarray] | None = None

    def __len__(self) -> int:
        """Number of rows of the table."""
        return len(self.manifest.columns[0])

    def sizes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return length, height and width of each file. Each of shape [N]."""
        return self.manifest.columns

    @property
    def index(self) -> dict[str, Tensor]:
        """The columns of `index.safetensors`, mapped from the file."""
        if self._index is None:
            file = open_shard(self.folder / INDEX)
            self._index = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return self._index

    def choose_buckets(
        self, bucket_config: Mapping[str, Mapping[int, Any]] | None, batch_size: int | None
    ) -> tuple[Mapping[str, Mapping[int, Any]] | None, int | None]:
        """Return the `bucket_config` and `batch_size` of a run on these features.

        Args:
            bucket_config: The run's; None takes that of the extraction. Only its batch sizes may be others.
            batch_size: Likewise, for features of one size.

        Raises:
            ValueError: A bucket or probability is another.
        """
        plan = self.header["plan"]
        if plan["bucket_config"] is None:
            return bucket_config, batch_size or plan["batch_size"]
        made = {name: {int(n): e for n, e in part.items()} for name, part in plan["bucket_config"].items()}
        if bucket_config is None:
            return made, batch_size
        wanted, there = _entries(bucket_config), _entries(made)
        for where in {**there, **wanted}:
            if wanted.get(where) != there.get(where):
                raise ValueError(
                    f"bucket_config[{where[0]!r}][{where[1]}]: probability {wanted.get(where)} here, "
                    f"{there.get(where)} in {self.folder} (None is no such entry). Features are of the "
                    "buckets that they were made with, and only batch sizes may change: set bucket_config to "
                    "None, or extract anew."
                )
        return bucket_config, batch_size

    def check_planner(self, planner: Planner) -> None:
        """Refuse plans that ask for clips that were not extracted, before the first step.

        Args:
            planner: Plans the run, with buckets of `choose_buckets`.

        Raises:
            ValueError: A rule of the plan is another, or clips go to other sizes.
        """
        plan = self.header["plan"]
        rules = {"bucket_rule": planner.buckets.rule, "starved": planner.rules.starved}
        for name, value in rules.items():
            if plan["bucket_config"] is not None and value != plan[name]:
                raise ValueError(
                    f"plan.{name}={value!r}: {self.folder} was extracted with {plan[name]!r}, and clips have "
                    "other sizes so; set that, or extract anew, into another folder."
                )
        table = {name: self.index[name].numpy() for name in ("clip", "shapes")}
        missing = not_extracted(planner, table, self.variants)
        if missing:
            parts = [
                f"{frames} x {height} x {width} ({len(rows)} rows, such as row {rows[0]})"
                for (frames, height, width), rows in list(missing.items())[:5]
            ]
            raise ValueError(
                f"bucket_config: with these batch sizes clips go to sizes that {self.folder} does not have "
                f"them in: {', '.join(parts)}. Sizes that cannot fill a batch give their clips to others, "
                "and which these are depends on the batch sizes. Take those of the extraction "
                "(bucket_config=None does), or extract again with this config, into another folder."
            )

    def __getitem__(self, clip: ClipIndex) -> dict[str, Any]:
        """Read the features of a clip.

        Returns:
            The keys of a batch (`opensora.datasets`) for one sample, with `moments` [2, Z, T, H, W] or
            `latents` [Z, T, H, W] instead of `video`, and `text_features` [L, F].

        Raises:
            ClipError: A shard is missing or damaged, or the clip was not extracted.
        """
        row, entry, failed = clip.row, self._entry(clip, clip.row), []
        others = None
        while self._failed(entry):
            failed.append((row, f"{self.manifest.path[row]} could not be read when features were extracted"))
            others = stand_ins(self.seed, clip, self.replacements) if others is None else others
            if not others:
                raise ClipError(
                    f"row {clip.row}: its file could not be read, and {len(failed) - 1} rows that could take "
                    f"its place could not either. Mend the files and {_REMEDY}"
                )
            row = others.pop(0)
            entry = self._entry(clip, row)
        index = self.index
        sample: dict[str, Any] = {
            self.header["content"]: self._tensor(LATENTS, entry),
            "fps": float(index["fps"][entry]),
            "num_frames": clip.num_frames,
            "height": clip.height,
            "width": clip.width,
            "sample": clip.row,
            "epoch": clip.epoch,
            "replaced": int(row != clip.row),
            "failures": failed,
        }
        if "label" in index:
            sample["label"] = int(index["label"][row])
        if "text_key" in index:
            sample["text_features"] = self._tensor(TEXT, int(index["text"][row]))
        return sample

    def check(self) -> None:
        """Compare some of the source files, as far as they are here, with what was extracted.

        Raises:
            ValueError: One has changed since.
        """
        shards = self.header["shards"][LATENTS]
        for number in np.unique(np.linspace(0, shards - 1, min(shards, 8)).astype(int)).tolist():
            for entry in read_entries(shard_path(self.folder, LATENTS, number))[: _LOOKED_AT // 8]:
                if "error" in entry or not Path(entry["path"]).exists():
                    continue
                if not is_unchanged(entry["path"], entry["file"]):
                    raise ValueError(
                        f"{entry['path']}: it has changed since its features were extracted (row "
                        f"{entry['row']}); {_REMEDY}"
                    )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what each process maps for itself."""
        return {**self.__dict__, "_index": None, "_shards": OrderedDict()}

    def _entry(self, clip: ClipIndex, row: int) -> int:
        """Return the number of the entry of a row in a clip's size and epoch.

        A row that was carried over has the size of the epoch before; then that epoch's entry counts.
        """
        index = self.index
        shapes = index["shapes"].tolist()
        size = [clip.num_frames, clip.height, clip.width]
        if size in shapes:
            base = (row * len(shapes) + shapes.index(size)) * self.variants
            for back in range(self.variants):
                name = base + (clip.epoch - back) % self.variants
                place = int(torch.searchsorted(index["clip"], name))
                if place < len(index["clip"]) and int(index["clip"][place]) == name:
                    return int(index["entry"][place])
        raise ClipError(
            f"row {row} as {clip.num_frames} x {clip.height} x {clip.width}: not in {self.folder}. Its "
            "features were made with other buckets or another table; extract them with this config."
        )

    def _failed(self, entry: int) -> bool:
        return int(self.index["latents_shard"][entry]) < 0

    def _tensor(self, kind: str, number: int) -> Tensor:
        path = shard_path(self.folder, kind, int(self.index[f"{kind}_shard"][number]))
        key = self.index[f"{kind}_key"][number].numpy().tobytes().hex()
        if path not in self._shards:
            self._shards[path] = open_shard(path)
            while len(self._shards) > _OPEN_SHARDS:
                self._shards.popitem(last=False)
        self._shards.move_to_end(path)
        try:
            return self._shards[path].get_tensor(key)
        except SafetensorError as error:
            raise ClipError(f"{path}: lacks {key} ({error}); delete this file and {_REMEDY}") from error


def read_header(folder: Path) -> dict[str, Any]:
    """Read what made the features of a folder.

    Raises:
        FileNotFoundError: There are no features, or the extraction has not finished.
        ValueError: They are of another version of this program.
    """
    if not (folder / HEADER).is_file():
        raise FileNotFoundError(
            f"{folder}: no {HEADER}; --data-path names a folder that scripts/extract_features.py wrote."
        )
    header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
    if header["feature_version"] != FEATURE_VERSION:
        raise ValueError(
            f"{folder}: features of version {header['feature_version']}, and encoders now give those of "
            f"version {FEATURE_VERSION}; extract them anew, into another folder."
        )
    if not (folder / INDEX).is_file():
        done = len(list(folder.glob(f"{LATENTS}-*.safetensors")))
        raise FileNotFoundError(
            f"{folder}: the extraction has not finished ({done} of {header['shards'][LATENTS]} shards of "
            f"latents are there); {_REMEDY}"
        )
    return header


def _entries(bucket_config: Mapping[str, Mapping[int, Any]]) -> dict[tuple[str, int], Any]:
    """Return the probability of each bucket, as JSON holds it."""
    return {
        (name, frames): list(entry[0]) if isinstance(entry[0], tuple | list) else entry[0]
        for name, lengths in bucket_config.items()
        for frames, entry in lengths.items()
    }
