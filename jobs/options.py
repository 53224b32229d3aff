"""Options that several commands share, each declared once."""

from typing import Annotated

import typer

from jobs.running import PoolName

Quarantine = Annotated[
    bool, typer.Option("--quarantine", help="Keep copies of refused and failed records.")
]
OnlyFailed = Annotated[bool, typer.Option("--only-failed", help="Do failed records again.")]
Restart = Annotated[
    bool, typer.Option("--restart", help="Forget what is done in OUT and start over.")
]
Pool = Annotated[PoolName, typer.Option(help="Where workers run: the bytes are the same.")]
RayAddress = Annotated[
    str, typer.Option(help="Join a running Ray cluster, as 10.0.0.5:6379 or auto.")
]
Patience = Annotated[
    float, typer.Option(min=0, help="Seconds to wait for a full disk or a silent store.")
]
AsJson = Annotated[bool, typer.Option("--json", help="The summary as JSON.")]
DryRun = Annotated[bool, typer.Option("-n", "--dry-run", help="Print settings and plan, and stop.")]
