"""The form of the tables that translate published component configs."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Rename = str | tuple[str, Callable[[Any], Any]]

_SITE_LOCAL = re.compile(r"<site-local: .*>")


@dataclass(frozen=True)
class Component:
    """How one published type is translated.

    Args:
        slot: Key of our configs that holds it.
        type: Our type.
        keys: For each published key our key, dotted, and where the values differ a function from theirs to
            ours.
        defaults: Published defaults that are made explicit.
        dropped: Published keys without a counterpart, and why they can go.
        elsewhere: Published keys that `finish` reads, or whose counterpart is outside the component and is
            set by `translate_config`; with the names of what they become.
        finish: Changes the result in place; takes (result, published values, version).
    """

    slot: str
    type: str
    keys: Mapping[str, Rename]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    finish: Callable[[dict[str, Any], Mapping[str, Any], str], None] | None = None


def translate_key(
    table: Component, out: dict[str, Any], key: str, value: Any, notes: list[str] | None
) -> None:
    """Set our counterpart of one published key.

    Args:
        table: Table of the component.
        out: Our config; changed in place.
        key: Published key.
        value: Its value.
        notes: Takes a line on it; None for a default.

    Raises:
        ValueError: The table does not have the key.
    """
    say = (lambda line: None) if notes is None else notes.append
    source = f"{table.slot}.{key}={value!r}"
    if key in table.dropped:
        say(f"{source} -> dropped: {table.dropped[key]}")
    elif key in table.keys:
        rename = table.keys[key]
        path, convert = (rename, None) if isinstance(rename, str) else rename
        new = value if convert is None else convert(value)
        if path.endswith("from_pretrained") and isinstance(value, str) and _SITE_LOCAL.fullmatch(value):
            say(f"{source} -> None: a path on the authors' machine; give --{table.slot}.from_pretrained")
            new = None
        elif path != key or new != value:
            say(f"{source} -> {table.slot}.{path}={new!r}")
        put(out, path, new)
    elif key in table.elsewhere:
        say(f"{source} -> {table.elsewhere[key]}")
    else:
        raise unknown_key(f"{table.slot}.", key, value, [*table.keys, *table.dropped, *table.elsewhere])


def put(values: dict[str, Any], path: str, value: Any) -> None:
    """Set `values[a][b]` for the dotted path "a.b"; dicts on the way are made."""
    *parents, last = path.split(".")
    for name in parents:
        values = values.setdefault(name, {})
    values[last] = value


def unknown_key(where: str, key: str, value: Any, known: Iterable[str]) -> ValueError:
    """Return the error for a key that no table has."""
    near = difflib.get_close_matches(key, list(known), n=1)
    hint = (
        f"did you mean {near[0]!r}?"
        if near
        else "remove it, or write the config in our form (docs/config.md)."
    )
    return ValueError(f"{where}{key}={value!r}: Open-Sora 1.2 and 1.3 have no such key; {hint}")


def same(*keys: str) -> dict[str, Rename]:
    """Return the table of keys that are called the same here."""
    return dict(zip(keys, keys, strict=True))


def when(value: Any) -> Callable[[Any], Any]:
    """Return the function that turns a switch into `value`, or into ()."""
    return lambda on: value if on else ()


def as_tuple(value: Any) -> Any:
    """Return a list as a tuple, anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def no_effect(name: str, harmless: Any) -> Callable[[Any], Any]:
    """Return the function that lets only one value pass: the one that does nothing."""

    def convert(value: Any) -> Any:
        if value != harmless:
            raise ValueError(
                f"{name}={value!r}: no counterpart; only {harmless!r} is the same here. Remove it."
            )
        return value

    return convert
