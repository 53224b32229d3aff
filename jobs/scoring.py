"""Scoring one method on one data set, as `vsp score` and `vsp evaluate` ask for it."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from jobs.models import num_cores
from jobs.running import Job, RunFlags

if TYPE_CHECKING:
    from pipeline.metrics.choose import Choice
    from pipeline.results import Results
    from pipeline.runner import Summary
    from pipeline.scoring.pairs import Pair, PairSet
    from pipeline.scoring.sources import Found
    from pipeline.storage import Store

UNSCORED = ("missing_pair", "decode_error", "shape_mismatch", "oom", "failed")
MAX_PICTURES = 20_000  # in a page that nobody asked for: it keeps copies of them
STATISTICS = (".pth", ".pt", ".npz")


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """What is to be scored.

    Attributes:
        source: The restored images: a folder, or shards.
        out: The evaluation's folder.
        method: What the images are called in tables.
        dataset: What the data set is called there.
        gt: The true images, of the same keys; None for metrics that need none.
        lq: What was restored, shown beside; None for nothing.
        reference: Clean images, or their statistics as a file, for FID; None for none.
        metrics: `default`, `all`, or names with commas.
        key_regex: What counts of a restored image's key.
        groups: CSV with the columns key and group.
        dataset_rev: What the data set is; of the truths' contents if empty.
        strict: Refuse images without truth and truths without image.
        intersection: Other methods may have other images.
        weights: Folder of weight files; None for the usual one.
        iqa_python: Python of the environment that holds pyiqa.
        niqe_model: Model of the user's own clean faces for niqe-small.
    """

    source: str
    out: str
    method: str
    dataset: str
    gt: str | None = None
    lq: str | None = None
    reference: str | None = None
    metrics: str = "default"
    key_regex: str = ""
    groups: Path | None = None
    dataset_rev: str = ""
    strict: bool = False
    intersection: bool = False
    weights: Path | None = None
    iqa_python: Path | None = None
    niqe_model: Path | None = None

    @property
    def reference_images(self) -> str | None:
        """The clean set where it is images, not statistics."""
        if self.reference is None or self.reference.endswith(STATISTICS):
            return None
        return self.reference


def run_score(request: ScoreRequest, flags: RunFlags) -> "Summary | None":
    """Score what has no score yet.

    Returns:
        The run; None where nothing was left to do, or after a dry run.

    Raises:
        UserError: If images, metrics or files are not as they should be; nothing was scored.
        RunError: If the run cannot go on.
    """
    from jobs.running import run_job, versions
    from pipeline.locks import run_lock
    from pipeline.scoring.current import save_current
    from pipeline.scoring.work import as_unit, forget_work, missing_work
    from pipeline.stages.score import ScoreConfig, ScoreStage
    from pipeline.storage import open_store

    _check_apart(request)
    choice = _choose(request)
    sets = list(_pair_sets(request))
    store = open_store(request.out)
    if not request.intersection:
        _check_joins(store, sets[0])
    again = _taken_back(store, sets, choice, flags)
    work = [each for one in sets for each in missing_work(store, one, choice.chosen, without=again)]
    begin = partial(save_current, store, sets, choice, work, _references(request))
    if not work:
        if not flags.dry_run:
            with run_lock(store):
                begin()
        return None
    config = ScoreConfig(choice.chosen)
    job = Job(
        "score", partial(ScoreStage, config), config.provenance, [as_unit(each) for each in work],
        request.out, versions=versions(), grows=True, again=again, begin=begin,
    )  # fmt: skip
    summary = run_job(job, replace(flags, only_failed=False, restart=False))
    if summary and not summary.errors and not summary.stopped:
        forget_work(store, work)
    return summary


def _references(request: ScoreRequest) -> dict[str, str]:
    """The statistics file that FID of the data set compares with, if it is a file."""
    if request.reference is None or request.reference_images:
        return {}
    if not Path(request.reference).is_file():
        from pipeline.errors import UserError

        raise UserError(f"--reference {request.reference}: no such file")
    return {request.dataset: str(Path(request.reference).resolve())}


def _choose(request: ScoreRequest) -> "Choice":
    from pipeline.errors import UserError
    from pipeline.metrics.choose import choose
    from pipeline.metrics.families import IQA_PYTHON, NIQE_SMALL
    from pipeline.weights import default_folder

    names = [name.strip() for name in request.metrics.split(",") if name.strip()]
    if not names:
        raise UserError("--metrics: no name; give some, or `default`")
    if request.weights is not None and not request.weights.is_dir():
        raise UserError(f"--weights {request.weights}: no such folder")
    named = {IQA_PYTHON: request.iqa_python, NIQE_SMALL: request.niqe_model}
    return choose(
        names,
        request.weights or default_folder(),
        has_truth=request.gt is not None,
        has_reference=request.reference is not None,
        given={need: path for need, path in named.items() if path is not None},
    )


def _pair_sets(request: ScoreRequest) -> "Iterator[PairSet]":
    """The method's images; the truths, and the clean set, each scored by itself as a method is."""
    from pipeline.errors import UserError
    from pipeline.scoring.pairs import PairSet, check_complete, pair_up, read_groups
    from pipeline.scoring.pairs import truths_revision as revision
    from pipeline.scoring.tables import REFERENCE_METHOD, TRUTH_METHOD

    _check_names(request)
    restored = _find(request.source, key_regex=request.key_regex)
    gt = _find(request.gt, truths=True) if request.gt else None
    lq = _find(request.lq) if request.lq else None
    groups = read_groups(request.groups) if request.groups else {}
    if groups and not groups.keys() & restored.keys():
        raise UserError(f"{request.groups}: no key is that of an image, as {next(iter(restored))}")
    pairs = pair_up(restored, gt, lq, groups)
    if request.strict and request.gt:
        check_complete(pairs, request.source, request.gt)
    _check_any(pairs, request)
    rev = request.dataset_rev or revision(pairs)
    yield PairSet(request.method, request.dataset, pairs, rev)
    if gt is not None:
        alone = pair_up(gt, None, lq, groups)
        yield PairSet(TRUTH_METHOD, request.dataset, alone, rev)
    if request.reference_images:
        clean = pair_up(_find(request.reference_images, truths=True), None)
        yield PairSet(REFERENCE_METHOD, request.dataset, clean, rev)


def _check_names(request: ScoreRequest) -> None:
    from pipeline.errors import UserError
    from pipeline.scoring.tables import REFERENCE_METHOD, TRUTH_METHOD

    for option, name in (("method", request.method), ("dataset", request.dataset)):
        if not name or not name.isprintable():
            raise UserError(f"--{option} {name!a}: expected a printable name")
    if request.method in (TRUTH_METHOD, REFERENCE_METHOD):
        raise UserError(f"--method {request.method}: this name is kept; choose another")


def _check_any(pairs: "Sequence[Pair]", request: ScoreRequest) -> None:
    """Refuse names that do not agree at all: that is a mistake, not missing images."""
    from pipeline.errors import UserError

    if request.gt and not any(pair.restored.path and pair.gt.path for pair in pairs):
        ours = next(pair.image_id for pair in pairs if pair.restored.path)
        theirs = next(pair.image_id for pair in pairs if pair.gt.path)
        raise UserError(
            f"{request.source}: no name agrees with {request.gt} ({ours!r} against {theirs!r}); "
            "take a method's own ending off with --key-regex, as '(.*)_restored'"
        )


def _find(source: str, *, truths: bool = False, key_regex: str = "") -> "Found":
    from pipeline.scoring.sources import find_images

    shown = sys.stderr.isatty()

    def tell(done: int, total: int) -> None:
        if shown and (done % 100 == 0 or done == total):
            end = "\n" if done == total else ""
            typer.echo(f"\rvsp: reading {source}: {done} of {total} images", nl=False, err=True)
            typer.echo(end, nl=False, err=True)

    return find_images(source, truths=truths, key_regex=key_regex, on_progress=tell)


def _check_apart(request: ScoreRequest) -> None:
    """An output folder in the input would be scored itself the next time."""
    from pipeline.plan import check_apart

    for source in (request.source, request.gt, request.lq, request.reference_images):
        if source is not None and Path(source).is_dir():
            check_apart([], request.out, source)


def _check_joins(store: "Store", joining: "PairSet") -> None:
    """Refuse a method with other images than those that are there, before hours of scoring.

    Raises:
        UserError: Naming the method and an image.
    """
    from pipeline.errors import UserError
    from pipeline.scoring.aggregate_view import PSEUDO_METHODS
    from pipeline.scoring.pairs import made_by_others

    ours = {pair.image_id for pair in joining.pairs if pair.restored.path}
    for method, theirs in made_by_others(store, joining).items():
        if method not in PSEUDO_METHODS and (other := sorted(ours ^ theirs)):
            who = joining.method if other[0] in ours else method
            raise UserError(
                f"{joining.dataset}: only {who} has {other[0]}"
                f"{f' and {len(other) - 1} more differ' * (len(other) > 1)}; score the same "
                f"images, compare the common ones with --intersection, or drop a method by "
                f"removing its file in pairs/"
            )


def _taken_back(
    store: "Store", sets: "Sequence[PairSet]", choice: "Choice", flags: RunFlags
) -> frozenset[str]:
    """The units of these images that are to be done again: all of them, or those with failures.

    Raises:
        UserError: If one holds metrics that are not computed now: they would be lost.
    """
    from pipeline.errors import UserError
    from pipeline.ledger import Ledger
    from pipeline.scoring.work import held_metrics, is_unit_of

    ledger = Ledger(store)
    plan = ledger.plan()
    if plan is None or not (flags.only_failed or flags.restart):
        return frozenset()
    chosen = {name for each in choice.chosen for name in each.metrics}
    families = {each.family for each in choice.chosen}
    found = frozenset(
        record["shard"]
        for record in ledger.commits(plan)
        if any(is_unit_of(record["shard"], each.dataset, each.method) for each in sets)
        and (flags.restart or record["counts"].get("failed"))
    )
    for shard in sorted(found):
        if lost := held_metrics(store, shard) - chosen - families:
            raise UserError(
                f"{request_of(flags)}: {', '.join(sorted(lost))} would be lost; "
                "name them with --metrics, too"
            )
    return found


def request_of(flags: RunFlags) -> str:
    """The option by which the user asked for scores to be made again."""
    return "--restart" if flags.restart else "--only-failed"


def finish(out: str, *, seed: int, intersection: bool, report: bool, quiet: bool) -> "Results":
    """Aggregate what was scored, print the table, write the page.

    Args:
        out: The evaluation's folder.
        seed: Of the bootstrap.
        intersection: Compare methods on the images they share.
        report: Write the page.
        quiet: Print no table.

    Raises:
        UserError: If methods have other images than one another.
    """
    from pipeline.aggregate import AggregateConfig, Facts, aggregate
    from pipeline.scoring.current import load_current
    from pipeline.storage import open_store

    store = open_store(out)
    current = load_current(store)
    config = AggregateConfig(seed=seed, intersection=intersection, references=current.references)
    facts = Facts(title=Path(out).name, missing=current.missing_lines, provenance=provenance(seed))
    results = aggregate(store, config, facts)
    show(results, store, report=report, quiet=quiet)
    return results


def show(results: "Results", store: "Store", *, report: bool, quiet: bool = False) -> None:
    """Print the table and write the page; see `finish`."""
    from pipeline.report.terminal import table_lines
    from pipeline.storage import LocalStore

    for line in () if quiet else table_lines(results):
        typer.echo(line)
    if not report or not isinstance(store, LocalStore):
        return
    from pipeline.report.build import ReportConfig, write_report

    num_pictures = sum(info.num_images for info in results.datasets) * len(results.methods)
    has_pictures = num_pictures <= MAX_PICTURES
    page = write_report(store.root, ReportConfig(images=has_pictures))
    more = "" if has_pictures else f" ({num_pictures} pictures left out; `vsp report` copies them)"
    typer.echo(f"report: {page}{more}", err=True)


def check_statistics(request: ScoreRequest, path: Path) -> None:
    """Refuse to keep statistics of nothing.

    Raises:
        UserError: If the request has no clean images, or `path` is no .npz.
    """
    from pipeline.errors import UserError

    if path.suffix != ".npz" or request.reference_images is None:
        raise UserError(f"--save-statistics {path}: an .npz, of the images of --reference")


def keep_statistics(request: ScoreRequest, path: Path) -> None:
    """Write what `--reference` takes in place of the images.

    Raises:
        UserError: If they have no features.
    """
    from pipeline.aggregate import save_statistics
    from pipeline.storage import open_store

    count = save_statistics(open_store(request.out), request.dataset, path)
    typer.echo(f"{path}: statistics of {count} images", err=True)


def has_unscored(results: "Results", method: str, dataset: str) -> bool:
    """Whether an image is not as it should be: lost, broken, of another size."""
    return any(
        status in UNSCORED
        for cell in results.cells
        if (cell.method, cell.dataset) == (method, dataset)
        for status in cell.statuses
    )


def provenance(seed: int) -> dict[str, str]:
    """Where numbers come from: the command, the code, the machine."""
    import shlex

    from jobs.running import versions
    from pipeline.provenance import commit, processor

    return {
        "command": shlex.join(["vsp", *sys.argv[1:]]),
        "commit": commit(),
        "seed": str(seed),
        "versions": ", ".join(f"{name} {value}" for name, value in versions().items()),
        "hardware": f"{num_cores()} cores of {processor()}",
    }
