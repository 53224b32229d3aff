"""A pool of one worker: the calling process itself. Nothing to start, nothing to kill."""

from pipeline.errors import RunError
from pipeline.pools.base import Outcome, one_line, process
from pipeline.stage import Stage, StageFactory, Task


class LocalPool:
    """Run each task in the caller's thread, inside `wait`."""

    def __init__(self) -> None:
        """Make a pool without a stage; `start` gives it one."""
        self._stage: Stage | None = None
        self._task: Task | None = None

    def start(self, factory: StageFactory) -> None:
        """Set the stage up here, in the calling process."""
        try:
            self._stage = factory()
            self._stage.setup()
        except Exception as error:
            raise RunError(f"the worker did not start: {one_line(error)}") from error

    @property
    def num_free(self) -> int:
        """One, unless a task was submitted and not yet run."""
        return int(self._stage is not None and self._task is None)

    @property
    def num_busy(self) -> int:
        """One from `submit` to the next `wait`."""
        return int(self._task is not None)

    def submit(self, task: Task) -> None:
        """Keep the task for the next `wait`."""
        assert self.num_free, "no free worker"
        self._task = task

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Run the submitted task to its end: in one thread nothing can interrupt it."""
        if self._task is None or self._stage is None:
            return []
        task, self._task = self._task, None
        return [Outcome(task.shard, **process(self._stage, task))]

    def kill(self) -> None:
        """The same as `close`: the task has ended when this can be called."""
        self.close()

    def close(self) -> None:
        """Close the stage."""
        if self._stage is not None:
            self._stage.close()
        self._stage = self._task = None
