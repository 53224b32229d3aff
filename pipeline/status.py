"""How far a run is, from what lies in its output folder; the run itself is not asked."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.ledger import Ledger
from pipeline.plan import Plan
from pipeline.tracker import read_traces

RECENT = 50  # commits that the rate is taken from


@dataclass(slots=True)
class Status:
    """The state of an output folder.

    Attributes:
        job: The command that fills it.
        model: Name of the model.
        num_shards: Shards of the input.
        num_done: Those that are committed.
        counts: Records by status in them.
        failed: Shards with failed records.
        running: Who runs on it now, "" for nobody.
        num_live: Records written by living workers, committed or not.
        num_workers: Workers that have something in hand.
        rate: Records a second over the last commits, 0 where it cannot be told.
        left_s: Time left at that rate, None where it cannot be told.
        condemned: Records left out because they killed workers, by shard.
    """

    job: str
    model: str
    num_shards: int
    num_done: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    running: str = ""
    num_live: int = 0
    num_workers: int = 0
    rate: float = 0.0
    left_s: float | None = None
    condemned: dict[str, list[int]] = field(default_factory=dict)

    @property
    def num_pending(self) -> int:
        """Shards that are not committed."""
        return self.num_shards - self.num_done


def look(ledger: Ledger, plan: Plan, running: str = "") -> Status:
    """Read the state of a folder.

    Args:
        ledger: The folder's.
        plan: Its plan.
        running: Who holds its lock, "" for nobody.
    """
    ledger.recover(plan, discard=False)
    status = Status(plan.job, plan.model, len(plan.units), running=running)
    commits = list(ledger.commits(plan))
    status.num_done = len(commits)
    for record in commits:
        status.counts.update(record["counts"])
        if record["counts"].get("failed"):
            status.failed.append(record["shard"])
    status.condemned = {shard: sorted(found) for shard, found in ledger.condemned(plan).items()}
    if running and ledger.folder is not None:
        for path in sorted((ledger.folder / "workers").glob("*")):
            traces = read_traces(path)
            status.num_live += int(traces.counts.get("done", 0))
            status.num_workers += 1
    _add_rate(status, plan, commits)
    return status


def _add_rate(status: Status, plan: Plan, commits: Sequence[dict[str, Any]]) -> None:
    """Rate and time left from the last commits; while nobody runs, nothing is left to tell."""
    latest = sorted(commits, key=lambda record: record["began"])[-RECENT:]
    if not latest:
        return
    first = min(record["began"] for record in latest)
    last = max(record["began"] + record["seconds"] for record in latest)
    num_records = sum(record["num_records"] for record in latest)
    status.rate = num_records / max(last - first, 1e-6)
    if not status.running:
        return
    weights = {unit.shard: unit.weight for unit in plan.units}
    done = sum(weights[record["shard"]] for record in latest)
    committed = {record["shard"] for record in commits}
    left = sum(weight for shard, weight in weights.items() if shard not in committed)
    waited_s = time.time() - last
    status.left_s = max(0.0, left / max(done, 1) * (last - first) - waited_s)
