"""What must be right before an evaluation begins: everything is there, and names agree."""

from collections.abc import Iterator
from pathlib import Path

from jobs.evaluation import Evaluation, pairs_file
from pipeline.benchmark.config import Benchmark, FolderMethod
from pipeline.errors import UserError

PUBLISHED = Path(__file__).resolve().parent.parent / "configs" / "benchmark" / "published"
_SHOWN = 4


def check_there(benchmark: Benchmark, path: Path) -> None:
    """Refuse a benchmark whose data are not there, or that names a table that is not.

    Raises:
        UserError: Naming what is missing, and how to point to it.
    """
    from pipeline.scoring.published import load_published

    load_published(PUBLISHED, benchmark.tables)
    missing = [f"{place} ({what})" for what, place in _inputs(benchmark) if not _exists(place)]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise UserError(
            f"{path}: missing: {', '.join(missing[:_SHOWN])}{more}; put the data there, "
            "or name the folder they lie in with --set root=FOLDER"
        )


def check_out(out: str) -> None:
    """Refuse an output folder that is none, or is not on a disk.

    Raises:
        UserError: In one line.
    """
    from pipeline.storage import is_remote

    if is_remote(out):
        raise UserError(f"{out}: an evaluation keeps its folder on a disk; its data may be remote")
    if Path(out).exists() and not Path(out).is_dir():
        raise UserError(f"{out}: is a file; OUT must be a folder")


def _inputs(benchmark: Benchmark) -> Iterator[tuple[str, str]]:
    """Everything that has to exist: what for, where."""
    for name, dataset in benchmark.datasets.items():
        for key in ("hq", "lq", "gt", "reference", "groups"):
            if place := getattr(dataset, key):
                yield f"datasets.{name}.{key}", place
        for method_name, method in benchmark.methods.items():
            if isinstance(method, FolderMethod) and (place := method.of(name)):
                yield f"methods.{method_name}.path", place


def _exists(place: str) -> bool:
    from pipeline.plan import find_shards
    from pipeline.storage import is_remote

    if is_remote(place) or Path(place).exists():
        return True
    try:
        return bool(find_shards(place))  # a pattern
    except UserError:
        return False


def check_metrics(run: Evaluation) -> None:
    """Refuse metrics that are named and cannot be computed, before hours of restoring.

    Raises:
        UserError: With the data set, and what is missing.
    """
    from pipeline.metrics.choose import choose
    from pipeline.metrics.families import IQA_PYTHON
    from pipeline.weights import default_folder

    for name, dataset in run.benchmark.datasets.items():
        try:
            choose(
                [name.strip() for name in run.benchmark.metric_names.split(",")],
                default_folder(),
                has_truth=dataset.has_truth,
                has_reference=bool(dataset.reference),
                given={IQA_PYTHON: run.iqa_python} if run.iqa_python else {},
            )
        except UserError as error:
            raise UserError(f"datasets.{name}: {error}") from None


def check_names_agree(run: Evaluation) -> None:
    """Refuse folders whose images are not exactly those of their data set.

    What has been scored before is checked again when it is scored.

    Raises:
        UserError: With the names that are missing or too many.
    """
    from pipeline.scoring.pairs import check_complete, pair_up
    from pipeline.scoring.sources import Place, find_images

    for name, dataset in run.benchmark.datasets.items():
        sources = [(each, "") for each in (dataset.gt,) if each and not dataset.limit]
        sources += [
            (method.of(name), method.key_regex)
            for method_name, method in run.benchmark.methods.items()
            if isinstance(method, FolderMethod) and not was_scored(run, name, method_name)
            if method.of(name)
        ]
        if not sources:
            continue
        keys = _keys(run, name)
        for source, regex in sources:
            found = find_images(source, truths=source == dataset.gt, key_regex=regex)
            if dataset.limit:
                found = {key: found[key] for key in keys if key in found}
            pairs = pair_up(found, dict.fromkeys(keys, Place("input")))
            check_complete(pairs, source, dataset.source or f"data set {name}")


def _keys(run: Evaluation, name: str) -> tuple[str, ...]:
    """The names in a data set, before anything is made of it."""
    from pipeline.benchmark.data import NUM_PORTRAITS, keys_of

    dataset = run.benchmark.datasets[name]
    if dataset.portraits:
        return tuple(f"portrait-{n}" for n in range(NUM_PORTRAITS))[: dataset.limit or None]
    return keys_of(dataset.source, dataset.limit)


def was_scored(run: Evaluation, dataset: str, method: str) -> bool:
    """Whether a method's images were paired with a data set before."""
    return (run.out / pairs_file(dataset, method)).is_file()
