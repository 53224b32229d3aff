"""Hand out shards to a pool and count what comes back."""

import shutil
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from pipeline.plan import Plan
from pipeline.pools.base import Outcome, Pool
from pipeline.shards import BAD_STATUSES, count_statuses
from pipeline.stage import StageFactory, Task

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_BAD_RECORDS, EXIT_STOPPED = 0, 1, 2, 3, 75
POLL_S = 0.5


@dataclass(slots=True)
class Summary:
    """What a run has come to; it grows while the run goes on.

    Attributes:
        num_shards: Shards of the input, finished before or not.
        num_skipped: Shards that an earlier run had finished.
        num_done: Shards this run has finished.
        counts: Records by status, over the skipped and the done.
        errors: One line per shard that could not be done.
        stopped: A signal ended the run.
    """

    num_shards: int
    num_skipped: int = 0
    num_done: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    stopped: bool = False

    @property
    def num_bad(self) -> int:
        """Records that were refused, failed, or lost with the end of a shard."""
        return sum(self.counts[status] for status in BAD_STATUSES)

    @property
    def exit_code(self) -> int:
        """The code of `vsp restore`: 0 done, 1 failed, 3 some records bad, 75 stopped."""
        if self.stopped:
            return EXIT_STOPPED
        if self.errors or self.num_skipped + self.num_done < self.num_shards:
            return EXIT_FAILED
        return EXIT_BAD_RECORDS if self.num_bad else EXIT_DONE


def run(
    factory: StageFactory,
    plan: Plan,
    pool: Pool,
    on_progress: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Do every pending shard of the plan; the pool is started and closed here.

    Args:
        factory: Makes the stage, in each worker.
        plan: Pending shards are done, finished ones are counted from their sidecars.
        pool: Where the stage runs.
        on_progress: Called after every shard.

    Returns:
        The summary; a shard that failed is in its errors, not raised.

    Raises:
        RunError: If the pool cannot start.
    """
    summary = Summary(len(plan.pending) + len(plan.finished), num_skipped=len(plan.finished))
    for task in plan.finished:
        summary.counts.update(count_statuses(task.out / f"{task.shard}.parquet"))
    if not plan.pending:
        return summary
    try:
        pool.start(factory)
        with _signals_interrupt():  # after the start: Ray installs handlers of its own
            _drive(plan.pending, pool, summary, on_progress)
    except KeyboardInterrupt:
        summary.stopped = True
        pool.kill()
    finally:
        pool.close()
        for task in plan.pending:  # no worker is left that could still write there
            shutil.rmtree(task.attempt_folder, ignore_errors=True)
    return summary


def _drive(
    tasks: tuple[Task, ...], pool: Pool, summary: Summary, on_progress: Callable[[Summary], None]
) -> None:
    queue = deque(tasks)
    while pool.num_busy or (queue and pool.num_free):
        while queue and pool.num_free:
            pool.submit(queue.popleft())
        for outcome in pool.wait(POLL_S):
            _count(outcome, summary)
            on_progress(summary)
    if queue:
        summary.errors.append(f"{len(queue)} shards not begun: no worker is left; run it again")


def _count(outcome: Outcome, summary: Summary) -> None:
    if outcome.error:
        summary.errors.append(f"{outcome.shard}: {outcome.error}")
        return
    summary.num_done += 1
    summary.counts.update(outcome.counts)


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt, where this thread may decide that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
