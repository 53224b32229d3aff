"""The interface of a pool: where workers run, and what the runner hears of them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pipeline.flow import FlowConfig
from pipeline.stage import StageFactory, Task
from pipeline.tracker import Traces
from pipeline.worker import Report, WorkerConfig

IN_HAND = 2  # tasks a worker may hold: one that ends and one whose records fill its last batch


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """What a pool's workers share.

    Attributes:
        folder: Where they note what they have in hand, seen by the driver and all workers; None
            where there is no such place, so that each keeps it on its own machine.
        flow: Threads and memory of a worker.
    """

    folder: Path | None = None
    flow: FlowConfig = field(default_factory=FlowConfig)

    def worker(self, name: str, scratch: Path, dies_with_parent: bool) -> WorkerConfig:
        """The configuration of one worker; `scratch` stands in for a missing `folder`."""
        return WorkerConfig(
            tracker=(self.folder or scratch) / "workers" / name,
            lock=self.folder / "actors.lock" if self.folder else None,
            dies_with_parent=dies_with_parent,
            flow=self.flow,
        )


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker can take a task: all records of the one before have entered it."""

    worker: int


@dataclass(frozen=True, slots=True)
class Done:
    """A task of a worker has ended."""

    worker: int
    report: Report


@dataclass(frozen=True, slots=True)
class Died:
    """A worker is gone, with every task it held.

    Attributes:
        worker: Which one.
        reason: One line.
        traces: What it had in hand.
        was_ready: It had been set up.
        is_hopeless: It could not be set up and said why: another would fail the same way.
    """

    worker: int
    reason: str
    traces: Traces = field(default_factory=Traces)
    was_ready: bool = True
    is_hopeless: bool = False


Event = Ready | Done | Died


class Pool(Protocol):
    """Workers, numbered from 0, that each hold one stage."""

    @property
    def num_workers(self) -> int:
        """How many there are."""

    def start(self, factory: StageFactory) -> None:
        """Begin to start the workers; each tells that it is ready by an event.

        Raises:
            RunError: If there is no place for them to run.
        """

    def submit(self, worker: int, task: Task) -> None:
        """Hand a task to a worker that is ready."""

    def wait(self, timeout_s: float) -> list[Event]:
        """What has happened since; waits for it, at most `timeout_s`."""

    def traces(self, worker: int) -> Traces:
        """What a worker has noted by now; nothing where that cannot be seen from here."""

    def replace(self, worker: int) -> None:
        """End a worker at once, if it lives, and start another in its place."""

    def kill(self) -> None:
        """End all workers at once, whatever they do."""

    def close(self) -> None:
        """End the workers in good order and free what they hold."""
