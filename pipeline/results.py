"""What an evaluation came to: every number with its interval, count and protocol.

`results.json` is these models as JSON; tables, the report and other programs read nothing else.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

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
    """params_m, gflops, images_per_s where it was measured."""


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
    """Images without a value, by status."""
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

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        from vsp_model.files import whole_or_absent

        text = self.model_dump_json(indent=1)
        with whole_or_absent(path) as file:
            file.write(text.encode())

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read what `save` wrote.

        Raises:
            UserError: If it is not there or no such file.
        """
        from pipeline.errors import UserError

        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise UserError(f"{path}: no results; make them with `vsp score`") from None
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: not results of this version ({reason})") from None
