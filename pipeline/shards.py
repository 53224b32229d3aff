"""A shard as records in and records out: a tar, and beside it a Parquet file of one row a record.

Neither file holds a time, so both are functions of the input bytes and the configuration.
"""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sample import Member, Sample, group
from pipeline.stage import Task
from pipeline.tar import Entry, TarFault, TarWriter, read_tar

Status = Literal["restored", "copied", "refused", "failed", "truncated"]
# Records that are not as the user asked: a run that has some ends with exit code 3.
BAD_STATUSES = ("refused", "failed", "truncated")

# Explicit: a column of nulls would be inferred as type null and break scans of many sidecars.
SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("width_in", pa.int32()),
        pa.field("height_in", pa.int32()),
        pa.field("width_out", pa.int32()),
        pa.field("height_out", pa.int32()),
        pa.field("sha256_in", pa.string()),
        pa.field("sha256_out", pa.string()),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("model_sha256", pa.string(), nullable=False),
        pa.field("config_hash", pa.string(), nullable=False),
    ]
)
CONFIG_KEY = b"vsp.config"  # metadata of the Parquet schema: the configuration as canonical JSON
REPEATING = ["shard", "status", "reason", "model", "model_sha256", "config_hash"]


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one input record. Sizes in pixels; sha256 of the image member."""

    index: int
    key: str
    status: Status
    reason: str = ""
    member: str | None = None
    width_in: int | None = None
    height_in: int | None = None
    width_out: int | None = None
    height_out: int | None = None
    sha256_in: str | None = None
    sha256_out: str | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """What every row of a run shares.

    Attributes:
        seed: Seed of the run.
        model: Name of the model, for people.
        model_sha256: What identifies its weights.
        config: Canonical JSON of everything that decides the output's bytes.
    """

    seed: int
    model: str
    model_sha256: str
    config: str

    @property
    def config_hash(self) -> str:
        """Sha256 of `config`, in hex."""
        return sha256(self.config.encode())


def sha256(data: bytes) -> str:
    """Sha256 in hex."""
    return hashlib.sha256(data).hexdigest()


def read_shard(path: Path) -> Iterator[Sample]:
    """Yield every record of a tar; a broken tar ends with one sample that stands for the loss."""
    faults: list[str] = []
    num_samples = 0
    with path.open("rb") as file:
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


class ShardWriter:
    """One output shard, written apart and published whole.

    Use as a context manager; leaving it without `commit` removes what was written.
    """

    def __init__(self, task: Task, provenance: Provenance) -> None:
        """Write the task's output; its folder is made if need be."""
        self._out = task.out
        self._shard = task.shard
        self._attempt = task.attempt_folder
        self._provenance = provenance
        self._rows: list[Row] = []
        self._stack = ExitStack()

    def __enter__(self) -> "ShardWriter":
        self._attempt.mkdir(parents=True)
        self._stack.callback(shutil.rmtree, self._attempt, ignore_errors=True)
        self._file = self._stack.enter_context((self._attempt / "shard.tar").open("wb"))
        self._tar = TarWriter(self._file)
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files and remove the attempt's folder."""
        self._stack.close()

    def add(self, row: Row, members: Iterable[Member]) -> None:
        """Append one record: its row and the files it leaves in the output."""
        self._rows.append(row)
        for member in members:
            self._tar.add(member.name, member.data)

    def commit(self) -> Mapping[str, int]:
        """Sync and publish, sidecar first: a tar under its final name has its sidecar.

        Returns:
            Number of records by status.
        """
        self._tar.finish()
        self._file.flush()
        os.fsync(self._file.fileno())
        sidecar = self._attempt / "shard.parquet"
        _write_sidecar(sidecar, self._shard, self._rows, self._provenance)
        os.replace(sidecar, self._out / f"{self._shard}.parquet")
        sync(self._out)
        os.replace(self._attempt / "shard.tar", self._out / f"{self._shard}.tar")
        sync(self._out)
        return dict(Counter(row.status for row in self._rows))


def _write_sidecar(path: Path, shard: str, rows: Sequence[Row], provenance: Provenance) -> None:
    shared = {
        "shard": shard,
        "seed": provenance.seed,
        "model": provenance.model,
        "model_sha256": provenance.model_sha256,
        "config_hash": provenance.config_hash,
    }
    table = pa.Table.from_pylist(
        [shared | asdict(row) for row in rows],
        schema=SCHEMA.with_metadata({CONFIG_KEY: provenance.config.encode()}),
    )
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=3,
        use_dictionary=REPEATING,
        write_page_checksum=True,
    )
    sync(path)


def sync(path: Path) -> None:
    """Have a file or folder on the disk, not only in the kernel's memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_config(sidecar: Path) -> str | None:
    """The configuration a sidecar was written under; None if the file is no sidecar of ours."""
    try:
        metadata = pq.read_schema(sidecar).metadata or {}
    except pa.ArrowInvalid:
        return None
    config: bytes | None = metadata.get(CONFIG_KEY)
    return None if config is None else config.decode()


def count_statuses(sidecar: Path) -> Mapping[str, int]:
    """Number of records by status in a sidecar."""
    return dict(Counter(pq.read_table(sidecar, columns=["status"])["status"].to_pylist()))
