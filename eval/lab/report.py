"""The result on paper: tables in Markdown and a sheet of clips."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from eval.lab.trial import Answer
from eval.statistics import table
from opensora.utils.files import whole_file

_FRAMES = 5  # of a clip
_SIDE = 64  # of a frame on the sheet, at least
_CLIPS = 40
_COLUMNS = 4
_LINE = 12
_MISTAKES = 8


def markdown(result: Mapping[str, Any]) -> str:
    """Return the tables of all modes."""
    modes = {mode: part for mode, part in result["modes"].items()}
    names = list(
        dict.fromkeys(name for part in modes.values() for name in part["adherence"] if name != "all")
    )
    lines = ["| right | " + " | ".join([*names, "all"]) + " | clips |", "|---|" + "---|" * (len(names) + 2)]
    for mode, part in modes.items():
        cells = [_cell(part["adherence"].get(name)) for name in [*names, "all"]]
        lines.append(f"| {mode} | " + " | ".join(cells) + f" | {part['adherence']['all']['of']} |")
    parts = ["\n".join(lines)]
    measured = {mode: part["measures"] for mode, part in modes.items() if part["measures"]}
    if measured:
        parts.append(table(measured).rstrip())
    for mode, part in modes.items():
        shown = [
            f"{count} x {name} {wanted!r} seen as {seen!r}" for name, wanted, seen, count in part["mistakes"]
        ]
        if shown:
            more = f", {len(shown) - _MISTAKES} more kinds" if len(shown) > _MISTAKES else ""
            parts.append(
                f"{mode}: {'; '.join(shown[:_MISTAKES])}{more}. '?' is a clip that the judge is not sure of."
            )
    for name, value in result["more"].items():
        parts.append(f"{name}: {value}")
    return "\n\n".join(parts) + "\n"


def draw_sheet(answers: Sequence[Answer], path: Path) -> None:
    """Draw five frames of each of up to 40 clips with their prompts; wrong ones come first, framed in red."""
    chosen = sorted(answers, key=lambda answer: answer.right)[:_CLIPS]
    height, width = chosen[0].frames.shape[1:3]
    scale = max(1, round(_SIDE / min(height, width)))
    tile = (_FRAMES * (width * scale + 1) + 6, height * scale + 2 * _LINE + 8)
    rows, columns = -(-len(chosen) // _COLUMNS), min(_COLUMNS, len(chosen))
    sheet = Image.new("RGB", (columns * tile[0], rows * tile[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for number, answer in enumerate(chosen):
        left, top = number % _COLUMNS * tile[0] + 3, number // _COLUMNS * tile[1] + 3
        places = np.linspace(0, len(answer.frames) - 1, _FRAMES).round().astype(int)
        for column, place in enumerate(places):
            frame = Image.fromarray(answer.frames[place]).resize(
                (width * scale, height * scale), Image.NEAREST
            )
            sheet.paste(frame, (left + column * (width * scale + 1), top))
        below = top + height * scale + 1
        if not answer.right:
            draw.rectangle((left - 2, top - 2, left + tile[0] - 6, below), outline="red", width=2)
        text = wrap(answer.row["prompt"], (tile[0] - 6) // 7)
        for line, part in enumerate(text[:2] if answer.right else text[:1]):
            draw.text((left, below + line * _LINE), part, fill="black")
        seen = [answer.row["seen"][name] for name, right in answer.row["right"].items() if not right]
        draw.text((left, below + _LINE), f"seen: {', '.join(seen)}"[:52] if seen else "", fill="red")
    with whole_file(path) as temporary:
        sheet.save(temporary, format="png", optimize=True)


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return ""
    return f"{figure['share']:.1%} ({figure['low']:.1%} to {figure['high']:.1%})"
