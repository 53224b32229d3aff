"""`vsp train`: one stage of training, from shards of clean faces to a bundle."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.options import DryRun, RayAddress, Restart

if TYPE_CHECKING:
    from jobs.training import TrainingJob
    from vsp_model.train.loop import Outcome

EXAMPLE = (
    "vsp train encoder configs/train/small/encoder.yaml --data faces/ --from runs/prior "
    "--out runs/encoder"
)
EXIT_STOPPED = 75


def command(
    stage: Annotated[
        str,
        typer.Argument(
            metavar="STAGE",
            help="prior, encoder, diffuser, restorer; iqp-books, iqp-codes, iqp-fidelity; idm.",
        ),
    ],
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The stage's YAML.")],
    out: Annotated[
        str, typer.Option(help="Folder of the run (s3://... too); the same one goes on with it.")
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(help="Shards of clean, aligned faces: tar, folder or pattern. Repeatable."),
    ] = None,
    validation: Annotated[
        list[str] | None, typer.Option(help="Shards that are never trained on. Repeatable.")
    ] = None,
    sources: Annotated[
        list[str] | None,
        typer.Option("--from", help="A run or bundle with parts trained before. Repeatable."),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes; more than one are started by Ray Train.")
    ] = 1,
    ray_address: RayAddress = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    restart: Restart = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting, as run.seed=1.")
    ] = None,
    dry_run: DryRun = False,
) -> int:
    """Train one stage of a model: of VSPBFR, of IQP (iqp-...), or IDM.

    OUT gets checkpoints, log.jsonl, sample grids and, at the end, model.safetensors and report.md.
    The same command again goes on after the newest checkpoint. Ctrl-C stops after writing one (exit
    code 75); a second Ctrl-C ends at once. `torchrun -m jobs.cli train ...` is known, too.
    """
    from pipeline.errors import UserError

    rank = int(os.environ.get("RANK", "0")) if _is_torchrun() else 0
    try:
        job = _job(stage, config, out, data, validation, sources, device, overrides, rank)
        world = _world(workers, ray_address, job)
        if dry_run:
            from jobs.training_run import resolved

            typer.echo(resolved(job), nl=False)
            return 0
        outcome = _launch(job, world, ray_address, restart=restart)
    except UserError:
        if rank:  # the first worker tells it
            return 2
        raise
    if not outcome.finished and rank == 0:
        typer.echo(
            f"vsp: stopped at {outcome.images_seen:,} images; run the same command to go on",
            err=True,
        )
    return 0 if outcome.finished else EXIT_STOPPED


def _job(
    stage: str,
    config: Path,
    out: str,
    data: Sequence[str] | None,
    validation: Sequence[str] | None,
    sources: Sequence[str] | None,
    device: str,
    overrides: Sequence[str] | None,
    rank: int,
) -> "TrainingJob":
    """All that can be checked before anything is started.

    Raises:
        UserError: In one line.
    """
    from jobs.models import pick_device
    from jobs.training import TrainingJob, find_judges, find_parts, read_settings
    from pipeline.errors import UserError
    from pipeline.plan import check_apart
    from pipeline.training.checkpoints import trained_bundle
    from pipeline.training.index import list_shards

    told: dict[str, Any] = {"train": data, "validation": validation}
    given = {name: list(shards) for name, shards in told.items() if shards}
    kind, settings, faces = read_settings(stage, config, given, overrides or ())
    if not faces.train:
        raise UserError("no shards to train on; give them with --data")
    judges, lines = find_judges(settings)
    if rank == 0:
        for line in lines:
            typer.echo(f"vsp: {line}", err=True)
    job = TrainingJob(
        stage=stage,
        kind=kind,
        config=settings.model_copy(update={"judges": judges}),
        data=faces,
        sources=tuple(trained_bundle(source) for source in sources or ()),
        out=out,
        device=pick_device(device),
        command=shlex.join(["vsp", *sys.argv[1:]]),
    )
    check_apart([*list_shards(faces.train), *_validation(faces.validation)], out)
    find_parts(job)
    return job


def _validation(patterns: Sequence[str]) -> Sequence[str]:
    from pipeline.training.index import list_shards

    return list_shards(patterns) if patterns else ()


def _is_torchrun() -> bool:
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys()


def _world(workers: int, ray_address: str, job: "TrainingJob") -> int:
    """How many workers share a step.

    Raises:
        UserError: If they can't.
    """
    from jobs.training_run import check_workers
    from pipeline.errors import UserError

    if _is_torchrun():
        if workers > 1 or ray_address:
            raise UserError("--workers and --ray-address start workers themselves: no torchrun")
        workers = int(os.environ["WORLD_SIZE"])
    check_workers(job, workers)
    return workers


def _launch(job: "TrainingJob", world: int, ray_address: str, *, restart: bool) -> "Outcome":
    """Start the workers in the way that was asked for, and wait for the end."""
    from jobs.training_display import Attendant, Display, heeding_signals

    if _is_torchrun():
        from jobs.launch_torchrun import run_as_member

        return run_as_member(job, restart=restart)
    with Display() as display, _locked(job, restart=restart):
        attendant = Attendant(display)
        with heeding_signals(attendant):
            if world > 1 or ray_address:
                from jobs.launch import run_on_ray

                return run_on_ray(job, world, ray_address, display, attendant)
            from jobs.training_run import work
            from vsp_model.train.distributed import Alone

            return work(job, Alone(), attendant, display.say)


def _locked(job: "TrainingJob", *, restart: bool) -> Any:
    from jobs.training_run import locked

    return locked(job, restart=restart)
