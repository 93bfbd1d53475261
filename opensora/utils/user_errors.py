"""What a script says when its user can mend what is wrong: one line, no traceback."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from opensora.utils.logging import get_logger

# Seconds in which a launcher ends the others when the first process has failed, so one of them speaks.
_FIRST_SPEAKS_S = 3.0
LOST_PROCESS = 75  # exit status: the others are to blame, and the same command may be given again


class LostProcessError(RuntimeError):
    """Another process of the run died or hangs. The message names it."""


USER_ERRORS = (ValueError, TypeError, KeyError, OSError, ImportError, FloatingPointError, MemoryError)
USER_ERRORS = (*USER_ERRORS, LostProcessError)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error into one line on standard error; OPENSORA_LOG=DEBUG shows the traceback instead.

    What is wrong is mostly wrong in all processes. So others than the first wait a moment before they speak:
    torchrun ends them meanwhile if the first has failed too.

    Raises:
        SystemExit: With status 2, after the line; with 75 if another process is to blame.
    """
    try:
        yield
    except USER_ERRORS as error:
        if get_logger().isEnabledFor(logging.DEBUG):
            raise
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        if " " not in text:  # no sentence for a reader: it comes from inside
            text = f"{type(error).__name__} {text}; set OPENSORA_LOG=DEBUG to see where it comes from"
        rank = os.environ.get("RANK", "0")
        if rank != "0":
            time.sleep(_FIRST_SPEAKS_S)
        where = "" if rank == "0" else f" in process {rank}"
        sys.stderr.write(f"error{where}: {' '.join(text.split())}\n")
        raise SystemExit(LOST_PROCESS if isinstance(error, LostProcessError) else 2) from None
