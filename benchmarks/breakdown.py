"""Where the time of STDiT3 goes: shares of kinds of operations, as a picture.

python -m benchmarks.breakdown assets/performance_stdit3.png
"""

import argparse
from pathlib import Path

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
    """Draw a bar for each form, dtype and mode at the first shape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path)
    path = parser.parse_args().picture
    from matplotlib.figure import Figure

    torch.set_num_threads(1)  # with more, operations that wait for a busy core look slow
    bars = {
        f"{dtype} {mode}\n{'windowed' if windowed else 'temporal'}": shares(windowed, dtype, mode)
        for mode in MODES
        for dtype in ("fp32", "bf16")
        for windowed in (False, True)
    }
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes, left = figure.add_subplot(), [0.0] * len(bars)
    for kind in (*KINDS, "other"):
        widths = [100 * bar[kind] for bar in bars.values()]
        axes.barh(list(bars), widths, left=left, label=kind)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("share of the time, %")
    figure.legend(loc="outside upper center", ncols=4)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
