"""`vsp restore`: shards of aligned faces -> the same shards, restored, each with its sidecar."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from pipeline.plan import Plan
    from pipeline.pools.base import Pool
    from pipeline.runner import Summary
    from pipeline.stages.restore import RestoreConfig

EXAMPLE = "vsp restore 'shards/{000000..000011}.tar' restored/ --seed 1"
PoolName = Literal["local", "ray"]


def command(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="A tar, a folder of tars, or a pattern of them.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the restored shards.")],
    model: Annotated[
        Path | None,
        typer.Option(help="Bundle (.safetensors), or a model's YAML for an untrained one."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Fixes everything random.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per run of the model.")] = 8,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Torch threads; all cores by default.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")] = "cpu",
    pool: Annotated[
        PoolName, typer.Option(help="An embedded Ray actor, or this process: the same bytes.")
    ] = "ray",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, as noise=mean."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("-n", "--dry-run", help="Print settings and plan, and stop.")
    ] = False,
) -> int:
    """Restore shards of aligned faces.

    Every OUT/NAME.tar gets a NAME.parquet with one row per input record: what became of it, and
    why. A bad image costs its own row. Run the same command again to finish what is missing.

    Exit code: 0 all restored, 3 some records refused or failed, 1 the run failed, 2 wrong usage,
    75 stopped by a signal.
    """
    from jobs import config as configs
    from jobs.models import DEFAULT_MODEL, check_device, model_values, num_cores
    from pipeline.plan import find_shards, make_plan
    from pipeline.stages.restore import RestoreConfig

    sources = find_shards(source)
    values = {
        "model": model_values(model or DEFAULT_MODEL),
        "seed": seed,
        "batch_size": batch_size,
        "threads": threads or num_cores(),
        "runtime": {"device": device},
    }
    config = configs.resolve(values, RestoreConfig, overrides or ())
    check_device(config.runtime.device)
    root = Path(source) if Path(source).is_dir() else None
    plan = make_plan(sources, out, config.provenance.config, root)
    if dry_run:
        typer.echo(config.model_dump_json(indent=1))
        typer.echo(f"{len(plan.pending)} shards to do, {len(plan.finished)} finished -> {out}")
        return 0
    return restore(plan, out, config, pool).exit_code


def restore(plan: "Plan", out: Path, config: "RestoreConfig", pool: PoolName) -> "Summary":
    """Run a plan and tell how it went; nothing is printed that a pipe would choke on."""
    from functools import partial

    from pipeline.plan import make_out
    from pipeline.runner import run
    from pipeline.stages.restore import RestoreStage

    if config.model.kind == "untrained":
        typer.echo(
            f"untrained model {config.model.path.name} (seed {config.model.seed}): this shows that "
            "the path works, not what the method can do; give trained weights with --model",
            err=True,
        )
    make_out(out)
    start_s = time.monotonic()
    summary = run(partial(RestoreStage, config), plan, make_pool(pool), show_progress)
    for line in summary.errors:
        typer.echo(f"vsp: {line}", err=True)
    typer.echo(f"{describe(summary)} in {time.monotonic() - start_s:.1f} s -> {out}")
    return summary


def make_pool(name: PoolName) -> "Pool":
    """Make the pool of one worker that `--pool` names; Ray is imported only if asked for."""
    if name == "local":
        from pipeline.pools.local import LocalPool

        return LocalPool()
    from pipeline.pools.ray import RayPool

    return RayPool()


def show_progress(summary: "Summary") -> None:
    """One line per shard, for a person who watches."""
    done = summary.num_done + summary.num_skipped
    text = f"{done}/{summary.num_shards} shards, {summary.counts.total()} records"
    bad = f", {summary.num_bad} bad" if summary.num_bad else ""
    typer.echo(f"{text}{bad}", err=True)


def describe(summary: "Summary") -> str:
    """The run in one line."""
    counts = ", ".join(f"{count} {status}" for status, count in sorted(summary.counts.items()))
    done = summary.num_done + summary.num_skipped
    skipped = f" ({summary.num_skipped} from an earlier run)" if summary.num_skipped else ""
    stopped = "stopped, run the same command again to go on: " if summary.stopped else ""
    hint = "; reasons in the sidecars' column `reason`" if summary.num_bad else ""
    return f"{stopped}{done} of {summary.num_shards} shards{skipped}: {counts or 'none'}{hint}"
