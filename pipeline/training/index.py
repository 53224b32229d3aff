"""Where every face of a set of shards lies, so that they can be read in any order.

Tars are walked by their headers. A record is a row of five numbers, 20 bytes, and where qualities
are known 4 more; its key is read again with its image.
"""

import bisect
import functools
import json
import math
import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.plan import find_shards
from pipeline.sample import IMAGE_SUFFIXES, Sample, split_name
from pipeline.tar import BLOCK_BYTES, Place, TarFault, read_name, walk_tar
from pipeline.training.cache import local_copy

MAX_OPEN_SHARDS = 128
MAX_FACTS_BYTES = 2**20  # the json of a face is a few hundred bytes
_COPIES_AT_ONCE = 4
_MAX_SIDE = 1e6  # pixels; more, or no number at all, is no point
_ROW = 5  # block of the image's first header, of its body, bytes of it; block of the json, bytes
_WORDS = np.uint32

Rows = NDArray[np.uint32]
Floats = NDArray[np.float32]
Grade = Callable[[str, Sequence[str]], Floats]
"""Path or URL of a shard and the keys of its records, N -> their qualities, (N,)."""


class Record(NamedTuple):
    """One face as it is stored."""

    key: str
    image: bytes
    facts: bytes
    """The json beside the image, b"" without one."""
    quality: float = math.nan
    """S of a table of scores (`pipeline.training.scores`); NaN if unknown."""

    @property
    def points(self) -> NDArray[np.float32]:
        """Its `landmarks5` in pixels of the stored image, (5, 2); NaN if unknown or no numbers."""
        unknown = np.full((5, 2), np.nan, np.float32)
        try:
            facts = json.loads(self.facts) if self.facts else None
            found = facts.get("landmarks5") if isinstance(facts, dict) else None
            points = np.asarray(found, np.float64)
        except (TypeError, ValueError, OverflowError, RecursionError):
            return unknown
        if points.shape != (5, 2) or not np.abs(points).max() < _MAX_SIDE:  # NaN is not below it
            return unknown
        return points.astype(np.float32)


def record_of(sample: Sample) -> Record | None:
    """The face of a record that was read whole; None where it has no image."""
    image = sample.image
    if image is None:
        return None
    name = f"{sample.key}.json"
    facts = (m.data for m in sample.members if f"{m.name[:-4]}{m.name[-4:].lower()}" == name)
    beside = next(facts, b"")
    return Record(sample.key, image.data, beside if len(beside) <= MAX_FACTS_BYTES else b"")


class Index:
    """The faces of a set of shards; row order is shard order, then stored order.

    Usable from several threads. Shards are opened when a record of theirs is read, and
    `MAX_OPEN_SHARDS` of them stay open.

    Attributes:
        paths: The shards, on this machine's disk.
        warnings: One line for each shard that is broken, whose records before the break count.
        qualities: (N,) float32, NaN where unknown; None where nobody knows.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        rows: Sequence[Rows],
        warnings: Sequence[str],
        qualities: Sequence[Floats] | None = None,
    ) -> None:
        """Put the shards' rows, (N, 5) each, behind one another, and the records' qualities."""
        self.paths = tuple(paths)
        self.warnings = tuple(warnings)
        self._rows = np.concatenate([np.empty((0, _ROW), _WORDS), *rows])
        self.qualities = np.concatenate(qualities) if qualities else None
        self._ends = np.cumsum([len(part) for part in rows], dtype=np.int64).tolist()
        self._open = functools.lru_cache(MAX_OPEN_SHARDS)(_Descriptor)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_bytes(self) -> int:
        """Memory that the rows take."""
        return self._rows.nbytes + (0 if self.qualities is None else self.qualities.nbytes)

    def read(self, number: int) -> Record:
        """Read a record.

        Raises:
            UserError: If its shard was changed since it was indexed.
        """
        path = self.paths[bisect.bisect_right(self._ends, number)]
        head, body, size_bytes, facts, facts_bytes = self._rows[number].tolist()
        start = head * BLOCK_BYTES
        skipped = body * BLOCK_BYTES - start
        try:
            file = self._open(path)
            data = os.pread(file.number, skipped + size_bytes, start)
            beside = os.pread(file.number, facts_bytes, facts * BLOCK_BYTES) if facts else b""
            key = split_name(read_name(data))
        except (FileNotFoundError, TarFault):
            key = None
        if key is None or len(data) + len(beside) < skipped + size_bytes + facts_bytes:
            raise UserError(f"{path}: changed since training began; start again")
        quality = math.nan if self.qualities is None else float(self.qualities[number])
        return Record(key[0], data[skipped:], beside, quality)


class _Descriptor:
    """An open file; closed when the last thread that reads it has let it go."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


def list_shards(patterns: Sequence[str]) -> tuple[str, ...]:
    """The shards that the patterns name, each once: in the order of the patterns, then by name.

    Raises:
        UserError: If a pattern names none.
    """
    return tuple(dict.fromkeys(shard for pattern in patterns for shard in find_shards(pattern)))


def build_index(patterns: Sequence[str], cache: str = "", grade: Grade | None = None) -> Index:
    """Index every face of the shards that the patterns name; remote shards are copied first.

    Args:
        patterns: As `find_shards` takes them.
        cache: Folder for the copies (`DataConfig.cache`).
        grade: Tells the records' qualities, if anybody knows them.

    Raises:
        UserError: If there is no shard, or no image in them.
    """
    shards = list_shards(patterns)
    warnings: list[str] = []
    rows, qualities = [], []
    with ThreadPoolExecutor(_COPIES_AT_ONCE) as threads:
        paths = list(threads.map(partial(local_copy, cache=cache), shards))
    for shard, path in zip(shards, paths, strict=True):
        found, fault, keys = index_shard(path)
        rows.append(found)
        if grade:
            qualities.append(grade(shard, keys))
        if fault:
            warnings.append(f"{shard}: {fault}; the {len(found)} faces before it are used")
    index = Index(paths, rows, warnings, qualities)
    if not len(index):
        broken = f" ({warnings[0]})" if warnings else ""
        where = ", ".join(patterns) or "data.train is empty"
        raise UserError(f"{where}: no face in {len(shards)} shards{broken}; make some: `vsp pack`")
    return index


def index_shard(path: Path) -> tuple[Rows, str, list[str]]:
    """The rows of one shard, (N, 5) uint32, where it breaks, or "", and its records' keys."""
    words = array("I")
    faults: list[str] = []
    keys = []
    try:
        with path.open("rb", buffering=0) as file:
            for key, row in _rows(_until_fault(walk_tar(file), faults)):
                if row:
                    words.extend(row)
                    keys.append(key)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return np.array(words, _WORDS).reshape(-1, _ROW), "".join(faults), keys


def _until_fault(places: Iterator[Place], faults: list[str]) -> Iterator[Place]:
    try:
        yield from places
    except TarFault as fault:
        faults.append(str(fault))


def _rows(places: Iterator[Place]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Key and row of each record, as `pipeline.sample.group` makes them; () without image."""
    seen: set[str] = set()
    key, members = "", dict[str, Place]()
    for place in places:
        split = None if place.fault else split_name(place.name)
        if split is None:
            continue
        suffix = split[1].lower()
        if members and (split[0] != key or suffix in members):
            if key not in seen:
                yield key, _row(members)
            seen.add(key)
            members = {}
        key = split[0]
        members[suffix] = place
    if members and key not in seen:
        yield key, _row(members)


def _row(members: Mapping[str, Place]) -> tuple[int, ...]:
    """The row of a record, by its members' suffixes; () where it has no image."""
    image = next((p for s, p in members.items() if s.rpartition(".")[2] in IMAGE_SUFFIXES), None)
    if image is None:
        return ()
    row = (image.head // BLOCK_BYTES, image.body // BLOCK_BYTES, image.size_bytes)
    facts = members.get("json")
    if facts is None or facts.size_bytes > MAX_FACTS_BYTES:
        return (*row, 0, 0)
    return (*row, facts.body // BLOCK_BYTES, facts.size_bytes)
