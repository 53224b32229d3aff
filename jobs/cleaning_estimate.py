"""What a cleaning run will take, measured on a few of its own images before it begins."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import typer

from jobs.cleaning_plan import CleanRun
from jobs.display import duration
from pipeline.cleaning.tables import FACES
from pipeline.storage import load_json

if TYPE_CHECKING:
    from pipeline.sample import Sample

LOOKED_AT = 12  # images that the speed is measured on
USUAL_FACES, LEAST_FACES = 128, 64  # fewer do not hold the false-accept rate
SHARE_OF_RUN, ALWAYS_S = 0.1, 300.0  # what the calibration may take, whichever is more


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run will take; times are of this machine, all workers at work.

    Attributes:
        num_images: Records of the input, from the size of the first ones.
        inspect_s: To look at all of them.
        restore_s: To restore and verify as many as the gate lets pass at most.
        trial_s: To try one face at every level of the calibration.
        out_bytes: What the output may hold at most.
        is_local: Whether the model was timed here.
    """

    num_images: int
    inspect_s: float
    restore_s: float
    trial_s: float
    out_bytes: int
    is_local: bool


def estimate(run: CleanRun) -> Estimate:
    """Look at a few images and run the model a few times.

    Raises:
        UserError: If the input cannot be read.
    """
    from jobs.models import num_cores
    from pipeline.cleaning.calibration.levels import LEVELS

    total_bytes = sum(unit.weight for unit in run.units)
    samples = list(islice(_samples(run), LOOKED_AT))
    per_record = sum(_stored_bytes(sample) for sample in samples) / max(1, len(samples))
    limit = sum(unit.limit for unit in run.units) if run.request.limit else 0
    num_images = limit or max(len(samples), round(total_bytes / max(1.0, per_record)))
    look_s = _look_s(run, samples) / min(num_cores(), 24) / run.flags.workers
    is_local = not run.flags.ray_address
    model_s = (_model_s(run) if is_local else 0.0) / run.flags.workers
    share = run.settings.gate.worst_share
    return Estimate(
        num_images=num_images,
        inspect_s=num_images * look_s,
        restore_s=num_images * share * (model_s + look_s),
        trial_s=len(LEVELS) * (model_s + look_s),
        out_bytes=int(num_images * per_record),
        is_local=is_local,
    )


def _samples(run: CleanRun) -> "Iterator[Sample]":
    from pipeline.shards import read_shard

    middle = run.units[len(run.units) // 2]
    return (sample for sample in read_shard(middle.source) if sample.image is not None)


def _stored_bytes(sample: "Sample") -> int:
    """What a record takes in a tar: bodies in blocks, and a header each."""
    return sum(512 + -(-len(member.data) // 512) * 512 for member in sample.members)


def _look_s(run: CleanRun, samples: "list[Sample]") -> float:
    """Seconds to look at an image on one core."""
    from pipeline.stages.inspect import InspectConfig, InspectStage

    stage = InspectStage(InspectConfig(look=run.look, run=run.out))
    stage.setup()
    try:
        stage.begin_shard()
        for sample in samples[:1]:
            stage.prepare(sample)  # first-time work
        start_s = time.perf_counter()
        for sample in samples:
            stage.prepare(sample)
        return (time.perf_counter() - start_s) / max(1, len(samples))
    finally:
        stage.close()


def _model_s(run: CleanRun) -> float:
    """Seconds of the model for a face."""
    import torch

    from pipeline.benchmark.cost import images_per_s
    from pipeline.replica import ReplicaConfig, load_model

    config = ReplicaConfig.model_validate(dict(run.values))
    threads_before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        return 1 / images_per_s(load_model(config), config.batch_size)
    finally:
        torch.set_num_threads(threads_before)


def tell_estimate(run: CleanRun) -> None:
    """Say what a run will take that begins now, and fix how many faces the calibration takes.

    The number is written down before the first step: it comes of a timing, and a run that is killed
    and goes on must take the same.
    """
    if run.store.stat(FACES) is not None and run.request.faces is None:
        return
    expected = estimate(run)
    faces = run.request.faces or allowed_faces(expected)
    run.store.write(FACES, json.dumps({"faces": faces}).encode())
    for line in lines(expected, run):
        typer.echo(line, err=True)


def num_faces(run: CleanRun) -> int:
    """How many faces the calibration takes."""
    return int(str(load_json(run.store, FACES)["faces"]))


def allowed_faces(expected: Estimate) -> int:
    """128 where 10 % of the run's time or five minutes allow it, whichever is more; else 64."""
    budget_s = max(ALWAYS_S, SHARE_OF_RUN * (expected.inspect_s + expected.restore_s))
    return USUAL_FACES if USUAL_FACES * expected.trial_s <= budget_s else LEAST_FACES


def lines(expected: Estimate, run: CleanRun) -> list[str]:
    """The estimate for people."""
    faces = run.request.faces or allowed_faces(expected)
    where = "on this machine" if expected.is_local else "the cluster's model not timed"
    spent_s = expected.inspect_s + expected.restore_s
    parts = [f"inspect {duration(expected.inspect_s)}"]
    if run.look.identity and run.request.calibrate:
        parts.append(f"calibrate on {faces} faces {duration(faces * expected.trial_s)}")
        spent_s += faces * expected.trial_s
        parts.append(f"restore at most {run.settings.gate.worst_share:.0%} "
                     f"{duration(expected.restore_s)}")  # fmt: skip
    gigabytes = expected.out_bytes / 1e9
    return [
        f"about {expected.num_images} images in {len(run.units)} shards: "
        f"{duration(spent_s)} ({', '.join(parts)}; {where}), "
        f"output at most {gigabytes:.2f} GB -> {run.out}"
    ]
