"""Make videos or images from prompts.

    python scripts/inference.py CONFIG --prompt "a cat" [--num-frames 4s] [--resolution 360p] [--key value
    ...]

--ckpt-path takes a run folder (its newest averaged weights), a weights file or folder, or a hub id.
"""

import sys

from opensora.utils.config import read_command_line


def main() -> None:
    """Read the command line and generate."""
    cfg = read_command_line(__doc__)

    from opensora.engine.inference import infer

    infer(cfg)


if __name__ == "__main__":
    main()
