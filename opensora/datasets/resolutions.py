"""Names for sizes and lengths: "360p" and "9:16" to (height, width), "4s" to frames.

Sizes are the published tables, not a formula: many of their entries differ from the formula that they are
said to come from. They stand in `resolutions.csv`; a line more there is a size more.
"""

import csv
import difflib
import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path

# Aspect ratio, height:width, to its key in the tables.
ASPECT_RATIOS = {
    "3:8": "0.38",
    "9:21": "0.43",
    "12:25": "0.48",
    "1:2": "0.50",
    "9:17": "0.53",
    "27:50": "0.54",
    "9:16": "0.56",
    "5:8": "0.62",
    "2:3": "0.67",
    "3:4": "0.75",
    "1:1": "1.00",
    "4:3": "1.33",
    "3:2": "1.50",
    "16:9": "1.78",
    "17:9": "1.89",
    "2:1": "2.00",
    "50:27": "2.08",  # 50 / 27 is 1.85; weights were trained with the published key
}

# Published names of lengths. A model may cut them to the longest length that its autoencoder gives back.
FRAME_COUNTS = {
    **{"1x": 51, "2x": 102, "4x": 204, "8x": 408, "16x": 816},
    **{"2s": 51, "4s": 102, "8s": 204, "16s": 408, "32s": 816},
}

_MULTIPLE = 16  # of the "_16d" variants


def resolution_names() -> list[str]:
    """Return the names of all resolutions, each of which also exists as NAME_16d."""
    return [name for name in _read() if not name.endswith(f"_{_MULTIPLE}d")]


def area(resolution: str) -> int:
    """Return the nominal number of pixels of a resolution, the same for all its aspect ratios.

    Args:
        resolution: Name such as "360p", or "360p_16d".

    Raises:
        ValueError: The name is unknown.
    """
    return _table(resolution)[0]


def sizes(resolution: str) -> dict[str, tuple[int, int]]:
    """Return (height, width) in pixels by aspect key, in the order of the table.

    Args:
        resolution: Name such as "360p"; "360p_16d" is the same rounded down to multiples of 16.

    Raises:
        ValueError: The name is unknown.
    """
    return dict(_table(resolution)[1])


def image_size(resolution: str, aspect_ratio: str) -> tuple[int, int]:
    """Return (height, width) in pixels.

    Args:
        resolution: Name such as "360p".
        aspect_ratio: Height:width, such as "9:16" for landscape, or a key of the table such as "0.56".

    Raises:
        ValueError: The resolution is unknown, or has no such aspect ratio.
    """
    table = sizes(resolution)
    key = ASPECT_RATIOS.get(aspect_ratio, aspect_ratio)
    if key not in table:
        names = [name for name, entry in ASPECT_RATIOS.items() if entry in table]
        value = _ratio(aspect_ratio)
        size = "" if value is None else f", such as {even_size(area(resolution), value)}"
        raise ValueError(
            f"aspect_ratio={aspect_ratio!r}: {resolution} has no such ratio"
            f"{_nearest_number(aspect_ratio, table)}. Use height:width, one of {', '.join(names)}, or a key, "
            f"one of {', '.join(table)}; or give image_size{size}."
        )
    return table[key]


def even_size(pixels: int, ratio: float) -> tuple[int, int]:
    """Return the even (height, width) of about so many pixels, for sizes that no table has.

    Args:
        pixels: Height times width.
        ratio: Height divided by width.

    Raises:
        ValueError: A number is not positive.
    """
    if not (pixels > 0 and 0 < ratio < math.inf):
        raise ValueError(f"pixels={pixels}, ratio={ratio}: both are positive numbers.")
    height = _even(math.sqrt(pixels * ratio))
    return height, _even(height / ratio)


def nearest_ratio(resolution: str, height: int, width: int) -> str:
    """Return the aspect key of a resolution that is nearest to height / width; the first one if two are.

    Args:
        resolution: Name such as "360p".
        height: Height in pixels.
        width: Width in pixels.

    Raises:
        ValueError: The resolution is unknown, or a size is not positive.
    """
    if height <= 0 or width <= 0:
        raise ValueError(
            f"height={height}, width={width}: sizes are positive numbers of pixels; check the table."
        )
    return min(_table(resolution)[1], key=lambda key: abs(float(key) - height / width))


def frame_count(length: int | str) -> int:
    """Return a number of frames.

    Args:
        length: The number itself, or a published name such as "4s" or "2x".

    Raises:
        ValueError: The name is unknown, or the number is not positive.
    """
    if length in FRAME_COUNTS:
        return FRAME_COUNTS[str(length)]
    try:
        count = int(length)
    except (TypeError, ValueError):
        count = 0
    if count < 1:
        raise ValueError(
            f"num_frames={length!r}: use a number from 1, or one of {', '.join(FRAME_COUNTS)}"
            f"{_nearest(length, FRAME_COUNTS)}; for another duration give --seconds."
        )
    return count


@cache
def _read() -> dict[str, tuple[int, dict[str, tuple[int, int]]]]:
    """Read the file: for each resolution its area and its sizes by aspect key."""
    tables: dict[str, tuple[int, dict[str, tuple[int, int]]]] = {}
    with open(Path(__file__).with_name("resolutions.csv"), encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            table = tables.setdefault(row["resolution"], (int(row["area"]), {}))[1]
            table[row["aspect_ratio"]] = (int(row["height"]), int(row["width"]))
    for name, (pixels, table) in list(tables.items()):
        even = {
            key: (h // _MULTIPLE * _MULTIPLE, w // _MULTIPLE * _MULTIPLE) for key, (h, w) in table.items()
        }
        tables[f"{name}_{_MULTIPLE}d"] = (pixels, even)
    return tables


def _table(resolution: str) -> tuple[int, dict[str, tuple[int, int]]]:
    tables = _read()
    if not isinstance(resolution, str) or resolution not in tables:
        raise ValueError(
            f"resolution={resolution!r}: unknown{_nearest(resolution, tables)}. Use one of "
            f"{', '.join(resolution_names())}, each also as NAME_{_MULTIPLE}d, or add it to "
            "datasets/resolutions.csv."
        )
    return tables[resolution]


def _nearest(value: object, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(value), list(names), n=1, cutoff=0.4)
    return f" (the nearest is {near[0]!r})" if near else ""


def _nearest_number(ratio: object, keys: Iterable[str]) -> str:
    """Name the key that is nearest to a ratio as a number."""
    value = _ratio(ratio)
    return "" if value is None else f" (the nearest is {min(keys, key=lambda k: abs(float(k) - value))!r})"


def _ratio(text: object) -> float | None:
    """Read "a:b" or "a" as a positive number."""
    try:
        above, _, below = str(text).partition(":")
        value = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        return None
    return value if 0 < value < math.inf else None


def _even(length: float) -> int:
    """Round up if that is even, else down, as the published sizes were made."""
    up = math.ceil(length + 1e-4)
    return up if up % 2 == 0 else math.floor(length + 1e-4)
