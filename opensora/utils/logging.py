"""The logger of the framework: one line per message, from the first process only."""

import logging
import os
import sys
from typing import TextIO

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class _StdoutHandler(logging.StreamHandler):
    """Writes to whatever `sys.stdout` is when a message comes, so redirected output is seen."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stdout


def get_logger() -> logging.Logger:
    """Return the logger "opensora".

    It writes to standard output. Environment variable OPENSORA_LOG sets the level, INFO by default. Other
    processes than the first of a `torchrun` only report errors.

    Raises:
        ValueError: OPENSORA_LOG is not a level.
    """
    logger = logging.getLogger("opensora")
    if not logger.handlers:
        level = os.environ.get("OPENSORA_LOG", "INFO").upper()
        if level not in LEVELS:
            raise ValueError(f"OPENSORA_LOG={level!r}: use one of {', '.join(LEVELS)}.")
        handler = _StdoutHandler()
        handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)
        logger.setLevel(level if os.environ.get("RANK", "0") == "0" else "ERROR")
    return logger
