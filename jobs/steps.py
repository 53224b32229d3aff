"""A job that is one step of a longer run: told in one line, and finished ones are passed over."""

import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

import typer

from jobs.running import Job, RunFlags
from pipeline.errors import RunError

if TYPE_CHECKING:
    from pipeline.runner import Summary


class Stopped(Exception):
    """A signal asked the run to end."""


def run_step(job: Job, flags: RunFlags, what: str) -> bool:
    """Do what is left of a job; nothing is loaded for one that is finished.

    Returns:
        Whether all records are as asked.

    Raises:
        UserError: If its folder was begun with other settings.
        RunError: If it failed.
        Stopped: By a signal.
    """
    from jobs.running import run_job
    from pipeline.sidecar import BAD_STATUSES

    counts = finished(job)
    if counts is not None:
        return not any(counts[status] for status in BAD_STATUSES)
    with quiet():
        summary = run_job(job, flags)
    assert summary, "no dry run comes here"
    return judged(summary, what)


def finished(job: Job) -> Counter[str] | None:
    """Records by status, if the job is done and its output is there.

    Raises:
        UserError: If its folder was begun with other settings.
    """
    from pipeline.ledger import Ledger
    from pipeline.plan import check_same, new_plan
    from pipeline.storage import open_store

    ledger = Ledger(open_store(job.out))
    plan = ledger.plan()
    if plan is None:
        return None
    check_same(plan, new_plan(job.name, job.provenance, job.units, job.versions), job.out)
    files = set(ledger.store.list())
    if any(not files.issuperset(unit.outputs) for unit in job.units):
        return None
    commits = list(ledger.commits(plan, [unit.shard for unit in job.units]))
    if len(commits) < len(job.units):
        return None
    return sum((Counter(commit["counts"]) for commit in commits), Counter[str]())


def judged(summary: "Summary", what: str) -> bool:
    """Tell a run in one line, and whether all of its records are good."""
    from jobs.display import reasons_of

    if summary.stopped:
        raise Stopped
    if summary.exit_code == 1:
        raise RunError(summary.errors[0] if summary.errors else f"not all shards were {what}")
    counts = ", ".join(f"{count} {status}" for status, count in sorted(summary.counts.items()))
    typer.echo(f"{what}: {counts}", err=True)
    if summary.num_bad:
        for status in sorted(summary.counts):
            for line in reasons_of(summary, status) if status not in GOOD else ():
                typer.echo(f"    {status}: {line}", err=True)
    return summary.exit_code == 0


GOOD = ("restored", "degraded", "copied", "scored", "inspected", "rejected", "forgotten")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep each step's own closing table off stdout, which is the result's."""
    with redirect_stdout(io.StringIO()):
        yield
