"""A chunk of photos as records in and results out: files under their names, and a sidecar."""

import errno
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.commit import Attempt, AttemptOutput
from pipeline.sidecar import Provenance, Row, read_rows, write_sidecar
from pipeline.stage import Task
from pipeline.storage import OWN_FOLDER, Store, StoreTrouble, open_input, open_store, trouble

MAX_NAME_BYTES = 255  # of one part of a path, on nearly every file system
MAX_FILE_BYTES = 2**30  # more than any photo within a sane budget of pixels; read into memory


@dataclass(frozen=True, slots=True)
class PhotoRecord:
    """One photo, read and not yet decoded.

    Attributes:
        index: Place among the files of the chunk.
        key: Its path below the input folder, as text.
        name: The same as the file system has it, which may be no proper text.
        data: The file.
        num_bytes: What it holds in memory until it is written; at first, its file.
        fault: Why it could not be read, or "".
    """

    index: int
    key: str
    name: str
    data: bytes
    num_bytes: int
    fault: str = ""


@dataclass(frozen=True, slots=True)
class PhotoResult:
    """One photo done.

    Attributes:
        row: What became of it.
        name: The file's name in the output.
        data: The file, or None if there is none.
        compare: A JPEG of before and after, if asked for.
        rejected: What goes to the quarantine, if that is asked for.
    """

    row: Row
    name: str
    data: bytes | None = None
    compare: bytes | None = None
    rejected: bytes | None = None


def carried(task: Task) -> Iterator[PhotoResult]:
    """Yield what the output holds of a chunk, failed photos left out, in order."""
    store = open_store(task.out)
    with store.open(f"{OWN_FOLDER}/records/{task.shard}.parquet") as file:
        rows = read_rows(file)
    for row in rows:
        name = task.files[row.index]
        if row.status != "failed":
            yield PhotoResult(row, name, store.read(name) if row.sha256_out else None)


def photo_key(name: str) -> str:
    """A photo's path as text: Linux takes any bytes, Parquet and the random numbers do not."""
    return name.encode(errors="backslashreplace").decode()


def read_chunk(task: Task) -> Iterator[PhotoRecord]:
    """Yield every photo of a task, in order; one that cannot be read is a record with a fault.

    Raises:
        StoreTrouble: If an object store does not answer.
    """
    for index, name in enumerate(task.files):
        key = photo_key(name)
        data, fault = b"", ""
        try:
            with open_input(f"{task.source}/{name}") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except StoreTrouble:
            raise
        except OSError as error:
            fault = f"cannot be read ({error.strerror or type(error).__name__})"
        if len(data) > MAX_FILE_BYTES:
            data, fault = b"", f"a file of more than {MAX_FILE_BYTES} bytes"
        yield PhotoRecord(index, key, name, data, len(data), fault)


class PhotoOutput(AttemptOutput):
    """The photos of one chunk, and `_vsp/records/<chunk>.parquet`, published last."""

    def __init__(self, task: Task, provenance: Provenance, store: Store | None = None) -> None:
        """Plan the output of a task; `store` is the task's output folder, if opened already."""
        self._shard = task.shard
        self._store = store or open_store(task.out)
        self._attempt = Attempt(self._store, task)
        self._provenance = provenance
        self._rows: list[Row] = []
        self._names: list[str] = []

    def __enter__(self) -> "PhotoOutput":
        self._attempt.__enter__()
        return self

    def add(self, result: PhotoResult) -> None:
        """Write one photo's files and note its row."""
        try:
            self._write(result.name, result.data)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            result = _unwritten(result)  # the attempt's folder makes every path longer
        self._rows.append(result.row)
        self._write(compare_name(result.name), result.compare)
        self._write(f"{OWN_FOLDER}/quarantine/{result.name}", result.rejected)

    def commit(self, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        """Publish the photos, then the sidecar."""
        name = f"{OWN_FOLDER}/records/{self._shard}.parquet"
        with trouble(self._store.url):
            write_sidecar(self._attempt.open(name), self._shard, self._rows, self._provenance)
        counts = Counter[str](row.status for row in self._rows)
        return self._attempt.commit([*self._names, name], counts, facts)

    def _write(self, name: str, data: bytes | None) -> None:
        if data is None:
            return
        with trouble(self._store.url):
            file = self._attempt.open(name)
            file.write(data)
            file.close()  # a chunk may hold more photos than a process may hold open files
        self._names.append(name)


def compare_name(name: str) -> str:
    """Where the picture of before and after of a photo lies in the output."""
    # The suffix stays, so that a.png and a.jpg do not become one.
    folder, slash, last = f"{name}.jpg".rpartition("/")
    if len(os.fsencode(last)) > MAX_NAME_BYTES:
        last = f"{hashlib.sha256(os.fsencode(last)).hexdigest()[:32]}.jpg"
    return f"{OWN_FOLDER}/compare/{folder}{slash}{last}"


def _unwritten(result: PhotoResult) -> PhotoResult:
    """The result of a photo whose name cannot be had in the output folder."""
    reason = "its path would be too long in the output folder; choose a shorter OUT"
    row = replace(
        result.row, status="failed", reason=reason, width_out=None, height_out=None, sha256_out=None
    )
    return PhotoResult(row, result.name)
