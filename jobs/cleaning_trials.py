"""The calibration of a cleaning run: the model tried on the set's own good faces."""

import json
from functools import partial
from typing import TYPE_CHECKING

import typer

from jobs.cleaning_plan import CleanRun
from jobs.cleaning_steps import digest_of, model_flags, run_part, seen_facts
from jobs.running import Job, versions
from pipeline.cleaning.tables import CALIBRATE, THRESHOLDS
from pipeline.ledger import Ledger
from pipeline.plan import difference
from pipeline.storage import OWN_FOLDER, open_store

if TYPE_CHECKING:
    from pipeline.cleaning.calibration.thresholds import Thresholds, Trial


def calibrate(run: CleanRun) -> "Thresholds | None":
    """Try the model on the set's own good faces, and derive what may be restored.

    Returns:
        The thresholds; None where nothing can be or shall be calibrated.
    """
    from pipeline.cleaning.calibration.thresholds import derive, table_lines
    from pipeline.stages.clean import load_thresholds

    if not run.look.identity or not run.request.calibrate:
        run.store.remove(THRESHOLDS)
        return None
    job, facts = _trials_job(run)
    settings = run.settings
    digest = digest_of([
        job.provenance.config, facts, seen_facts(run), settings.sample.model_dump(mode="json"),
        settings.calibrate.model_dump(mode="json"),
    ])  # fmt: skip
    there = load_thresholds(run.store)
    if there is None or there.derived_from != digest:
        if job.units:
            what = "calibration: faces tried at five levels of damage"
            run_part(job, what, model_flags(run))
        there = derive(_trials(job), run.settings.calibrate, facts)
        there = there.model_copy(update={"derived_from": digest})
        run.store.write(THRESHOLDS, there.model_dump_json(indent=1).encode())
    for line in table_lines(there):
        typer.echo(line, err=True)
    return there


def _trials_job(run: CleanRun) -> "tuple[Job, dict[str, str]]":
    """The calibration as a run of the engine, and what its table shall say of itself."""
    from jobs.cleaning_estimate import num_faces
    from pipeline.cleaning.calibration.closeness import Closeness
    from pipeline.cleaning.calibration.sample import choose_faces
    from pipeline.cleaning.decide import load_seen
    from pipeline.stages.calibrate import CalibrateStage, TrialsConfig

    out = f"{run.out}/{CALIBRATE}"
    closeness = Closeness(run.lpips)
    faces = num_faces(run)
    config = TrialsConfig.model_validate(
        dict(run.values) | {"look": run.look, "lpips": run.lpips, "faces": faces,
                            "closeness_sha256": closeness.sha256, "names": run.settings.names}
    )  # fmt: skip
    seen = load_seen(run.store, [unit.shard for unit in run.units])
    by_shard = {unit.shard: unit for unit in run.units}
    sample = run.settings.sample.model_copy(update={"faces": faces})
    batches = choose_faces(seen, by_shard, run.model_size, run.request.seed, sample)

    def begin() -> None:
        store = open_store(out)
        for batch in batches:
            batch.save(store)

    units = tuple(batch.as_unit() for batch in batches)
    grows, again = _goes_on(out, config.provenance.config)
    job = Job(
        "calibrate", partial(CalibrateStage, config), config.provenance, units, out,
        versions=versions(), grows=grows, again=again, begin=begin,
    )  # fmt: skip
    if not job.grows:
        begin()
    facts = {"model_sha256": run.model.sha256, "closeness": closeness.name,
             "model": run.model.name, "size_px": str(run.model_size)}  # fmt: skip
    return job, facts


def _goes_on(out: str, config: str) -> tuple[bool, frozenset[str]]:
    """Whether the calibration's folder takes more faces, and which of its trials are gone."""
    from pipeline.cleaning.output import TRIALS

    ledger = Ledger(open_store(out))
    there = ledger.plan()
    if there is None or difference(there.settings, json.loads(config)):
        return False, frozenset()
    kept = {name.rpartition("/")[2] for name in ledger.store.list(f"{OWN_FOLDER}/{TRIALS}")}
    done = ledger.committed(there)
    return True, frozenset(shard for shard in done if f"{shard}.parquet" not in kept)


def _trials(job: Job) -> "list[Trial]":
    from pipeline.cleaning.calibration.thresholds import Trial
    from pipeline.cleaning.output import TRIALS
    from pipeline.cleaning.tables import read_table_rows

    store = open_store(job.out)
    trials: list[Trial] = []
    for unit in job.units:
        with store.open(f"{OWN_FOLDER}/{TRIALS}/{unit.shard}.parquet") as file:
            trials += read_table_rows(file, Trial)
    return trials
