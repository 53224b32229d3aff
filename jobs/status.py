"""`vsp status`: how far a run is, from outside."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.ledger import Ledger
    from pipeline.plan import Plan
    from pipeline.status import Status

EXAMPLE = "vsp status restored/"


def command(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Output folder of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> int:
    """Tell what is done, pending and failed, how fast it goes and how long it will take.

    Of `vsp clean` it tells the step that is at work.

    Exit code: 0 all done and well, 3 all done and some records bad, 75 shards are pending,
    2 no run has begun there.
    """
    from pipeline.locks import lock_holder
    from pipeline.runner import EXIT_BAD_RECORDS, EXIT_DONE, EXIT_STOPPED
    from pipeline.sidecar import BAD_STATUSES
    from pipeline.status import look
    from pipeline.storage import open_store

    ledger, plan, is_last = latest(out)
    status = look(ledger, plan, lock_holder(open_store(out)))
    if as_json:
        typer.echo(json.dumps(_facts(status)))
    else:
        _print(status, out)
    if status.num_pending or not is_last:
        return EXIT_STOPPED
    return EXIT_BAD_RECORDS if any(status.counts[s] for s in BAD_STATUSES) else EXIT_DONE


def latest(out: str) -> "tuple[Ledger, Plan, bool]":
    """The run on a folder, or the step that `vsp clean` has come to; and whether it is the last.

    Raises:
        UserError: If no run has begun there.
    """
    from jobs.running import open_ledger
    from pipeline.cleaning.tables import ALIGNED, CALIBRATE, INSPECT
    from pipeline.ledger import Ledger
    from pipeline.storage import open_store

    if Ledger(open_store(out)).plan() is None:
        for place in (CALIBRATE, INSPECT, ALIGNED):
            step = Ledger(open_store(f"{out.rstrip('/')}/{place}"))
            if plan := step.plan():
                return step, plan, False
    return *open_ledger(out), True


def _facts(status: "Status") -> dict[str, Any]:
    """The status for a program; `asdict` makes no use of a Counter."""
    return asdict(status) | {"counts": dict(status.counts), "num_pending": status.num_pending}


def _print(status: "Status", out: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from jobs.display import duration

    table = Table(show_header=False, box=None, pad_edge=False)
    state = f"running: {status.running}" if status.running else "nobody runs on it"
    table.add_row("out", f"{out} ({status.job}, {status.model or 'no model'}; {state})")
    shards = f"{status.num_done} of {status.num_shards} done, {status.num_pending} pending"
    table.add_row("shards", f"{shards}, {len(status.failed)} with failed records")
    for name, count in sorted(status.counts.items()):
        table.add_row(name, str(count))
    if status.running:
        table.add_row("workers", f"{status.num_workers}, {status.num_live} records written")
    if status.rate:
        left = f", {duration(status.left_s)} left" if status.left_s is not None else ""
        table.add_row("rate", f"{status.rate:.1f} records/s{left}")
    for shard, indices in sorted(status.condemned.items()):
        table.add_row("left out", f"{shard}: records {', '.join(map(str, indices))}")
    Console(soft_wrap=True).print(table)
