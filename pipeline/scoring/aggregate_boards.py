"""The scores of one data set side by side: cells of the table, and pairs of methods compared."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.intervals import draw_blocks, resampled_means, tails
from pipeline.metrics.judge import STATUSES
from pipeline.metrics.pixels import Values
from pipeline.metrics.significance import holm, wilcoxon
from pipeline.metrics.table import Metric
from pipeline.results import Cell, Comparison
from pipeline.scoring.aggregate_scores import NO_ROW, OK, Scores
from pipeline.scoring.aggregate_view import DatasetView, View
from pipeline.scoring.tables import TRUTH_METHOD

_STATUS_NAMES = (*STATUSES, "left_out", "pending")
_PENDING = len(_STATUS_NAMES) - 1
_MISSING_PAIR = STATUSES.index("missing_pair")


@dataclass(slots=True, eq=False)
class Column:
    """One metric of all methods of a data set.

    Attributes:
        metric: Which.
        methods: M of them; the truths themselves come last, for a metric that looks at one image.
        values: (M, N), NaN for an image without a value.
        statuses: (M, N), places in the list of statuses.
        samples: Group, "" for all images -> (resamples, M), the means of each resample, which
            draws the same images for all methods.
        pair_samples: (resamples, pairs of restorers), the mean differences.
    """

    metric: Metric
    methods: tuple[str, ...]
    values: Values
    statuses: NDArray[np.int8]
    samples: dict[str, Values]
    pair_samples: Values


def columns_of(
    dataset: DatasetView, view: View, scores: Scores, *, seed: int, resamples: int
) -> list[Column]:
    """Every metric that an image of the data set has a row of, with its resamples."""
    found = (_column(dataset, view, scores, n, resamples) for n in range(len(scores.metrics)))
    columns = [column for column in found if column]
    if not columns:
        return []
    together = np.concatenate([column.values for column in columns]).T
    ends = np.cumsum([len(column.methods) for column in columns])
    start = 0
    for drawn in draw_blocks(len(dataset.ids), seed=seed, resamples=resamples):
        rows = slice(start, start + len(drawn))
        for group in ("", *dataset.group_names):
            chosen = dataset.in_group(group)
            means = resampled_means(together[chosen], drawn[:, chosen])
            for column, samples in zip(columns, np.split(means, ends[:-1], axis=1), strict=True):
                column.samples[group][rows] = samples
        for column in columns:
            column.pair_samples[rows] = _differences(column, column.samples[""][rows], drawn)
        start = rows.stop
    return columns


def _column(
    dataset: DatasetView, view: View, scores: Scores, number: int, resamples: int
) -> Column | None:
    """One metric before resampling; None where no image has a row of it."""
    metric = scores.metrics[number]
    with_truth = metric.kind == "alone" and TRUTH_METHOD in dataset.places
    methods = dataset.methods + (TRUTH_METHOD,) * with_truth
    places = np.stack([dataset.places[method] for method in methods])
    absent = places < 0
    statuses = np.where(absent, _MISSING_PAIR, scores.statuses[number][places]).astype(np.int8)
    if (statuses[: len(dataset.methods)] == NO_ROW).all():
        return None
    whole = view.has("restored_sha256") & (view.has("gt_sha256") | (metric.kind == "alone"))
    unscored = np.where(whole[places], _PENDING, _MISSING_PAIR)
    statuses = np.where(statuses == NO_ROW, unscored, statuses).astype(np.int8)
    values = np.where(absent, np.nan, scores.values[number][places])
    groups = ("", *dataset.group_names)
    samples = {group: np.empty((resamples, len(methods))) for group in groups}
    pair_samples = np.empty((resamples, math.comb(len(dataset.methods), 2)))
    return Column(metric, methods, values, statuses, samples, pair_samples)


def _differences(column: Column, samples: Values, drawn: Values) -> Values:
    """Mean difference of every pair of restorers, over images that both have a value of."""
    restorers = [place for place, name in enumerate(column.methods) if name != TRUTH_METHOD]
    pairs = list(combinations(restorers, 2))
    found = np.empty((len(drawn), len(pairs)))
    there = column.statuses == OK
    for place, (one, other) in enumerate(pairs):
        if (there[one] == there[other]).all():
            found[:, place] = samples[:, one] - samples[:, other]
        else:
            difference = column.values[one] - column.values[other]
            found[:, [place]] = resampled_means(difference[:, None], drawn)
    return found


def cells_of(dataset: DatasetView, column: Column) -> Iterator[Cell]:
    """The column's cells, of the whole data set and of its groups."""
    for group, samples in column.samples.items():
        yield from _cells(dataset, column, group, samples)


def _cells(dataset: DatasetView, column: Column, group: str, samples: Values) -> Iterator[Cell]:
    chosen = dataset.in_group(group)
    low, high = tails(samples)
    for place, method in enumerate(column.methods):
        statuses = column.statuses[place, chosen]
        counts = np.bincount(statuses, minlength=len(_STATUS_NAMES))
        num_ok = int(counts[OK])
        values = column.values[place, chosen]
        yield Cell(
            dataset=dataset.name,
            method=method,
            metric=column.metric.name,
            group=group,
            value=float(values[statuses == OK].mean()) if num_ok else None,
            low=float(low[place]) if num_ok else None,
            high=float(high[place]) if num_ok else None,
            num_ok=num_ok,
            num_total=len(statuses),
            statuses={
                name: int(count)
                for name, count in zip(_STATUS_NAMES, counts, strict=True)
                if count and name != "ok"
            },
        )


def pending_of(dataset: DatasetView, column: Column) -> Iterator[str]:
    """A line for each method that is not scored to the end."""
    for method, statuses in zip(column.methods, column.statuses, strict=True):
        if count := int((statuses == _PENDING).sum()):
            yield (
                f"{dataset.name}: {column.metric.name} of {count} of {len(statuses)} images of "
                f"{method} is not computed yet; run `vsp score` again"
            )


def comparisons_of(dataset: DatasetView, column: Column) -> Iterator[Comparison]:
    """Every two methods on the images that both have a value of."""
    pairs = list(combinations(range(len(dataset.methods)), 2))
    if not pairs:
        return
    one, other = np.array(pairs).T
    differences = column.values[one] - column.values[other]
    there = ~np.isnan(differences).all(axis=1)
    low, high = tails(column.pair_samples)
    p_values = wilcoxon(differences[there])
    corrected = holm(p_values)
    for number, place in enumerate(np.flatnonzero(there)):
        known = differences[place][~np.isnan(differences[place])]
        yield Comparison(
            dataset=dataset.name,
            metric=column.metric.name,
            method=dataset.methods[one[place]],
            other=dataset.methods[other[place]],
            difference=float(known.mean()),
            low=float(low[place]),
            high=float(high[place]),
            p_wilcoxon=float(p_values[number]),
            p_holm=float(corrected[number]),
            num_images=len(known),
        )
