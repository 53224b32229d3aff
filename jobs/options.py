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
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Faces per run of the model.")]
Replicas = Annotated[
    int | None, typer.Option(min=1, help="Replicas of the model; one, or one a GPU.")
]
GpusPerWorker = Annotated[float, typer.Option(min=0.01, help="Share of a GPU that a worker takes.")]
