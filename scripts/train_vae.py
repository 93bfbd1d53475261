"""Train an autoencoder.

    python scripts/train_vae.py CONFIG [--key value ...]
    torchrun --nproc_per_node 8 scripts/train_vae.py CONFIG [--key value ...]

--dry-run prints what the run would do: parameters, plan, tokens, memory.
"""

import sys

from opensora.utils.config import read_command_line
from opensora.utils.user_errors import one_line_errors


def main() -> None:
    """Read the command line and train; end with one line and status 2 where something is wrong."""
    dry_run = "--dry-run" in sys.argv
    cfg = read_command_line(__doc__, [word for word in sys.argv[1:] if word != "--dry-run"])

    with one_line_errors():
        from opensora.engine.autoencoding import Autoencoding
        from opensora.engine.training import train

        train(cfg, Autoencoding.from_config, dry_run)


if __name__ == "__main__":
    main()
