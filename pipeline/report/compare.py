"""Two evaluations side by side: what changed, where the same thing was measured."""

import math
from dataclasses import dataclass

from pipeline.results import Cell, MetricInfo, Results

NORMAL_95 = 1.96


@dataclass(frozen=True, slots=True)
class Change:
    """One cell in both evaluations.

    Attributes:
        info: The metric, as the new evaluation computed it.
        new: The new cell, with a value.
        old: The old one, with a value.
        is_beyond: Whether the difference is beyond what both 95 % intervals allow; None where one
            of them has no interval.
    """

    info: MetricInfo
    new: Cell
    old: Cell
    is_beyond: bool | None

    @property
    def delta(self) -> float:
        """New minus old."""
        assert self.new.value is not None
        assert self.old.value is not None
        return self.new.value - self.old.value

    @property
    def is_better(self) -> bool:
        """Whether the difference goes the right way."""
        assert self.new.value is not None
        assert self.old.value is not None
        if self.info.better == "zero":
            return abs(self.new.value) < abs(self.old.value)
        return self.delta > 0 if self.info.better == "higher" else self.delta < 0


@dataclass(frozen=True, slots=True)
class Changes:
    """What two evaluations say about each other; `unmatched` has a line for what cannot be told."""

    matched: tuple[Change, ...]
    unmatched: tuple[str, ...]


def compare(new: Results, old: Results) -> Changes:
    """Compare cell by cell, whole data sets only, where protocol and revision are the same."""
    infos = {info.name: info for info in new.metrics}
    others = {_key(cell): cell for cell in old.cells if not cell.group}
    matched, unmatched = [], []
    for cell in (cell for cell in new.cells if not cell.group):
        other = others.pop(_key(cell), None)
        reason = _obstacle(cell, other, new, old)
        if reason or other is None:
            unmatched.append(f"{_named(cell)}: {reason}")
        elif cell.value is not None and other.value is not None:
            matched.append(Change(infos[cell.metric], cell, other, _is_beyond(cell, other)))
    unmatched += [f"{_named(cell)}: only in the other evaluation" for cell in others.values()]
    return Changes(tuple(matched), tuple(unmatched))


def _key(cell: Cell) -> tuple[str, str, str]:
    return cell.dataset, cell.method, cell.metric


def _named(cell: Cell) -> str:
    return f"{cell.dataset}, {cell.method}, {cell.metric}"


def _obstacle(cell: Cell, other: Cell | None, new: Results, old: Results) -> str:
    """Why two cells are not of the same thing; "" if they are."""
    if other is None:
        return "only in this evaluation"
    if (cell.value is None) != (other.value is None):
        return "a value in one of the two only"
    protocols = [_protocol(results, cell.metric) for results in (new, old)]
    if protocols[0] != protocols[1]:
        return f"protocol {protocols[0]} here, {protocols[1]} there"
    weights = [_weights(results, cell.metric) for results in (new, old)]
    if weights[0] != weights[1]:
        return "other weights"
    if protocols[0].endswith(":reference") and cell.note != other.note:
        return f"{cell.note or 'a reference'} here, {other.note or 'another'} there"
    revisions = [_revision(results, cell.dataset) for results in (new, old)]
    if revisions[0] != revisions[1]:
        return f"data set revision {revisions[0]} here, {revisions[1]} there"
    return ""


def _weights(results: Results, metric: str) -> list[str]:
    found = next((info.weights for info in results.metrics if info.name == metric), {})
    return sorted(found.values())


def _protocol(results: Results, metric: str) -> str:
    return next((info.protocol for info in results.metrics if info.name == metric), "unknown")


def _revision(results: Results, dataset: str) -> str:
    return next((info.rev for info in results.datasets if info.name == dataset), "unknown")


def _is_beyond(new: Cell, old: Cell) -> bool | None:
    halves = [_half_width(cell) for cell in (new, old)]
    if halves[0] is None or halves[1] is None or new.value is None or old.value is None:
        return None
    return abs(new.value - old.value) > math.hypot(halves[0], halves[1])


def _half_width(cell: Cell) -> float | None:
    if cell.low is not None and cell.high is not None:
        return (cell.high - cell.low) / 2
    return NORMAL_95 * cell.error if cell.error is not None else None
