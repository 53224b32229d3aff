"""One try at a shard: its files are built apart, decided upon once, then given their names.

The decision is a file that can be created only once, `_vsp/commits/<plan>/<shard>.json`. Whoever
creates it has won, and it names every file of the attempt; from then on anybody may finish giving
the files their final names (`roll_forward`), however often. So an output appears whole or not at
all, and a worker that wakes up after its replacement finished changes nothing.
"""

import hashlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

from pipeline.stage import Task
from pipeline.storage import OWN_FOLDER, LocalStore, Store, trouble
from vsp_model.files import sha256_of

COMMIT_FORMAT = 1


def commit_name(plan: str, shard: str) -> str:
    """Where the decision about a shard stands."""
    return f"{OWN_FOLDER}/commits/{plan}/{shard}.json"


class HashedFile:
    """A file being written: counts and hashes what passes, so that nothing is read again."""

    closed = False

    def __init__(self, path: Path) -> None:
        """Create `path` anew."""
        self._file = path.open("xb")
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes) -> int:
        """Append bytes."""
        self._file.write(data)
        self._digest.update(data)
        self.size_bytes += len(data)
        return len(data)

    def tell(self) -> int:
        """Bytes written."""
        return self.size_bytes

    def flush(self) -> None:
        """Hand what was written to the kernel."""
        self._file.flush()

    def close(self) -> None:
        """Close the file; what no longer fits on the disk is told here."""
        self.closed = True
        self._file.close()

    @property
    def sha256(self) -> str:
        """Of everything written, in hex."""
        return self._digest.hexdigest()


class Attempt:
    """The files of one try. Use as a context manager; leaving it uncommitted removes them."""

    def __init__(self, store: Store, task: Task) -> None:
        """Plan the attempt; nothing is written yet."""
        self._store = store
        self._task = task
        self._name = f"{task.shard}.{task.attempt}"
        self._files: dict[str, HashedFile] = {}
        self._folder: Path | None = None
        self._decided = False

    def __enter__(self) -> "Attempt":
        self._folder = self._store.begin(self._name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the attempt, unless it was decided upon, or may have been.

        Of the latter a later run makes what it should be; see `Ledger.recover`.
        """
        for file in self._files.values():
            try:
                file.close()
            except OSError:
                continue  # the disk is full; the file goes away with its folder
        if not self._decided:
            self._store.discard(self._name)

    def probe(self, num_bytes: int) -> None:
        """See that there is room for so many bytes, before work is spent on them.

        Raises:
            StoreTrouble: If there is not.
        """
        if isinstance(self._store, LocalStore):
            self._store.probe(self._name, num_bytes)

    def path(self, name: str) -> Path:
        """Where to build the file that will be called `name` in the output; its folder is made."""
        assert self._folder is not None, "not entered"
        path = self._folder / name
        with trouble(self._store.url):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def open(self, name: str) -> BinaryIO:
        """Begin the file that will be called `name`; `commit` closes it."""
        path = self.path(name)
        with trouble(self._store.url):
            file = self._files[name] = HashedFile(path)
        return cast(BinaryIO, file)

    def commit(
        self, names: Sequence[str], counts: Mapping[str, int], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Make the files durable, decide, and publish them in the order given.

        Args:
            names: Every file of the attempt; a reader who sees the last one sees them all.
            counts: Number of records by status.
            facts: What else the record shall say: timings, the batch.

        Returns:
            The commit record that counts: this one, or that of an attempt that was faster.
        """
        with trouble(self._store.url):
            for file in self._files.values():
                file.close()
        self._store.stage(self._name, names)
        record = self._record(names, counts, facts)
        data = json.dumps(record, indent=1, sort_keys=True).encode()
        name = commit_name(self._task.plan, self._task.shard)
        self._decided = True  # unless told otherwise: a lost answer may hide a success
        if not self._store.create(name, data):
            self._decided = False
            return cast(dict[str, Any], json.loads(self._store.read(name)))
        roll_forward(self._store, record)
        return record

    def _record(
        self, names: Sequence[str], counts: Mapping[str, int], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {
            "format": COMMIT_FORMAT,
            "plan": self._task.plan,
            "shard": self._task.shard,
            "attempt": self._task.attempt,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "num_records": sum(counts.values()),
            "counts": dict(counts),
            "files": [self._facts_of(name) for name in names],
            **facts,
        }

    def _facts_of(self, name: str) -> dict[str, Any]:
        written = self._files.get(name)
        if written is not None:
            return {"name": name, "size_bytes": written.size_bytes, "sha256": written.sha256}
        path = self.path(name)
        return {"name": name, "size_bytes": path.stat().st_size, "sha256": sha256_of(path)}


class AttemptOutput:
    """What the outputs of all stages share: one that is left uncommitted removes its attempt."""

    _attempt: Attempt

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove what was not committed."""
        self._attempt.__exit__(kind, error, trace)


def roll_forward(store: Store, record: Mapping[str, Any]) -> None:
    """Finish what a commit record decided: give its files their names, remove the attempt.

    Idempotent, and safe while another process does the same.
    """
    attempt = f"{record['shard']}.{record['attempt']}"
    for file in record["files"]:
        store.publish(attempt, file["name"])
    store.discard(attempt)
