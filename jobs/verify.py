"""`vsp verify`: hold an output folder against its input."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.storage import Store

EXAMPLE = "vsp verify restored/"
MAX_LINES = 20


def command(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Output folder of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> int:
    """Check that every input record is accounted for exactly once, and every checksum.

    Files are hashed again and sidecars compared with the input's records. In the OUT of `vsp clean`
    a forgotten record must have its tombstone, and the manifest must agree with the shards.

    Exit code: 0 all is well, 1 something is wrong, 75 shards are pending and what is there is well,
    2 no run has begun there.
    """
    from jobs.status import latest
    from pipeline.runner import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED
    from pipeline.verify import verify

    ledger, plan, is_last = latest(out)
    if not is_last:
        typer.echo(f"{out}: `vsp clean` has come to {plan.job}; no shard is written yet")
        return EXIT_STOPPED
    if plan.job == "clean":
        _finish_removal(ledger.store)
    verdict = verify(ledger, plan)
    if as_json:
        # `asdict` makes no use of a Counter.
        facts = {"counts": dict(verdict.counts), "num_pending": verdict.num_pending}
        typer.echo(json.dumps(asdict(verdict) | facts))
    else:
        for line in verdict.problems[:MAX_LINES]:
            typer.echo(f"vsp: {line}", err=True)
        if len(verdict.problems) > MAX_LINES:
            more = len(verdict.problems) - MAX_LINES
            typer.echo(f"vsp: and {more} more; see them all with --json", err=True)
        for line in verdict.notes:
            typer.echo(f"note: {line}", err=True)
        counts = ", ".join(f"{count} {status}" for status, count in sorted(verdict.counts.items()))
        state = f"{len(verdict.problems)} problems" if verdict.problems else "all is well"
        typer.echo(
            f"{verdict.num_done} of {verdict.num_shards} shards, "
            f"{verdict.num_records} records ({counts or 'none'}): {state}"
        )
    if verdict.problems:
        return EXIT_FAILED
    return EXIT_STOPPED if verdict.num_pending else EXIT_DONE


def _finish_removal(store: "Store") -> None:
    """End a removal of `vsp forget` that was interrupted: until then nothing fits.

    Raises:
        RunError: If a run is at work there, or something still knows of what was removed.
    """
    from pipeline.cleaning.removal.forget import finish_pending, is_pending
    from pipeline.errors import RunError
    from pipeline.locks import run_lock

    if not is_pending(store):
        return
    with run_lock(store):
        report = finish_pending(store)
    typer.echo("note: ended a removal that was interrupted", err=True)
    if report is not None and report.remains:
        raise RunError(report.remains[0])
