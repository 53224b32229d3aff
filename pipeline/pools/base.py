"""The interface of a pool: where stages run, and how the runner hands out work."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.stage import Stage, StageFactory, Task


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one task ended.

    Attributes:
        shard: The task's shard.
        counts: Number of records by status, where the shard was done.
        error: One line why it was not, or "".
        died: The worker itself is gone, not only the task.
    """

    shard: str
    counts: Mapping[str, int] = field(default_factory=dict)
    error: str = ""
    died: bool = False


class Pool(Protocol):
    """Workers that each hold one stage. One shard at a time runs in a worker."""

    def start(self, factory: StageFactory) -> None:
        """Start the workers and set their stages up.

        Raises:
            RunError: If a worker cannot start.
        """

    @property
    def num_free(self) -> int:
        """Living workers that wait for a task."""

    @property
    def num_busy(self) -> int:
        """Tasks handed out and not yet reported."""

    def submit(self, task: Task) -> None:
        """Hand a task to a free worker."""

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Wait until a task ends, at most `timeout_s`, and report those that ended."""

    def kill(self) -> None:
        """End the workers at once, whatever they do."""

    def close(self) -> None:
        """End the workers in good order and free what they hold."""


def process(stage: Stage, task: Task) -> dict[str, Any]:
    """Run one task and report it as a plain dict, which any process can unpickle."""
    try:
        return {"counts": dict(stage.process(task)), "error": ""}
    except Exception as error:  # a worker outlives what goes wrong in one shard
        return {"counts": {}, "error": one_line(error)}


def one_line(error: BaseException) -> str:
    """Class and text of an exception, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
