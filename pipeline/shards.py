"""A shard as records in and records out: a tar, and beside it a sidecar of one row a record."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.commit import Attempt, AttemptOutput
from pipeline.sample import Member, Sample, group
from pipeline.sidecar import Provenance, Row, read_rows, write_sidecar
from pipeline.stage import Task
from pipeline.storage import (
    OWN_FOLDER,
    Store,
    is_remote,
    open_input,
    open_store,
    stat_input,
    trouble,
)
from pipeline.tar import Entry, TarFault, TarWriter, read_tar

PROBE_BYTES = 16 * 2**20


def read_shard(source: str) -> Iterator[Sample]:
    """Yield every record of a tar; a broken tar ends with one sample that stands for the loss.

    Args:
        source: Path or URL.
    """
    faults: list[str] = []
    num_samples = 0
    with open_input(source) as file:
        for sample in group(_until_fault(read_tar(file), faults)):
            num_samples += 1
            yield sample
    for fault in faults:
        yield Sample(num_samples, "", (), fault, truncated=True)


def _until_fault(entries: Iterator[Entry], faults: list[str]) -> Iterator[Entry]:
    """Yield until the archive breaks; what was read before is kept and the reason noted."""
    try:
        yield from entries
    except TarFault as fault:
        faults.append(str(fault))


@dataclass(frozen=True, slots=True)
class ShardResult:
    """One record done.

    Attributes:
        row: What became of it.
        members: The files it leaves in the output shard.
        rejected: What is put aside, if that is asked for.
    """

    row: Row
    members: tuple[Member, ...] = ()
    rejected: tuple[Member, ...] = ()


def carried(task: Task) -> Iterator[ShardResult]:
    """Yield what an output shard holds, failed records left out, in order."""
    store = open_store(task.out)
    with store.open(f"{task.shard}.parquet") as file:
        rows = read_rows(file)
    records = read_shard(f"{task.out.rstrip('/')}/{task.shard}.tar")
    record = next(records, None)
    for row in rows:
        members: tuple[Member, ...] = ()
        if record and record.key == row.key:  # one that left no file is not in the tar
            members, record = record.members, next(records, None)
        if row.status != "failed":
            yield ShardResult(row, members)


class ShardOutput(AttemptOutput):
    """One output shard: `<shard>.tar`, `<shard>.parquet`, and what is put aside of it.

    Attributes:
        aside: Folder of the tars of what results reject.
    """

    aside = f"{OWN_FOLDER}/quarantine"

    def __init__(self, task: Task, provenance: Provenance, store: Store | None = None) -> None:
        """Plan the output of a task; `store` is the task's output folder, if opened already."""
        self._shard = task.shard
        self._store = store or open_store(task.out)
        there = None if is_remote(task.source) or task.limit else stat_input(task.source)
        # An output may be smaller than its input by far: no more room is asked for than is sure.
        self._least_bytes = min(there.size_bytes, PROBE_BYTES) if there else 0
        self._attempt = Attempt(self._store, task)
        self._provenance = provenance
        self._rows: list[Row] = []
        self._aside: TarWriter | None = None

    def __enter__(self) -> "ShardOutput":
        self._attempt.__enter__()
        try:
            self._attempt.probe(self._least_bytes)
            self._tar = TarWriter(self._attempt.open(f"{self._shard}.tar"))
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def add(self, result: ShardResult) -> None:
        """Append one record: its row and its files."""
        self._rows.append(result.row)
        with trouble(self._store.url):
            for member in result.members:
                self._tar.add(member.name, member.data)
            if result.rejected:
                self._add_rejected(result.rejected)

    def _add_rejected(self, members: Iterable[Member]) -> None:
        if self._aside is None:
            self._aside = TarWriter(self._attempt.open(f"{self.aside}/{self._shard}.tar"))
        for member in members:
            self._aside.add(member.name, member.data)

    def _tables(self) -> Sequence[str]:
        """Write what else belongs to the shard; returns the names."""
        return ()

    def commit(self, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        """Close and publish, the tar last: a tar under its final name has its sidecar."""
        names = [f"{self._shard}.parquet", f"{self._shard}.tar"]
        with trouble(self._store.url):
            self._tar.finish()
            names = [*self._tables(), *names]
            if self._aside is not None:
                self._aside.finish()
                names.insert(0, f"{self.aside}/{self._shard}.tar")
            write_sidecar(self._attempt.open(names[-2]), self._shard, self._rows, self._provenance)
        counts: Counter[str] = Counter(row.status for row in self._rows)
        return self._attempt.commit(names, counts, facts)
