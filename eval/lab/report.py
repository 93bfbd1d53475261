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
_LABEL = 210  # width of what stands before a row
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
    height, width, scale = _size(chosen[0].frames)
    tile = (_FRAMES * (width + 1) + 6, height + 2 * _LINE + 8)
    rows, columns = -(-len(chosen) // _COLUMNS), min(_COLUMNS, len(chosen))
    sheet = Image.new("RGB", (columns * tile[0], rows * tile[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for number, answer in enumerate(chosen):
        left, top = number % _COLUMNS * tile[0] + 3, number // _COLUMNS * tile[1] + 3
        _paste(sheet, answer.frames, left, top, scale)
        below = top + height + 1
        if not answer.right:
            draw.rectangle((left - 2, top - 2, left + tile[0] - 6, below), outline="red", width=2)
        text = wrap(answer.row["prompt"], (tile[0] - 6) // 7)
        for line, part in enumerate(text[:2] if answer.right else text[:1]):
            draw.text((left, below + line * _LINE), part, fill="black")
        seen = [answer.row["seen"][name] for name, right in answer.row["right"].items() if not right]
        draw.text((left, below + _LINE), f"seen: {', '.join(seen)}"[:52] if seen else "", fill="red")
    with whole_file(path) as temporary:
        sheet.save(temporary, format="png", optimize=True)


def draw_rows(
    rows: Sequence[tuple[str, str, Sequence[np.ndarray]]], titles: Sequence[str], path: Path
) -> None:
    """Draw a row for each setting: its name and its figure, then five frames of each of a few clips.

    Args:
        rows: Name, figure, and clips of bytes [T, H, W, 3], as many as there are titles.
        titles: What stands over the clips.
        path: Of the .png file.
    """
    height, width, scale = _size(rows[0][2][0])
    wide, high = _FRAMES * (width + 1) + 6, height + 4
    head = 2 * _LINE + 4
    sheet = Image.new("RGB", (_LABEL + len(titles) * wide, head + len(rows) * high), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        text = "\n".join(wrap(title, wide // 7)[:2])
        draw.multiline_text((_LABEL + column * wide, 0), text, fill="black", spacing=0)
    for number, (name, figure, clips) in enumerate(rows):
        top = head + number * high
        lines = wrap(name, _LABEL // 7), wrap(figure, _LABEL // 7)
        for line, (part, color) in enumerate(
            [(t, "black") for t in lines[0]] + [(t, "blue") for t in lines[1]]
        ):
            draw.text((3, top + line * _LINE), part, fill=color)
        for column, frames in enumerate(clips):
            _paste(sheet, frames, _LABEL + column * wide, top, scale)
    with whole_file(path) as temporary:
        sheet.save(temporary, format="png", optimize=True)


def _size(frames: np.ndarray) -> tuple[int, int, int]:
    """Return height and width of a frame on a sheet, and how many times larger it is there."""
    scale = max(1, round(_SIDE / min(frames.shape[1:3])))
    return frames.shape[1] * scale, frames.shape[2] * scale, scale


def _paste(sheet: Image.Image, frames: np.ndarray, left: int, top: int, scale: int) -> None:
    """Put five frames of a clip, evenly spread, beside each other."""
    height, width = frames.shape[1:3]
    for column, place in enumerate(np.linspace(0, len(frames) - 1, _FRAMES).round().astype(int)):
        frame = Image.fromarray(frames[place]).resize((width * scale, height * scale), Image.NEAREST)
        sheet.paste(frame, (left + column * (width * scale + 1), top))


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return ""
    return f"{figure['share']:.1%} ({figure['low']:.1%} to {figure['high']:.1%})"
