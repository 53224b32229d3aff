"""Mean ranks of the methods of an evaluation, by data set and over all."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.metrics.pixels import Values
from pipeline.metrics.ranks import RankSample, badness, mean_rank, rank_sample
from pipeline.metrics.table import BY_NAME, METRICS
from pipeline.results import Cell, Rank
from pipeline.scoring.aggregate_boards import Column
from pipeline.scoring.aggregate_view import DatasetView

RESTATED = frozenset(
    {"identity-angle", "expression-distance", "idd-rfpp", "ids-codeformer"}
    | {metric.name for metric in METRICS if metric.name.startswith(("fid-tf", "fid-clean"))}
    | {metric.name.removesuffix("-all") for metric in METRICS if metric.name.endswith("-all")}
)
"""Not ranked: they restate another column, which would count twice.

Of an error over found faces and the one over all, the latter ranks: the former flatters a method
that makes faces nobody finds.
"""


@dataclass(frozen=True, slots=True, eq=False)
class _Ranked:
    """A column that every method has a value in.

    Attributes:
        dataset: Of what.
        metric: Name.
        values: Method -> value.
        samples: Method -> (resamples,); None for a metric of sets.
    """

    dataset: str
    metric: str
    values: Mapping[str, float]
    samples: Mapping[str, Values] | None


def ranks_of(
    datasets: Sequence[DatasetView],
    cells: Iterable[Cell],
    boards: Iterable[tuple[DatasetView, Column]],
    resamples: int,
) -> Iterator[Rank]:
    """Ranks on every data set; over all of them, where there are several.

    Args:
        datasets: All.
        cells: Of whole data sets.
        boards: Metrics of images, with their resamples.
        resamples: How many.
    """
    if not datasets:
        return
    columns = {(dataset.name, column.metric.name): column for dataset, column in boards}
    values: dict[tuple[str, str], dict[str, float]] = {}
    for cell in cells:
        if cell.value is not None and not cell.group and cell.metric not in RESTATED:
            values.setdefault((cell.dataset, cell.metric), {})[cell.method] = cell.value
    everywhere = sorted(set.intersection(*(set(each.methods) for each in datasets)))
    shared = []
    for dataset in datasets:
        found = [
            _ranked(key, found, columns.get(key), dataset.methods)
            for key, found in values.items()
            if key[0] == dataset.name and set(dataset.methods) <= found.keys()
        ]
        yield from _ranks(dataset.name, dataset.methods, found, resamples)
        shared += [
            _ranked(key, found, columns.get(key), everywhere)
            for key, found in values.items()
            if key[0] == dataset.name and set(everywhere) <= found.keys()
        ]
    if len(datasets) > 1:
        yield from _ranks("", everywhere, shared, resamples)


def _ranked(
    key: tuple[str, str], values: Mapping[str, float], column: Column | None, methods: Sequence[str]
) -> _Ranked:
    samples = None
    if column:
        samples = {
            method: column.samples[""][:, column.methods.index(method)] for method in methods
        }
    return _Ranked(*key, values, samples)


def _ranks(
    dataset: str, methods: Sequence[str], columns: Sequence[_Ranked], resamples: int
) -> Iterator[Rank]:
    """One a method; none for a single one, or without a column."""
    if len(methods) < 2 or not columns:
        return
    better = [BY_NAME[column.metric].better for column in columns]
    table = np.array([[column.values[method] for column in columns] for method in methods])
    bad = badness(table, better)
    means, averages = mean_rank(bad), mean_rank(bad, "average")
    sample = rank_sample(badness(_samples(methods, columns, resamples), better))
    names = tuple(f"{column.dataset} {column.metric}".strip() for column in columns)
    note = _note(columns)
    for place, method in enumerate(methods):
        yield Rank(
            dataset=dataset, method=method, mean=float(means[place]),
            mean_average=float(averages[place]), low=float(sample.low[place]),
            high=float(sample.high[place]), p_first=float(sample.places[place, 0]),
            distribution=_distribution(sample, place), columns=names, note=note,
        )  # fmt: skip


def _samples(methods: Sequence[str], columns: Sequence[_Ranked], resamples: int) -> Values:
    """(resamples, methods, columns); a metric of sets, or a mean of no image, keeps its value."""
    found = np.empty((resamples, len(methods), len(columns)))
    for number, column in enumerate(columns):
        for place, method in enumerate(methods):
            value = column.values[method]
            drawn = column.samples[method] if column.samples else value
            found[:, place, number] = np.where(np.isnan(drawn), value, drawn)
    return found


def _distribution(sample: RankSample, place: int) -> dict[str, float]:
    shares = enumerate(sample.places[place].tolist(), start=1)
    return {str(number): share for number, share in shares if share}


def _note(columns: Sequence[_Ranked]) -> str:
    fixed = sorted({column.metric for column in columns if column.samples is None})
    return f"not resampled: {', '.join(fixed)}" if fixed else ""
