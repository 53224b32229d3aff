"""How a set is divided into groups for `coverage`: measured bins, words, and the set's own fields.

The manifest goes by once, part by part; held are only counts, one a pair of groups and outcome.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

IN_OUTPUT = ("kept", "restored", "fallback")
"""Outcomes whose image is in the output, in the order of the last axis of `Axis.counts`."""
READABLE = "inspected"
COLUMNS = (
    "status", "outcome", "sha256_out", "quality", "quality_after", "width_px", "height_px",
    "width_out_px", "height_out_px", "native_side_px", "yaw_deg", "pitch_deg", "is_gray",
    "exposure", "format", "source", "licence", "fields",
)  # fmt: skip
"""Columns of the manifest that are looked at."""
MOST_WORDS = 24
MOST_NUMBERS = 128
_FEW_NUMBERS = 8
_BINS = 10
_MOST_FIELDS = 64
_TABLED = ("source", "licence", "author", "person")  # columns of their own, and one is no group

Values = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Axis:
    """Counts of one attribute over G groups, of the images that have it.

    Attributes:
        name: The manifest's column, or the field's name.
        title: For people.
        labels: Of the G groups.
        is_field: Whether it is from the set's own metadata.
        follows: Whether its group after the cleaning may be another than before.
        counts: (G, G, 3), images in the output: group before, group after, place of the
            outcome in `IN_OUTPUT`.
        dropped: (G,), readable images that are not in the output.
        rejected: (G,), those of them that were left out, as against failed.
    """

    name: str
    title: str
    labels: Sequence[str]
    is_field: bool
    follows: bool
    counts: Counts
    dropped: Counts
    rejected: Counts


@dataclass(frozen=True, slots=True)
class Tally:
    """Everything that was counted.

    Attributes:
        total: Rows.
        before: Images that could be read.
        after: Those in the output.
        outcomes: Outcome -> images that could be read.
        axes: The attributes.
    """

    total: int
    before: int
    after: int
    outcomes: Counter[str]
    axes: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Binned:
    """A measured attribute in fixed bins.

    Attributes:
        name: The manifest's column.
        title: For people.
        edges: Between the bins; a value on an edge is in the upper one.
        labels: One more than edges.
        before: Values of the rows before, NaN where there is none.
        after: Values of the rows after; None where they are the same.
    """

    name: str
    title: str
    edges: tuple[float, ...]
    labels: tuple[str, ...]
    before: Callable[[pa.Table], Values]
    after: Callable[[pa.Table], Values] | None = None


def _numbers(table: pa.Table, name: str) -> Values:
    values: Values = pc.cast(table[name], pa.float64()).to_numpy()
    return values


def _longer(table: pa.Table, width: str, height: str) -> Values:
    return np.fmax(_numbers(table, width), _numbers(table, height))


def _quality_after(table: pa.Table) -> Values:
    restored = pc.equal(table["outcome"], "restored").to_numpy()
    return np.where(restored, _numbers(table, "quality_after"), _numbers(table, "quality"))


def _steps(*edges: float, unit: str = "", digits: int = 0) -> tuple[str, ...]:
    """Words for the bins between edges."""
    words = [f"{edge:.{digits}f}" for edge in edges]
    inner = [f"{low} to {high}{unit}" for low, high in pairwise(words)]
    return (f"under {words[0]}{unit}", *inner, f"{words[-1]}{unit} and more")


_QUALITY = (0.2, 0.4, 0.6, 0.8)
_SIDES = (64, 128, 256, 512, 1024)
_TURNS = (-35, -12, 12, 35)
_NODS = (-20, -8, 8, 20)
_LIGHT = (0.2, 0.35, 0.5, 0.65)
BINNED = (
    Binned("quality", "quality score", _QUALITY, _steps(*_QUALITY, digits=1),
           lambda table: _numbers(table, "quality"), _quality_after),
    Binned("width_px", "longer side", _SIDES, _steps(*_SIDES, unit=" px"),
           lambda table: _longer(table, "width_px", "height_px"),
           lambda table: _longer(table, "width_out_px", "height_out_px")),
    Binned("native_side_px", "resolution carried", _SIDES, _steps(*_SIDES, unit=" px"),
           lambda table: _numbers(table, "native_side_px")),
    Binned("yaw_deg", "turn of the head", _TURNS,
           ("far to the left", "left", "frontal", "right", "far to the right"),
           lambda table: _numbers(table, "yaw_deg")),
    Binned("pitch_deg", "nod of the head", _NODS,
           ("far down", "down", "level", "up", "far up"),
           lambda table: _numbers(table, "pitch_deg")),
    Binned("exposure", "brightness", _LIGHT, _steps(*_LIGHT, digits=2),
           lambda table: _numbers(table, "exposure")),
    Binned("is_gray", "colour", (0.5,), ("colour", "grey"),
           lambda table: _numbers(table, "is_gray")),
)  # fmt: skip
WORDED = (("format", "file format"), ("source", "source"), ("licence", "licence"))


@dataclass(slots=True)
class _Words:
    """Counts of an attribute whose groups are found as rows go by."""

    counts: dict[Any, Counter[str]] = field(default_factory=dict)

    def add(self, value: Any, outcome: str) -> bool:
        """Count one image; False where it makes too many groups."""
        found = self.counts.get(value)
        if found is not None:
            found[outcome] += 1
            return True
        self.counts[value] = Counter((outcome,))
        return not self.is_full

    @property
    def is_full(self) -> bool:
        """Whether there are more than groups may be."""
        if len(self.counts) <= MOST_WORDS:
            return False
        return len(self.counts) > MOST_NUMBERS or not all(map(_is_number, self.counts))


def tally(tables: Iterable[pa.Table]) -> Tally:
    """Count a manifest, given in parts, each with `COLUMNS`."""
    total = 0
    outcomes: Counter[str] = Counter()
    sizes = [len(each.labels) + 1 for each in BINNED]
    binned = [_Cells(size) for size in sizes]
    words = {name: _Words() for name, _ in WORDED}
    fields = _Fields()
    for table in tables:
        total += table.num_rows
        readable = table.filter(pc.equal(table["status"], READABLE))
        outcomes.update(readable["outcome"].to_pylist())
        for cells, each in zip(binned, BINNED, strict=True):
            cells.add(readable, each)
        for name, found in words.items():
            _add_words(found, readable[name], readable["outcome"])
        fields.add(readable)
    before = sum(outcomes.values())
    axes = [cells.axis(each) for cells, each in zip(binned, BINNED, strict=True)]
    divided = [(name, title) for name, title in WORDED if _divides(words[name])]
    axes += [_axis(name, title, False, words[name]) for name, title in divided]
    axes += fields.axes()
    return Tally(total, before, sum(outcomes[o] for o in IN_OUTPUT), outcomes, tuple(axes))


class _Cells:
    """Counts of a binned attribute; the last place is of images without a value."""

    def __init__(self, size: int) -> None:
        self._counts = np.zeros((size, size, len(IN_OUTPUT)), np.int64)
        self._dropped = np.zeros(size, np.int64)
        self._rejected = np.zeros(size, np.int64)

    def add(self, table: pa.Table, each: Binned) -> None:
        before = _bins(each.before(table), each.edges)
        after = _bins(each.after(table), each.edges) if each.after else before
        outcomes = table["outcome"].to_numpy()
        for place, outcome in enumerate(IN_OUTPUT):
            those = outcomes == outcome
            np.add.at(self._counts[:, :, place], (before[those], after[those]), 1)
        gone = ~np.isin(outcomes, IN_OUTPUT)
        size = len(self._dropped)
        self._dropped += np.bincount(before[gone], minlength=size)
        self._rejected += np.bincount(before[outcomes == "rejected"], minlength=size)

    def axis(self, each: Binned) -> Axis:
        return Axis(
            each.name, each.title, each.labels, False, each.after is not None,
            self._counts[:-1, :-1], self._dropped[:-1], self._rejected[:-1],
        )  # fmt: skip


def _bins(values: Values, edges: Sequence[float]) -> NDArray[np.intp]:
    found = np.digitize(values, edges)
    return np.where(np.isnan(values), len(edges) + 1, found)


def _add_words(words: _Words, column: pa.ChunkedArray, outcomes: pa.ChunkedArray) -> None:
    if words.is_full:
        return
    pairs = pa.table({"word": column, "outcome": outcomes})
    for row in pairs.group_by(["word", "outcome"]).aggregate([([], "count_all")]).to_pylist():
        if row["word"] is not None:
            words.counts.setdefault(row["word"], Counter())[row["outcome"]] += row["count_all"]


def _divides(words: _Words) -> bool:
    """Whether there are few enough groups; one an image is a name."""
    total = sum(found.total() for found in words.counts.values())
    return not words.is_full and 2 * len(words.counts) <= total


class _Fields:
    """The set's own metadata: fields of few distinct values become attributes."""

    def __init__(self) -> None:
        self._fields: dict[str, _Words | None] = {}  # None: too many values

    def add(self, table: pa.Table) -> None:
        columns = (table["fields"].to_pylist(), table["outcome"].to_pylist())
        for text, outcome in zip(*columns, strict=True):
            for name, value in _scalars(text):
                if name not in self._fields:
                    if len(self._fields) == _MOST_FIELDS:
                        continue
                    self._fields[name] = _Words()
                words = self._fields[name]
                if words is not None and (value is None or not words.add(value, outcome)):
                    self._fields[name] = None

    def axes(self) -> list[Axis]:
        named = sorted((n, w) for n, w in self._fields.items() if w is not None and _divides(w))
        return [_axis(name, name, True, words) for name, words in named]


def _scalars(text: str | None) -> Iterable[tuple[str, Any]]:
    """Fields with a value that can name a group: a word, a whole number, yes or no.

    None stands for a broken number: such a field measures, and names no groups.
    """
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return
    for name, value in found.items() if isinstance(found, dict) else ():
        if name in _TABLED:
            continue
        if isinstance(value, str | bool):
            yield name, value
        elif _is_number(value):
            yield name, value if value == value // 1 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _axis(name: str, title: str, is_field: bool, words: _Words) -> Axis:
    """The counts of a worded attribute; many numbers become bins."""
    grouped = _grouped(words.counts)
    size = len(grouped)
    counts = np.zeros((size, size, len(IN_OUTPUT)), np.int64)
    dropped, rejected = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for number, found in enumerate(grouped.values()):
        counts[number, number] = [found[outcome] for outcome in IN_OUTPUT]
        dropped[number] = sum(n for outcome, n in found.items() if outcome not in IN_OUTPUT)
        rejected[number] = found["rejected"]
    return Axis(name, title, list(grouped), is_field, False, counts, dropped, rejected)


def _grouped(counts: Mapping[Any, Counter[str]]) -> dict[str, Counter[str]]:
    """Label -> counts: numbers rising, in bins where there are many; words, the commonest first."""
    values = list(counts)
    if values and all(map(_is_number, values)):
        return _numbered(counts, sorted(values))
    ordered = sorted(values, key=lambda value: (-counts[value].total(), str(value)))
    return _summed((_label(value), counts[value]) for value in ordered)


def _label(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _numbered(counts: Mapping[Any, Counter[str]], values: list[float]) -> dict[str, Counter[str]]:
    if len(values) <= _FEW_NUMBERS:
        return _summed((f"{value:g}", counts[value]) for value in values)
    step = _step((values[-1] - values[0]) / _BINS)
    starts = ((int(value // step) * step, value) for value in values)
    return _summed((f"{start} to {start + step - 1}", counts[value]) for start, value in starts)


def _step(least: float) -> int:
    """The smallest of 2, 5, 10, 20, 50 ... that is as large."""
    sizes = (factor * 10**power for power in range(300) for factor in (1, 2, 5))
    return next(int(size) for size in sizes if size >= max(least, 2))


def _summed(pairs: Iterable[tuple[str, Counter[str]]]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for label, counts in pairs:
        found.setdefault(label, Counter()).update(counts)
    return found
