"""What a script says when its user can mend what is wrong: one line, no traceback."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from opensora.utils.logging import get_logger

USER_ERRORS = (ValueError, TypeError, KeyError, OSError, ImportError, FloatingPointError)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error into one line on standard error; OPENSORA_LOG=DEBUG shows the traceback instead.

    Raises:
        SystemExit: With status 2, after the line.
    """
    try:
        yield
    except USER_ERRORS as error:
        if get_logger().isEnabledFor(logging.DEBUG):
            raise
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        if " " not in text:  # no sentence for a reader: it comes from inside
            text = f"{type(error).__name__} {text}; set OPENSORA_LOG=DEBUG to see where it comes from"
        sys.stderr.write(f"error: {' '.join(text.split())}\n")
        raise SystemExit(2) from None
