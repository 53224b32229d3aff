"""`vsp iterate`: train a restorer, clean the training set with it, train again, prove it."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.options import DryRun

if TYPE_CHECKING:
    from jobs.iteration import Iteration

EXAMPLE = "vsp iterate configs/iterate/loop.yaml runs/loop --data faces/ --held-out sharp-faces/"
EXIT_STOPPED = 75


def command(
    path: Annotated[
        Path, typer.Argument(metavar="LOOP.yaml", help="Stages, rounds, stop rule, proof.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for everything it makes.")],
    data: Annotated[str, typer.Option(help="Shards of aligned faces: the set to train on.")],
    held_out: Annotated[
        str, typer.Option(help="Shards of the best faces of other people; never trained on.")
    ] = "",
    num_rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, max=3, help="Rounds of cleaning; else LOOP's.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="What cleans: trained (in the loop), default, vspbfr, iqp, idm, or a bundle."
        ),
    ] = None,
    proof: Annotated[
        bool, typer.Option("--proof/--no-proof", help="Train the generators that are compared.")
    ] = True,
    only: Annotated[
        str, typer.Option(metavar="STEP", help="Only steps whose names begin so, as proof/raw.")
    ] = "",
    show_status: Annotated[
        bool, typer.Option("--status", help="Tell how far OUT is, and stop.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As max_minutes=10.")
    ] = None,
    dry_run: DryRun = False,
) -> int:
    """Train a restorer, clean its training set with it, train again; prove what that brought.

    Each round cleans the original set with the restorer trained last, as `vsp clean` does: what is
    not surely better stays as it is. Six rules end the loop. The proof trains one small generator
    on the raw and on the cleaned set, equally long, with several seeds, and compares distances of
    what they draw to the raw set and to held-out faces. All tables go into OUT/rounds.md.

    Every step resumes: run the same command again to go on. Steps of a proof may run side by side:
    `--only proof/raw` in one terminal, `--only proof/cleaned` in another.

    Exit code: 0 done, 1 a step failed, 2 wrong usage, 75 stopped by a signal.
    """
    from jobs.iteration import Iteration, load_loop
    from jobs.models import pick_device

    sets = list(overrides or ())
    sets += [] if num_rounds is None else [f"rounds={num_rounds}"]
    sets += [] if model is None else [f"clean.model={model}"]
    sets += [] if proof else ["proof=null"]
    loop = load_loop(path, tuple(sets))
    run = Iteration(loop, data, held_out, out, pick_device(device))
    if dry_run:
        typer.echo(loop.model_dump_json(indent=1))
    return _iterate(run, only, is_dry=dry_run or show_status)


def _iterate(run: "Iteration", only: str, *, is_dry: bool) -> int:
    """Check what was named; then do it, or tell what would be done."""
    from jobs.iteration_run import check, go_on, plan_lines, take_only, tell_tables
    from jobs.steps import Stopped
    from pipeline.watch import stop_on_signals

    check(run)
    if is_dry:
        for line in plan_lines(run):
            typer.echo(line)
        return 0
    try:
        # Trainings and cleanings have handlers of their own; this one is for what is between.
        with stop_on_signals(_stop):
            if only:
                take_only(run, only)
            else:
                go_on(run)
    except Stopped:
        again = shlex.join(["vsp", *sys.argv[1:]])
        typer.echo(f"vsp: stopped; to go on: {again}", err=True)
        return EXIT_STOPPED
    tell_tables(run)
    return 0


def _stop() -> None:
    """End the loop between two steps, as a signal's handler."""
    from jobs.steps import Stopped

    raise Stopped
