"""What a stage is. It knows its shard and nothing of processes, queues or Ray."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

OWN_FOLDER = "_vsp"  # what a run keeps in an output folder beside the shards


@dataclass(frozen=True, slots=True)
class Task:
    """One shard to work on. Only paths travel; no image crosses a process.

    Attributes:
        shard: The shard's name, without folder and suffix.
        source: The input tar.
        out: The folder that receives `<shard>.tar` and `<shard>.parquet`.
        attempt: Tells this try from any other at the same shard.
    """

    shard: str
    source: Path
    out: Path
    attempt: str = field(default_factory=lambda: secrets.token_hex(4))

    @property
    def attempt_folder(self) -> Path:
        """Where the work in progress lies, out of readers' sight."""
        return self.out / OWN_FOLDER / "attempts" / f"{self.shard}.{self.attempt}"


class Stage(Protocol):
    """Work on one shard at a time."""

    def setup(self) -> None:
        """Load and warm what every shard needs, once, in the process that will work."""

    def process(self, task: Task) -> Mapping[str, int]:
        """Do one shard whole and return the number of records by status."""

    def close(self) -> None:
        """Give back what `setup` took."""


# A worker calls this in its own process, so a stage itself need not be picklable.
StageFactory = Callable[[], Stage]
