"""Every image of an evaluation with its scores, one array a metric: what galleries are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.metrics.judge import STATUSES
from pipeline.scoring.aggregate_scores import NO_ROW, read_scores
from pipeline.scoring.aggregate_scores import Scores as AllScores
from pipeline.scoring.aggregate_view import PSEUDO_METHODS, Places, read_view
from pipeline.scoring.current import load_current
from pipeline.scoring.sources import NOWHERE, Place
from pipeline.scoring.tables import PAIRS
from pipeline.storage import Store

ROLES = ("restored", "lq", "gt")
STATUS_NAMES = (*STATUSES, "left_out")
"""By the codes that `aggregate_scores` has for them."""
_PLACE = ("path", "offset", "size", "sha256")


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """One metric of all images of a method; arrays of length N.

    Attributes:
        values: float64, NaN where the status is not "ok".
        statuses: int8, places in `STATUS_NAMES`; -1 where nobody has scored the image.
    """

    values: NDArray[np.float64]
    statuses: NDArray[np.int8]


@dataclass(frozen=True, slots=True, eq=False)
class Faces:
    """The images of one method on one data set; lists of length N.

    Attributes:
        dataset: Name of the data set.
        method: Name of the method.
        ids: Image ids.
        groups: "" for an image without one.
        places: Role ("restored", "lq", "gt") -> where each image's bytes are.
        scores: Protocol id -> scores; metrics that this method has.
    """

    dataset: str
    method: str
    ids: Sequence[str]
    groups: Sequence[str]
    places: Mapping[str, Sequence[Place]]
    scores: Mapping[str, Scores]


def read_faces(store: Store) -> list[Faces]:
    """All images of all methods, with the scores that count for the results; none is no error."""
    names = list(store.list(PAIRS))
    if not names:
        return []
    view = read_view(store)
    scores = read_scores(store, view, load_current(store).weights)
    tables = (pq.read_table(pa.BufferReader(store.read(name))) for name in names)
    found = (_faces(table, scores, view.locate(table)) for table in tables if table.num_rows)
    return [faces for faces in found if faces.method not in PSEUDO_METHODS]


def _faces(table: pa.Table, scores: AllScores, rows: Places) -> Faces:
    """The images of one table of pairs, which stand in `rows` of the view."""
    columns = table.to_pydict()
    return Faces(
        dataset=columns["dataset"][0],
        method=columns["method"][0],
        ids=columns["image_id"],
        groups=columns["group"],
        places={role: _places(columns, role) for role in ROLES},
        scores=_part(scores, rows),
    )


def _part(scores: AllScores, rows: Places) -> dict[str, Scores]:
    """The scores of some of the view's rows."""
    found = {
        metric.protocol: Scores(scores.values[number, rows], scores.statuses[number, rows])
        for number, metric in enumerate(scores.metrics)
    }
    return {protocol: each for protocol, each in found.items() if (each.statuses != NO_ROW).any()}


def _places(columns: Mapping[str, Sequence[Any]], role: str) -> list[Place]:
    parts = (columns[f"{role}_{part}"] for part in _PLACE)
    return [Place(*each) if each[0] else NOWHERE for each in zip(*parts, strict=True)]
