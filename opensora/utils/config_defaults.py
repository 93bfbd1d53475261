"""The values of the files in `configs/_base_`, installed with the package: all keys, with defaults."""

import ast
from functools import cache
from pathlib import Path
from typing import Any

DEFAULTS = Path(__file__).with_name("config_defaults.txt")


@cache
def base_configs() -> dict[str, dict[str, Any]]:
    """Return the values of each file in `configs/_base_` by its name.

    They are shared: copy before you change them.

    `scripts/update_config_defaults.py` writes the copy that this reads; a test compares it with the files.
    """
    return ast.literal_eval(DEFAULTS.read_text(encoding="utf-8"))
