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

ModelName = Annotated[
    str | None,
    typer.Option(
        help="vspbfr, iqp or idm; a bundle (.safetensors), a name of `vsp weights`, or a model's "
        "YAML, untrained."
    ),
]
Quality = Annotated[
    str | None,
    typer.Option(
        metavar="0..1",
        help="How good a face is asked for, as a percentile of the training faces; or unknown.",
    ),
]
Guidance = Annotated[
    float, typer.Option(min=0, help="How far beyond that quality to go; 1: not at all.")
]
Fidelity = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="IQP: 1 closest to the input, 0 the codebook's face."),
]
Steps = Annotated[int | None, typer.Option(min=1, help="IDM: steps of the sampler.")]
Estimate = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="IDM: start from what this model makes of the face."),
]
