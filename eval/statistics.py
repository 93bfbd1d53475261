"""Mean, deviation and interval of a figure over clips."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95


def summarise(values: Sequence[float]) -> dict[str, float | int | None]:
    """Return what a table says about a figure. Every clip counts once, whatever batch it was in.

    The interval is the one of the mean that 95 % of resampled sets give, with a fixed seed, so it is the same
    on every run. One clip has none.

    Args:
        values: One per clip.

    Returns:
        "mean", "deviation" (of the sample), "low", "high", "clips".

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    data = np.asarray(values, dtype=np.float64)
    result: dict[str, float | int | None] = {"mean": math.fsum(data) / len(data), "clips": len(data)}
    if len(data) == 1:
        return result | {"deviation": None, "low": None, "high": None}
    picks = np.random.default_rng(0).integers(len(data), size=(RESAMPLES, len(data)))
    low, high = np.quantile(data[picks].mean(1), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return result | {"deviation": float(data.std(ddof=1)), "low": float(low), "high": float(high)}


def over_runs(values: Sequence[float]) -> dict[str, float | int | None]:
    """Return the mean of a figure of few runs, such as seeds, with its 95 % t-interval; one run has none.

    Args:
        values: One per run.

    Returns:
        "mean", "deviation" (of the sample), "low", "high", "runs".

    Source: Student 1908, "The probable error of a mean".
    """
    data, count = np.asarray(values, dtype=np.float64), len(values)
    result: dict[str, float | int | None] = {"mean": float(data.mean()), "runs": count}
    if count == 1:
        return result | {"deviation": None, "low": None, "high": None}
    from scipy.special import stdtrit

    deviation = float(data.std(ddof=1))
    half = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * deviation / math.sqrt(count)
    low, high = float(data.mean()) - half, float(data.mean()) + half
    return result | {"deviation": deviation, "low": low, "high": high}


def share(right: int, total: int) -> dict[str, float | int]:
    """Return a share with its 95 % interval.

    Args:
        right: How many are.
        total: Of how many, at least 1.

    Returns:
        "share", "low", "high", "right", "of".

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    p, scale = right / total, 1 + z * z / total
    middle = (p + z * z / (2 * total)) / scale
    half = z * math.sqrt(p * (1 - p) / total + (z / (2 * total)) ** 2) / scale
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return {"share": p, "low": low, "high": high, "right": right, "of": total}


def table(rows: dict[str, dict[str, dict[str, float | int | None]]]) -> str:
    """Return a Markdown table.

    Args:
        rows: By name of the row, by metric, what `summarise` gives.
    """
    metrics = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = ["| | " + " | ".join(metrics) + " | clips |", "|---|" + "---|" * (len(metrics) + 1)]
    for name, row in rows.items():
        cells = [_cell(row[metric]) if metric in row else "" for metric in metrics]
        count = max((row[metric]["clips"] for metric in row), default=0)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {count} |")
    return "\n".join(lines) + "\n"


def _cell(figure: dict[str, float | int | None]) -> str:
    if figure["deviation"] is None:
        return f"{figure['mean']:.4g}"
    return f"{figure['mean']:.4g} ± {figure['deviation']:.2g} ({figure['low']:.4g} to {figure['high']:.4g})"
