"""A table of results as every view shows it: methods by metrics, the best and second marked."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.results import Cell, DatasetInfo, MetricInfo, Results
from pipeline.scoring.aggregate_view import PSEUDO_METHODS

ARROWS = {"higher": "\u2191", "lower": "\u2193", "zero": "\u21920"}
DIRECTIONS = {
    "higher": "higher is better",
    "lower": "lower is better",
    "zero": "closer to zero is better",
}
BEST, SECOND = 1, 2  # among the methods that have most values
COSTS = {
    "params_m": "Parameters, M", "gmacs": "GMAC", "images_per_s": "Images/s",
    "batch_size": "Batch", "threads": "Threads",
}  # fmt: skip
"""What a method costs (`results.MethodInfo.cost`), as headings say it."""


@dataclass(frozen=True, slots=True)
class Column:
    """One metric of a table.

    Attributes:
        info: The metric.
        decimals: How many every number of this column has.
        places: Method -> `BEST` or `SECOND`; others have none.
    """

    info: MetricInfo
    decimals: int
    places: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Grid:
    """One data set's table, or that of a group of its images.

    Attributes:
        dataset: The data set.
        group: "" for the whole data set.
        methods: In the order of the results, those that have a cell.
        columns: In the order of the results, those that have a cell.
        cells: (method, metric) -> cell.
    """

    dataset: DatasetInfo
    group: str
    methods: tuple[str, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[str, str], Cell]


def grids(results: Results) -> list[Grid]:
    """A table for each data set that has cells."""
    made = (make_grid(results, dataset) for dataset in results.datasets)
    return [grid for grid in made if grid.columns]


def make_grid(results: Results, dataset: DatasetInfo, group: str = "") -> Grid:
    """The table of one data set, or of one group of it."""
    wanted = (dataset.name, group)
    here = [cell for cell in results.cells if (cell.dataset, cell.group) == wanted]
    cells = {(cell.method, cell.metric): cell for cell in here}
    methods = _in_order((info.name for info in results.methods), (cell.method for cell in here))
    metrics = {cell.metric for cell in here}
    columns = (
        _column(info, {method: cells.get((method, info.name)) for method in methods})
        for info in results.metrics
        if info.name in metrics
    )
    return Grid(dataset, group, methods, tuple(columns), cells)


def _in_order(known: Iterable[str], used: Iterable[str]) -> tuple[str, ...]:
    there = dict.fromkeys(used)
    first = [name for name in dict.fromkeys(known) if name in there]
    return (*first, *(name for name in there if name not in first))


def _column(info: MetricInfo, cells: Mapping[str, Cell | None]) -> Column:
    values = {
        method: cell.value for method, cell in cells.items() if cell and cell.value is not None
    }
    counts = {m: cell.num_ok for m, cell in cells.items() if cell and m not in PSEUDO_METHODS}
    most = max(counts.values(), default=0)  # a mean over fewer images is no better for it
    ranked = {m: _badness(info, values[m]) for m, n in counts.items() if n == most and m in values}
    order = sorted(set(ranked.values()))[:SECOND]
    places = {m: order.index(bad) + 1 for m, bad in ranked.items() if bad in order}
    return Column(info, decimals(info, values.values()), places if len(ranked) > 1 else {})


def _badness(info: MetricInfo, value: float) -> float:
    return {"higher": -value, "lower": value, "zero": abs(value)}[info.better]


def decimals(info: MetricInfo, values: Iterable[float]) -> int:
    """How many digits after the point a column of numbers gets."""
    if info.unit:
        return 2
    largest = max((abs(value) for value in values if math.isfinite(value)), default=1.0)
    return 2 if largest >= 10 else 3 if largest >= 2 else 4


def number(value: float | None, digits: int) -> str:
    """A number as tables print it; a dash for none, a true minus sign."""
    if value is None or math.isnan(value):
        return "\u2013"
    if math.isinf(value):
        return "\u221e" if value > 0 else "\u2212\u221e"
    printed = f"{value:.{digits}f}"
    return printed.replace("-", "\u2212") if float(printed) else printed.lstrip("-")


def spread(cell: Cell, digits: int) -> str:
    """The 95 % interval, or the standard error, or ""."""
    if cell.low is not None and cell.high is not None:
        return f"[{number(cell.low, digits)}, {number(cell.high, digits)}]"
    return f"\u00b1 {number(cell.error, digits)}" if cell.error is not None else ""


def count(cell: Cell) -> str:
    """How many images the value is of, where it is not of all; else ""."""
    return f"{cell.num_ok:,}/{cell.num_total:,}" if cell.num_ok != cell.num_total else ""


def reasons(cells: Iterable[Cell]) -> str:
    """Why images have no value, as "3 no_face, 1 failed"; or ""."""
    totals: dict[str, int] = {}
    for cell in cells:
        for status, num in cell.statuses.items():
            totals[status] = totals.get(status, 0) + num
    return ", ".join(f"{num:,} {status}" for status, num in totals.items() if num)


def without_value(grid: Grid) -> dict[str, str]:
    """Metric -> why images of all methods together have no value; only metrics that lack some."""
    found = {
        column.info.name: reasons(
            cell for (_, metric), cell in grid.cells.items() if metric == column.info.name
        )
        for column in grid.columns
    }
    return {metric: reason for metric, reason in found.items() if reason}


def cost(value: float | None) -> str:
    """A cost as text, "" for one that was not measured."""
    return "" if value is None else f"{value:,.4g}"
