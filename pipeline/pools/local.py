"""A pool of one worker in the calling process: nothing to start, nothing to pickle."""

import queue
import threading
from pathlib import Path

from pipeline.errors import RunError, one_line
from pipeline.pools.base import Done, Event, PoolConfig, Ready
from pipeline.stage import StageFactory, Task
from pipeline.tracker import Traces, read_traces
from pipeline.worker import Worker


class LocalPool:
    """Feed one worker from a thread. It can't be killed or replaced without the process itself."""

    num_workers = 1

    def __init__(self, config: PoolConfig, scratch: Path) -> None:
        """Plan the pool; `scratch` is a folder of this run."""
        self._config = config.worker("local", scratch, dies_with_parent=False)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._worker = Worker(self._config, lambda report: self._events.put(Done(0, report)))
        self._thread = threading.Thread(target=self._feed, name="feed", daemon=True)
        self._killed = False

    def start(self, factory: StageFactory) -> None:
        """Set the stage up here."""
        try:
            self._worker.setup(factory)
        except Exception as error:
            self._worker.close()
            raise RunError(f"the worker did not start: {one_line(error)}") from error
        self._thread.start()
        self._events.put(Ready(0))

    def _feed(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._worker.feed(task)
            self._events.put(Ready(0))

    def submit(self, worker: int, task: Task) -> None:
        """Queue the task for the feeding thread."""
        self._tasks.put(task)

    def wait(self, timeout_s: float) -> list[Event]:
        """Collect what the worker told."""
        try:
            events = [self._events.get(timeout=timeout_s)]
        except queue.Empty:
            return []
        while not self._events.empty():
            events.append(self._events.get())
        return events

    def traces(self, worker: int) -> Traces:
        """What the worker noted."""
        return read_traces(self._config.tracker)

    def replace(self, worker: int) -> None:
        """Not possible: a thread cannot be ended from outside."""
        raise RunError("the worker hangs; run the same command again with --pool ray")

    def kill(self) -> None:
        """Leave the threads to the end of the process, which the command brings about.

        What is in hand is no suspect then: nothing of it has killed anybody.
        """
        self._killed = True
        self._config.tracker.unlink(missing_ok=True)

    def close(self) -> None:
        """Finish what was submitted and free the stage."""
        if self._killed:
            return
        if self._thread.is_alive():
            self._tasks.put(None)
            self._thread.join()
        self._worker.close()
