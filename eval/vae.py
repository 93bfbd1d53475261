"""Reconstruct clips or images with an autoencoder and measure what came back, before any file is compressed.

    python -m eval.vae CONFIG --data-path FOLDER [--ckpt-path MODEL] [--metrics "('psnr', 'ssim', 'lpips')"]

CONFIG is one for scripts/inference_vae.py. Printed is a table in Markdown; SAVE_DIR_eval/metrics.json holds
the figures of every clip and what they depend on, metrics.md the table. A second start measures only what is
missing.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.statistics import summarise, table
from eval.videos import METRICS, build_metrics
from opensora.acceleration.parallel import shut_down
from opensora.engine.reconstruction import Original, find_originals, load_autoencoder, reconstruct
from opensora.utils.config import read_command_line
from opensora.utils.files import write_text
from opensora.utils.logging import get_logger
from opensora.utils.progress import Progress
from opensora.utils.user_errors import one_line_errors

_CONDITIONS = ("dtype", "metrics", "lpips_network", "lpips_weights", "optical_flow")


def main() -> None:
    """Read the command line, measure, print; end with one line and status 2 where something is wrong."""
    cfg = read_command_line(__doc__)
    with one_line_errors():
        try:
            result = evaluate(cfg)
        finally:
            shut_down()
        sys.stdout.write(markdown(result))


@torch.no_grad()
def evaluate(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Measure every clip of a config.

    Args:
        cfg: Keys of `configs/_base_/reconstruction.py`, `dataset` and `vae`.

    Returns:
        "metrics" (by name, as `summarise`), "clips", "conditions".

    Raises:
        ValueError: A setting is wrong, or there are no clips.
        FileNotFoundError: Data or weights are missing.
    """
    unknown = [name for name in cfg["metrics"] if name not in METRICS]
    if unknown or not cfg["metrics"]:
        raise ValueError(f"metrics={tuple(cfg['metrics'])!r}: use some of {', '.join(METRICS)}.")
    originals = find_originals(cfg)
    file = None if cfg["save_dir"] is None else Path(f"{cfg['save_dir']}_eval") / "metrics.json"
    functions, networks = build_metrics(cfg["metrics"], cfg)
    settings = {key: cfg[key] for key in _CONDITIONS} | {"vae": dict(cfg["vae"])}
    conditions = json.loads(json.dumps(networks | settings))  # as they are read back: tuples become lists
    known = _known(file, conditions)
    vae, clips, progress = None, {}, Progress("clips", len(originals))
    for name, original in originals.items():
        source = _source(original)
        if name in known and known[name]["source"] == source:
            clips[name] = known[name]
        else:
            vae = load_autoencoder(cfg) if vae is None else vae
            clips[name] = {"source": source, **measure(vae, original, functions)}
            if file is not None:
                _write(file, known | clips, conditions)
        progress.add()
    result = {"metrics": summaries(clips, cfg["metrics"]), "clips": clips, "conditions": conditions}
    if file is not None:
        _write(file, clips, conditions, result["metrics"])
        write_text(markdown(result), file.with_suffix(".md"))
    return result


def measure(vae: Any, original: Original, functions: Mapping[str, Callable[..., Tensor]]) -> dict[str, float]:
    """Return the mean over frames of each metric; those of frame pairs are left out for images."""
    values: dict[str, list[Tensor]] = {name: [] for name in functions}
    last: tuple[Tensor, Tensor] | None = None
    for pair in reconstruct(vae, original):
        frames = tuple((x.clamp(-1, 1).transpose(0, 1) + 1) / 2 for x in pair)  # [T, 3, H, W]
        joined = frames if last is None else tuple(torch.cat(x) for x in zip(last, frames, strict=True))
        last = tuple(x[-1:] for x in frames)
        for name, function in functions.items():
            if not getattr(function, "pairs", False):
                values[name].append(function(*frames))
            elif len(joined[0]) > 1:
                values[name].append(function(*joined))
    return {name: float(torch.cat(found).mean()) for name, found in values.items() if found}


def summaries(clips: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    """Return what `summarise` says of each metric that some clip has."""
    found = {name: [clip[name] for clip in clips.values() if name in clip] for name in metrics}
    return {name: summarise(values) for name, values in found.items() if values}


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table, and below it what the figures depend on."""
    conditions = result["conditions"]
    shown = [f"{key}={conditions[key]}" for key in ("dtype", "lpips", "flow") if key in conditions]
    lengths = sorted({clip["source"]["num_frames"] for clip in result["clips"].values()})
    shown.append(f"frames {', '.join(map(str, lengths))}")
    return table({str(conditions["vae"]["type"]): result["metrics"]}) + f"\n{'; '.join(shown)}\n"


def _source(original: Original) -> dict[str, Any]:
    size = None if original.size is None else list(original.size)
    facts = {"num_frames": original.num_frames, "frame_interval": original.frame_interval, "size": size}
    return {"path": str(original.path), "bytes": original.path.stat().st_size, **facts}


def _known(file: Path | None, conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a run before this one, if it measured the same thing."""
    if file is None or not file.exists():
        return {}
    before = json.loads(file.read_text())
    if before["conditions"] != conditions:
        get_logger().info("%s: of other settings, so all clips are measured anew", file)
        return {}
    return before["clips"]


def _write(
    file: Path,
    clips: Mapping[str, Any],
    conditions: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps({"metrics": metrics, "clips": clips, "conditions": conditions}, indent=1), file)


if __name__ == "__main__":
    main()
