"""Compare two folders of clips or images, or two files, pair by pair.

    python -m eval.videos REFERENCE OTHER --metrics psnr ssim lpips flolpips
    python -m eval.videos original.mp4 reconstruction.mp4 --num-frames 17

Files of one name are a pair. Printed is a table in Markdown with mean, deviation and the 95 % interval of the
mean over clips; --save-path writes it as JSON with the figures of every clip. A figure of a clip is the mean
over its frames, and every clip counts once.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from eval.clip_pairs import ClipPair, PairOptions, find_pairs
from eval.metrics.flolpips import FloLpips
from eval.metrics.flow import FLOWS
from eval.metrics.pixel import psnr, ssim
from eval.statistics import summarise, table
from opensora.models.perceptual import PerceptualDistance
from opensora.utils.files import write_text
from opensora.utils.progress import Progress
from opensora.utils.user_errors import one_line_errors

METRICS = ("psnr", "ssim", "lpips", "flolpips")
_PIECE = 16  # frames in memory at once


def main() -> None:
    """Read the command line, compare, print; end with one line and status 2 where something is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reference", type=Path, help="folder or file")
    parser.add_argument("other", type=Path, help="folder or file")
    add_metric_arguments(parser)
    parser.add_argument("--save-path", type=Path, help="JSON file for all figures")
    args = parser.parse_args()
    with one_line_errors():
        result = compare(args.reference, args.other, args.metrics, options_of(args), metric_settings(args))
        if args.save_path is not None:
            args.save_path.parent.mkdir(parents=True, exist_ok=True)
            write_text(json.dumps(result, indent=1), args.save_path)
        sys.stdout.write(table({str(args.other): result["metrics"]}))


def add_metric_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is measured, and on which frames, to a command line."""
    parser.add_argument("--metrics", nargs="+", default=["psnr", "ssim", "lpips"], choices=METRICS)
    parser.add_argument("--num-frames", type=int, help="compare the first so many frames")
    parser.add_argument("--sample-rate", type=int, default=1, help="take every so manieth frame")
    parser.add_argument("--resolution", type=int, help="scale the shorter side to so many pixels")
    parser.add_argument("--crop-size", type=int, help="side of a square cut from the centre")
    parser.add_argument("--subset-size", type=int, help="the first so many pairs by name")
    parser.add_argument("--lpips-network", default="alex", choices=("alex", "vgg"))
    parser.add_argument("--lpips-weights", help="folder with the published LPIPS (VGG)")
    parser.add_argument("--optical-flow", default="dis", choices=list(FLOWS), help="of flolpips")


def options_of(args: argparse.Namespace) -> PairOptions:
    """Return which frames a command line asks for."""
    names = PairOptions.__dataclass_fields__
    return PairOptions(**{name: getattr(args, name) for name in names})


def metric_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return which networks a command line asks for."""
    return {name: getattr(args, name) for name in ("lpips_network", "lpips_weights", "optical_flow")}


@torch.no_grad()
def compare(
    reference: Path, other: Path, metrics: Sequence[str], options: PairOptions, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Measure all pairs.

    Args:
        reference: Folder or file.
        other: Folder or file.
        metrics: Names out of `METRICS`.
        options: Which frames, at which size.
        settings: `lpips_network`, `lpips_weights`, `optical_flow`.

    Returns:
        "metrics" (by name, as `summarise`), "clips" (each with its frames and means), "conditions".

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: Files have no partner, or lengths or sizes do not fit.
        ImportError: A package is missing.
    """
    pairs = find_pairs(reference, other, options.subset_size)
    lengths = [len(pair.frames(options)) for pair in pairs]
    if "flolpips" in metrics and min(lengths) < 2:
        name = pairs[lengths.index(min(lengths))].name
        raise ValueError(f"flolpips: {name} has one frame; it compares motion, take it out of --metrics.")
    functions, conditions = build_metrics(metrics, settings)
    clips, progress = [], Progress("clips", len(pairs))
    for pair, frames in zip(pairs, lengths, strict=True):
        clips.append({"name": pair.name, "frames": frames, **measure(pair, functions, options)})
        progress.add()
    figures = {name: summarise([clip[name] for clip in clips]) for name in metrics}
    return {"metrics": figures, "clips": clips, "conditions": conditions | vars(options)}


def measure(
    pair: ClipPair, functions: Mapping[str, Callable[..., torch.Tensor]], options: PairOptions
) -> dict[str, float]:
    """Return the mean over frames of each metric of a pair, a few frames in memory at a time."""
    values: dict[str, list[torch.Tensor]] = {name: [] for name in functions}
    groups = [
        [name for name, f in functions.items() if getattr(f, "pairs", False) is wish]
        for wish in (False, True)
    ]
    for overlap, names in enumerate(groups):
        if names:
            for a, b in pair.pieces(options, _PIECE, overlap):
                for name in names:
                    values[name].append(functions[name](a, b))
    return {name: float(torch.cat(found).mean()) for name, found in values.items()}


def build_metrics(
    names: Sequence[str], settings: Mapping[str, Any]
) -> tuple[dict[str, Callable[..., torch.Tensor]], dict[str, Any]]:
    """Return functions by name, and what they were measured with."""
    functions: dict[str, Callable[..., torch.Tensor]] = {"psnr": psnr, "ssim": ssim}
    conditions: dict[str, Any] = {}
    if {"lpips", "flolpips"} & set(names):
        network = PerceptualDistance(settings["lpips_network"], settings["lpips_weights"])
        conditions["lpips"] = network.source
        functions["lpips"] = lambda a, b: network(2 * a - 1, 2 * b - 1).double()
        if "flolpips" in names:
            functions["flolpips"] = FloLpips(network, FLOWS[settings["optical_flow"]]())
            conditions["flow"] = settings["optical_flow"]
    return {name: functions[name] for name in names}, conditions


if __name__ == "__main__":
    main()
