"""How a run is shown: a live line on a terminal, structured lines elsewhere, a table at the end."""

import json
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pipeline.runner import Summary

LINE_S = 10.0  # between two lines where nobody watches
MAX_REASONS = 3  # shown for each status
RATE_S = 30.0  # what the rate is averaged over


class Display:
    """Progress on stderr, so that stdout stays for what a script reads."""

    def __init__(self, *, as_json: bool = False) -> None:
        """Choose by whether stderr is a terminal."""
        self._as_json = as_json
        self._console = Console(stderr=True)
        self._live = Live("", console=self._console, refresh_per_second=4, transient=True)
        self._start_s = time.monotonic()
        self._points: list[tuple[float, int]] = []
        self._last_line_s = self._start_s
        self._num_notes = 0

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
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

    def update(self, summary: "Summary") -> None:
        """Show how far the run is."""
        for note in summary.notes[self._num_notes :]:
            self._console.print(f"vsp: {note}", highlight=False, markup=False, soft_wrap=True)
        self._num_notes = len(summary.notes)
        self._points.append((time.monotonic(), summary.num_live))
        while self._points[-1][0] - self._points[0][0] > RATE_S:
            self._points.pop(0)
        facts = self._facts(summary)
        if self._live.is_started:
            self._live.update(Text(" · ".join(facts.values())))
        elif self._is_due():
            line = " ".join(f"{name}={value!r}" for name, value in facts.items())
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _is_due(self) -> bool:
        now_s = time.monotonic()
        if now_s - self._last_line_s < LINE_S:
            return False
        self._last_line_s = now_s
        return True

    def _facts(self, summary: "Summary") -> dict[str, str]:
        done = summary.num_done + summary.num_skipped
        facts = {
            "job": summary.plan.job,
            "shards": f"{done}/{summary.num_shards} shards",
            "records": f"{max(summary.counts.total(), summary.num_live)} records",
        }
        if not summary.began_s:
            return facts | {"state": "starting workers"}
        if (rate := self._rate()) > 0:
            facts["rate"] = f"{rate:.1f}/s" if rate < 100 else f"{rate:.0f}/s"
        if summary.num_bad:
            facts["bad"] = f"{summary.num_bad} bad"
        if summary.num_deaths:
            facts["deaths"] = f"{summary.num_deaths} workers died"
        left_s = self._left_s(summary)
        if left_s is not None:
            facts["left"] = f"{duration(left_s)} left"
        return facts

    def _rate(self) -> float:
        (first_s, first), (last_s, last) = self._points[0], self._points[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0

    def _left_s(self, summary: "Summary") -> float | None:
        """Time left, from the share of the input that is done since the workers began."""
        share = summary.share_live
        spent_s = time.monotonic() - summary.began_s
        if share <= 0 or spent_s < 1:
            return None
        return spent_s / share * max(0.0, 1 - share)

    def close(self, summary: "Summary", out: str) -> None:
        """Print the end of a run: JSON or a table on stdout, every error on stderr."""
        for line in summary.errors:
            print_error(line)
        seconds = time.monotonic() - self._start_s
        if self._as_json:
            sys.stdout.write(json.dumps(summary_facts(summary, out, seconds)) + "\n")
        else:
            Console(soft_wrap=True).print(closing_table(summary, out, seconds))
        if summary.stopped:
            print_error("stopped; run the same command again to go on")


def print_error(line: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"vsp: {line}\n")


def summary_facts(summary: "Summary", out: str, seconds: float) -> dict[str, Any]:
    """The end of a run for a program."""
    return {
        "out": out,
        "exit_code": summary.exit_code,
        "shards": summary.num_shards,
        "shards_done": summary.num_done,
        "shards_from_before": summary.num_skipped,
        "records": dict(summary.counts),
        "reasons": dict(summary.reasons),
        "workers_died": summary.num_deaths,
        "seconds": round(seconds, 3),
        "errors": summary.errors,
    }


def closing_table(summary: "Summary", out: str, seconds: float) -> Table:
    """The end of a run for a person."""
    table = Table(show_header=False, box=None, pad_edge=False)
    done = summary.num_done + summary.num_skipped
    before = f" ({summary.num_skipped} from before)" if summary.num_skipped else ""
    table.add_row("shards", f"{done} of {summary.num_shards}{before}")
    for status, count in sorted(summary.counts.items()):
        table.add_row(status, str(count))
        for line in reasons_of(summary, status):
            table.add_row("", line)
    if summary.num_deaths:
        table.add_row("workers died", str(summary.num_deaths))
    start = f" ({duration(summary.start_s)} to start)" if summary.start_s else ""
    table.add_row("time", f"{duration(seconds)}{start}")
    table.add_row("out", out)
    return table


def reasons_of(summary: "Summary", status: str) -> list[str]:
    """The commonest reasons of a status; all of them stand in the sidecars' column `reason`."""
    found = [
        f"{count} x {reason.removeprefix(f'{status}: ')}"
        for reason, count in summary.reasons.most_common()
        if reason.startswith(f"{status}: ")
    ]
    more = [f"and {len(found) - MAX_REASONS} more: column `reason` of the sidecars"]
    return found[:MAX_REASONS] + (more if len(found) > MAX_REASONS else [])


def duration(seconds: float) -> str:
    """Seconds as a person says them: 4.2 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
