"""Make videos or images from prompts.

    python scripts/inference.py CONFIG --prompt "a cat" [--num-frames 4s] [--key value ...]

    python scripts/inference.py --replay FILE [--key value ...]

--ckpt-path takes a run folder (its newest averaged weights), a weights file or folder, or a hub id.
--replay makes a file again from what it says about itself, into samples/replay.
"""

import sys

from opensora.utils.config import read_command_line
from opensora.utils.user_errors import one_line_errors


def main() -> None:
    """Read the command line and generate; end with one line and status 2 where something is wrong."""
    if sys.argv[1:2] == ["--replay"] and len(sys.argv) > 2:
        with one_line_errors():
            from opensora.engine.recipe import replay

            replay(sys.argv[2], sys.argv[3:])
        return
    cfg = read_command_line(__doc__)

    with one_line_errors():
        from opensora.engine.inference import infer

        infer(cfg)


if __name__ == "__main__":
    main()
