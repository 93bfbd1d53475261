"""Where the time of STDiT3 goes: shares of kinds of operations, as a picture.

python -m benchmarks.breakdown assets/performance_stdit3.png
python -m benchmarks.breakdown assets/performance_gpu.png --gpu LINES

LINES is a file with what `python -m benchmarks gpu` printed.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile

from benchmarks.stdit3 import FIRST, MODES, network

CALLS = 2
KINDS = {  # the first kind with a part of an operation's name gets its time
    "linear": ("addmm", "aten::mm", "linear_pointwise"),
    "attention": ("scaled_dot_product", "bmm", "softmax"),
    "norms, modulation": ("norm", "addcmul"),
    "GELU": ("gelu", "sigmoid"),
    "rotation, products": ("mul",),
    "copies, order": ("copy", "index_select", "cat"),
}


def shares(windowed: bool, dtype: str, mode: str) -> dict[str, float]:
    """Return the share of each kind of operation in a call's time."""
    call = network(FIRST, windowed, dtype)[mode != MODES[0]]
    call()
    with profile() as record:
        for _ in range(CALLS):
            call()
    times = dict.fromkeys((*KINDS, "other"), 0.0)
    for event in record.key_averages():
        found = (kind for kind, parts in KINDS.items() if any(part in event.key for part in parts))
        times[next(found, "other")] += event.self_cpu_time_total
    total = sum(times.values())
    return {kind: time / total for kind, time in times.items()}


def main() -> None:
    """Draw a bar for each form, dtype and mode at the first shape, or what a GPU did."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path)
    parser.add_argument("--gpu", type=Path, metavar="LINES")
    args = parser.parse_args()
    if args.gpu is not None:
        draw_gpu(args.gpu, args.picture)
        return
    torch.set_num_threads(1)  # with more, operations that wait for a busy core look slow
    bars = {
        f"{dtype} {mode}\n{'windowed' if windowed else 'temporal'}": shares(windowed, dtype, mode)
        for mode in MODES
        for dtype in ("fp32", "bf16")
        for windowed in (False, True)
    }
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    _bars(figure.add_subplot(), bars, (*KINDS, "other"))
    figure.legend(loc="outside upper center", ncols=4)
    figure.savefig(args.picture, dpi=80)


def draw_gpu(lines: Path, picture: Path) -> None:
    """Draw the shares of training steps, and the rate of each attention kernel."""
    rows = [json.loads(line) for line in lines.read_text().splitlines() if line.startswith("{")]
    found = {row["name"]: row["value"] for row in rows}
    steps: dict[str, dict[str, float]] = {}
    rates: dict[str, dict[str, float]] = {}
    for name, value in found.items():
        _, what, *rest = name.split("/")
        if what == "train" and rest[-2] == "share":
            steps.setdefault(" ".join(rest[:3]).replace(" ", "\n", 1), {})[rest[-1]] = value
        elif what == "attention" and rest[-1] == "forward_rate":
            rates.setdefault(rest[1], {})[rest[0].replace(" ", "\n", 1)] = value
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.6 + 0.7 * len(steps) + 2.4), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[0.7 * len(steps) + 0.4, 2.2])
    kinds = list(next(iter(steps.values()))) if steps else []
    _bars(above, steps, kinds)
    above.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=5, fontsize="small")
    for i, (kernel, values) in enumerate(rates.items()):
        places = [j + 0.25 * (i - 1) for j in range(len(values))]
        below.bar(places, list(values.values()), 0.25, label=kernel)
        below.set_xticks(range(len(values)), list(values))
    below.set_ylabel("attention, TFLOP/s")
    below.legend()
    figure.savefig(picture, dpi=80)


def _bars(axes: Any, bars: Mapping[str, Mapping[str, float]], kinds: Sequence[str]) -> None:
    left = [0.0] * len(bars)
    for kind in kinds:
        widths = [100 * bar[kind] for bar in bars.values()]
        axes.barh(list(bars), widths, left=left, label=kind)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("share of the time, %")


if __name__ == "__main__":
    main()
