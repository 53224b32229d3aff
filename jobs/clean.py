"""`vsp clean`: a set of faces in; a better one out, and a row for every image that says why."""

import json
from pathlib import Path
from typing import Annotated

import typer

from jobs.models import default_workers, pick_device, wishes
from jobs.options import (
    AsJson,
    BatchSize,
    Device,
    DryRun,
    Fidelity,
    GpusPerWorker,
    ModelName,
    OnlyFailed,
    Patience,
    Pool,
    Quality,
    RayAddress,
    Replicas,
    Restart,
    Steps,
)

EXAMPLE = "vsp clean 'faces/{000000..000011}.tar' cleaned/"
EXIT_STOPPED = 75


def command(
    source: Annotated[
        str,
        typer.Argument(metavar="IN", help="Shards of aligned crops: a tar, a folder, s3://..."),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder for the cleaned set.")],
    model: ModelName = None,
    quality: Quality = None,
    fidelity: Fidelity = None,
    steps: Steps = None,
    weights: Annotated[
        Path | None, typer.Option(help="Another folder of weight files than $VSP_WEIGHTS.")
    ] = None,
    align: Annotated[
        bool, typer.Option("--align", help="IN holds photos: cut their faces out first.")
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate/--no-calibrate",
            help="Try the model on damaged faces of this set first; without, nothing is restored.",
        ),
    ] = True,
    calibrate_faces: Annotated[
        int | None, typer.Option(min=1, help="Faces to try; 128, or what 10 % of the run allow.")
    ] = None,
    overrule: Annotated[
        Path | None, typer.Option(help="CSV key,verdict[,shard]: accept, keep or reject.")
    ] = None,
    keep_embeddings: Annotated[
        bool,
        typer.Option("--keep-embeddings", help="Leave the biometric embeddings in OUT."),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Fixes everything random.")] = 0,
    limit: Annotated[int, typer.Option(min=0, help="Only the first N images; 0 for all.")] = 0,
    only_failed: OnlyFailed = False,
    restart: Restart = False,
    device: Device = "auto",
    batch_size: BatchSize = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Torch threads of a worker; 1 for a small model.")
    ] = None,
    codec_threads: Annotated[
        int | None, typer.Option(min=1, max=24, help="Threads of a worker that look and encode.")
    ] = None,
    workers: Replicas = None,
    pool: Pool = "auto",
    ray_address: RayAddress = "",
    gpus_per_worker: GpusPerWorker = 1.0,
    patience: Patience = 600.0,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting, as gate.worst_share=0.2."),
    ] = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> int:
    """Clean a data set of faces: score, deduplicate, gate, restore what gains, verify, record.

    Originals are never touched. Every image has a row in OUT/manifest, rejected ones too. Before
    anything is restored the model is tried on good faces of this very set, damaged by known
    amounts; where it does not bring them closer to the truth, nothing is restored. Look through
    the result with `vsp review OUT`, and run the same command again: only what changed is redone.

    Exit code: 0 done, 3 done, but some records could not be read, 1 the run failed, 2 wrong usage,
    75 stopped by a signal: run it again to go on.
    """
    from jobs.cleaning import CleanRequest, run_clean, show
    from jobs.cleaning import as_json as end_facts
    from jobs.running import RunFlags
    from jobs.steps import Stopped

    device = pick_device(device, elsewhere=bool(ray_address))
    request = CleanRequest(
        source=source,
        out=out,
        model=model,
        ask=wishes(quality, fidelity=fidelity, steps=steps),
        weights=weights,
        seed=seed,
        calibrate=calibrate,
        faces=calibrate_faces,
        limit=limit,
        align=align,
        overrule=overrule,
        keep_embeddings=keep_embeddings,
        device=device,
        batch_size=batch_size,
        threads=threads,
        overrides=overrides or (),
    )
    flags = RunFlags(
        pool=pool,
        workers=workers or default_workers(device, gpus_per_worker),
        ray_address=ray_address,
        gpus_per_worker=gpus_per_worker if device.startswith("cuda") else 0.0,
        threads=threads or 1,
        codec_threads=codec_threads or 0,  # whatever the step at work leaves of the cores
        patience_s=patience,
        restart=restart,
        only_failed=only_failed,
        dry_run=dry_run,
        as_json=as_json,
    )
    try:
        end = run_clean(request, flags)
    except KeyboardInterrupt:  # between two steps; within one the engine ends it in good order
        typer.echo("vsp: stopped; run the same command again to go on", err=True)
        return EXIT_STOPPED
    except Stopped:
        return EXIT_STOPPED
    if as_json and not dry_run:
        typer.echo(json.dumps(end_facts(end, out)))
    else:
        show(end, out)
    return end.exit_code
