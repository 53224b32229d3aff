"""How far an evaluation is: data set by method, counted from what lies in OUT."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.evaluation import Evaluation, pairs_file

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Standing:
    """One cell's state; counts are of images, None where the step does not apply."""

    dataset: str
    method: str
    degraded: int | None
    restored: int | None
    scored: int
    total: int
    """Images that are to be scored, 0 while that is not known."""

    @property
    def state(self) -> str:
        """In a word."""
        if self.total and self.scored >= self.total:
            return "done"
        if self.scored:
            return "scoring"
        if self.restored or (self.restored is None and self.degraded):
            return "to be scored"
        return "to be restored" if self.degraded else "to be begun"


def standings(run: Evaluation) -> Iterator[Standing]:
    """The state of every cell; nothing is written."""
    for dataset, method in run.cells:
        synthetic = run.benchmark.datasets[dataset].is_synthetic
        scored, total = _scores(run, dataset, method)
        yield Standing(
            dataset,
            method,
            _records(run.lq(dataset)) if synthetic else None,
            _records(str(run.restored(dataset, method))) if method in run.models else None,
            scored,
            total,
        )


def _records(out: str) -> int:
    """Records in the finished shards of a run."""
    from pipeline.ledger import Ledger
    from pipeline.storage import open_store

    ledger = Ledger(open_store(out))
    plan = ledger.plan()
    commits = ledger.commits(plan) if plan else ()
    return sum(sum(commit["counts"].values()) for commit in commits)


def _scores(run: Evaluation, dataset: str, method: str) -> tuple[int, int]:
    """Images of a cell that have a row, and all."""
    import pyarrow.parquet as pq

    from pipeline.scoring.tables import SCORES
    from pipeline.scoring.work import is_unit_of

    pairs = run.out / pairs_file(dataset, method)
    if not pairs.is_file():
        return 0, 0
    wanted = set(pq.read_table(pairs, columns=["image_id"])["image_id"].to_pylist())
    found: set[str] = set()
    for path in (run.out / SCORES).glob("*.parquet"):
        if not is_unit_of(path.stem, dataset, method):
            continue
        found.update(pq.read_table(path, columns=["image_id"])["image_id"].to_pylist())
    return len(wanted & found), len(wanted)


def status_table(run: Evaluation) -> "Table":
    """The states as a table."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("data set", "method"):
        table.add_column(name)
    for name in ("degraded", "restored", "scored"):
        table.add_column(name, justify="right")
    table.add_column("state")
    for each in standings(run):
        counts = (each.degraded, each.restored)
        shown = ["-" if count is None else str(count) for count in counts]
        scored = f"{each.scored} of {each.total}" if each.total else str(each.scored)
        table.add_row(each.dataset, each.method, *shown, scored, each.state)
    return table
