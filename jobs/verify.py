"""`vsp verify`: hold an output folder against its input."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

EXAMPLE = "vsp verify restored/"
MAX_LINES = 20


def command(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Output folder of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> int:
    """Check that every input record is accounted for exactly once, and every checksum.

    Files are hashed again and sidecars compared with the input's records.

    Exit code: 0 all is well, 1 something is wrong, 75 shards are pending and what is there is well,
    2 no run has begun there.
    """
    from jobs.running import open_ledger
    from pipeline.runner import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED
    from pipeline.verify import verify

    ledger, plan = open_ledger(out)
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
