"""What a worker has in hand, in a file that outlives it.

Each thread of a worker owns a slot of the file and writes there, before it touches records, which
ones. One `pwrite` of about a microsecond: it is in the kernel's memory when the process dies, so
the driver learns which records were in hand at that moment.
"""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SLOT_BYTES = 16 * 2**10
NUM_SLOTS = 32
EMPTY = b"\n"


@dataclass(frozen=True, slots=True)
class Traces:
    """What a tracker's file says.

    Attributes:
        in_hand: Indices of the records in hand, by shard.
        counts: The worker's counters; "done" grows with every record written.
    """

    in_hand: Mapping[str, frozenset[int]] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_in_hand(self) -> int:
        """Records in hand, over all shards."""
        return sum(map(len, self.in_hand.values()))


class Tracker:
    """The writing side; every method may be called from any thread."""

    def __init__(self, path: Path) -> None:
        """Create or empty the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._num_slots = 1  # slot 0 is for the counters

    def hold(self, by_shard: Mapping[str, Sequence[int]]) -> None:
        """Note that the calling thread takes records in hand, in place of those it had."""
        lines = [f"{shard}\t{','.join(map(str, ids))}\n" for shard, ids in by_shard.items()]
        os.pwrite(self._file, "".join(lines).encode()[: SLOT_BYTES - 1] + EMPTY, self._offset())

    def let_go(self) -> None:
        """Note that the calling thread has nothing in hand."""
        os.pwrite(self._file, EMPTY, self._offset())

    def count(self, counts: Mapping[str, Any]) -> None:
        """Replace the counters."""
        os.pwrite(self._file, json.dumps(counts).encode() + EMPTY, 0)

    def close(self) -> None:
        """Close the file; it stays for who asks."""
        os.close(self._file)

    def _offset(self) -> int:
        if not hasattr(self._local, "offset"):
            with self._lock:
                assert self._num_slots < NUM_SLOTS, "more threads than slots"
                self._local.offset = self._num_slots * SLOT_BYTES
                self._num_slots += 1
        offset: int = self._local.offset
        return offset


def parse_traces(data: bytes) -> Traces:
    """Read a tracker's file; a slot that was never written is skipped."""
    in_hand: dict[str, frozenset[int]] = {}
    for start in range(SLOT_BYTES, len(data), SLOT_BYTES):
        for line in data[start : start + SLOT_BYTES].split(b"\n"):
            shard, tab, indices = line.decode("utf-8", "replace").partition("\t")
            if not tab or not indices:
                break  # an empty line ends a slot; what follows was written earlier
            found = frozenset(int(text) for text in indices.split(",") if text.isdigit())
            in_hand[shard] = in_hand.get(shard, frozenset()) | found
    return Traces(in_hand, _counts(data[:SLOT_BYTES]))


def _counts(data: bytes) -> Mapping[str, Any]:
    try:
        counts = json.loads(data.partition(b"\n")[0] or b"{}")
    except ValueError:  # read while it was written
        return {}
    return counts if isinstance(counts, dict) else {}


def read_traces(path: Path) -> Traces:
    """What the file says now; nothing if there is none."""
    try:
        return parse_traces(path.read_bytes())
    except FileNotFoundError:
        return Traces()
