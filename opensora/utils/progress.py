"""Progress of a long task, as a line of the log now and then."""

import math
import time

from opensora.utils.logging import get_logger


class Progress:
    """Say how much is done, how fast, and how long the rest takes.

    Args:
        what: What is counted, such as "clips".
        total: How many there are.
        note: Put behind the rate.
        every_s: Seconds between lines; infinite says nothing.
    """

    def __init__(self, what: str, total: int, note: str = "", every_s: float = 10.0) -> None:
        self.what, self.total, self.note, self.every_s = what, total, note, every_s
        self.done, self.start = 0, time.perf_counter()
        self.said = self.start

    def add(self) -> None:
        """Count one."""
        self.done += 1
        now = time.perf_counter()
        if now - self.said < self.every_s and (self.done < self.total or self.every_s == math.inf):
            return
        self.said = now
        rate = self.done / max(now - self.start, 1e-9)
        left = int((self.total - self.done) / rate)
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        get_logger().info(
            "%s %d/%d | %.2f a second%s, %s left", self.what, self.done, self.total, rate, self.note, clock
        )
