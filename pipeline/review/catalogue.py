"""The manifest as a page needs it: filtered, sorted, one page of rows, one row in full.

What rows are found by is held as arrays, some 60 bytes a row and the keys themselves; a row in full
is read again from its shard's part. Words that repeat (outcome, reason, source) are held once.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.cleaning.manifest.read import parts
from pipeline.cleaning.overrule import VERDICTS, Overrules, verdict_on
from pipeline.cleaning.tables import MANIFEST_SCHEMA
from pipeline.errors import RunError, UserError
from pipeline.storage import Stat, Store

Order = Literal["doubt", "identity", "worst", "best", "set"]
ORDERS: tuple[Order, ...] = get_args(Order)
WORDS = ("outcome", "decision_reason", "fallback", "status", "source", "person")
_NUMBERS = ("quality", "quality_after", "doubt", "identity", "identity_threshold")
_MOST_CHOICES = 40
_KEPT_PARTS, _KEPT_ANSWERS = 4, 8

Rows = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Query:
    """Which rows, in which order.

    Attributes:
        outcome: One outcome, "" for all.
        decision_reason: One reason.
        fallback: One reason of a fallback.
        source: One source; a part of its name where there are too many to choose from.
        person: A part of the person's name, in any case.
        key: A part of the key, in any case.
        low: Least quality of the input.
        high: Highest quality of the input.
        verdict: "decided" for any verdict, or one of them.
        order: "doubt" for the most doubtful first, "identity" for the nearest to its threshold,
            "worst" and "best" by quality, "set" as the shards have them.
    """

    outcome: str = ""
    decision_reason: str = ""
    fallback: str = ""
    source: str = ""
    person: str = ""
    key: str = ""
    low: float | None = None
    high: float | None = None
    verdict: str = ""
    order: Order = "doubt"


@dataclass(frozen=True, slots=True)
class Part:
    """A shard's part of the manifest.

    Attributes:
        name: Its file in the output folder.
        start: Number of its first row.
        stop: Number after its last.
        version: What identifies its content.
    """

    name: str
    start: int
    stop: int
    version: Stat | None


class Catalogue:
    """All rows of a manifest, by number; usable from several threads.

    Attributes:
        parts: The manifest's files, sorted by name.
        num_bytes: Memory that the arrays take.
    """

    def __init__(self, store: Store) -> None:
        """Read the manifest of an output folder.

        Raises:
            UserError: If there is none.
        """
        names = parts(store)
        if not names:
            raise UserError(f"{store.url}: no manifest here; run `vsp clean IN {store.url}` first")
        self._store = store
        self._lock = threading.Lock()
        self.parts, table = _read(store, names)
        self._shards, self._shard = _coded(table["shard"])
        self._keys = table["key"].combine_chunks()
        self._words = {name: _coded(table[name]) for name in WORDS}
        self._numbers = {name: _floats(table[name]) for name in _NUMBERS}
        self.num_bytes = self._count_bytes()
        self._starts = np.array([part.start for part in self.parts])
        self._kept_parts: OrderedDict[str, pa.Table] = OrderedDict()
        self._kept_answers: OrderedDict[Query, Rows] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def _count_bytes(self) -> int:
        coded = [(self._shards, self._shard), *self._words.values()]
        arrays = sum(names.nbytes + codes.nbytes for names, codes in coded)
        numbers = sum(values.nbytes for values in self._numbers.values())
        return int(self._keys.nbytes + arrays + numbers)

    def place(self, row: int) -> tuple[str, str]:
        """Shard and key of a row."""
        return self._shards[int(self._shard[row])].as_py(), self._keys[row].as_py()

    def word(self, name: str, row: int) -> str:
        """One of `WORDS` of a row; "" where it has none."""
        names, codes = self._words[name]
        return names[int(codes[row])].as_py() if codes[row] >= 0 else ""

    def number(self, name: str, row: int) -> float | None:
        """Quality, doubt or identity of a row; None where it has none."""
        value = float(self._numbers[name][row])
        return None if np.isnan(value) else value

    def choices(self, name: str) -> list[tuple[str, int]] | None:
        """The words that a column holds, with how often, the commonest first; None if too many."""
        names, codes = self._words[name]
        if len(names) > _MOST_CHOICES:
            return None
        counts = np.bincount(codes[codes >= 0], minlength=len(names))
        found = zip(names.to_pylist(), counts.tolist(), strict=True)
        return sorted(((w, n) for w, n in found if n and w), key=lambda each: (-each[1], each[0]))

    def find(self, shard: str, key: str) -> int | None:
        """The number of a record's row, None if the set has none."""
        at = pc.index(self._shards, pa.scalar(shard)).as_py()
        if at < 0:
            return None
        rows = np.flatnonzero(self._shard == at)
        keys = self._keys.take(pa.array(rows))
        inside = pc.index(keys, pa.scalar(key)).as_py()
        return int(rows[inside]) if inside >= 0 else None

    def full(self, row: int) -> dict[str, Any]:
        """Every column of a row.

        Raises:
            RunError: If the manifest was written anew since it was read.
        """
        part = self.parts[int(np.searchsorted(self._starts, row, side="right")) - 1]
        table = self._part(part)
        values: dict[str, Any] = table.slice(row - part.start, 1).to_pylist()[0]
        return values

    def _part(self, part: Part) -> pa.Table:
        with self._lock:
            if self._store.stat(part.name) != part.version:
                raise RunError("the set was cleaned again meanwhile; start `vsp review` anew")
            table = self._kept_parts.pop(part.name, None)
            if table is None:
                with self._store.open(part.name) as file:
                    table = pq.read_table(file)
            self._kept_parts[part.name] = table
            if len(self._kept_parts) > _KEPT_PARTS:
                self._kept_parts.popitem(last=False)
            return table

    # ------------------------------------------------------------------------------ questions

    def select(self, query: Query, overrules: Overrules) -> Rows:
        """The numbers of the rows that a query finds, in its order."""
        if query.verdict:
            return self._select(query, overrules)
        with self._lock:
            found = self._kept_answers.pop(query, None)
        if found is None:
            found = self._select(query, overrules)
        with self._lock:
            self._kept_answers[query] = found
            if len(self._kept_answers) > _KEPT_ANSWERS:
                self._kept_answers.popitem(last=False)
        return found

    def _select(self, query: Query, overrules: Overrules) -> Rows:
        rows = np.flatnonzero(self._mask(query)).astype(np.int32)
        if query.verdict:
            wanted = VERDICTS if query.verdict == "decided" else (query.verdict,)
            decided = [r for r, verdict in self.decided(overrules) if verdict in wanted]
            rows = np.intersect1d(rows, np.array(decided, np.int32))
        return rows[self._sorting(query.order, rows)]

    def _mask(self, query: Query) -> NDArray[np.bool_]:
        mask = np.ones(len(self), np.bool_)
        for name in ("outcome", "decision_reason", "fallback"):
            if wanted := getattr(query, name):
                mask &= self._is(name, wanted)
        if query.source:
            exact = self.choices("source") is not None
            mask &= self._is("source", query.source) if exact else self._has("source", query.source)
        if query.person:
            mask &= self._has("person", query.person)
        if query.key:
            mask &= _contains(self._keys, query.key)
        quality = self._numbers["quality"]
        if query.low is not None:
            mask &= quality >= query.low
        if query.high is not None:
            mask &= quality <= query.high
        return mask

    def _is(self, name: str, wanted: str) -> NDArray[np.bool_]:
        names, codes = self._words[name]
        at = pc.index(names, pa.scalar(wanted)).as_py()
        found: NDArray[np.bool_] = (codes == at) & (codes >= 0)
        return found

    def _has(self, name: str, part: str) -> NDArray[np.bool_]:
        names, codes = self._words[name]
        hits = np.append(_contains(names, part), False)  # a row without a word has code -1
        found: NDArray[np.bool_] = hits[codes]
        return found

    def _sorting(self, order: Order, rows: Rows) -> NDArray[np.intp]:
        """Places of the rows in order; where two are equal, the earlier in the set comes first."""
        if order == "set":
            return np.arange(len(rows))
        if order == "identity":
            threshold = self._numbers["identity_threshold"][rows]
            return np.argsort(np.abs(self._numbers["identity"][rows] - threshold), kind="stable")
        values = self._numbers["doubt" if order == "doubt" else "quality"][rows]
        return np.argsort(values if order == "worst" else -values, kind="stable")

    def decided(self, overrules: Overrules) -> list[tuple[int, str]]:
        """The rows that were overruled, in the order of the set, with the verdict."""
        keys = pa.array(sorted({key for _, key in overrules}), pa.string())
        hits = pc.is_in(self._keys, value_set=keys).to_numpy(zero_copy_only=False)
        rows: list[int] = np.flatnonzero(hits).tolist()
        verdicts = ((row, verdict_on(overrules, *self.place(row))) for row in rows)
        return [(row, verdict) for row, verdict in verdicts if verdict]


def _read(store: Store, names: list[str]) -> tuple[tuple[Part, ...], pa.Table]:
    found, tables, start = [], [], 0
    for name in names:
        version = store.stat(name)
        with store.open(name) as file:
            table = _columns(file, f"{store.url}/{name}")
        found.append(Part(name, start, start + table.num_rows, version))
        tables.append(_slim(table))
        start += table.num_rows
    return tuple(found), pa.concat_tables(tables).unify_dictionaries()


def _columns(file: BinaryIO, where: str) -> pa.Table:
    """The columns that are held, of one part."""
    names = ["shard", "key", *WORDS, *_NUMBERS]
    try:
        if missing := sorted(set(names) - set(pq.read_schema(file).names)):
            raise UserError(f"{where}: no manifest of `vsp clean`: it lacks {', '.join(missing)}")
        part = pq.ParquetFile(file, read_dictionary=["shard", *WORDS])
        return part.read(columns=names).select(names)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{where}: damaged ({error})") from None


def _slim(table: pa.Table) -> pa.Table:
    """Half the width of the numbers: they are compared and shown, not computed with."""
    fields = []
    for field in table.schema:
        is_number = MANIFEST_SCHEMA.field(field.name).type == pa.float64()
        fields.append(pa.field(field.name, pa.float32() if is_number else field.type))
    return table.cast(pa.schema(fields))


def _coded(column: pa.ChunkedArray) -> tuple[pa.Array, Rows]:
    """The distinct words of a column and each row's place among them, -1 for none."""
    array = column.combine_chunks()
    codes = pc.fill_null(array.indices, -1).to_numpy(zero_copy_only=False)
    return array.dictionary, codes.astype(np.int32, copy=False)


def _floats(column: pa.ChunkedArray) -> NDArray[np.float32]:
    values: NDArray[np.float32] = column.to_numpy()
    return values.astype(np.float32, copy=False)


def _contains(texts: pa.Array, part: str) -> NDArray[np.bool_]:
    hits = pc.match_substring(texts, part, ignore_case=True)
    found: NDArray[np.bool_] = pc.fill_null(hits, False).to_numpy(zero_copy_only=False)
    return found
