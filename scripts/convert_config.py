"""Translate a published config (Open-Sora 1.2 or 1.3) into our form.

    python scripts/convert_config.py OLD.py NEW.py [--force]

Scripts translate such a file by themselves when they read it; this writes the result down.
"""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opensora.utils.config import dump_config, execute, format_value, plain, read_config
from opensora.utils.config_defaults import base_configs
from opensora.utils.files import write_text
from opensora.utils.published_config import bases_of, is_published, translate_config

BASES = Path(__file__).resolve().parents[1] / "configs" / "_base_"


def main(argv: list[str] | None = None) -> int:
    """Translate one file; return the exit status."""
    parser = argparse.ArgumentParser(description="Translate a published config of Open-Sora 1.2 or 1.3.")
    parser.add_argument("old", type=Path, help="the published file")
    parser.add_argument("new", type=Path, help="where to write it in our form")
    parser.add_argument("--force", action="store_true", help="overwrite NEW")
    args = parser.parse_args(argv)
    try:
        convert(args.old, args.new, args.force)
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        sys.stderr.write(f"convert_config.py: {error}\n")
        return 2
    return 0


def convert(old: Path, new: Path, force: bool = False) -> None:
    """Write the translation of `old` to `new`, and print what was translated.

    Raises:
        FileExistsError: `new` exists and `force` is off.
        ValueError: `old` is not a published config, or a key of it has no counterpart.
    """
    if new.exists() and not force:
        raise FileExistsError(f"{new} exists; give --force to overwrite it.")
    if not new.parent.is_dir():
        raise FileNotFoundError(f"{new.parent}: no such folder; make it first.")
    published = execute(old)
    if not is_published(published):
        raise ValueError(f"{old} uses no published type, so it is not a config of Open-Sora 1.2 or 1.3.")
    notes: list[str] = []
    values = translate_config(published, notes)
    print("\n".join(notes))
    title = f"Translated from {old.name}."
    text = _on_bases(values, bases_of(published), new, title)
    if text is not None:
        write_text(text, new)
    if text is None or plain(read_config(new)) != values:
        dump_config(values, new, title)


def _on_bases(values: Mapping[str, Any], names: list[str], new: Path, title: str) -> str | None:
    """Return the file as differences from configs/_base_, or None where imports cannot reach that."""
    up = os.path.relpath(BASES, new.resolve().parent).split(os.sep)
    folders = [part for part in up if part != ".."]
    if not BASES.is_dir() or folders not in (["_base_"], ["configs", "_base_"]):
        return None
    module = "." * (len(up) - len(folders) + 1) + ".".join(folders)
    lines = [f'"""{title}"""', "", "from mmengine.config import read_base", "", "with read_base():"]
    lines += [f"    from {module}.{name} import *" for name in sorted(names)]
    base = {key: value for name in names for key, value in base_configs()[name].items()}
    lines.append("")
    for key, value in values.items():
        if key not in base or not isinstance(base[key], dict) or not isinstance(value, dict):
            lines += (
                [] if key in base and base[key] == value else [f"{key} = {format_value(value, len(key) + 3)}"]
            )
        elif key == "condition_dropout":
            lines += [] if base[key] == value else [f"{key} = {format_value(value, len(key) + 3)}"]
        else:
            lines += _updates(key, base[key], value)
    return "\n".join(lines) + "\n"


def _updates(path: str, base: Mapping[str, Any], value: Mapping[str, Any]) -> list[str]:
    """Return statements that turn a dict of a base into another, entry by entry."""
    lines = [f'{path}.pop("{key}")' for key in base if key not in value]
    own = {}
    for key, item in value.items():
        if key in base and isinstance(base[key], dict) and isinstance(item, dict):
            lines += _updates(f"{path}.{key}", base[key], item)
        elif key not in base or base[key] != item:
            own[key] = item
    # Not `path.key = ...`: a config's dicts have methods, which names such as `freeze` would meet.
    return [*([f"{path}.update({_arguments(own)})"] if own else []), *lines]


def _arguments(values: Mapping[str, Any]) -> str:
    line = ", ".join(f"{key}={format_value(value)}" for key, value in values.items())
    if "\n" not in line and len(line) <= 80:
        return line
    body = "".join(f"    {key}={format_value(value, 4 + len(key), 4)},\n" for key, value in values.items())
    return f"\n{body}"


if __name__ == "__main__":
    raise SystemExit(main())
