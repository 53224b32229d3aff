"""`vsp score`: restored images, and their truths -> scores, a table and a page to look at."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.models import num_cores
from jobs.options import AsJson, DryRun, OnlyFailed, Patience, Pool, RayAddress, Restart

if TYPE_CHECKING:
    from jobs.scoring import ScoreRequest

EXIT_BAD_RECORDS = 3
EXAMPLE = "vsp score restored/ scores/ --gt truth/"


def command(
    source: Annotated[
        str,
        typer.Argument(metavar="IN", help="Restored images: a folder, or shards (s3://... too)."),
    ],
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="Folder of the evaluation; more methods may join.")
    ],
    gt: Annotated[
        str | None, typer.Option(help="The true images, of the same names; a folder or shards.")
    ] = None,
    lq: Annotated[
        str | None, typer.Option(help="What was restored, to be shown beside; a folder or shards.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Clean images, or their statistics (.pth, .pt, .npz), for FID."),
    ] = None,
    save_statistics: Annotated[
        Path | None,
        typer.Option(help="Keep the statistics of --reference's images, an .npz for other runs."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="What the images are called in tables; IN's name.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="What the data set is called; the name of --gt or --lq.")
    ] = None,
    metrics: Annotated[
        str, typer.Option(help="`default` (all that are at hand), `all`, or names: psnr,ssim.")
    ] = "default",
    list_metrics: Annotated[
        bool,
        typer.Option(
            "--list-metrics",
            is_eager=True,
            callback=lambda asked: _tell_metrics(asked=asked),
            help="Name every metric and its protocol, and stop.",
        ),
    ] = False,
    key_regex: Annotated[
        str, typer.Option(help="What of a restored image's name counts, as '(.*)_restored'.")
    ] = "",
    groups: Annotated[
        Path | None, typer.Option(help="CSV with the columns key,group: scores by group, too.")
    ] = None,
    intersection: Annotated[
        bool, typer.Option("--intersection", help="Compare methods on the images they share.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    weights: Annotated[
        Path | None, typer.Option(help="Another folder of weight files than $VSP_WEIGHTS.")
    ] = None,
    iqa_python: Annotated[
        Path | None,
        typer.Option(help="Python of an environment with pyiqa, for musiq, maniqa, clipiqa."),
    ] = None,
    niqe_model: Annotated[
        Path | None,
        typer.Option(help="Your own clean faces for niqe-small, of `vsp weights fit-niqe`."),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write OUT/report/index.html.")
    ] = True,
    only_failed: OnlyFailed = False,
    restart: Restart = False,
    threads: Annotated[
        int | None, typer.Option(min=1, max=64, help="Images at once; all cores by default.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    pool: Pool = "auto",
    ray_address: RayAddress = "",
    patience: Patience = 600.0,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> int:
    """Score restored images: alone, against their truths, and as a set.

    Images are paired by name, never by place. Each is decoded once for all metrics. What has a
    score keeps it: another metric, method or data set adds to OUT. Metrics whose files are not at
    hand are named with the fix (`vsp weights list`); one that is asked for by name is refused.

    Exit code: 0 all scored, 3 done, but some images have no score, 1 the run failed, 2 wrong usage,
    75 stopped by a signal: run it again to go on.
    """
    from jobs.running import RunFlags
    from jobs.scoring import ScoreRequest, check_statistics, run_score

    request = ScoreRequest(
        source=source,
        out=out,
        method=method or _name(source),
        dataset=dataset or _name(gt or lq or "images"),
        gt=gt,
        lq=lq,
        reference=reference,
        metrics=metrics,
        key_regex=key_regex,
        intersection=intersection,
        groups=groups,
        weights=weights,
        iqa_python=iqa_python,
        niqe_model=niqe_model,
    )
    flags = RunFlags(
        pool=pool,
        workers=workers,
        ray_address=ray_address,
        codec_threads=threads or max(1, num_cores() // workers),
        patience_s=patience,
        restart=restart,
        only_failed=only_failed,
        dry_run=dry_run,
        as_json=as_json,
    )
    if save_statistics is not None:
        check_statistics(request, save_statistics)
    summary = run_score(request, flags)
    if dry_run or (summary and summary.exit_code not in (0, EXIT_BAD_RECORDS)):
        return summary.exit_code if summary else 0
    if summary is None:
        typer.echo("nothing was left to compute", err=True)
    code = _conclude(request, save_statistics, seed=seed, report=report, quiet=as_json)
    if as_json and summary is None:
        typer.echo(json.dumps({"out": out, "exit_code": code, "records": {}, "errors": []}))
    return code


def _conclude(
    request: "ScoreRequest", statistics: Path | None, *, seed: int, report: bool, quiet: bool
) -> int:
    """Make table, page and statistics of what was scored; returns the exit code."""
    from jobs.scoring import finish, has_unscored, keep_statistics

    if statistics is not None:
        keep_statistics(request, statistics)
    results = finish(
        request.out, seed=seed, intersection=request.intersection, report=report, quiet=quiet
    )
    is_bad = has_unscored(results, request.method, request.dataset)
    return EXIT_BAD_RECORDS if is_bad else 0


def _name(source: str) -> str:
    """What a folder, shard or pattern is called."""
    return Path(source.rstrip("/*").removesuffix(".tar")).name or "images"


def _tell_metrics(*, asked: bool) -> None:
    """Name every metric with its protocol, direction and source, and stop."""
    from pipeline.metrics.table import METRICS

    if not asked:
        return
    for metric in METRICS:
        unit = f" {metric.unit}" if metric.unit else ""
        typer.echo(
            f"{metric.name} ({metric.better}{unit}, {metric.kind}): {metric.protocol}\n"
            f"    {metric.source}"
        )
    raise typer.Exit
