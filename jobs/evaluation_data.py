"""The data sets of an evaluation: how they are degraded, limited, and told apart."""

from pathlib import Path
from typing import Any

from jobs.evaluation import Evaluation
from jobs.running import Job
from pipeline.benchmark.config import Benchmark, Dataset
from pipeline.errors import UserError


def pick_limited(
    source: str, dataset: str, run: Evaluation, out: Path, *, truths: bool = False, regex: str = ""
) -> None:
    """Copy those images of a source that belong to a limited data set."""
    from pipeline.benchmark.data import keys_of, pick
    from pipeline.scoring.sources import find_images

    settings = run.benchmark.datasets[dataset]
    found = find_images(source, truths=truths, key_regex=regex)
    wanted = keys_of(run.lq(dataset), settings.limit)
    if absent := [key for key in wanted if key not in found]:
        raise UserError(f"{source}: no {', '.join(absent[:5])}; names must agree")
    pick(found, wanted, out)


def degrading(run: Evaluation, dataset: str) -> Job:
    """The job that degrades a data set's clean faces.

    Raises:
        UserError: If a setting is wrong, or there are no faces.
    """
    from jobs.degrade import degrade_job
    from pipeline.benchmark import data

    settings = run.benchmark.datasets[dataset]
    source = settings.hq
    if settings.portraits:
        source = str(run.data(dataset, "portraits"))
        data.write_portraits(Path(source), settings.size)
    if data.is_folder_of_images(source):
        packed = run.data(dataset, "packed")
        data.pack_images(Path(source), packed, settings.limit)
        source = str(packed)
    return degrade_job(source, run.lq(dataset), degradation(run.benchmark, settings), [])


def degradation(benchmark: Benchmark, settings: Dataset) -> dict[str, Any]:
    """A data set's settings as those of `vsp degrade`."""
    from jobs.degrade import preset_values

    return {
        "size": settings.size,
        "seed": benchmark.seed if settings.seed is None else settings.seed,
        "ranges": preset_values(settings.preset) | settings.ranges,
        "keep_hq": True,
        "limit": settings.limit,
    }


def revisions(run: Evaluation, dataset: str) -> tuple[str, str]:
    """What a synthetic data set is, and its degraded faces; empty for given ones."""
    from jobs import config as configs
    from pipeline.benchmark.data import revision
    from pipeline.stages.degrade import DegradeConfig
    from pipeline.storage import LocalStore

    settings = run.benchmark.datasets[dataset]
    if not settings.is_synthetic:
        return "", ""
    config = configs.resolve(degradation(run.benchmark, settings), DegradeConfig)
    return revision(LocalStore(run.data(dataset, "lq")), config)
