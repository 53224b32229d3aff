"""`vsp evaluate`: degrade, restore by each method, score, aggregate, report."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from jobs.options import DryRun, Patience, Pool, RayAddress

if TYPE_CHECKING:
    from jobs.evaluation import Evaluation
    from pipeline.benchmark.config import Benchmark

EXAMPLE = "vsp evaluate configs/benchmark/smoke.yaml evaluation/"
EXIT_FAILED, EXIT_BAD_RECORDS, EXIT_STOPPED = 1, 3, 75


def command(
    path: Annotated[
        Path, typer.Argument(metavar="BENCH.yaml", help="Data sets, methods and metrics.")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder for everything it makes.")],
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Let BENCH.yaml name Python functions to run.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="METHOD", help="Only this method; may be repeated.")
    ] = None,
    intersection: Annotated[
        bool, typer.Option("--intersection", help="Compare methods on the images they share.")
    ] = False,
    iqa_python: Annotated[
        Path | None,
        typer.Option(help="Python of an environment with pyiqa, for musiq, maniqa, clipiqa."),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write OUT/report/index.html.")
    ] = True,
    show_status: Annotated[
        bool, typer.Option("--status", help="Tell how far OUT is, and stop.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Faces per run of a network.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Torch threads of a worker; all cores by default.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Workers of every step.")] = 1,
    pool: Pool = "auto",
    ray_address: RayAddress = "",
    patience: Patience = 600.0,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="As root=/data, datasets.NAME.limit=10."),
    ] = None,
    dry_run: DryRun = False,
) -> int:
    """Compare methods: degrade, restore by each, score, aggregate, report.

    Every step resumes: run the same command again to finish what is missing. A method that fails
    is told, left out, and does not stop the others. Outputs of other methods join as folders of
    images or shards, paired by name; a missing, extra or renamed file is refused before any work.

    Exit code: 0 all done, 3 done, but some images refused, failed or without score, 1 a data set or
    method failed, 2 wrong usage, 75 stopped by a signal: run it again to go on.
    """
    from jobs.benchmark import load_benchmark
    from jobs.evaluation import Evaluation, Machine
    from jobs.evaluation_checks import check_metrics, check_names_agree, check_out, check_there
    from jobs.evaluation_status import status_table
    from jobs.methods import check_code_allowed, find_models
    from jobs.models import default_codec_threads, pick_device
    from jobs.running import RunFlags

    benchmark = load_benchmark(path, overrides or (), only or ())
    check_code_allowed(benchmark, path, allow_code=allow_code)
    if dry_run:
        _tell_plan(benchmark, out)
    check_there(benchmark, path)
    check_out(out)
    device = pick_device(device, elsewhere=bool(ray_address))
    flags = RunFlags(
        pool=pool,
        workers=workers,
        ray_address=ray_address,
        gpus_per_worker=1.0 if device.startswith("cuda") else 0.0,
        threads=threads or 1,
        codec_threads=default_codec_threads(device),
        patience_s=patience,
    )
    models = find_models(benchmark, path.resolve().parent)
    machine = Machine(device, batch_size, threads)
    run = Evaluation(benchmark, models, Path(out), machine, flags, iqa_python)
    if show_status:
        Console(soft_wrap=True).print(status_table(run))
        return 0
    check_metrics(run)
    check_names_agree(run)
    return 0 if dry_run else _evaluate(run, intersection=intersection, report=report)


def _tell_plan(benchmark: "Benchmark", out: str) -> None:
    """The settings as they are understood, and what would be done."""
    typer.echo(benchmark.model_dump_json(indent=1))
    for name, dataset in benchmark.datasets.items():
        source = dataset.source or "scikit-image's portrait"
        how = f"degrade ({dataset.preset}) and " if dataset.is_synthetic else ""
        typer.echo(f"{name}: {how}restore {source}, by {', '.join(benchmark.methods)} -> {out}")
    if benchmark.complexity:
        typer.echo("complexity: parameters, operations and speed of the networks")


def _evaluate(run: "Evaluation", *, intersection: bool, report: bool) -> int:
    """Do every step, whatever becomes of the others, and tell what it came to."""
    from jobs.evaluation import DATA
    from jobs.evaluation_end import conclude
    from jobs.evaluation_status import status_table
    from jobs.methods import notice_of
    from jobs.scoring import has_unscored
    from jobs.steps import Stopped
    from pipeline.locks import run_lock
    from pipeline.plan import make_out
    from pipeline.storage import LocalStore
    from pipeline.watch import stop_on_signals

    for name, method in run.benchmark.methods.items():
        if notice := notice_of(method, run.models.get(name)):
            typer.echo(f"{name}: {notice}", err=True)
    outcome = Outcome()
    make_out(run.out / DATA)
    try:
        # The engine's runs have locks and handlers of their own; these are for what is between.
        with run_lock(LocalStore(run.out / DATA)), stop_on_signals(_stop):
            _work(run, outcome)
    except Stopped:
        Console(stderr=True, soft_wrap=True).print(status_table(run))
        again = shlex.join(["vsp", *sys.argv[1:]])
        typer.echo(f"vsp: stopped; to go on: {again}", err=True)
        return EXIT_STOPPED
    results = conclude(run, outcome, intersection=intersection, report=report)
    if outcome.failures:
        Console(stderr=True, soft_wrap=True).print(status_table(run))
        again = "run the same command again once that is mended"
        typer.echo(f"vsp: {len(outcome.failures)} not evaluated, see above; {again}", err=True)
        return EXIT_FAILED
    is_bad = any(has_unscored(results, method, dataset) for dataset, method in run.cells)
    return EXIT_BAD_RECORDS if is_bad or not outcome.all_good else 0


def _stop() -> None:
    """End the evaluation between two steps, as a signal's handler."""
    from jobs.steps import Stopped

    raise Stopped


@dataclass(slots=True)
class Outcome:
    """What has come of an evaluation so far.

    Attributes:
        failures: What could not be evaluated, and why.
        costs: What networks cost, by method.
        all_good: Whether every image was restored and scored.
    """

    failures: list[str] = field(default_factory=list)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    all_good: bool = True

    def attempt(self, what: str, step: Callable[[], bool]) -> bool:
        """Take a step; returns whether the next one can follow."""
        from pipeline.errors import RunError, UserError
        from vsp_model.files import CheckpointError

        try:
            self.all_good &= step()
        except (UserError, RunError, CheckpointError, OSError) as error:
            line = f"{what}: {' '.join(str(error).split())}"
            typer.echo(f"vsp: {line}", err=True)
            self.failures.append(line)
            return False
        return True


def _work(run: "Evaluation", outcome: Outcome) -> None:
    """Take every step that can be taken."""
    from jobs import evaluation_steps as steps

    ready = {
        dataset: outcome.attempt(dataset, partial(steps.prepare, run, dataset))
        for dataset in run.benchmark.datasets
    }
    for dataset, method in run.cells:
        what = f"{method} on {dataset}"
        done = (
            ready[dataset]
            and outcome.attempt(what, partial(steps.restore, run, dataset, method))
            and outcome.attempt(what, partial(steps.score, run, dataset, method))
        )
        if not done:
            steps.forget(run, dataset, method)
    if run.benchmark.complexity:
        for method, model in run.models.items():
            if model.kind != "callable":
                outcome.attempt(f"cost of {method}", partial(_measure, run, method, outcome))


def _measure(run: "Evaluation", method: str, outcome: Outcome) -> bool:
    from jobs.evaluation_steps import measure_cost

    outcome.costs[method] = measure_cost(run, method)
    return True
