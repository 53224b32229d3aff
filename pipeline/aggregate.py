"""An evaluation folder -> what it came to: every number with its interval, count and protocol.

The result follows from the rows alone, not from how they lie in files: the same seed gives the same
bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from pipeline.errors import UserError
from pipeline.metrics.table import BY_NAME, METRICS
from pipeline.replica import Frozen
from pipeline.results import Cell, DatasetInfo, MethodInfo, MetricInfo, PublishedCell, Results
from pipeline.scoring.aggregate_boards import (
    Column,
    cells_of,
    columns_of,
    comparisons_of,
    pending_of,
)
from pipeline.scoring.aggregate_features import index_features
from pipeline.scoring.aggregate_ranks import ranks_of
from pipeline.scoring.aggregate_scores import OK, Scores, read_scores
from pipeline.scoring.aggregate_set_cells import SetCells, SetConfig
from pipeline.scoring.aggregate_view import DatasetView, View, dataset_views, read_view
from pipeline.scoring.current import load_current
from pipeline.scoring.tables import REFERENCE_METHOD, TRUTH_METHOD
from pipeline.storage import Store

_PLACES = {metric.name: place for place, metric in enumerate(METRICS)}


class AggregateConfig(Frozen):
    """How rows become numbers.

    Attributes:
        seed: Of resamples and folds.
        resamples: Bootstrap resamples behind every interval.
        intersection: Take the images that all methods of a data set have; else other images than
            one another's are refused.
        references: Data set -> file of statistics of the clean set that FID compares with.
    """

    seed: int = 0
    resamples: int = Field(2000, ge=1)
    intersection: bool = False
    references: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rows do not say; copied into the results.

    Attributes:
        title: Of the evaluation.
        missing: Metrics that were not computed, a line each with the fix.
        notices: Method -> terms of its weights, or what a reader must know.
        costs: Method -> params_m, gmacs, images_per_s.
        published: Numbers that papers printed.
        dataset_notes: Data set -> what a reader must know.
        provenance: Command, commit, versions ... in the order shown.
    """

    title: str = ""
    missing: tuple[str, ...] = ()
    notices: Mapping[str, str] = field(default_factory=dict)
    costs: Mapping[str, dict[str, float]] = field(default_factory=dict)
    published: tuple[PublishedCell, ...] = ()
    dataset_notes: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)


def aggregate(store: Store, config: AggregateConfig, facts: Facts | None = None) -> Results:
    """Aggregate everything that was scored, and save it.

    Args:
        store: The evaluation folder.
        config: How.
        facts: What the rows do not say.

    Raises:
        UserError: If nothing was scored; if methods of a data set have different images, without
            `intersection`; if a statistics file is not what it should be.
    """
    facts = facts or Facts()
    view, current = read_view(store), load_current(store)
    datasets = dataset_views(view, intersection=config.intersection)
    scores = read_scores(store, view, current.weights)
    boards = _boards(datasets, view, scores, config)
    set_config = SetConfig(config.seed, config.resamples, config.references)
    sets = SetCells(store, view, current.weights, set_config)
    cells = [cell for dataset, column in boards for cell in cells_of(dataset, column)]
    cells = sorted([*cells, *sets.cells(datasets)], key=_order)
    results = Results(
        title=facts.title,
        metrics=tuple(_metrics(cells, scores.libraries, current.files)),
        datasets=tuple(_dataset(dataset, view, facts) for dataset in datasets),
        methods=tuple(_methods(datasets, cells, facts)),
        cells=tuple(cells),
        comparisons=tuple(each for board in boards for each in comparisons_of(*board)),
        ranks=tuple(ranks_of(datasets, cells, boards, config.resamples)),
        published=facts.published,
        missing=(*facts.missing, *sets.missing),
        warnings=tuple(_warnings(datasets, boards)),
        provenance=dict(facts.provenance),
    )
    results.save(store)
    return results


def save_statistics(store: Store, dataset: str, path: Path) -> int:
    """Keep the moments of the clean set that a data set's FID compares with, for other runs.

    Args:
        store: The evaluation folder.
        dataset: Whose `--reference` was a set of images.
        path: An .npz; `--reference` takes it.

    Returns:
        How many images they are of.

    Raises:
        UserError: If there are no features of such a set.
    """
    view, current = read_view(store), load_current(store)
    (found,) = (each for each in dataset_views(view, intersection=True) if each.name == dataset)
    weights = current.weights.get(BY_NAME["fid"].protocol, "")
    index = index_features(store, view, "inception", weights)
    pairs = found.places.get(REFERENCE_METHOD)
    if index is None or pairs is None:
        raise UserError(f"{path}: no features of clean images; score `fid` with --reference FOLDER")
    index.moments(pairs[index.statuses[pairs] == OK]).save(path)
    return len(pairs)


def _boards(
    datasets: Sequence[DatasetView], view: View, scores: Scores, config: AggregateConfig
) -> list[tuple[DatasetView, Column]]:
    return [
        (dataset, column)
        for dataset in datasets
        for column in columns_of(
            dataset, view, scores, seed=config.seed, resamples=config.resamples
        )
    ]


def _order(cell: Cell) -> tuple[str, str, bool, str, int]:
    """Data sets, the whole before its groups, methods with the truths last, metrics as listed."""
    is_truth = cell.method == TRUTH_METHOD
    return cell.dataset, cell.group, is_truth, cell.method, _PLACES[cell.metric]


def _metrics(
    cells: Sequence[Cell], libraries: Mapping[str, str], files: Mapping[str, dict[str, str]]
) -> Iterator[MetricInfo]:
    for name in sorted({cell.metric for cell in cells}, key=_PLACES.__getitem__):
        metric = BY_NAME[name]
        yield MetricInfo(
            name=name, protocol=metric.protocol, better=metric.better, unit=metric.unit,
            kind=metric.kind, source=metric.source, is_loss=metric.is_loss,
            library=libraries.get(metric.protocol, ""), weights=files.get(metric.protocol, {}),
        )  # fmt: skip


def _dataset(dataset: DatasetView, view: View, facts: Facts) -> DatasetInfo:
    return DatasetInfo(
        name=dataset.name,
        rev=", ".join(sorted({rev for rev, _ in dataset.revs.values()})),
        num_images=len(dataset.ids),
        has_truth=bool(view.has("gt_sha256")[dataset.places[dataset.methods[0]]].any()),
        groups=tuple(dataset.group_names),
        note=facts.dataset_notes.get(dataset.name, ""),
    )


def _methods(
    datasets: Sequence[DatasetView], cells: Sequence[Cell], facts: Facts
) -> Iterator[MethodInfo]:
    """Restorers by name, then the truths, if they are shown."""
    for name in sorted({method for dataset in datasets for method in dataset.methods}):
        yield MethodInfo(
            name=name,
            revs={each.name: each.revs[name][1] for each in datasets if name in each.revs},
            notice=facts.notices.get(name, ""),
            cost=facts.costs.get(name, {}),
        )
    if any(cell.method == TRUTH_METHOD for cell in cells):
        yield MethodInfo(name=TRUTH_METHOD, notice="the true images themselves: no method")


def _warnings(
    datasets: Sequence[DatasetView], boards: Sequence[tuple[DatasetView, Column]]
) -> Iterator[str]:
    for dataset in datasets:
        yield from dataset.warnings
    for dataset, column in boards:
        yield from pending_of(dataset, column)
