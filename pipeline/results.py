"""What an evaluation came to: every number with its interval, count and protocol.

`results.json` is these models as JSON; tables, the report and other programs read nothing else.
"""

import json
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline.errors import UserError
from pipeline.scoring.tables import RESULTS, RESULTS_TABLE
from pipeline.storage import Store

FORMAT = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MetricInfo(_Record):
    """A metric as it was computed; see `metrics.table.Metric`."""

    name: str
    protocol: str
    better: Literal["higher", "lower", "zero"]
    unit: str = ""
    kind: Literal["reference", "alone", "set"]
    source: str
    is_loss: bool = False
    library: str = ""
    weights: dict[str, str] = {}
    """File name -> sha256."""


class DatasetInfo(_Record):
    """One data set."""

    name: str
    rev: str
    """Hash of what it holds: truths, or of the sources, degradation and seed."""
    num_images: int
    has_truth: bool
    groups: tuple[str, ...] = ()
    note: str = ""


class MethodInfo(_Record):
    """One method."""

    name: str
    revs: dict[str, str] = {}
    """Data set -> hash of the images it restored."""
    notice: str = ""
    """Terms of its weights, or what a reader must know."""
    cost: dict[str, float] = {}
    """params_m, gmacs, images_per_s, batch_size, threads, where it was measured."""


class Cell(_Record):
    """One metric of one method on one data set."""

    dataset: str
    method: str
    metric: str
    group: str = ""
    """"" for the whole data set."""
    value: float | None
    """None where no image has a value, or the metric is refused: see `note`."""
    low: float | None = None
    """95 % interval over images (paired bootstrap); None where there is none."""
    high: float | None = None
    error: float | None = None
    """Standard error, where only that can be had (metrics of sets)."""
    num_ok: int
    num_total: int
    statuses: dict[str, int] = {}
    """Images without a value, by status: a judge's, "pending" for want of a row, or "left_out" as
    the metric's source does."""
    note: str = ""


class Comparison(_Record):
    """Two methods on the same images: `method` minus `other`."""

    dataset: str
    metric: str
    method: str
    other: str
    difference: float
    low: float
    high: float
    p_wilcoxon: float
    p_holm: float
    """Corrected over the pairs of methods of this data set and metric."""
    num_images: int


class Rank(_Record):
    """One method's place over all columns (data set x metric) that every method has."""

    dataset: str
    """"" for all data sets together."""
    method: str
    mean: float
    """Competition ranks (`min`), arithmetic mean over columns: the paper's mean rank."""
    mean_average: float
    """The same with tied ranks averaged."""
    low: float | None = None
    high: float | None = None
    p_first: float | None = None
    """Share of bootstrap resamples in which it is first."""
    distribution: dict[str, float] = {}
    """Place ("1", "2", ...) -> share of resamples."""
    columns: tuple[str, ...] = ()
    note: str = ""
    """What the resamples leave out."""


class PublishedCell(_Record):
    """A number that a paper printed; it never shares a cell with a measured one."""

    table: str
    method: str
    column: str
    text: str
    """As printed."""
    source: str


class Results(_Record):
    """Everything that tables and the report show."""

    format: int = FORMAT
    title: str = ""
    metrics: tuple[MetricInfo, ...]
    datasets: tuple[DatasetInfo, ...]
    methods: tuple[MethodInfo, ...]
    cells: tuple[Cell, ...]
    comparisons: tuple[Comparison, ...] = ()
    ranks: tuple[Rank, ...] = ()
    published: tuple[PublishedCell, ...] = ()
    missing: tuple[str, ...] = ()
    """Metrics that were not computed, each a line with the fix."""
    warnings: tuple[str, ...] = ()
    provenance: dict[str, str] = {}
    """command, commit, version, config hash, seed, hardware, created ... in the order shown."""

    def save(self, store: Store) -> None:
        """Write `results.json`, and the cells alone as `results.parquet`."""
        store.write(RESULTS_TABLE, _as_parquet(self.cells))
        store.write(RESULTS, self.model_dump_json(indent=1).encode())

    @classmethod
    def load(cls, store: Store) -> "Results":
        """Read what `save` wrote.

        Raises:
            UserError: If it is not there or no such file.
        """
        name = f"{store.url}/{RESULTS}"
        try:
            return cls.model_validate_json(store.read(RESULTS))
        except FileNotFoundError:
            raise UserError(f"{name}: no results; make them with `vsp score`") from None
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{name}: not results of this version ({reason})") from None


def _as_parquet(cells: Sequence[Cell]) -> bytes:
    """A table with a row a cell; statuses as JSON.

    By way of Arrow's reader of JSON: making an array of a list imports pandas, which takes longer
    than aggregating half a million rows.
    """
    import pyarrow as pa
    import pyarrow.json as pa_json
    import pyarrow.parquet as pq

    counts = dict.fromkeys(("num_ok", "num_total"), pa.int64())
    numbers = counts | dict.fromkeys(("value", "low", "high", "error"), pa.float64())
    schema = pa.schema([(name, numbers.get(name, pa.string())) for name in Cell.model_fields])
    rows = (cell.model_dump() | {"statuses": json.dumps(cell.statuses)} for cell in cells)
    text = "\n".join(map(json.dumps, rows)).encode()
    options = pa_json.ParseOptions(explicit_schema=schema)
    reading = pa_json.ReadOptions(use_threads=False, block_size=max(len(text), 1))
    whole = pa_json.read_json(pa.BufferReader(text), reading, options) if cells else None
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table() if whole is None else whole, sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data
