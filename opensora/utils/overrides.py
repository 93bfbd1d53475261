"""Options of the command line: `--key value` changes a key that the config has, and no other.

Keys are dotted (`--model.window_size`), and dashes read as underscores. Values are Python literals; a key
that holds text takes words as they stand. `ALIASES` keeps the flags that users of Open-Sora 1.2 and 1.3 know.
"""

import ast
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Alias:
    """A familiar flag.

    Args:
        paths: Keys that it may stand for; the first that the config has is set. None sets nothing.
        values: What to set for a given value; None sets the value itself.
        adds: Type that a true value appends to the list.
        remark: For the table in docs/config.md.
    """

    paths: tuple[str, ...] = ()
    values: tuple[tuple[Any, Any], ...] | None = None
    adds: str | None = None
    remark: str = ""


_SWITCH_AT_10 = ((True, 10), (False, None))

ALIASES = {
    "ckpt_path": Alias(("model.from_pretrained", "vae.from_pretrained")),
    "data_path": Alias(("dataset.data_path",)),
    "cfg_scale": Alias(("guidance.scales.text.scale",)),
    "image_cfg_scale": Alias(("guidance.scales.frames.scale",)),
    "use_oscillation_guidance_for_text": Alias(("guidance.scales.text.oscillate_from",), _SWITCH_AT_10),
    "use_oscillation_guidance_for_image": Alias(("guidance.scales.frames.oscillate_from",), _SWITCH_AT_10),
    "use_sdedit": Alias(("scheduler.renoise_reference",)),
    "num_sampling_steps": Alias(("scheduler.num_sampling_steps",)),
    "lr": Alias(("optimizer.lr",)),
    "weight_decay": Alias(("optimizer.weight_decay",)),
    "adam_eps": Alias(("optimizer.eps",)),
    "warmup_steps": Alias(("lr_schedule.warmup_steps",)),
    "keep_last": Alias(("ckpt_keep",)),
    "keep_n_latest": Alias(("ckpt_keep",)),
    "keep_every": Alias(("ckpt_keep_every",)),
    "grad_checkpoint": Alias(("activation_checkpoint",)),
    "flash_attn": Alias(("attention_backend",), ((True, "flash"), (False, "sdpa"))),
    "layernorm_kernel": Alias(remark="kernels are chosen at run time"),
    "force_huggingface": Alias(remark="--ckpt-path takes files, folders and hub ids alike"),
    "watermark": Alias(("postprocess",), adds="Watermark"),
    "deflicker": Alias(("postprocess",), adds="Deflicker"),
}

# Flags that Open-Sora had and that nothing here answers to: what to use instead.
REFUSED = {
    "image_prompt": "nothing read it; give images with --reference-path",
    "image_prompt_path": "nothing read it; give images with --reference-path",
    "reference_txt_path": "nothing read it; give references with --reference-path, or in a .csv",
    "num_prompt_generator": "nothing read it; --random-prompts 3 asks a language model for three",
    "prompt_generator": "--random-prompts 3 asks a language model for prompts, --llm-refine rewrites yours",
    "super_resolution": "append dict(type='SuperResolution') to `postprocess` in the config",
    "ckpt_path_lora": "nothing read it; set `lora` in the config",
    "load_lora": "nothing read it; set `lora` in the config",
    "multi_resolution": "sizes always reach the model; leave it out",
}

# Top-level keys that hold a list of texts, one per word of the command line.
_TEXT_LISTS = ("prompt", "neg_prompt", "reference_path", "mask_strategy", "modes")
# Ends of the names of keys that hold text even where their value is None.
_TEXTS = (
    *(
        "prompt_path",
        "load",
        "run_name",
        "sample_name",
        "save_dir",
        "cond_type",
        "camera_motion",
        "resolution",
    ),
    *("csv_reference_column_name", "from_pretrained", "data_path", "plugin", "strategy", "frame_factor"),
)
_NUMBER_OR_NAME = ("num_frames", "aes", "flow")  # keys that hold a number or a word
_WORDS = {"none": None, "true": True, "false": False}
_SWITCH_WORDS = {**dict.fromkeys(("yes", "y", "t", "1"), True), **dict.fromkeys(("no", "n", "f", "0"), False)}


def apply_overrides(values: dict[str, Any], words: Sequence[str]) -> None:
    """Change a config in place.

    Args:
        values: The config as plain dicts.
        words: Arguments after the config file: `--key value`, `--key=value`, or `--key` alone for a switch.
            Several values after a key make a list.

    Raises:
        KeyError: A key is not in the config; the message names the nearest.
        ValueError: A value is missing or has the wrong type, or the flag has no counterpart.
    """
    for flag, given in _options(words):
        name = flag.replace("-", "_")
        if name in REFUSED and name not in values:
            raise ValueError(f"--{flag}: there is no such option here: {REFUSED[name]}.")
        alias = None if name in values else ALIASES.get(name)
        if alias is None:
            holder, key = _find(values, flag, flag)
            holder[key] = _value(flag, key, holder[key], given)
        elif alias.paths:
            _apply_alias(values, flag, alias, given)


def alias_table() -> list[tuple[str, str]]:
    """Return every familiar flag and what it sets, as docs/config.md and `--help` show them."""
    rows = []
    for name, alias in ALIASES.items():
        if not alias.paths:
            rows.append((name, f"nothing: {alias.remark}"))
            continue
        target = " or ".join(alias.paths)
        if alias.values:
            target += ": " + ", ".join(f"{value!r} for {given}" for given, value in alias.values)
        rows.append((name, target + (f": appends dict(type={alias.adds!r})" if alias.adds else "")))
    return rows


def _options(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each key with its values."""
    i = 0
    while i < len(words):
        if not words[i].startswith("--") or len(words[i]) < 3:
            raise ValueError(f"{words[i]!r}: expected --key value after the config file.")
        flag, equals, first = words[i][2:].partition("=")
        i += 1
        given = [first] if equals else []
        while not equals and i < len(words) and not words[i].startswith("--"):
            given.append(words[i])
            i += 1
        yield flag, given


def _apply_alias(values: dict[str, Any], flag: str, alias: Alias, given: list[str]) -> None:
    path = next((path for path in alias.paths if path.split(".")[0] in values), alias.paths[0])
    holder, key = _find(values, path, flag)
    if alias.adds is None and alias.values is None:
        holder[key] = _value(flag, key, holder[key], given)
        return
    switch = _value(flag, flag, False, given)  # a bool
    if alias.adds is None:
        holder[key] = dict(alias.values or ())[switch]
    elif switch:
        holder[key] = [*holder[key], {"type": alias.adds}]


def _find(values: dict[str, Any], path: str, flag: str) -> tuple[dict[Any, Any], Any]:
    """Return the dict that holds the last part of a dotted path, and its key there."""
    at: Any = values
    parts = path.split(".")
    for depth, part in enumerate(parts):
        where = ".".join(parts[:depth])
        if not isinstance(at, dict):
            raise KeyError(
                f"--{flag}: {where!r} is {at!r} in the config, so it has no {part!r}; set all of --{where}."
            )
        key = _match(at, part)
        if key is None:
            names = [str(name) for name in at] + (
                [name.replace("_", "-") for name in ALIASES] if not depth else []
            )
            near = difflib.get_close_matches(part, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(map(str, at)) or 'no keys'}."
            raise KeyError(f"--{flag}: {part!r} is not in {where or 'the config'}; {hint}")
        if depth == len(parts) - 1:
            return at, key
        at = at[key]
    raise KeyError(f"--{flag}: an empty key.")


def _match(at: dict[Any, Any], part: str) -> Any:
    for key in (part, part.replace("-", "_"), int(part) if part.isdigit() else None):
        if key is not None and key in at:
            return key
    return None


def _value(flag: str, key: Any, old: Any, given: list[str]) -> Any:
    """Read the words after a key as a value that may take the place of `old`."""
    if not given:
        if isinstance(old, bool):
            return True
        raise ValueError(
            f"--{flag}: a value is missing; only switches stand alone, and it is {_kind(old)} ({old!r})."
        )
    if key in _TEXT_LISTS:
        return None if [word.lower() for word in given] == ["none"] else list(given)
    if len(given) > 1:
        new: Any = [_literal(word) for word in given]
    elif isinstance(old, bool):
        new = _SWITCH_WORDS.get(given[0].lower(), _literal(given[0]))
    elif isinstance(old, str) or (old is None and str(key) in _TEXTS):
        new = _text(given[0])
    else:
        new = _literal(given[0])
    return _checked(flag, key, old, new)


def _checked(flag: str, key: Any, old: Any, new: Any) -> Any:
    """Return `new` in the type of `old`, or say that it does not fit."""
    if new is None or old is None:
        return new
    if isinstance(old, bool) or isinstance(new, bool):
        fits = isinstance(old, bool) and isinstance(new, bool)
    elif key in _NUMBER_OR_NAME:
        fits = isinstance(new, int | float | str)
    elif isinstance(old, float):
        fits = isinstance(new, int | float)
        new = float(new) if fits else new
    elif isinstance(old, list | tuple):
        fits = isinstance(new, list | tuple)
        new = type(old)(new) if fits else new
    elif isinstance(old, type):
        fits = isinstance(new, str)
    else:
        fits = isinstance(new, type(old))
    if not fits:
        raise ValueError(
            f"--{flag} {new!r}: it is {_kind(new)}, but the config has {_kind(old)} ({old!r}) there."
        )
    return new


def _literal(word: str) -> Any:
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return word


def _text(word: str) -> str | None:
    if word.lower() == "none":
        return None
    quoted = len(word) > 1 and word[0] == word[-1] and word[0] in "'\""
    value = _literal(word) if quoted else word
    return value if isinstance(value, str) else word


def _kind(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
