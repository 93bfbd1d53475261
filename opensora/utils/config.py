"""Configs: read a file and the command line, check keys, name the run folder, write the config back.

A config file is Python and is executed: read it before you run one from elsewhere. It builds on the files in
`configs/_base_`, which hold every key with its default. Reading a config imports neither torch nor a
component.
"""

import copy
import difflib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from keyword import iskeyword
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from mmengine.config import Config

from opensora.utils.config_defaults import base_configs
from opensora.utils.files import alone_in, write_text
from opensora.utils.logging import get_logger
from opensora.utils.overrides import alias_table, apply_overrides
from opensora.utils.published_config import is_published, translate_config

_WIDTH = 110  # columns of a written config


def load_config(argv: Sequence[str], also: str | None = None) -> Config:
    """Read a config file and apply the options after it.

    Args:
        argv: The file, then `--key value` as often as needed; see `opensora.utils.overrides`.
        also: A file of `configs/_base_`; its keys are added where the config has none of that name.

    Returns:
        The config; its keys are attributes. Published configs of v1.2 and v1.3 come back translated.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be executed, has an unknown key, or a value has the wrong type.
        KeyError: An option names a key that the config lacks.
    """
    if not argv or argv[0].startswith("-"):
        got = f"; got {argv[0]!r}" if argv else ""
        raise ValueError(f"the first argument must be a config file, then --key value{got}. Try --help.")
    values = _with_base(read_config(argv[0]), also)
    apply_overrides(values, argv[1:])
    return Config(values)


def read_config(path: str | Path) -> dict[str, Any]:
    """Execute a config file and return its values as plain dicts, checked and translated.

    Args:
        path: A Python file; it may use `read_base()` or `_base_ = [...]`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be executed, or has an unknown key.
    """
    values = execute(path)
    if is_published(values):
        notes: list[str] = []
        values = translate_config(values, notes)
        for note in notes:
            get_logger().info("%s: %s", path, note)
    known = sorted({key for keys in base_configs().values() for key in keys})
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known)
            near.sort(key=lambda name: sorted(name) != sorted(str(key)))  # swapped letters first
            hint = f"did you mean {near[0]!r}?" if near else "the files in configs/_base_ list all keys."
            raise ValueError(
                f"{path}: unknown key {key!r} (value {values[key]!r}); {hint} "
                "A helper variable starts with '_'."
            )
    return values


def execute(path: str | Path) -> dict[str, Any]:
    """Execute a config file and return its values as they stand there, as plain dicts.

    Names that start with an underscore, and imported ones, are left out.

    Args:
        path: A Python file; it may use `read_base()` or `_base_ = [...]`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no Python file, or it cannot be executed.
    """
    path = Path(path)
    if path.suffix not in ("", ".py"):
        raise ValueError(f"{path}: a config is a Python file, *.py; JSON and YAML are not read.")
    if not path.is_file():
        here = [str(file) for file in path.parent.glob("*.py")]
        near = difflib.get_close_matches(str(path), here, n=1) or here[:3]
        hint = f"Did you mean {' or '.join(near)}?" if near else "Give a path relative to where you are."
        raise FileNotFoundError(f"{path}: no such config file. {hint}")
    try:
        cfg = Config.fromfile(path, use_predefined_variables=False, use_environment_variables=False)
        values = plain(cfg)
    except SyntaxError as error:
        where = error.filename if error.filename and Path(error.filename).is_file() else path
        raise ValueError(f"{where}, line {error.lineno}: {error.msg}.") from error
    except Exception as error:  # a config is somebody's program: anything may come out of it
        hint = ""
        if "inheritance chain" in str(error):
            hint = (
                " A file that uses read_base() can only be a base of one that does: use read_base() here too."
            )
        text = " ".join(str(error).split())
        if not text:  # mmengine says nothing when an imported name is called
            text = "a config can name what it imports, for `type`, but not call it"
        raise ValueError(f"{path}: cannot be executed: {type(error).__name__}: {text}.{hint}") from error
    imported = cfg._imported_names
    helpers = (FunctionType, ModuleType, type)
    return {
        key: value
        for key, value in values.items()
        if key not in imported
        and not (isinstance(key, str) and key.startswith("_"))
        and not isinstance(value, helpers)
    }


def read_command_line(description: str, argv: Sequence[str] | None = None, also: str | None = None) -> Config:
    """Read the config of a script, or print its help and leave.

    Args:
        description: What the script does, in one sentence.
        argv: Arguments; None takes those of the process.
        also: As for `load_config`.

    Raises:
        SystemExit: With 0 after `--help`, with 2 after one line that says what is wrong.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    program = Path(sys.argv[0]).name
    try:
        if "--help" in argv or "-h" in argv:
            files = [word for word in argv[:1] if not word.startswith("-")]
            sys.stdout.write(
                _help(program, description, _with_base(read_config(files[0]), also) if files else {})
            )
            raise SystemExit(0)
        return load_config(argv, also)
    except (ValueError, KeyError, OSError) as error:
        sys.stderr.write(f"{program}: {error.args[0] if isinstance(error, KeyError) else error}\n")
        raise SystemExit(2) from None


def plain(value: Any) -> Any:
    """Return a config, or a part of one, as plain dicts, lists and tuples; they can be compared."""
    if isinstance(value, Config):
        value = value._cfg_dict  # to_dict() turns classes into strings
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    return value


def make_run_folder(cfg: Config, stay: ExitStack | None = None) -> Path:
    """Create the folder of a run and write `config.py` into it.

    Without `run_name` the folder is `outputs/NNN-MODEL`, one above the highest number there. Two runs that
    start at once get different numbers. With `run_name` it is `outputs/RUN_NAME`, and may exist. Call it in
    one process.

    Args:
        cfg: The config of the run.
        stay: Keeps other processes out of the folder until it is left, from before the config is written. One
            that is there already is not waited for.

    Raises:
        ValueError: `run_name` is not a plain name.
        BlockingIOError: Another process works in the folder.
    """
    outputs = Path(cfg.outputs)
    outputs.mkdir(parents=True, exist_ok=True)
    if cfg.run_name is None:
        kind = cfg.model.type if "model" in cfg else cfg.vae.type
        kind = kind if isinstance(kind, str) else kind.__name__
        folder = _numbered(outputs, kind.replace("/", "-"))
    else:
        if not cfg.run_name or Path(cfg.run_name).name != cfg.run_name or cfg.run_name.startswith("."):
            raise ValueError(
                f"run_name={cfg.run_name!r}: use a plain folder name without slashes, inside `outputs`."
            )
        folder = outputs / cfg.run_name
        folder.mkdir(exist_ok=True)
    if stay is not None:
        stay.enter_context(alone_in(folder, patience_s=0))
    target = folder / "config.py"
    if target.exists() and plain(Config(read_config(target))) != plain(cfg):
        taken = sum(1 for _ in folder.glob("config-*.py"))
        target.rename(folder / f"config-{taken:03d}.py")
        get_logger().info(
            "%s differs from the config of this start; the old one is now config-%03d.py", target, taken
        )
    dump_config(cfg, target)
    return folder


def dump_config(cfg: Config | Mapping[str, Any], path: str | Path, title: str = "A whole config.") -> None:
    """Write a config as a Python file that loads again. The file appears whole or not at all.

    Args:
        cfg: The config.
        path: Where to write it.
        title: First line of the file.

    Raises:
        TypeError: A value is neither a number, a string, a container of them, None nor an importable class.
    """
    imports: dict[str, str] = {}
    lines = [f"{key} = {_format(item, imports, len(key) + 3, 0)}" for key, item in plain(cfg).items()]
    head = [
        f'"""{title}"""',
        "",
        *(f"from {module} import {name}" for name, module in sorted(imports.items())),
    ]
    write_text("\n".join([*head, *([""] if imports else []), *lines]) + "\n", path)


def format_value(value: Any, column: int = 0, indent: int = 0) -> str:
    """Return Python for a value, in several lines if need be.

    Args:
        value: What to write.
        column: Where the first line starts.
        indent: Spaces before the last line.

    Raises:
        TypeError: The value is neither a number, a string, a container of them nor None.
    """
    return _format(value, {}, column, indent)


def _with_base(values: dict[str, Any], name: str | None) -> dict[str, Any]:
    return values if name is None else {**copy.deepcopy(base_configs()[name]), **values}


def _numbered(outputs: Path, name: str) -> Path:
    """Create `outputs/NNN-name`. A claim file per number keeps two starts apart, also if the names differ."""
    index = 0
    while True:
        found = [re.match(r"(\d+)-", path.name) for path in outputs.iterdir()]
        index = max([index, *(int(match[1]) + 1 for match in found if match)])
        claim = outputs / f".claim-{index:03d}"
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            index += 1
            continue
        try:
            if not any(outputs.glob(f"{index:03d}-*")):  # somebody may have finished since we looked
                folder = outputs / f"{index:03d}-{name}"
                folder.mkdir()
                return folder
        finally:
            claim.unlink()


def _format(value: Any, imports: dict[str, str], column: int, indent: int) -> str:
    """Return Python for a value, in one line if it ends before the last column."""
    if isinstance(value, type):
        imports[value.__name__] = value.__module__
        return value.__name__
    if isinstance(value, str):
        text = repr(value)
        return f'"{text[1:-1]}"' if text[0] == "'" and '"' not in text else text
    if value is None or isinstance(value, bool | int):
        return repr(value)
    if isinstance(value, float):
        return repr(value) if value == value and abs(value) != float("inf") else f'float("{value}")'
    if not isinstance(value, dict | list | tuple):
        raise TypeError(
            f"a config cannot hold {value!r} of type {type(value).__name__}; use numbers, strings, dicts."
        )
    inner = indent + 4
    if isinstance(value, dict):
        named = all(isinstance(key, str) and key.isidentifier() and not iskeyword(key) for key in value)
        heads = [f"{key}=" if named else f"{_format(key, imports, 0, 0)}: " for key in value]
        opening, closing = ("dict(", ")") if named and value else ("{", "}")
        items = list(value.values())
    else:
        heads, items = [""] * len(value), list(value)
        opening, closing = "()" if isinstance(value, tuple) else "[]"
    parts = [
        head + _format(item, imports, inner + len(head), inner)
        for head, item in zip(heads, items, strict=True)
    ]
    comma = "," if isinstance(value, tuple) and len(parts) == 1 else ""
    line = opening + ", ".join(parts) + comma + closing
    if "\n" not in line and column + len(line) <= _WIDTH:
        return line
    if len(parts) > 8 and not any(heads):  # numbers: several to a line
        return opening + "\n" + _fill(parts, inner) + "\n" + " " * indent + closing
    return opening + "".join(f"\n{' ' * inner}{part}," for part in parts) + "\n" + " " * indent + closing


def _fill(parts: Sequence[str], indent: int) -> str:
    lines, line = [], ""
    for part in parts:
        if line and ("\n" in part or indent + len(line) + len(part) + 2 > _WIDTH):
            lines.append(line)
            line = ""
        line += f"{' ' if line else ''}{part},"
    return "\n".join(" " * indent + text for text in [*lines, line])


def _help(program: str, description: str, values: Mapping[str, Any]) -> str:
    lines = [
        f"{program} CONFIG [--key value ...]",
        "",
        description,
        "",
        "Any key of the config is an option: --seed 1, --model.window_size '(-1, 8, 8)', --wandb.",
        "Values are Python literals; an option without a value sets True. Familiar names:",
        "",
    ]
    lines += [f"  --{flag.replace('_', '-'):<38} {meaning}" for flag, meaning in alias_table()]
    if values:
        lines += ["", "Keys of this config, with their values:", ""]
        lines += [f"  --{key:<50} {_short(value)}" for key, value in _leaves(values)]
    else:
        lines += ["", f"{program} CONFIG --help lists the keys of that config."]
    return "\n".join(lines) + "\n"


def _leaves(values: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value and not any(isinstance(name, tuple) for name in value):
            leaves += _leaves(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", value))
    return leaves


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
