"""Copy the values of configs/_base_ into the package, which uses them when it is installed without configs/.

python scripts/update_config_defaults.py
"""

import pprint
from pathlib import Path

from mmengine.config import Config

from opensora.utils.config import plain
from opensora.utils.config_defaults import DEFAULTS
from opensora.utils.files import write_text


def main() -> None:
    """Write opensora/utils/config_defaults.txt."""
    root = Path(__file__).parents[1]  # of this file: another copy of the package may be installed
    files = sorted((root / "configs" / "_base_").glob("*.py"))
    values = {file.stem: plain(Config.fromfile(file)) for file in files}
    head = "# Values of configs/_base_, written by scripts/update_config_defaults.py\n"
    target = root / "opensora" / "utils" / DEFAULTS.name
    write_text(head + pprint.pformat(values, width=110, sort_dicts=False) + "\n", target)


if __name__ == "__main__":
    main()
