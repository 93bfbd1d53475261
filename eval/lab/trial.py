"""One way of asking a model: clips are made by the ordinary inference, judged, and summed up."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image

from eval.lab.cases import Case, answered, asked, is_simple
from eval.lab.judge import judge
from eval.lab.long import kept
from eval.lab.measures import drift, path_scatter, psnr
from eval.statistics import share, summarise
from opensora.acceleration.parallel import barrier, parallel_state
from opensora.datasets.shape_world import World
from opensora.datasets.shapes import to_video
from opensora.datasets.video_io import read_clip, to_uint8
from opensora.engine.inference import Session
from opensora.engine.reconstruction import load_autoencoder
from opensora.utils.config_defaults import base_configs
from opensora.utils.files import whole_file
from opensora.utils.logging import get_logger
from opensora.utils.progress import Progress

MODES = ("t2v", "i2v", "i2v_loop", "extend", "vae", "real")
_GIVEN = {"i2v": ("first",), "i2v_loop": ("first", "last")}
_CONDITIONS = {"i2v": "i2v_head", "i2v_loop": "i2v_loop"}


@dataclass(frozen=True)
class Answer:
    """A clip that answers a case.

    Args:
        case: What was asked.
        frames: Bytes. Shape [T, H, W, 3].
        row: What the judge and the measures say of it, as JSON.
    """

    case: Case
    frames: np.ndarray
    row: dict[str, Any]

    @property
    def right(self) -> bool:
        """Whether every attribute is as asked."""
        return all(self.row["right"].values())


def ask(
    mode: str,
    cases: Sequence[Case],
    cfg: Mapping[str, Any],
    world: World,
    folder: Path,
    session: Session,
) -> list[Answer]:
    """Make and judge a clip for each case; clips that are there already are not made again.

    Args:
        mode: Of `MODES`.
        cases: What is asked.
        cfg: Keys of `configs/_base_/inference.py`, `configs/_base_/lab.py` and of the components.
        world: What there can be.
        folder: For the clips of this model.
        session: Has the networks.

    Returns:
        On the main process; nothing on others.
    """
    height, width = cfg["image_size"]
    extra: dict[str, Any] = {}
    if mode in _GIVEN:
        extra = {"reference_path": _write_given(mode, cases, cfg, folder), "cond_type": _CONDITIONS[mode]}
    elif mode == "extend":
        extra = {"loop": cfg["rounds"]}
    clips: Iterator[np.ndarray]
    if mode == "real":
        clips = (_drawn(case, cfg) for case in cases)
    elif mode == "vae":
        clips = _round_trips(cases, cfg)
    else:
        clips = (read_frames(path) for path in make(cases, cfg, folder / mode, session, **extra))
    if not parallel_state().is_main:
        return []
    again = _reconstructor(cfg) if mode in _GIVEN else None
    answers, progress = [], Progress(f"{mode}: judged", len(cases))
    for case, frames in zip(cases, clips, strict=True):
        first = frames[: cfg["num_frames"]]
        reading = judge(first, cfg["fps"], world)
        wanted, seen = asked(case, world), answered(case, reading, world)
        row: dict[str, Any] = {"prompt": case.text, "asked": wanted, "seen": seen}
        row["right"] = {name: seen[name] == wanted[name] for name in wanted}
        scatter = path_scatter(reading, case.scene, min(height, width))
        if scatter is not None:
            row["path scatter px"] = scatter
            true = math.hypot(*case.scene.things[0].velocity)
            if reading.speeds[0] is not None and true:
                row["speed ratio"] = reading.speeds[0] / true
        if mode == "extend":
            background = reading.background or case.scene.background
            row["color drift"] = drift(frames, background, cfg["num_frames"])
            if is_simple(world):
                row |= kept(frames, case.scene, background, world, cfg["num_frames"], cfg["rounds"])
        for name in _GIVEN.get(mode, ()):
            place = 0 if name == "first" else -1
            given = _drawn(case, cfg)[place]
            row[f"{name} frame dB"] = psnr(frames[place], given)
            row[f"{name} frame dB of the vae"] = psnr(again(given[None])[0], given)
        answers.append(Answer(case, frames, row))
        progress.add()
    return answers


def make(
    cases: Sequence[Case], cfg: Mapping[str, Any], folder: Path, session: Session, **extra: Any
) -> list[Path]:
    """Make the clips of cases by the ordinary inference, as folders of frames; return these.

    Args:
        cases: What is asked.
        cfg: As for `ask`.
        folder: For the clips. Those that are there stay.
        session: Has the networks.
        extra: Other values of the config.
    """
    values = {key: value for key, value in cfg.items() if key not in base_configs()["lab"]}
    values |= {"prompt": [case.text for case in cases], "prompt_path": None, "save_dir": str(folder)}
    values |= {"start_index": 0, "end_index": None, "num_sample": 1, "sample_name": None, **extra}
    values |= {"prompt_as_path": False, "skip_existing": True, "video_format": "png", "metadata": False}
    values |= {"contact_sheet": False, "preview": None, "postprocess": [], "csv_reference_column_name": None}
    logger = get_logger()
    logger.addFilter(_no_file_names)
    try:
        session.run(Config(values))
    finally:
        logger.removeFilter(_no_file_names)
    barrier()
    samples = values["num_sample"]
    ends = [""] if samples == 1 else [f"-{k}" for k in range(samples)]
    return [folder / f"sample_{number:04d}{end}" for number in range(len(cases)) for end in ends]


def read_frames(folder: Path) -> np.ndarray:
    """Read a folder of frames. Bytes, shape [T, H, W, 3]."""
    count = len(list(folder.glob("*.png")))
    return np.asarray(read_clip(f"{folder}/", range(count))).astype(np.uint8)


def sum_up(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the table of a mode: shares that are right, means of measures, and what was taken for what."""
    rows = [answer.row for answer in answers]
    names = list(dict.fromkeys(name for row in rows for name in row["asked"]))
    judged = {name: [row["right"][name] for row in rows if name in row["right"]] for name in names}
    adherence = {name: share(sum(right), len(right)) for name, right in judged.items()}
    adherence["all"] = share(sum(answer.right for answer in answers), len(answers))
    figures = dict.fromkeys(name for row in rows for name in row if isinstance(row[name], float))
    measures = {name: summarise([row[name] for row in rows if name in row]) for name in figures}
    wrong = Counter(
        (name, row["asked"][name], row["seen"][name])
        for row in rows
        for name in row["asked"]
        if not row["right"][name]
    )
    return {
        "adherence": adherence,
        "measures": measures,
        "mistakes": [
            [*what, count] for what, count in sorted(wrong.items(), key=lambda one: (-one[1], one[0]))
        ],
        "clips": rows,
    }


def _no_file_names(record: Any) -> bool:
    return record.msg != "saved %s"


def _drawn(case: Case, cfg: Mapping[str, Any]) -> np.ndarray:
    """Return the true clip of a case as bytes. Shape [T, H, W, 3]."""
    return to_bytes(case.scene.draw(cfg["num_frames"], *cfg["image_size"]))


def to_bytes(frames: np.ndarray) -> np.ndarray:
    """Turn frames in [0, 1] into bytes."""
    return (np.clip(frames, 0, 1) * 255).round().astype(np.uint8)


def _write_given(mode: str, cases: Sequence[Case], cfg: Mapping[str, Any], folder: Path) -> list[str]:
    """Write the frames that are given to the model; return their paths per case."""
    found = []
    for number, case in enumerate(cases):
        frames, paths = _drawn(case, cfg), []
        for name in _GIVEN[mode]:
            path = folder / "given" / f"{name}_{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                with whole_file(path) as temporary:
                    Image.fromarray(frames[0 if name == "first" else -1]).save(temporary, format="png")
            paths.append(str(path))
        found.append(";".join(paths))
    barrier()
    return found


def _reconstructor(cfg: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """Return what sends frames [T, H, W, 3] of bytes through the autoencoder."""
    vae = load_autoencoder(cfg)
    weight = next(vae.parameters())

    @torch.no_grad()
    def again(frames: np.ndarray) -> np.ndarray:
        video = to_video(frames.astype(np.float32) / 255)[None].to(weight)
        out = vae.decode(vae.encode(video), len(frames))[0]
        return np.asarray(to_uint8(out.float().cpu()))

    return again


def _round_trips(cases: Sequence[Case], cfg: Mapping[str, Any]) -> Iterator[np.ndarray]:
    again = _reconstructor(cfg)
    return (again(_drawn(case, cfg)) for case in cases)
