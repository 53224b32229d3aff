"""Metrics of sets as cells: which images each is of, and what is remembered from earlier."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.choose import compares_with_reference
from pipeline.metrics.families import SET_FAMILIES
from pipeline.metrics.judge import STATUSES
from pipeline.metrics.table import BY_NAME, Metric
from pipeline.replica import canonical
from pipeline.results import Cell
from pipeline.scoring.aggregate_features import FeatureIndex, index_features
from pipeline.scoring.aggregate_scores import NO_ROW, OK
from pipeline.scoring.aggregate_sets import (
    Outcome,
    Reference,
    ReferenceFile,
    ReferenceImages,
    Sets,
    outcome_of,
)
from pipeline.scoring.aggregate_view import DatasetView, Places, View
from pipeline.scoring.tables import REFERENCE_METHOD, TRUTH_METHOD
from pipeline.storage import OWN_FOLDER, Store

STATISTICS_METRIC = "fid"
"""The metric that files of statistics are of: published ones do not say so themselves."""
_VERSION = 1
"""Of what is remembered: raise it when a metric's computation changes."""
_MISSING_PAIR = STATUSES.index("missing_pair")
_REMEMBERED = f"{OWN_FOLDER}/sets"


@dataclass(frozen=True, slots=True)
class SetConfig:
    """How sets are aggregated.

    Attributes:
        seed: Of resamples and folds.
        resamples: Of intervals.
        references: Data set -> statistics file that FID compares with.
    """

    seed: int
    resamples: int
    references: Mapping[str, str]


class SetCells:
    """The cells of all metrics of sets.

    They take minutes, where those of images take a second, and most stay as they were when a method
    is added: an outcome is remembered under the contents that it follows from.

    Attributes:
        missing: Metrics that were not computed, a line each with the fix.
    """

    def __init__(
        self, store: Store, view: View, weights: Mapping[str, str], config: SetConfig
    ) -> None:
        """Take what to look at; `weights` are those that count, by protocol."""
        self._store, self._view, self._weights, self._config = store, view, weights, config
        self.missing: list[str] = []

    def cells(self, datasets: Sequence[DatasetView]) -> Iterator[Cell]:
        """All of them, family by family."""
        for family in SET_FAMILIES:
            known = [BY_NAME[name] for name in family.metrics]
            metrics = [metric for metric in known if metric.protocol in self._weights]
            if not metrics:
                continue
            weights = self._weights[metrics[0].protocol]
            index = index_features(self._store, self._view, family.name, weights)
            if index:
                for dataset in datasets:
                    yield from self._dataset(index, dataset, metrics)

    def _dataset(
        self, index: FeatureIndex, dataset: DatasetView, metrics: Sequence[Metric]
    ) -> Iterator[Cell]:
        places = np.stack([dataset.places[method] for method in dataset.methods])
        if (index.statuses[places] == NO_ROW).all():
            return
        references = {
            metric.name: self._reference(index, dataset, metric)
            for metric in metrics
            if compares_with_reference(metric.name)
        }
        for method in dataset.methods:
            alone, paired = (self._sets(index, dataset, method, p) for p in (False, True))
            for metric in metrics:
                reference = references.get(metric.name)
                if reference:
                    yield self._cell(dataset, method, metric, alone, reference)
                elif metric.name not in references and TRUTH_METHOD in dataset.places:
                    yield self._cell(dataset, method, metric, paired, None)

    def _reference(
        self, index: FeatureIndex, dataset: DatasetView, metric: Metric
    ) -> Reference | None:
        """What the data set's FID compares with; None, and a line about it, without any."""
        path = self._config.references.get(dataset.name)
        if path and metric.name == STATISTICS_METRIC:
            return ReferenceFile(Path(path), index)
        pairs = dataset.places.get(REFERENCE_METHOD, np.empty(0, np.int64))
        pairs = pairs[index.statuses[pairs] == OK]
        if len(pairs) < 2:
            self.missing.append(
                f"{metric.name} on {dataset.name}: needs a clean set; give `vsp score` "
                "--reference FOLDER"
            )
            return None
        return ReferenceImages(index, pairs, self._contents(pairs))

    def _sets(
        self, index: FeatureIndex, dataset: DatasetView, method: str, is_paired: bool
    ) -> "_Chosen":
        """The images of a method that have a feature, and whose truths have one if wanted."""
        restored = dataset.places[method]
        statuses = index.statuses[restored].copy()
        truths = dataset.places.get(TRUTH_METHOD, np.full(len(restored), -1))
        if is_paired:
            own = np.where(self._is_truth(restored, truths), index.statuses[truths], _MISSING_PAIR)
            statuses = np.where(statuses == OK, own, statuses)
        chosen = statuses == OK
        sets = Sets(
            index, restored[chosen], truths[chosen], seed=self._config.seed,
            resamples=self._config.resamples,
        )  # fmt: skip
        names = [STATUSES[code] if code != NO_ROW else "pending" for code in statuses[~chosen]]
        return _Chosen(sets, self._contents(restored[chosen]), dict(Counter(sorted(names))))

    def _is_truth(self, restored: Places, truths: Places) -> NDArray[np.bool_]:
        """Whether each image's truth is the one that has the feature."""
        wanted, there = (self._view.coded[name] for name in ("gt_sha256", "restored_sha256"))
        return np.asarray((truths >= 0) & (wanted[restored] == there[truths]), bool)

    def _cell(
        self, dataset: DatasetView, method: str, metric: Metric, chosen: "_Chosen",
        reference: Reference | None,
    ) -> Cell:  # fmt: skip
        outcome = self._outcome(metric, chosen, reference)
        return Cell(
            dataset=dataset.name, method=method, metric=metric.name, num_ok=len(chosen.sets),
            num_total=len(dataset.ids), statuses=chosen.statuses, **asdict(outcome),
        )  # fmt: skip

    def _outcome(self, metric: Metric, chosen: "_Chosen", reference: Reference | None) -> Outcome:
        facts = {
            "version": _VERSION, "protocol": metric.protocol, "seed": self._config.seed,
            "resamples": self._config.resamples, "extractor": chosen.sets.index.extractor,
            "contents": chosen.contents, "reference": reference.digest if reference else "",
        }  # fmt: skip
        name = f"{_REMEMBERED}/{hashlib.sha256(canonical(facts).encode()).hexdigest()}.json"
        try:
            return Outcome(**json.loads(self._store.read(name)))
        except (FileNotFoundError, ValueError, TypeError):  # not there, or damaged
            outcome = outcome_of(metric, chosen.sets, reference)
            self._store.write(name, json.dumps(asdict(outcome)).encode())
            return outcome

    def _contents(self, pairs: Places) -> str:
        """Identifies images and truths."""
        rows = [self._view[pair] for pair in pairs]
        listed = [[row.image_id, row.restored_sha256, row.gt_sha256] for row in rows]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class _Chosen:
    """A method's images that count, what identifies them, and why others do not."""

    sets: Sets
    contents: str
    statuses: dict[str, int]
