"""What a stage is: the work on one record. It knows nothing of threads, processes or Ray.

A worker (`pipeline/worker.py`) runs a stage's methods in threads of its own, so that reading,
decoding, computing and encoding overlap; each method says which thread calls it.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from pipeline.images import Pixels
from pipeline.replica import Replica
from pipeline.sidecar import Row


@dataclass(frozen=True, slots=True)
class Task:
    """One try at one shard. Only names travel; no image crosses a process.

    Attributes:
        shard: The shard's name, without folder and suffix; for photos the chunk's.
        source: Path or URL of the input tar; for photos the input folder.
        out: Path or URL of the output folder.
        plan: The plan that the try belongs to.
        files: The photos of a chunk, relative to `source`; empty for a tar.
        attempt: Tells this try from any other at the same shard.
        suspects: Indices of the records that run alone, because a worker died with them in hand.
        condemned: Indices of records that are not to be touched, and why: each becomes a failed
            row.
        given_up: Why the whole shard is not to be worked on, or "": every record becomes a failed
            row.
        max_batch: Faces a run of the model may hold, where memory ran out before; 0 for no limit.
        limit: Records that are looked at, from the first; 0 for all.
        redo: Only the failed records are to be done again, the rest taken from the output.
    """

    shard: str
    source: str
    out: str
    plan: str = ""
    files: tuple[str, ...] = ()
    attempt: str = field(default_factory=lambda: secrets.token_hex(4))
    suspects: frozenset[int] = frozenset()
    condemned: Mapping[int, str] = field(default_factory=dict)
    given_up: str = ""
    max_batch: int = 0
    limit: int = 0
    redo: bool = False


class Record(Protocol):
    """One record of a shard, read and not yet decoded."""

    @property
    def index(self) -> int:
        """Place among the shard's records, from 0."""

    @property
    def key(self) -> str:
        """The record's name, which fixes its random numbers."""

    @property
    def num_bytes(self) -> int:
        """What the record holds in memory until it is written, decoded pixels included."""


@dataclass(frozen=True, slots=True)
class Face:
    """One face for the model: its key and (S, S, 3) uint8 RGB."""

    key: str
    lq: Pixels


@dataclass(frozen=True, slots=True)
class Prepared:
    """A decoded record: the faces that the model is to restore, and what `finish` needs."""

    record: Any
    faces: Sequence[Face] = ()
    state: Any = None


class Result(Protocol):
    """A record's row and the files it leaves in the output."""

    @property
    def row(self) -> Row:
        """What became of the record."""


class Output(Protocol):
    """Where the results of one try go, in order; a context manager that removes what is left."""

    def __enter__(self) -> "Output":
        """Begin the attempt."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the attempt, unless it was published."""

    def add(self, result: Any) -> None:
        """Append one record's result."""

    def commit(self, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        """Publish everything, once and for all; returns the commit record that counts.

        Args:
            facts: What the worker adds to the commit record: timings, batch.
        """


class Stage(Protocol):
    """Work on one record at a time. Bad input is a result with a reason, never an exception."""

    def setup(self) -> Replica | None:
        """Load and warm what every record needs, once, in the process that will work.

        Returns:
            The model, or None for a stage that needs none.
        """

    def read(self, task: Task) -> Iterator[Any]:
        """Yield every record of a shard, in order; called in the worker's reading thread."""

    def carried(self, task: Task) -> Iterator[Result]:
        """Yield what the output holds of an earlier try, failed records left out, in order."""

    def prepare(self, record: Any) -> Prepared:
        """Decode a record; called in codec threads, several at once."""

    def finish(self, prepared: Prepared, restored: Sequence[Pixels | None]) -> Any:
        """Make a record's result; called in codec threads, several at once.

        Args:
            prepared: What `prepare` returned.
            restored: For each of its faces (S, S, 3) uint8 RGB, or None where the model's answer
                was not finite.
        """

    def reject(self, record: Any, reason: str) -> Any:
        """Make the result of a record that failed for a cause outside the stage."""

    def open(self, task: Task) -> Output:
        """Make the place for a try's results; called in the worker's writing thread."""

    def close(self) -> None:
        """Give back what `setup` took."""


# A worker calls this in its own process, so a stage itself need not be picklable.
StageFactory = Callable[[], Stage]
