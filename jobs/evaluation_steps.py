"""The steps of an evaluation: each is an engine run in a folder of its own, so that it resumes."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jobs.evaluation import COSTS, Evaluation, pairs_file
from jobs.evaluation_data import degrading, pick_limited, revisions
from jobs.running import Job
from jobs.steps import judged, quiet, run_step
from pipeline.benchmark.config import FolderMethod
from pipeline.scoring.pairs import slug


def prepare(run: Evaluation, dataset: str) -> bool:
    """Make a data set ready to be restored.

    Returns:
        Whether all of its faces are.

    Raises:
        UserError: If something in it cannot be used.
        RunError: If the engine's run failed.
        Stopped: By a signal.
    """
    from pipeline.benchmark import data

    settings = run.benchmark.datasets[dataset]
    if settings.is_synthetic:
        return run_step(degrading(run, dataset), run.codec_flags, f"degraded {dataset}")
    if data.is_folder_of_images(settings.lq):
        data.pack_images(Path(settings.lq), run.data(dataset, "packed"), settings.limit)
    if settings.gt and settings.limit:
        pick_limited(settings.gt, dataset, run, run.data(dataset, "gt"), truths=True)
    return True


def restore(run: Evaluation, dataset: str, method: str) -> bool:
    """Restore a data set by a method, if that is done here; see `prepare`."""
    if method in run.models:
        job = restoring(run, dataset, method)
        return run_step(job, run.flags, f"restored {dataset} by {method}")
    if run.benchmark.datasets[dataset].limit:
        source, regex = _given(run, dataset, method)
        pick_limited(source, dataset, run, run.restored(dataset, method), regex=regex)
    return True


def _given(run: Evaluation, dataset: str, method: str) -> tuple[str, str]:
    """Where the images of a method lie that does not run here, and what of their names counts."""
    settings = run.benchmark.methods[method]
    if isinstance(settings, FolderMethod):
        return settings.of(dataset), settings.key_regex
    return run.lq(dataset), ""


def restoring(run: Evaluation, dataset: str, method: str) -> Job:
    """The job that restores a data set by a method."""
    from jobs import config as configs
    from jobs.running import existing_settings, versions
    from pipeline.plan import find_shards, limited, shard_units
    from pipeline.stages.restore import RestoreConfig, RestoreStage

    out = str(run.restored(dataset, method))
    values = replica_values(run, method, existing_settings(out))
    # What is compared has one size: a network of another size gives the input's size back.
    values |= {"keep_size": True, "limit": run.benchmark.datasets[dataset].limit}
    config = configs.resolve(values, RestoreConfig)
    units = limited(shard_units(find_shards(run.lq(dataset))), config.limit)
    stage = partial(RestoreStage, config)
    return Job("restore", stage, config.provenance, units, out, versions=versions())


def replica_values(run: Evaluation, method: str, there: Mapping[str, Any]) -> dict[str, Any]:
    """A method's settings as those of a replica.

    Args:
        run: The evaluation.
        method: One that runs here.
        there: What its folder was begun with: what decides the last bits stays.
    """
    from jobs.models import default_batch_size, num_cores

    machine, settings = run.machine, run.benchmark.methods[method]
    threads = max(1, num_cores() // run.flags.workers)
    usual = default_batch_size(machine.device)
    return {
        "model": run.models[method],
        "seed": run.benchmark.seed,
        "noise": getattr(settings, "noise", "seeded"),
        "batch_size": machine.batch_size or there.get("batch_size") or usual,
        "threads": machine.threads or there.get("threads") or threads,
        "runtime": {"device": machine.device, "precision": run.benchmark.precision},
    }


def score(run: Evaluation, dataset: str, method: str) -> bool:
    """Score what a method made of a data set; see `prepare`."""
    from jobs.scoring import ScoreRequest, run_score

    data = run.benchmark.datasets[dataset]
    source, regex = str(run.restored(dataset, method)), ""
    if method not in run.models and not data.limit:
        source, regex = _given(run, dataset, method)
    request = ScoreRequest(
        source=source,
        out=str(run.out),
        method=method,
        dataset=dataset,
        gt=run.gt(dataset),
        lq=run.lq(dataset),
        reference=data.reference or None,
        metrics=run.benchmark.metric_names,
        key_regex=regex,
        groups=Path(data.groups) if data.groups else None,
        dataset_rev=revisions(run, dataset)[0],
        intersection=True,  # who has what is looked at in the end, when all have had their turn
        strict=isinstance(run.benchmark.methods[method], FolderMethod),
        iqa_python=run.iqa_python,
    )
    with quiet():
        summary = run_score(request, run.codec_flags)
    if summary is None:
        return True
    return judged(summary, f"scored {dataset} of {method}")


def forget(run: Evaluation, dataset: str, method: str) -> None:
    """Take a cell that could not be evaluated out of the current view: its scores are of before."""
    (run.out / pairs_file(dataset, method)).unlink(missing_ok=True)


def measure_cost(run: Evaluation, method: str) -> dict[str, float]:
    """What a network costs; measured once on a machine, then read."""
    from pipeline.benchmark.cost import measure
    from pipeline.provenance import hardware
    from pipeline.replica import ReplicaConfig
    from vsp_model.files import whole_or_absent

    values = replica_values(run, method, {}) | {"batch_size": run.machine.batch_size or 1}
    config = ReplicaConfig.model_validate(values)
    key = {"settings": config.settings(), "hardware": hardware(run.machine.device)}
    path = run.out / COSTS / f"{slug(method)}.json"
    there = json.loads(path.read_text()) if path.is_file() else {}
    if there.get("key") == key:
        return dict(there["cost"])
    cost = measure(config).as_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_absent(path) as file:
        file.write(json.dumps({"key": key, "cost": cost}, indent=1).encode())
    return cost
