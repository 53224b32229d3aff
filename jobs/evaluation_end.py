"""The end of an evaluation: scores become tables and a page."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from jobs.evaluation import Evaluation
from jobs.evaluation_checks import PUBLISHED
from jobs.evaluation_data import revisions
from pipeline.benchmark.config import Benchmark

if TYPE_CHECKING:
    from jobs.evaluate import Outcome
    from pipeline.aggregate import Facts
    from pipeline.results import Rank, Results


def conclude(run: Evaluation, outcome: "Outcome", *, intersection: bool, report: bool) -> "Results":
    """Aggregate what was scored, print the table, write the page.

    Args:
        run: The evaluation.
        outcome: What came of its steps.
        intersection: Compare methods on the images they share.
        report: Write the page.

    Raises:
        UserError: If methods have other images than one another.
    """
    from jobs.scoring import show
    from pipeline.storage import LocalStore

    store = LocalStore(run.out)
    results = _results(run, _facts(run, outcome), intersection=intersection)
    results = _as_asked(results, run.benchmark, outcome.failures)
    results.save(store)
    show(results, store, report=report)
    for line in _cost_lines(results):
        typer.echo(line)
    return results


def _results(run: Evaluation, facts: "Facts", *, intersection: bool) -> "Results":
    """What the scores come to; of a benchmark without data sets, the facts alone."""
    from pipeline.aggregate import AggregateConfig, aggregate
    from pipeline.results import MethodInfo, Results
    from pipeline.scoring.current import load_current
    from pipeline.scoring.tables import PAIRS
    from pipeline.storage import LocalStore

    store = LocalStore(run.out)
    if any(store.list(PAIRS)):
        references = load_current(store).references
        config = AggregateConfig(
            seed=run.benchmark.seed, intersection=intersection, references=references
        )
        return aggregate(store, config, facts)
    methods = [
        MethodInfo(name=name, notice=facts.notices.get(name, ""), cost=facts.costs.get(name, {}))
        for name in run.benchmark.methods
    ]
    return Results(
        title=facts.title, metrics=(), datasets=(), methods=tuple(methods), cells=(),
        published=facts.published, provenance=facts.provenance,
    )  # fmt: skip


def _as_asked(results: "Results", benchmark: Benchmark, failures: Sequence[str]) -> "Results":
    """The results in the benchmark's order, what OUT holds besides last; failures are told."""
    datasets, methods = list(benchmark.datasets), list(benchmark.methods)

    def place(name: str, names: list[str]) -> int:
        return names.index(name) if name in names else len(names)

    def place_of_rank(rank: "Rank") -> tuple[int, int]:
        return place(rank.dataset, datasets), place(rank.method, methods)

    told = (f"not evaluated: {line}" for line in failures)
    return results.model_copy(
        update={
            "datasets": tuple(
                sorted(results.datasets, key=lambda info: place(info.name, datasets))
            ),
            "methods": tuple(sorted(results.methods, key=lambda info: place(info.name, methods))),
            "ranks": tuple(sorted(results.ranks, key=place_of_rank)),
            "warnings": (*told, *results.warnings),
        }
    )


def _facts(run: Evaluation, outcome: "Outcome") -> "Facts":
    """What the results say that no score does."""
    from jobs.methods import notice_of
    from pipeline.aggregate import Facts
    from pipeline.scoring.current import load_current
    from pipeline.scoring.published import load_published
    from pipeline.storage import LocalStore

    benchmark = run.benchmark
    notices = {
        name: notice_of(method, run.models.get(name)) for name, method in benchmark.methods.items()
    }
    return Facts(
        title=benchmark.title,
        missing=load_current(LocalStore(run.out)).missing_lines,
        notices={name: notice for name, notice in notices.items() if notice},
        costs=outcome.costs,
        published=load_published(PUBLISHED, benchmark.tables),
        dataset_notes={name: _note(run, name) for name in benchmark.datasets},
        provenance=_provenance(run),
    )


def _note(run: Evaluation, dataset: str) -> str:
    """What a reader must know of a data set."""
    from pipeline.benchmark.data import is_stored_as_jpeg
    from pipeline.images import JPEG_QUALITY

    settings = run.benchmark.datasets[dataset]
    parts = [settings.note]
    if settings.is_synthetic:
        how = f"degraded here by {settings.preset}"
        how += f" with {', '.join(settings.ranges)} replaced" if settings.ranges else ""
        parts.append(f"{how} at {settings.size} px")
    elif run.models and is_stored_as_jpeg(run.lq(dataset)):
        parts.append(f"faces restored here are JPEGs of quality {JPEG_QUALITY}, as the inputs are")
    if settings.limit:
        parts.append(f"the first {settings.limit} faces alone")
    return "; ".join(filter(None, parts))


def _provenance(run: Evaluation) -> dict[str, str]:
    """Where the numbers come from; the degraded faces' hash tells another JPEG library."""
    from jobs.scoring import provenance

    settings = run.benchmark.model_dump_json(exclude={"root"})
    facts = provenance(run.benchmark.seed)
    facts["config"] = hashlib.sha256(settings.encode()).hexdigest()[:16]
    for name, model in run.models.items():
        facts[f"model of {name}"] = f"{model.name} {model.sha256}"
    for dataset in run.benchmark.datasets:
        if degraded := revisions(run, dataset)[1]:
            facts[f"degraded faces of {dataset}"] = degraded
    return facts


def _cost_lines(results: "Results") -> list[str]:
    """What networks cost, a line each."""
    return [
        f"{info.name}: {info.cost['params_m']:.2f} M parameters, {info.cost['gmacs']:.2f} GMAC, "
        f"{info.cost['images_per_s']:.3g} images/s (batch {info.cost['batch_size']:g}, "
        f"{info.cost['threads']:g} threads)"
        for info in results.methods
        if info.cost
    ]
