"""What the steps of a cleaning run leave: tables beside or in place of a shard, in one commit."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.cleaning.calibration.thresholds import Trial
from pipeline.cleaning.tables import (
    INSPECTED,
    MANIFEST,
    PRIVATE,
    REVIEW,
    Entry,
    Inspected,
    Private,
    write_manifest,
    write_rows,
)
from pipeline.commit import Attempt, AttemptOutput
from pipeline.shards import ShardOutput, ShardResult
from pipeline.sidecar import Provenance, Row, write_sidecar
from pipeline.stage import Task
from pipeline.storage import OWN_FOLDER, open_store, trouble

TRIALS = "trials"


@dataclass(frozen=True, slots=True)
class InspectResult:
    """One record looked at: the engine's row, what was seen, and what is kept apart."""

    row: Row
    seen: Inspected
    private: Private


@dataclass(frozen=True, slots=True)
class TrialResult:
    """One good face of the calibration, damaged and restored at every level."""

    row: Row
    trials: tuple[Trial, ...] = ()


@dataclass(frozen=True, slots=True)
class CleanResult(ShardResult):
    """One record done; `rejected` is the restored face that was not taken."""

    entry: Entry | None = None


class _Tables(AttemptOutput):
    """Tables of a unit, and its sidecar in `_vsp/records`."""

    def __init__(self, task: Task, provenance: Provenance) -> None:
        """Plan the output of a task."""
        self._shard = task.shard
        self._store = open_store(task.out)
        self._attempt = Attempt(self._store, task)
        self._provenance = provenance
        self._results: list[Any] = []

    def __enter__(self) -> "_Tables":
        self._attempt.__enter__()
        return self

    def add(self, result: Any) -> None:
        """Note one record's rows; they are small."""
        self._results.append(result)

    def commit(self, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write and publish everything, the sidecar last."""
        with trouble(self._store.url):
            names = [*self._write(), f"{OWN_FOLDER}/records/{self._shard}.parquet"]
            rows = [result.row for result in self._results]
            write_sidecar(self._attempt.open(names[-1]), self._shard, rows, self._provenance)
        counts = Counter[str](row.status for row in rows)
        return self._attempt.commit(names, counts, facts)

    def _write(self) -> Sequence[str]:
        """Write the tables; returns their names."""
        raise NotImplementedError

    def _table(self, folder: str, rows: Sequence[Any], record: type) -> str:
        name = f"{folder}/{self._shard}.parquet"
        write_rows(self._attempt.open(name), rows, record)
        return name


class InspectOutput(_Tables):
    """`inspected/<shard>.parquet` and `_vsp/private/<shard>.parquet`."""

    def _write(self) -> Sequence[str]:
        return (
            self._table(PRIVATE, [result.private for result in self._results], Private),
            self._table(INSPECTED, [result.seen for result in self._results], Inspected),
        )


class TrialOutput(_Tables):
    """`_vsp/trials/<unit>.parquet`: it holds embeddings, so it goes when the run ends."""

    def _write(self) -> Sequence[str]:
        trials = [trial for result in self._results for trial in result.trials]
        return (self._table(f"{OWN_FOLDER}/{TRIALS}", trials, Trial),)


class CleanOutput(ShardOutput):
    """A shard, its sidecar, its part of the manifest, and the restored faces not taken."""

    aside = REVIEW

    def __init__(self, task: Task, provenance: Provenance) -> None:
        """Plan the output of a task."""
        super().__init__(task, provenance)
        self._entries: list[Entry] = []

    def add(self, result: ShardResult) -> None:
        """Append one record."""
        super().add(result)
        assert isinstance(result, CleanResult), "a result of the cleaning stage"
        assert result.entry, "every record has an entry"
        self._entries.append(result.entry)

    def _tables(self) -> Sequence[str]:
        name = f"{MANIFEST}/{self._shard}.parquet"
        write_manifest(self._attempt.open(name), self._entries)
        return (name,)
