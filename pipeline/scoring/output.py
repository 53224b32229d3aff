"""The scores and features of one unit as files of one commit, beside the unit's sidecar."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commit import Attempt, AttemptOutput
from pipeline.metrics.judge import Feature
from pipeline.scoring.tables import FEATURES, SCORES, SCORES_SCHEMA, features_schema
from pipeline.sidecar import Provenance, Row, write_sidecar
from pipeline.stage import Task
from pipeline.storage import OWN_FOLDER, Store, open_store, trouble

FEATURES_PER_GROUP = 512


@dataclass(frozen=True, slots=True)
class FeatureRow:
    """One feature, or why there is none.

    Attributes:
        family: Whose; names the folder of the file.
        dim: Length of the family's features.
        values: The columns of `features_schema` but the feature.
        feature: (D,) float32, None without one.
        error: One line about what went wrong, or "".
    """

    family: str
    dim: int
    values: Mapping[str, Any]
    feature: Feature | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """One image scored.

    Attributes:
        row: What became of it.
        scores: The columns of `SCORES_SCHEMA`, one mapping a metric.
        features: One a family of set metrics.
    """

    row: Row
    scores: Sequence[Mapping[str, Any]] = ()
    features: Sequence[FeatureRow] = ()


@dataclass(slots=True)
class _Rows:
    scores: list[Mapping[str, Any]] = field(default_factory=list)
    features: dict[str, list[FeatureRow]] = field(default_factory=dict)
    sidecar: list[Row] = field(default_factory=list)


class ScoreOutput(AttemptOutput):
    """`scores/<unit>.parquet`, `features/<family>/<unit>.parquet`, `_vsp/records/<unit>.parquet`.

    The bytes follow from the images, the metrics and the weights alone.
    """

    def __init__(self, task: Task, provenance: Provenance, store: Store | None = None) -> None:
        """Plan the output of a task; `store` is the task's output folder, if opened already."""
        self._shard = task.shard
        self._store = store or open_store(task.out)
        self._attempt = Attempt(self._store, task)
        self._provenance = provenance
        self._rows = _Rows()

    def __enter__(self) -> "ScoreOutput":
        self._attempt.__enter__()
        return self

    def add(self, result: ScoreResult) -> None:
        """Note one image's rows; they are small."""
        self._rows.sidecar.append(result.row)
        self._rows.scores += result.scores
        for row in result.features:
            self._rows.features.setdefault(row.family, []).append(row)

    def commit(self, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write and publish everything, the sidecar last."""
        names = []
        with trouble(self._store.url):
            for family, rows in sorted(self._rows.features.items()):
                names.append(f"{FEATURES}/{family}/{self._shard}.parquet")
                _write(self._attempt.open(names[-1]), _features_table(rows), FEATURES_PER_GROUP)
            if self._rows.scores:
                names.append(f"{SCORES}/{self._shard}.parquet")
                _write(self._attempt.open(names[-1]), _scores_table(self._rows.scores))
            names.append(f"{OWN_FOLDER}/records/{self._shard}.parquet")
            sidecar = self._attempt.open(names[-1])
            write_sidecar(sidecar, self._shard, self._rows.sidecar, self._provenance)
        counts = Counter[str](row.status for row in self._rows.sidecar)
        return self._attempt.commit(names, counts, facts)


def _scores_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    columns = [pa.array([row[field.name] for row in rows], field.type) for field in SCORES_SCHEMA]
    return pa.table(columns, schema=SCORES_SCHEMA)


def _features_table(rows: Sequence[FeatureRow]) -> pa.Table:
    schema = features_schema(rows[0].dim)
    names = schema.names[:-1]
    columns = [pa.array([row.values[n] for row in rows], schema.field(n).type) for n in names]
    features = [None if row.feature is None else row.feature for row in rows]
    columns.append(pa.array(features, schema.field("feature").type))
    return pa.table(columns, schema=schema)


def _write(file: BinaryIO, table: pa.Table, rows_per_group: int | None = None) -> None:
    pq.write_table(
        table,
        file,
        compression="zstd",
        compression_level=3,
        row_group_size=rows_per_group,
        write_page_checksum=True,
    )
