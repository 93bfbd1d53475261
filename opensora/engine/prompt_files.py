"""Prompts as users give them: on the command line, in files, with references behind them, and per loop."""

import csv
import json
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from opensora.layers.known_frames import shorten

_KEYS = ("reference_path", "mask_strategy")


class Prompt(NamedTuple):
    """A prompt, and what is said about its references beside it.

    Args:
        text: The prompt, without JSON.
        reference: Files with ";" between them, or None.
        strategy: Mask strategy, or None.
    """

    text: str
    reference: str | None = None
    strategy: str | None = None


def read_prompts(
    prompts: Sequence[str] | str | None,
    path: str | None,
    start: int = 0,
    end: int | None = None,
    column: str | None = None,
) -> list[Prompt]:
    """Collect prompts from the command line or a file.

    Args:
        prompts: One prompt, or several.
        path: A .txt file with a prompt per line, where empty lines do not count, a .csv file with a column
            `text`, or a .jsonl file with objects that have a key `text`.
        start: First prompt of the file, from 0.
        end: Prompt of the file to stop before; None takes all.
        column: Column of the .csv that holds references.

    Raises:
        ValueError: Both or neither are given, there is no prompt in them, or JSON in them is wrong.
        FileNotFoundError: The file does not exist.
    """
    if prompts is None and path is None:
        raise ValueError(
            "there is no prompt: give --prompt 'a text', or --prompt-path FILE (.txt, .csv or .jsonl)."
        )
    if prompts is not None and path is not None:
        raise ValueError(f"prompt={prompts!r} and prompt_path={path!r}: give one of them, not both.")
    if path is None:
        found = [Prompt(text) for text in ([prompts] if isinstance(prompts, str) else prompts)]
    else:
        if start < 0 or (end is not None and end <= start):
            raise ValueError(f"start_index={start}, end_index={end}: use 0 <= start_index < end_index.")
        if is_url(path):
            raise ValueError(f"prompt_path={path!r}: nothing is downloaded; fetch it, and name the file.")
        rows = read_rows(Path(path), column)
        if Path(path).suffix.lower() == ".txt":
            rows = [row for row in rows if row.text.strip()]
        found = rows[start:end]
        if not found:
            raise ValueError(f"prompt_path={path!r}: it has {len(rows)} prompts; start_index={start}.")
    found = [_with_json(prompt) for prompt in found]
    empty = [i for i, prompt in enumerate(found) if not prompt.text]
    if empty or not found:
        which = f"number {start + empty[0] if path else empty[0]} is empty" if empty else "the list is empty"
        raise ValueError(f"prompt={prompts!r}, prompt_path={path!r}: {which}; write a prompt.")
    return found


def is_url(text: str) -> bool:
    """Say whether a text is the address of something on the web, and so no path."""
    try:
        parts = urllib.parse.urlsplit(text)
    except ValueError:  # brackets that hold no address
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc) and len(text.split()) == 1


def read_rows(path: Path, column: str | None = None) -> list[Prompt]:
    """Read every line of a file of prompts. Arguments and errors as of `read_prompts`."""
    kind = path.suffix.lower()
    if not path.is_file():
        raise FileNotFoundError(f"prompt_path={str(path)!r}: no such file. Give a .txt, .csv or .jsonl file.")
    if column is not None and kind != ".csv":
        raise ValueError(f"csv_reference_column_name={column!r}: it is for a .csv, not for {str(path)!r}.")
    if kind == ".txt":
        return [Prompt(line.strip()) for line in path.read_text(encoding="utf-8-sig").splitlines()]
    if kind == ".jsonl":
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        return [
            _object(line, f"prompt_path={str(path)!r}, line {i}") for i, line in enumerate(lines, 1) if line
        ]
    if kind != ".csv":
        raise ValueError(
            f"prompt_path={str(path)!r}: give a .txt file with a prompt per line, or a .csv or .jsonl file."
        )
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns, rows = list(reader.fieldnames or ()), list(reader)
    for name in filter(None, ("text", column)):
        if name not in columns:
            raise ValueError(
                f"prompt_path={str(path)!r}: it has columns {columns}; a column `{name}` is needed."
            )
    return [Prompt(row["text"] or "", row[column] if column else None) for row in rows]


def split_json(text: str) -> Prompt:
    """Take the JSON object off the end of a prompt.

    Raises:
        ValueError: There is more than one "{", or what follows is no object of the two keys and texts.
    """
    head, brace, tail = text.partition("{")
    if not brace:
        return Prompt(text)
    values = _parse("{" + tail, f"prompt {shorten(text)}")
    if "{" in tail or set(values) - set(_KEYS) or not all(isinstance(v, str) for v in values.values()):
        raise ValueError(
            f"prompt {shorten(text)}: a prompt may end in one JSON object of "
            f"{' and '.join(_KEYS)}, both texts, and has no other braces."
        )
    return Prompt(head, *(values[key] if key in values else None for key in _KEYS))


def split_sections(text: str) -> list[tuple[int, str]]:
    """Split `|0|a|2|b` into the loops that texts start with, and the texts.

    A prompt that does not start so is one text for all loops.

    Raises:
        ValueError: A number or a text is missing.
    """
    if not text.startswith("|0|"):
        return [(0, text)]
    parts = text.split("|")[1:]
    if len(parts) % 2 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts[::2]):
        raise ValueError(
            f"prompt {shorten(text)}: write |0|first text|2|text from loop 2 on, with a number before "
            "each text and no other | in it."
        )
    return [(int(loop), part.strip()) for loop, part in zip(parts[::2], parts[1::2], strict=True)]


def text_of_loop(sections: Sequence[tuple[int, str]], loop: int) -> str:
    """Return the text of a loop: the last before a text that starts later."""
    text = sections[0][1]
    for start, part in sections:
        if start > loop:
            break
        text = part
    return text


def merge_sections(sections: Sequence[tuple[int, str]]) -> str:
    """Undo `split_sections` of a prompt with texts for loops."""
    return "".join(f"|{loop}|{text}" for loop, text in sections)


def _with_json(prompt: Prompt) -> Prompt:
    text, reference, strategy = split_json(prompt.text)
    return Prompt(
        text.strip(),
        prompt.reference if reference is None else reference,
        prompt.strategy if strategy is None else strategy,
    )


def _object(line: str, where: str) -> Prompt:
    values = _parse(line, where)
    texts = all(isinstance(value, str) for value in values.values())
    if "text" not in values or set(values) - {"text", *_KEYS} or not texts:
        raise ValueError(
            f"{where}: give an object with `text`, and as needed {' and '.join(_KEYS)}, all texts."
        )
    return Prompt(values["text"], *(values[key] if key in values else None for key in _KEYS))


def _parse(text: str, where: str) -> dict:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {shorten(text)} is no JSON ({error}).") from None
    if not isinstance(values, dict):
        raise ValueError(f"{where}: {shorten(text)} is no JSON object.")
    return values
