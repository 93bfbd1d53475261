"""The lab: a generated world, a tiny autoencoder and STDiT3 trained on it, judged, in one report.

    python scripts/lab.py [--folder outputs/lab] [--scale 1] [--threads 2] [--ship]

Every step runs the scripts that real runs use, with the configs in configs/lab. The same command again goes
on where it was stopped. --scale multiplies the steps of training: 1 is what the shipped models had, above it
is for a GPU. --ship puts the models into assets/lab. What single settings change, lab_knobs.py measures.
"""

import argparse
import base64
import html
import json
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opensora.utils.files import write_text

TRAIN = Path("configs/lab/train")
T2V = Path("configs/lab/inference/t2v.py")
VAE = Path("configs/lab/inference/vae.py")
SHIPPED = Path("assets/lab")
AUTOENCODER = ("vae",)  # stages, each of which begins with the one before
STAGES = ("stage1", "stage2", "stage3", "stage4")  # of the denoiser
FEATURES = {"stage1": "features", "stage3": "features3", "stage4": "features4"}  # written anew from these on
STATISTICS_OF = 500  # clips
LEAST_CLIPS = 2000  # that a denoiser is trained on, however short
LONG_PROMPTS = 20  # at most, of long videos
CURVES = dict.fromkeys(AUTOENCODER, "psnr") | dict.fromkeys(STAGES, "loss")
WIDTH, HEIGHT = 360, 140  # of a curve


def main() -> None:
    """Run all steps and say where the report is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("outputs/lab"))
    parser.add_argument("--scale", type=float, default=1.0, help="times the steps of the configs")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--prompts", type=int, default=100, help="prompts that the models are judged by")
    parser.add_argument("--ship", action="store_true", help="put the models into assets/lab")
    args = parser.parse_args()
    prepare(parser, args)
    start = time.perf_counter()
    check_folder(args.folder / "made_of.json", args.scale)
    found = train_autoencoder(args.folder, args.scale)
    train_denoiser(args.folder, args.scale, found)
    if args.ship:
        ship(args.folder, found)
    results = {"this run": judge(args.folder / "judged", args.prompts, own_models(args.folder, found))}
    if not args.ship:
        results["shipped"] = judge(args.folder / "judged_shipped", args.prompts, [])
    minutes = (time.perf_counter() - start) / 60
    write_text(report(args.folder, results, args.scale, minutes), args.folder / "report.html")
    print(f"took {minutes:.1f} minutes\nreport: {args.folder / 'report.html'}")


def prepare(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse numbers that make nothing, and set the environment of the scripts that are started."""
    for name, value in vars(args).items():
        if isinstance(value, int | float) and not isinstance(value, bool) and not value > 0:
            parser.error(f"--{name} {value}: give more than 0.")
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )


def run(*words: object, quiet: bool = True) -> None:
    """Run a script or module of this repository; stop the lab if it fails."""
    print(f"== {' '.join(map(str, words))[:140]}", flush=True)
    output = subprocess.PIPE if quiet else None
    done = subprocess.run([sys.executable, *map(str, words)], stdout=output, text=True)
    if done.returncode:
        name = words[1] if words[0] == "-m" else words[0]
        raise SystemExit(f"{(done.stdout or '')[-2000:]}{name} ended with status {done.returncode}.")


def check_folder(path: Path, scale: float) -> None:
    """Stop where a lab of another length or other configs lies: its parts would not fit."""
    made_of = {"scale": scale, **configs_of((*AUTOENCODER, *STAGES))}
    keep_same(path, made_of, "it holds a lab of another --scale or of other configs")


def configs_of(stages: Sequence[str]) -> dict[str, str]:
    """Return what the configs of stages say, to compare it with later."""
    from opensora.utils.config import load_config, plain

    return {name: repr(plain(load_config([str(TRAIN / f"{name}.py")]))) for name in stages}


def keep_same(path: Path, made_of: dict[str, Any], wrong: str) -> None:
    """Write what a folder is made of, or stop if that is something else."""
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != made_of:
        raise SystemExit(f"{path.parent}: {wrong}; give another --folder, or remove it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(made_of, indent=1), path)


def num_steps(config: Path, scale: float) -> int:
    """Return the steps of a config's run."""
    from opensora.utils.config import load_config

    return max(1, round(scale * load_config([str(config)]).max_steps))


def train(name: str, folder: Path, scale: float, script: str, *options: object) -> None:
    """Run a stage, or go on with it, unless it is done."""
    config = TRAIN / f"{name}.py"
    steps = num_steps(config, scale)
    if not list((folder / name).glob(f"checkpoints/*global_step{steps}")):
        run(f"scripts/{script}.py", config, "--outputs", folder, "--max-steps", steps, *options)
    if not list((folder / name).glob(f"checkpoints/*global_step{steps}")):
        raise SystemExit(f"{name} stopped before step {steps}; the same command goes on.")


def train_autoencoder(folder: Path, scale: float) -> list[str]:
    """Train the autoencoder; return the options that describe its latents."""
    before: list[object] = []
    for name in AUTOENCODER:
        train(name, folder, scale, "train_vae", *before)
        before = ["--vae.from_pretrained", folder / name]
    path = folder / "latents.json"
    if not path.exists():
        write_text(json.dumps(latent_statistics(folder / AUTOENCODER[-1])), path)
    return option_words(path)


def option_words(statistics: Path) -> list[str]:
    """Return the options that describe latents."""
    found = json.loads(statistics.read_text(encoding="utf-8"))
    return [word for name, values in found.items() for word in (f"--vae.{name}", repr(values))]


def latent_statistics(weights: Path) -> dict[str, list[float]]:
    """Return mean and scale of each channel of the latents of training clips.

    The scale is halfway, as a factor, between a channel's deviation and the mean of all. Coarse channels stay
    larger than fine ones then, so that sampling decides on places before details.
    """
    from opensora.datasets.buckets import ClipIndex
    from opensora.engine.build import build_components
    from opensora.engine.reconstruction import LatentStatistics
    from opensora.registry import DATASETS, build
    from opensora.utils.config import load_config

    options = ["--vae.from_pretrained", str(weights), "--vae.latent_mean", "None", "--vae.latent_std", "None"]
    cfg = load_config([str(VAE), *options])
    vae = build_components({"vae": cfg["vae"]}).vae.eval()
    dataset = build(DATASETS, {**cfg["dataset"], "split": "train", "size": STATISTICS_OF})
    statistics = LatentStatistics(vae.latent_channels)
    for row in range(STATISTICS_OF):
        clip = dataset[ClipIndex(row, dataset.num_frames, *dataset.image_size, 0)]
        statistics.add(vae.encode(clip["video"][None]).detach())
    found = statistics.per_channel()
    mean = sum(found["latent_std"]) / len(found["latent_std"])
    found["latent_std"] = [(value * mean) ** 0.5 for value in found["latent_std"]]
    return {name: [round(value, 4) for value in values] for name, values in found.items()}


def train_denoiser(folder: Path, scale: float, statistics: Sequence[str]) -> None:
    """Write features and train the stages, each from the one before."""
    vae = ["--vae.from_pretrained", folder / AUTOENCODER[-1], *statistics]
    before: list[object] = []
    cached: list[object] = []
    for name in STAGES:
        if name in FEATURES:
            cached = features(folder / FEATURES[name], vae, scale, name)
        train(name, folder, scale, "train", *cached, *vae, *before)
        before = ["--model.from_pretrained", folder / name]


def features(path: Path, vae: Sequence[object], scale: float = 1.0, stage: str = STAGES[0]) -> list[object]:
    """Write latents and captions, unless they are there; return the options that train on them.

    Short trainings get fewer clips: extraction would take longer than they do.
    """
    if not (path / "index.safetensors").exists():
        from opensora.utils.config import load_config

        clips = load_config([str(TRAIN / f"{stage}.py")]).dataset.size
        size = ["--dataset.size", min(clips, max(LEAST_CLIPS, round(clips * scale)))]
        run("scripts/extract_features.py", TRAIN / f"{stage}.py", "--save-dir", path, *size, *vae)
    return ["--dataset", repr({"type": "FeatureDataset", "data_path": str(path)})]


def own_models(folder: Path, statistics: Sequence[str]) -> list[object]:
    """Return the options that take this run's models."""
    own = ["--vae.from_pretrained", folder / AUTOENCODER[-1], "--model.from_pretrained", folder / STAGES[-1]]
    return [*own, *statistics]


def ship(folder: Path, statistics: Sequence[str]) -> None:
    """Put averaged weights as fp16 into assets/lab, and the statistics into the config."""
    from opensora.engine.checkpoint import weights_file

    for name, part, target in ((AUTOENCODER[-1], "vae", "vae"), (STAGES[-1], "model", "stdit3")):
        source = weights_file(folder / name, part, True)
        target = SHIPPED / f"{target}.safetensors"
        run("scripts/convert_weights.py", source, target, "--dtype", "fp16", "--force")
    text = VAE.read_text(encoding="utf-8")
    for option, values in zip(statistics[::2], statistics[1::2], strict=True):
        name, indent = option.rpartition(".")[2], " " * 8
        lines = textwrap.fill(values.strip("[]"), 100, initial_indent=indent, subsequent_indent=indent)
        text = re.sub(rf"{name}=\[[^]]*\]", f"{name}=[\n{lines},\n    ]", text)
    write_text(text, VAE)


def judge(folder: Path, prompts: int, models: Sequence[object]) -> dict[str, Any]:
    """Judge models; return the result and the pictures beside it."""
    texts, pictures = [], {}
    short = ["--modes", "t2v", "i2v", "vae", "--prompts", prompts]
    long = ["--modes", "extend", "--prompts", min(prompts, LONG_PROMPTS), "--seeds", 1, "--neighbours", 0]
    for place, options in ((folder, short), (folder / "long", long)):
        places = ["--lab-dir", place, "--save-dir", folder / "clips"]
        run("-m", "eval.lab", T2V, *options, *places, *models)
        texts.append((place / "result.md").read_text(encoding="utf-8").strip())
        pictures |= {path.stem: path for path in sorted(place.glob("*.png"))}
    return {"text": "\n\n".join(texts) + "\n", "pictures": pictures}


# The report


def report(folder: Path, results: dict[str, Any], scale: float, minutes: float) -> str:
    """Return one page that needs nothing else: curves, tables, pictures."""
    parts = ["<h1>The lab</h1>", f"<p>Steps of the configs times {scale:g}; {minutes:.1f} minutes.</p>"]
    parts += ["<h2>Training</h2><div>", *(curve(folder / n / "log.jsonl", k, n) for n, k in CURVES.items())]
    parts.append("</div>")
    for name, result in results.items():
        parts.append(f"<h2>Judged: {html.escape(name)}</h2>{tables(result['text'])}")
        for mode, path in result["pictures"].items():
            data = base64.b64encode(path.read_bytes()).decode()
            parts.append(f"<h3>{html.escape(mode)}</h3><img src='data:image/png;base64,{data}' alt='{mode}'>")
    style = "body{font:15px sans-serif;margin:2em;max-width:1300px}td,th{padding:.2em .8em;text-align:left}"
    style += "img{max-width:100%}figure{display:inline-block;margin:.5em}polyline{fill:none;stroke:#36c}"
    head = f"<meta charset='utf-8'><title>The lab</title><style>{style}</style>"
    return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def curve(path: Path, key: str, title: str) -> str:
    """Draw a value of a log over the steps."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    points = [(row["step"], row[key]) for row in rows if key in row]
    if len(points) < 2:
        return ""
    low, high = min(v for _, v in points), max(v for _, v in points)
    last = points[-1][0]
    at = " ".join(
        f"{s / last * WIDTH:.1f},{HEIGHT - (v - low) / ((high - low) or 1) * HEIGHT:.1f}" for s, v in points
    )
    box = f"<svg width='{WIDTH}' height='{HEIGHT}'><polyline points='{at}'/></svg>"
    text = f"{title}: {key} from {points[0][1]:.3g} to {points[-1][1]:.3g} in {last} steps"
    return f"<figure>{box}<figcaption>{html.escape(text)}</figcaption></figure>"


def tables(text: str) -> str:
    """Turn tables and paragraphs of Markdown into HTML."""
    parts = []
    for block in text.strip().split("\n\n"):
        lines = block.splitlines()
        if not lines[0].startswith("|"):
            parts.append(f"<p>{html.escape(block)}</p>")
            continue
        cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if "---" not in line]
        rows = [f"<tr>{''.join(f'<td>{html.escape(c)}</td>' for c in row)}</tr>" for row in cells]
        parts.append(f"<table>{''.join(rows)}</table>")
    return "".join(parts)


if __name__ == "__main__":
    main()
