"""How a training run is shown and stopped: a live line on a terminal, plain lines elsewhere."""

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text
from torch import Tensor

from jobs.display import LINE_S, RATE_S, duration
from pipeline.watch import stop_on_signals
from vsp_model.train.loop import Watcher

LIVE_S = 0.25
SHOW_CURSOR = b"\x1b[?25h\n"


class Display:
    """Progress on stderr; also takes the lines that a run has to say."""

    def __init__(self, *, quiet: bool = False) -> None:
        """Choose by whether stderr is a terminal; `quiet` for a worker beside the first."""
        self._quiet = quiet
        self._console = Console(stderr=True)
        self._live = Live("", console=self._console, refresh_per_second=4, transient=True)
        self._last_s = time.monotonic()
        self._points: list[tuple[float, int]] = []

    def __enter__(self) -> "Display":
        if self._console.is_terminal and not self._quiet:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the terminal as it was."""
        if self._live.is_started:
            self._live.stop()

    def say(self, line: str) -> None:
        """One line for the user."""
        if not self._quiet:
            self._console.print(f"vsp: {line}", highlight=False, markup=False, soft_wrap=True)

    def is_due(self) -> bool:
        """Whether it is time to show progress again."""
        pause_s = LIVE_S if self._live.is_started else LINE_S
        return not self._quiet and time.monotonic() - self._last_s >= pause_s

    def progress(self, images_seen: int, num_images: int, loss: float | None) -> None:
        """Show how far the run is."""
        self._last_s = time.monotonic()
        self._points.append((self._last_s, images_seen))
        while self._last_s - self._points[0][0] > RATE_S and len(self._points) > 2:
            self._points.pop(0)
        facts = {"images": f"{images_seen:,} of {num_images:,} images"}
        if (rate := self._rate()) > 0:
            facts["rate"] = f"{rate:.1f} images/s"
            facts["left"] = f"{duration((num_images - images_seen) / rate)} left"
        if loss is not None:
            facts["loss"] = f"loss {loss:.4f}"
        if self._live.is_started:
            self._live.update(Text(" · ".join(facts.values())))
        else:
            line = " ".join(f"{name}={value!r}" for name, value in facts.items())
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _rate(self) -> float:
        (first_s, first), (last_s, last) = self._points[0], self._points[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0


class Attendant(Watcher):
    """Shows a run that computes in this process, and stops it when a signal came."""

    def __init__(self, display: Display) -> None:
        """Nothing has come yet."""
        self._display = display
        self.is_stopping = False
        self._is_first = True

    def should_stop(self) -> bool:
        """See `Watcher`."""
        return self.is_stopping

    def stepped(self, images_seen: int, num_images: int, terms: Mapping[str, Tensor]) -> None:
        """See `Watcher`."""
        if self._is_first or self._display.is_due():
            loss = terms.get("loss")
            value = None if loss is None else float(loss)
            self._display.progress(images_seen, num_images, value)
            self._is_first = False

    def signalled(self) -> None:
        """The first signal asks the run to stop; the second ends the process at once."""
        if self.is_stopping:
            if sys.stderr.isatty():
                os.write(2, SHOW_CURSOR)
            os._exit(128 + signal.SIGTERM)
        self.is_stopping = True
        # Not through the console: the signal may have come while it was printing.
        os.write(2, b"vsp: stopping after this step; another signal ends the run at once\n")


@contextmanager
def heeding_signals(attendant: Attendant) -> Iterator[None]:
    """Let SIGINT and SIGTERM stop the run."""
    with stop_on_signals(attendant.signalled):
        yield
