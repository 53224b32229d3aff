"""What a driver keeps an eye on: whether each worker moves, and whether it is told to stop."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Watch:
    """How far a worker has come, and since when it has not moved.

    Attributes:
        num_done: Records it has written.
        is_up: It was ready once.
    """

    def __init__(self) -> None:
        """Begin to watch a worker that was just started."""
        self.num_done = 0
        self.is_up = False
        self._moved_s = time.monotonic()

    def see(self, num_done: int) -> None:
        """Take note of how many records it has written."""
        if num_done != self.num_done:
            self.num_done = num_done
            self.touch()

    def touch(self) -> None:
        """It has moved, or was given something to do."""
        self._moved_s = time.monotonic()

    @property
    def idle_s(self) -> float:
        """Seconds since it moved."""
        return time.monotonic() - self._moved_s


@contextmanager
def stop_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on SIGINT and SIGTERM, where this thread may decide that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
