"""The per-image scores of an evaluation folder as one matrix: metrics by images."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.metrics.judge import STATUSES
from pipeline.metrics.pixels import Values
from pipeline.metrics.table import METRICS, Metric
from pipeline.scoring.aggregate_view import Places, View, codes, known
from pipeline.scoring.tables import SCORES
from pipeline.storage import Store

OK, NON_FINITE = STATUSES.index("ok"), STATUSES.index("non_finite")
LEFT_OUT = len(STATUSES)
"""Code of a value that the metric's source leaves out of means."""
NO_ROW = -1

_COLUMNS = (
    "dataset", "method", "image_id", "metric", "value", "status", "lib", "lib_version",
    "weights_sha256", "restored_sha256", "gt_sha256",
)  # fmt: skip
_CODED = ["image_id", "restored_sha256", "gt_sha256"]
_READERS, _FILES_AT_ONCE = 4, 128


@dataclass(slots=True, eq=False)
class Scores:
    """Every image's scores.

    Attributes:
        metrics: K metrics that have a row, in the order of the table.
        values: (K, P) by the view's numbers of pairs; capped, NaN unless the status is `OK`.
        statuses: (K, P) codes: places in `STATUSES`, `NO_ROW` or `LEFT_OUT`.
        libraries: Protocol -> package and version that computed it.
    """

    metrics: tuple[Metric, ...]
    values: Values
    statuses: NDArray[np.int8]
    libraries: dict[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Rows that count: numbers of metric and pair, status code, value, package and version."""

    metric: Places
    pair: Places
    status: Places
    value: Values
    package: Places
    version: Places


_KINDS = {each.name: np.float64 if each.name == "value" else np.int64 for each in fields(_Rows)}


def read_scores(store: Store, view: View, weights: Mapping[str, str]) -> Scores:
    """Read all scores that count.

    Args:
        store: The evaluation folder.
        view: Which pairs count.
        weights: Protocol -> the weights that count; rows of other metrics or weights are leftovers.
    """
    reader = _Reader(view, weights)
    return reader.scores([reader.rows(table) for table in _tables(store)])


def _tables(store: Store) -> Iterator[pa.Table]:
    """All rows there are; files are many and small, so some are read at once."""

    def read(name: str) -> pa.Table:
        data = pa.BufferReader(store.read(name))
        parquet = pq.ParquetFile(data, read_dictionary=_CODED, pre_buffer=False)
        return parquet.read(columns=list(_COLUMNS), use_threads=False)

    names = list(store.list(SCORES))
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(names), _FILES_AT_ONCE):
            tables = list(pool.map(read, names[start : start + _FILES_AT_ONCE]))
            yield pa.concat_tables(tables).unify_dictionaries().combine_chunks()


class _Reader:
    """Turns tables into numbers, and these into the matrix."""

    def __init__(self, view: View, weights: Mapping[str, str]) -> None:
        self._view = view
        self._metrics = [metric for metric in METRICS if metric.protocol in weights]
        self._numbers = {metric.protocol: place for place, metric in enumerate(self._metrics)}
        expected = [weights[metric.protocol] for metric in self._metrics]
        self._weights = {word: place for place, word in enumerate(dict.fromkeys(expected))}
        self._expected = np.array([self._weights[word] for word in expected], np.int64)
        self._statuses: dict[str, int] = {status: code for code, status in enumerate(STATUSES)}
        self._libraries: dict[str, int] = {}

    def _library(self, word: str) -> int:
        return self._libraries.setdefault(word, len(self._libraries))

    def rows(self, table: pa.Table) -> _Rows:
        """The rows that count."""
        metric = codes(table["metric"], known(self._numbers))
        weights = codes(table["weights_sha256"], known(self._weights))
        pair = self._view.locate(table)
        counts = (pair >= 0) & (metric >= 0)
        counts[counts] = weights[counts] == self._expected[metric[counts]]
        return _Rows(
            metric[counts],
            pair[counts],
            codes(table["status"], known(self._statuses))[counts],
            np.concatenate([np.from_dlpack(chunk) for chunk in table["value"].chunks])[counts],
            codes(table["lib"], self._library)[counts],
            codes(table["lib_version"], self._library)[counts],
        )

    def scores(self, parts: Sequence[_Rows]) -> Scores:
        """The matrix of all rows."""
        rows = _joined(parts)
        present = np.flatnonzero(np.bincount(rows.metric, minlength=len(self._metrics)))
        metrics = tuple(self._metrics[number] for number in present)
        shape = len(metrics), len(self._view)
        flat = np.searchsorted(present, rows.metric) * shape[1] + rows.pair
        chosen = _one_each(flat, rows)
        values, statuses = np.full(shape, np.nan), np.full(shape, NO_ROW, np.int8)
        statuses.flat[flat[chosen]] = rows.status[chosen]
        values.flat[flat[chosen]] = np.where(rows.status == OK, rows.value, np.nan)[chosen]
        for place, each in enumerate(metrics):
            _settle(each, values[place], statuses[place])
        return Scores(metrics, values, statuses, self._names(rows))

    def _names(self, rows: _Rows) -> dict[str, str]:
        words = list(self._libraries)
        used = np.bincount((rows.metric * len(words) + rows.package) * len(words) + rows.version)
        found = defaultdict(list)
        for code in np.flatnonzero(used):
            both, version = divmod(int(code), len(words))
            number, package = divmod(both, len(words))
            found[self._metrics[number].protocol].append(f"{words[package]} {words[version]}")
        return {protocol: ", ".join(sorted(names)) for protocol, names in found.items()}


def _joined(parts: Sequence[_Rows]) -> _Rows:
    columns = (
        np.concatenate([np.empty(0, kind), *(getattr(part, name) for part in parts)])
        for name, kind in _KINDS.items()
    )
    return _Rows(*columns)


def _one_each(flat: Places, rows: _Rows) -> Places:
    """Of rows about the same thing one: a value rather than none, however files are arranged."""
    if np.bincount(flat, minlength=1).max() < 2:
        return np.arange(len(flat))
    order = np.lexsort([rows.value, rows.status, rows.status != OK, flat])
    return order[np.flatnonzero(np.diff(flat[order], prepend=-1))]


def _settle(metric: Metric, values: Values, statuses: NDArray[np.int8]) -> None:
    """Apply what the metric's source does before it takes a mean, in place."""
    if metric.cap is not None:
        np.minimum(values, metric.cap, out=values)
    if metric.drop_below is not None:
        statuses[values < metric.drop_below] = LEFT_OUT
    statuses[np.isinf(values)] = NON_FINITE
    values[statuses != OK] = np.nan
