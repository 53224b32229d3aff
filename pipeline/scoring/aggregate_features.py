"""The features of an evaluation folder: found by pair, read when a metric of sets wants them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.metrics.judge import STATUSES
from pipeline.metrics.moments import BLOCK, Moments, merge_all
from pipeline.scoring.aggregate_scores import NO_ROW, OK
from pipeline.scoring.aggregate_view import Places, View, codes, known
from pipeline.scoring.tables import FEATURES
from pipeline.storage import Store

_COLUMNS = ("dataset", "method", "image_id", "sha256", "gt_sha256", "status", "weights_sha256")


@dataclass(slots=True, eq=False)
class FeatureIndex:
    """Where each pair's feature lies.

    Attributes:
        store: The evaluation folder.
        dim: Length of a feature.
        extractor: What made the features, and the sha256 of its weights.
        statuses: (P,) codes by the view's numbers of pairs: places in `STATUSES`, or `NO_ROW`.
        file: (P,) number of the file.
        row: (P,) number of the row in it.
        files: Names.
        view: The pairs.
    """

    store: Store
    dim: int
    extractor: str
    statuses: NDArray[np.int8]
    file: Places
    row: Places
    files: list[str]
    view: View

    def read(self, pairs: Places) -> NDArray[np.float32]:
        """Features of some pairs that have one, (N, D)."""
        features = np.empty((len(pairs), self.dim), np.float32)
        for number in np.unique(self.file[pairs]):
            wanted = np.flatnonzero(self.file[pairs] == number)
            with self.store.open(self.files[number]) as file:
                column = pq.ParquetFile(file).read(columns=["feature"])["feature"].combine_chunks()
            taken = column.take(pa.array(self.row[pairs[wanted]]))
            features[wanted] = np.from_dlpack(taken.flatten()).reshape(len(wanted), self.dim)
        return features

    def moments(self, pairs: Places) -> Moments:
        """Of the features of some pairs, however many: a block at a time, merged in their order."""
        return merge_all(self._blocks(pairs))

    def _blocks(self, pairs: Places) -> Iterator[Moments]:
        for start in range(0, len(pairs), BLOCK):
            block = pairs[start : start + BLOCK]
            ids = [self.view[pair].image_id for pair in block]
            yield Moments.of(self.read(block), ids, self.extractor)


def index_features(store: Store, view: View, family: str, weights: str) -> FeatureIndex | None:
    """Find the features of a family; None if there are none that count.

    Args:
        store: The evaluation folder.
        view: Which pairs count.
        family: Name in `families.SET_FAMILIES`.
        weights: The weights that count.

    Raises:
        UserError: If features of several extractors count.
    """
    count = len(view)
    statuses = np.full(count, NO_ROW, np.int8)
    file, row = np.zeros(count, np.int64), np.zeros(count, np.int64)
    files = list(store.list(f"{FEATURES}/{family}"))
    words: dict[str, int] = {status: code for code, status in enumerate(STATUSES)}
    extractors, dims = set(), set()
    for number, name in enumerate(files):
        with store.open(name) as opened:
            parquet = pq.ParquetFile(opened)
            table = parquet.read(columns=[*_COLUMNS, "extractor_id"])
            dim = parquet.schema_arrow.field("feature").type.list_size
        pairs = view.locate(table, restored="sha256")
        pairs[codes(table["weights_sha256"], known({weights: 0})) < 0] = -1
        found = codes(table["status"], known(words))
        # Of rows about the same image one with a feature counts.
        new = np.flatnonzero((pairs >= 0) & (statuses[pairs] != OK))
        statuses[pairs[new]], file[pairs[new]], row[pairs[new]] = found[new], number, new
        if len(new):
            extractors.update(table["extractor_id"].unique().to_pylist())
            dims.add(dim)
    if not extractors:
        return None
    if len(dims) > 1 or len(extractors) > 1:
        raise UserError(
            f"{store.url}/{FEATURES}/{family}: features of several extractors "
            f"({', '.join(sorted(extractors))}); remove those that are not wanted"
        )
    extractor = f"{extractors.pop()} {weights}"
    return FeatureIndex(store, dims.pop(), extractor, statuses, file, row, files, view)
