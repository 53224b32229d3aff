"""`vsp degrade`: shards of clean faces -> the same shards, degraded, each with its sidecar."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.models import num_cores
from jobs.options import (
    AsJson,
    DryRun,
    OnlyFailed,
    Patience,
    Pool,
    Quarantine,
    RayAddress,
    Restart,
)

if TYPE_CHECKING:
    from jobs.running import Job

EXAMPLE = "vsp degrade shards/ degraded/ --size 256 --preset codeformer --keep-hq"


def command(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="A tar, a folder or pattern of them, s3://...")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder for the degraded shards.")],
    size: Annotated[
        int, typer.Option(min=8, help="Side of the degraded faces; the ranges are scaled to it.")
    ] = 512,
    preset: Annotated[
        str, typer.Option(help="Ranges to draw from: a name (see --list-presets) or a YAML file.")
    ] = "stage-2",
    seed: Annotated[int, typer.Option(min=0, help="With a face's key it fixes its draw.")] = 0,
    keep_hq: Annotated[
        bool,
        typer.Option("--keep-hq", help="Add the true face, KEY.hq.png, and KEY.degradation.json."),
    ] = False,
    quarantine: Quarantine = False,
    limit: Annotated[int, typer.Option(min=0, help="Only the first N faces; 0 for all.")] = 0,
    only_failed: OnlyFailed = False,
    restart: Restart = False,
    codec_threads: Annotated[
        int | None, typer.Option(min=1, max=24, help="Threads of a worker; all cores by default.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    pool: Pool = "auto",
    ray_address: RayAddress = "",
    patience: Patience = 600.0,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="As ranges.noise_sigma=[0,5]."),
    ] = None,
    list_presets: Annotated[
        bool,
        typer.Option(
            "--list-presets",
            is_eager=True,
            callback=lambda asked: _tell_presets(asked=asked),
            help="Name the presets with their sources, and stop.",
        ),
    ] = False,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> int:
    """Degrade clean faces in shards: blur, reduce, noise, JPEG, enlarge.

    A face becomes KEY.png: exactly what was computed, as a lossy format would add damage of its
    own. Shard names, keys, order and other members stay. What is drawn depends on seed and key
    alone. A face smaller than --size is refused. Run the same command again to finish what is
    missing.

    Exit code: 0 all degraded, 3 done, but some records refused or failed, 1 the run failed, 2 wrong
    usage, 75 stopped by a signal: run it again to go on.
    """
    from jobs.running import RunFlags, run_job

    values = {
        "size": size,
        "seed": seed,
        "ranges": preset_values(preset),
        "keep_hq": keep_hq,
        "quarantine": quarantine,
        "limit": limit,
    }
    flags = RunFlags(
        pool=pool,
        workers=workers,
        ray_address=ray_address,
        codec_threads=codec_threads or max(1, num_cores() // workers),
        patience_s=patience,
        restart=restart,
        only_failed=only_failed,
        dry_run=dry_run,
        as_json=as_json,
    )
    summary = run_job(degrade_job(source, out, values, overrides or []), flags)
    return summary.exit_code if summary else 0


def degrade_job(source: str, out: str, values: dict[str, Any], overrides: list[str]) -> "Job":
    """Degrading shards of clean faces.

    Raises:
        UserError: If a setting is wrong or no shard is found.
    """
    from jobs import config as configs
    from jobs.running import Job, versions
    from pipeline.plan import find_shards, limited, shard_units
    from pipeline.stages.degrade import DegradeConfig, DegradeStage

    config = configs.resolve(values, DegradeConfig, overrides)
    units = limited(shard_units(find_shards(source)), config.limit)
    root = source if Path(source).is_dir() else None
    stage = partial(DegradeStage, config)
    return Job("degrade", stage, config.provenance, units, out, root, versions())


def preset_values(name: str) -> dict[str, Any]:
    """The ranges that a preset's name or a YAML file stands for.

    Raises:
        UserError: If there is no such preset, or the file is wrong.
    """
    import difflib

    from jobs import config as configs
    from pipeline.degradation import DegradationConfig
    from pipeline.errors import UserError
    from pipeline.presets import PRESETS

    if name in PRESETS:
        return PRESETS[name].config.model_dump(mode="json")
    if Path(name).suffix in (".yaml", ".yml"):
        return configs.load(Path(name), DegradationConfig).model_dump(mode="json")
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(PRESETS)}"
    raise UserError(f"--preset {name}: no such preset; {hint}")


def _tell_presets(*, asked: bool) -> None:
    """Name every preset, its ranges and where they stand, and stop."""
    from pipeline.presets import PRESETS

    if not asked:
        return
    for name, (config, source) in PRESETS.items():
        spans = {
            "blur": config.blur_sigma,
            "reduction": config.reduction,
            "noise": config.noise_sigma,
            "JPEG": config.jpeg_quality,
        }
        ranges = ", ".join(f"{what} {low:g}-{high:g}" for what, (low, high) in spans.items())
        colours = f", colours {config.colour.kind}" if config.colour else ""
        typer.echo(f"{name}: {ranges}{colours}\n    {source}")
    raise typer.Exit
