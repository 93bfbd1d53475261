"""Write latents and text features of clips to files, so that training need not compute them.

    python scripts/extract_features.py CONFIG --data-path TABLE --save-dir FOLDER
    torchrun --nproc_per_node 8 scripts/extract_features.py CONFIG --data-path TABLE --save-dir FOLDER

CONFIG is that of the training; keys of configs/_base_/extraction.py are added. The same command again goes on
where it was stopped. --dry-run says how much there is to do, and how large it gets.
"""

import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from opensora.acceleration.parallel import all_equal, barrier, init_distributed, parallel_state, shut_down
from opensora.datasets.buckets import ClipIndex
from opensora.datasets.feature_files import why_stale
from opensora.datasets.feature_plan import pack, plan_features, shorten
from opensora.datasets.features import (
    ENTRIES,
    FEATURE_VERSION,
    HEADER,
    INDEX,
    LATENTS,
    TEXT,
    ClipSource,
    content_key,
    holds,
    is_whole,
    join_entries,
    read_entries,
    shard_path,
)
from opensora.datasets.loader import build_buckets, worker_settings
from opensora.datasets.planner import Planner, PlanRules
from opensora.engine.build import build_components, parse_dtype
from opensora.engine.features import (
    describe_text_encoder,
    describe_vae,
    encode_moments,
    hash_weights,
    moments_are_drawn,
    text_projection,
    without_arguments,
)
from opensora.registry import DATASETS, build, fill_in
from opensora.utils.config import plain, read_command_line
from opensora.utils.config_defaults import base_configs
from opensora.utils.files import write_text
from opensora.utils.logging import get_logger
from opensora.utils.progress import Progress
from opensora.utils.random import Draws, seed_everything
from opensora.utils.user_errors import one_line_errors
from opensora.utils.weights import save_safetensors

_WAIT_S = 30 * 86400.0  # a process may wait so long for the others
_SAY_EVERY_S = 10.0


def main() -> None:
    """Read the command line and extract; end with one line and status 2 where something is wrong."""
    words = [word for word in sys.argv[1:] if word != "--dry-run"]
    cfg = read_command_line(__doc__, words, also="extraction")
    with one_line_errors():
        init_distributed(None if cfg["device"] == "auto" else cfg["device"], _WAIT_S)
        try:
            extract(cfg, "--dry-run" in sys.argv)
        finally:
            shut_down()


def extract(cfg: Mapping[str, Any], dry_run: bool = False) -> None:
    """Extract the features of a config: plan, encode captions, encode clips, write the index."""
    job = Extraction(cfg)
    job.announce()
    if dry_run:
        return
    job.open_folder()
    if job.captions:
        job.write_captions()
    job.write_clips()
    barrier()  # else one could read shards of before that another is about to replace
    if not job.place.is_main:
        return
    if job.write_index():
        get_logger().info("wrote %s: train with --data-path %s", job.folder / INDEX, job.folder)
    else:
        get_logger().info("shards of other jobs are missing; the last one to finish writes the index")


class Extraction:
    """One extraction: what there is to encode, cut into shards, and the encoders.

    Everything but the encoding is the same on all processes; process r of R makes the shards r, r + R, ...

    Args:
        cfg: The config.
    """

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        self.cfg, self.folder, self.place = cfg, Path(cfg["save_dir"]), parallel_state()
        if cfg["variants"] < 1 or cfg["shard_mib"] <= 0:
            raise ValueError(
                f"variants={cfg['variants']}, shard_mib={cfg['shard_mib']}: both must be above 0."
            )
        if cfg["vae"] is None:
            raise ValueError(
                "vae=None: latents need an autoencoder; give the config of the training on clips."
            )
        self.dtype = parse_dtype(cfg["dtype"])
        self.dataset = build(DATASETS, fill_in(DATASETS, cfg["dataset"], seed=cfg["seed"]))
        if self.dataset.num_images or self.dataset.transform == "rand_size_crop":
            raise ValueError(
                f"num_images={self.dataset.num_images}, transform={self.dataset.transform!r}: there are no "
                "features of images behind clips and of sizes drawn at random; train on clips for that."
            )
        seed_everything(cfg["seed"])
        parts = {name: cfg[name] if name in cfg else None for name in ("vae", "text_encoder")}
        parts["ema"] = cfg["ema"] if "ema" in cfg else True
        parts["text_encoder"] = parts["text_encoder"] if cfg["save_text_features"] else None
        projects = cfg["save_compressed_text_features"] and parts["text_encoder"] is not None
        built = build_components({**parts, "model": cfg["model"]} if projects else parts)
        self.projection = text_projection(built.model) if projects else None
        self.vae, self.text_encoder = built.vae.eval().requires_grad_(False), built.text_encoder
        self.drawn = moments_are_drawn(self.vae) and cfg["sample_posterior"]
        self.clips, self.table = self._plan()
        self.captions = self._captions()
        self.encoders = self._describe()
        self.stored = self._choose_dtype()
        sizes = [self._clip_bytes(clip) for clip in self.clips.tolist()]
        self.shards = {LATENTS: pack(sizes, cfg["shard_mib"] * 2**20), TEXT: self._pack_captions()}

    def announce(self) -> None:
        """Say what there is to do, and refuse a disk that is too small."""
        size = sum(self._clip_bytes(clip) for clip in self.clips) + self.caption_bytes
        log = get_logger().info
        log(
            "%d clips (%s), %d captions: %.2f GiB in %d files",
            len(self.clips),
            str(self.stored).removeprefix("torch."),
            len(self.captions),
            size / 2**30,
            sum(len(part) for part in self.shards.values()),
        )
        folder = self.folder.resolve()
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        missing = size - sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        free = shutil.disk_usage(existing).free
        if missing > free:
            raise ValueError(
                f"save_dir={str(self.folder)!r}: {missing / 2**30:.1f} GiB are still needed, and "
                f"{free / 2**30:.1f} GiB are free; choose another disk, fewer variants, or dtype='bf16'."
            )

    def open_folder(self) -> None:
        """Make the folder, or check that it holds features of this config.

        Raises:
            ValueError: It holds other features.
        """
        header = {
            "feature_version": FEATURE_VERSION,
            "content": "latents" if self.stored is None else "moments",
            "stored": str(self.stored or torch.float32).removeprefix("torch."),
            "sample_posterior": self.cfg["sample_posterior"] if moments_are_drawn(self.vae) else None,
            "encoders": self.encoders,
            "clips": self._clip_settings(),
            "plan": self._plan_settings(),
            "counts": {"clips": len(self.clips), "captions": len(self.captions)},
            "shards": {kind: len(part) for kind, part in self.shards.items()},
        }
        text = json.dumps(header, indent=1) + "\n"
        if not all_equal(text):
            raise RuntimeError(
                "processes read different tables or weights; look for files that differ by machine."
            )
        path = self.folder / HEADER
        if path.exists():
            old = without_arguments(json.loads(path.read_text(encoding="utf-8")))
            wrong = [name for name in header if old[name] != without_arguments(json.loads(text)[name])]
            if wrong:
                raise ValueError(
                    f"{path}: these features were made with another {' and '.join(wrong)}; give another "
                    "--save-dir."
                )
        elif self.place.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(text, path)
        all_equal("")  # the folder is there for every process

    @torch.no_grad()
    def write_captions(self) -> None:
        """Encode the captions of this process's shards, then free the text encoder."""
        self.text_encoder.to(self.place.device)
        if self.projection is not None:
            self.projection.to(self.place.device)
        keys = {n: [self._caption_key(text) for text in self.shards[TEXT][n]] for n in self._mine(TEXT)}
        todo = [n for n in keys if not holds(shard_path(self.folder, TEXT, n), keys[n])]
        progress = self._progress("captions", sum(len(self.shards[TEXT][n]) for n in todo))
        for number in todo:
            tensors = {}
            for caption in self.shards[TEXT][number]:
                features, _ = self.text_encoder.encode([self.captions[caption]])
                if self.projection is not None:
                    features = self.projection(features.float()).to(features)
                tensors[self._caption_key(caption)] = features[0].cpu()
                progress.add()
            self._save(TEXT, number, tensors, [])
        self.text_encoder.release()

    @torch.no_grad()
    def write_clips(self) -> None:
        """Encode the clips of this process's shards."""
        self.vae.to(self.place.device, self.dtype)
        todo = [n for n in self._mine(LATENTS) if not self._is_done(n)]
        numbers = [i for n in todo for i in self.shards[LATENTS][n]]
        progress = self._progress("clips", len(numbers))
        workers = worker_settings(self.cfg["num_workers"], self.cfg["prefetch_factor"])
        source = ClipSource(self.dataset, self.clips[numbers])
        samples = iter(DataLoader(source, batch_size=None, **workers))
        for number in todo:
            tensors: dict[str, Tensor] = {}
            entries = []
            for i in self.shards[LATENTS][number]:
                entries.append(self._encode(i, next(samples), tensors))
                progress.add()
            self._save(LATENTS, number, tensors, entries)

    def write_index(self) -> bool:
        """Write the index if all shards are there."""
        everything = [(kind, n) for kind, part in self.shards.items() for n in range(len(part))]
        if not all(shard_path(self.folder, kind, n).exists() for kind, n in everything):
            return False
        entries, failed = join_entries(self.folder, self.shards[LATENTS], len(self.clips))
        if failed:
            shown = "\n".join(failed[:5])
            if len(failed) == len(self.clips):
                raise ValueError(f"none of the {len(failed)} clips could be read:\n{shown}")
            get_logger().warning("%d clips could not be read; others will stand in:\n%s", len(failed), shown)
        columns = dict(zip(("num_frames", "height", "width"), self.dataset.sizes(), strict=True))
        index = {**columns, **self.table, **entries}
        if self.dataset.manifest.label is not None:
            index["label"] = self.dataset.manifest.label
        if self.captions:
            index["text"] = self.caption_of
            index["text_shard"] = np.concatenate(
                [np.full(len(p), n) for n, p in enumerate(self.shards[TEXT])]
            )
            names = [bytes.fromhex(self._caption_key(n)) for n in range(len(self.captions))]
            index["text_key"] = np.frombuffer(b"".join(names), dtype=np.uint8).reshape(-1, 16)
        save_safetensors({k: torch.from_numpy(np.array(v)) for k, v in index.items()}, self.folder / INDEX)
        return True

    def _plan(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        cfg, dataset = self.cfg, self.dataset
        plan = self.rules = plain(cfg["plan"] if "plan" in cfg else base_configs()["runtime"]["plan"])
        buckets = build_buckets(dataset, cfg["bucket_config"], cfg["batch_size"], plan["bucket_rule"])
        per_step = (cfg["batches_per_step"] if "batches_per_step" in cfg else None) or 1
        table = (dataset.manifest.fingerprint, dataset.sizes(), buckets, per_step, cfg["seed"])
        planner = Planner(*table, dataset.frame_interval, PlanRules.from_config(plan))
        return plan_features(dataset, planner, cfg["variants"], self.drawn or dataset.cuts_at_random)

    def _captions(self) -> list[str]:
        """Return the distinct captions, and note that of each row (-1 for none)."""
        self.caption_of = np.full(len(self.dataset), -1, dtype=np.int32)
        if self.text_encoder is None or self.dataset.manifest.text is None:
            return []
        seen: dict[str, int] = {}
        for row in np.unique(self.clips[:, 0]).tolist():
            self.caption_of[row] = seen.setdefault(self.dataset.captions(row, row, 0), len(seen))
        return list(seen)

    def _describe(self) -> dict[str, Any]:
        """Return what made the features, as JSON."""
        cfg = self.cfg
        found = {"dtype": cfg["dtype"], "vae": describe_vae(self.vae, cfg["vae"]), "text_encoder": None}
        if self.captions:
            made = describe_text_encoder(self.text_encoder, cfg["text_encoder"])
            projected = None if self.projection is None else hash_weights(self.projection)
            found["text_encoder"] = {**made, "projected": projected}
        return json.loads(json.dumps(plain(found)))

    def _choose_dtype(self) -> torch.dtype | None:
        """Return the type of the moments: that of the vae if it holds them exactly; None without moments."""
        row, frames, height, width, epoch = min(
            self.clips.tolist(), key=lambda clip: clip[1] * clip[2] * clip[3]
        )
        draws = Draws(self.cfg["seed"], [row], epoch)
        video = draws.uniform("probe", 0, (1, 3, frames, height, width))[0] * 2 - 1
        with torch.no_grad():
            self.vae.to(self.place.device, self.dtype)
            moments = encode_moments(self.vae, video.to(self.place.device), draws if self.drawn else None)
            self.vae.cpu()
        if moments is None:
            return None
        return self.dtype if torch.equal(moments.to(self.dtype).float(), moments) else torch.float32

    def _clip_bytes(self, clip: Sequence[int]) -> int:
        numbers = self.vae.latent_channels * int(np.prod(self.vae.latent_shape(*map(int, clip[1:4]))))
        return 4 * numbers if self.stored is None else 2 * numbers * self.stored.itemsize

    def _pack_captions(self) -> list[list[int]]:
        self.caption_bytes = 0
        if not self.captions:
            return []
        width = self.text_encoder.width if self.projection is None else self.projection.fc2.out_features
        item = width * self.text_encoder.place.dtype.itemsize
        sizes = [n * item for n in self.text_encoder.tokenize(self.captions)]
        self.caption_bytes = sum(sizes)
        return pack(sizes, self.cfg["shard_mib"] * 2**20)

    def _progress(self, what: str, total: int) -> Progress:
        """Return the progress of this process's share; that of the main one is heard."""
        processes = self.place.world_size
        note = f" x {processes} processes" if processes > 1 else ""
        return Progress(what, total, note, _SAY_EVERY_S if self.place.is_main else math.inf)

    def _mine(self, kind: str) -> list[int]:
        """Return the numbers of the shards that this process makes."""
        last = len(self.shards[kind])
        if kind == LATENTS:
            first, end = self.cfg["start_index"], self.cfg["end_index"]
            chosen = range(first, last if end is None else min(end, last))
        else:
            chosen = range(last)
        return list(chosen)[self.place.data_rank :: self.place.data_size]

    def _encode(self, number: int, sample: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Encode a clip into `tensors`, and return its entry."""
        clip = ClipIndex(*self.clips[number].tolist())
        entry = {"row": clip.row, "path": sample["path"], "file": sample["file"]}
        if "error" in sample:
            return {**entry, "error": sample["error"]}
        key = self._clip_key(clip, sample["file"]["hash"])
        if key not in tensors:
            draws = Draws(self.cfg["seed"], [clip.row], clip.epoch) if self.drawn else None
            video = sample["video"].to(self.place.device)
            moments = encode_moments(self.vae, video, draws)
            if moments is None:
                stored = self.vae.encode(video[None].to(self.dtype))[0].cpu()
            else:
                stored = moments.to(self.stored).cpu()
                if not torch.equal(stored.float(), moments.cpu()):
                    raise ValueError(
                        f"{sample['path']}: its moments do not fit {self.stored}; use dtype='fp32'."
                    )
            tensors[key] = stored
        return {**entry, "key": key, "frames": shorten(sample["frames"]), "fps": sample["fps"]}

    def _clip_key(self, clip: ClipIndex, file_hash: str) -> str:
        vae = {name: self.encoders["vae"][name] for name in ("settings", "weights", "buffers")}
        settings = [FEATURE_VERSION, vae, self.cfg["dtype"], str(self.stored), self._clip_settings()]
        drawn = self.drawn or self.dataset.cuts_at_random
        drawn = [self.cfg["seed"], clip.row, clip.epoch] if drawn else None
        size = [clip.num_frames, clip.height, clip.width]
        return content_key(settings, file_hash, list(self.dataset.frame_indices(clip)), size, drawn)

    def _caption_key(self, number: int) -> str:
        made = {name: value for name, value in self.encoders["text_encoder"].items() if name != "arguments"}
        return content_key(FEATURE_VERSION, made, self.captions[number])

    def _clip_settings(self) -> dict[str, Any]:
        """Return what turns a file into a clip, beside frames and size."""
        other = {"data_path", "probe", "num_frames", "image_size", "frame_interval"}
        other |= {"layout", "columns", "root", "cache", "check_files", "timeout_s", "retries"}
        return {name: value for name, value in plain(self.cfg["dataset"]).items() if name not in other}

    def _plan_settings(self) -> dict[str, Any]:
        cfg, dataset = self.cfg, self.dataset
        return {
            "table": dataset.manifest.fingerprint,
            "seed": cfg["seed"],
            "variants": cfg["variants"],
            "frame_interval": dataset.frame_interval,
            **{name: self.rules[name] for name in ("bucket_rule", "starved")},
            "bucket_config": plain(cfg["bucket_config"]),
            "num_frames": dataset.num_frames,
            "image_size": dataset.image_size,
            "batch_size": cfg["batch_size"],
        }

    def _is_done(self, number: int) -> bool:
        """Say whether a shard of latents is there, whole, of these clips, and their files did not change."""
        path = shard_path(self.folder, LATENTS, number)
        if not is_whole(path):
            return False
        clips = [ClipIndex(*clip) for clip in self.clips[self.shards[LATENTS][number]].tolist()]
        reason = why_stale(read_entries(path), clips, self._clip_key)
        if reason is not None:
            get_logger().info("%s is made anew: %s", path.name, reason)
        return reason is None

    def _save(
        self, kind: str, number: int, tensors: dict[str, Tensor], entries: list[dict[str, Any]]
    ) -> None:
        path = shard_path(self.folder, kind, number)
        for left in self.folder.glob(f".{path.name}.*"):  # of a process that was killed
            left.unlink()
        if entries:  # as a tensor: safetensors writes several texts of a file in any order
            tensors[ENTRIES] = torch.frombuffer(bytearray(json.dumps(entries).encode()), dtype=torch.uint8)
        save_safetensors(tensors, path)


if __name__ == "__main__":
    main()
