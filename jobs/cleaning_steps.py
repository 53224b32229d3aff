"""The steps of a cleaning run; each does what is left of it."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from jobs.cleaning_plan import CleanRun
from jobs.running import Job, RunFlags, run_job, versions
from jobs.steps import judged, quiet
from pipeline.cleaning import overrule
from pipeline.cleaning.tables import (
    ALIGNED,
    CALIBRATE,
    FACES,
    GROUPS,
    INSPECT,
    PRIVATE,
    THRESHOLDS,
)
from pipeline.ledger import PLAN, Ledger
from pipeline.plan import Unit, difference
from pipeline.storage import OWN_FOLDER, open_store

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.cleaning.calibration.thresholds import Thresholds
    from pipeline.runner import Summary
    from pipeline.stages.clean import CleanConfig


def run_part(job: Job, what: str, flags: RunFlags) -> "Summary":
    """Run a step and tell it in one line."""
    with quiet():
        summary = run_job(job, flags)
    assert summary, "no dry run comes here"
    judged(summary, what)
    return summary


# -------------------------------------------------------------------------------------- align


def align(run: CleanRun) -> bool:
    """Cut the faces out of whatever the input holds, into shards of crops.

    Returns:
        Whether every photo could be read.
    """
    from pipeline.stages.align import AlignStage

    config = run.settings.align
    stage = partial(AlignStage, config, run.out)
    out = f"{run.out}/{ALIGNED}"
    provenance = AlignStage(config, run.out).provenance
    job = Job("align", stage, provenance, run.units, out, versions=versions())
    return not run_part(job, "faces cut out", _codec_flags(run)).num_bad


# ------------------------------------------------------------------------------------ inspect


def inspect(run: CleanRun) -> None:
    """Look at every image that has not been looked at."""
    from pipeline.stages.inspect import InspectConfig, InspectStage

    config = InspectConfig(
        look=run.look,
        scorer_sha256=run.scorer_sha256,
        names=run.settings.names,
        limit=run.request.limit,
        run=run.out,
    )
    stage = partial(InspectStage, config)
    out = f"{run.out}/{INSPECT}"
    job = Job("inspect", stage, config.provenance, run.units, out, versions=versions())
    if _is_unfinished(run, out):  # what is found anew has to be compared, and decided about, anew
        run.store.remove(GROUPS)
        run.store.remove(THRESHOLDS)
    run_part(job, "inspected", _codec_flags(run))
    if _take_back(run):
        typer.echo("embeddings are needed again: looking at their shards once more", err=True)
        run_part(job, "inspected", replace(_codec_flags(run), only_failed=False))


def _is_unfinished(run: CleanRun, out: str) -> bool:
    """Whether images are still to be looked at."""
    ledger = Ledger(open_store(out))
    there = ledger.plan()
    if there is None or {unit.shard for unit in run.units} - ledger.committed(there):
        return True
    failed = (record["counts"].get("failed") for record in ledger.commits(there))
    return run.flags.only_failed and any(failed)


def _codec_flags(run: CleanRun) -> RunFlags:
    """Nothing goes through the model: all cores look."""
    from jobs.models import num_cores

    threads = run.flags.codec_threads or max(1, num_cores() // run.flags.workers)
    return replace(run.flags, codec_threads=threads, as_json=False, gpus_per_worker=0.0)


def model_flags(run: CleanRun) -> RunFlags:
    """What the model leaves of the cores looks at its faces."""
    from jobs.models import num_cores

    left = num_cores() // run.flags.workers - int(run.values["threads"])
    threads = run.flags.codec_threads or max(1, min(24, left))
    return replace(run.flags, codec_threads=threads, as_json=False, only_failed=False)


def _take_back(run: CleanRun) -> bool:
    """Forget shards whose embeddings are gone and needed; returns whether there are any."""
    from pipeline.cleaning.decide import has_groups

    store = open_store(f"{run.out}/{INSPECT}")
    ledger = Ledger(store)
    plan = ledger.plan()
    wanted = run.request.keep_embeddings or not has_groups(run.store, _groups_digest(run))
    if plan is None or not wanted:
        return False
    there = {name.rpartition("/")[2] for name in store.list(PRIVATE)}
    done = ledger.committed(plan)
    gone = sorted(shard for shard in done if f"{shard}.parquet" not in there)
    for shard in gone:
        ledger.note("redo", plan=plan.id, shard=shard)
    ledger.forget(plan, gone, outputs=True)
    return bool(gone)


def _groups_digest(run: CleanRun) -> str:
    """What groups of copies and persons follow from: what was seen, and how it is compared."""
    settings = run.settings
    copies = settings.copies.model_dump(mode="json", exclude={"threads"})
    return digest_of([seen_facts(run), copies, settings.identities.model_dump(mode="json")])


def seen_facts(run: CleanRun) -> list[Any]:
    """What the tables of what was seen follow from; an image that is forgotten changes nothing."""
    plan = Ledger(open_store(f"{run.out}/{INSPECT}")).plan()
    assert plan, "the inspection comes first"
    units = plan.units
    if run.request.align:  # tars of crops are written anew when one is forgotten, photos are not
        aligned = Ledger(open_store(f"{run.out}/{ALIGNED}")).plan()
        assert aligned, "the crops come first"
        units = aligned.units
    return [plan.settings, [[unit.shard, unit.version, unit.limit] for unit in units]]


def digest_of(facts: Any) -> str:
    """What a set of facts is known by."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


# ------------------------------------------------------------------------------------- decide


def decide(run: CleanRun, thresholds: "Thresholds | None") -> None:
    """Compare all images with each other and decide about each."""
    from pipeline.cleaning import decide as deciding

    shards = [unit.shard for unit in run.units]
    seen = deciding.load_seen(run.store, shards)
    digest = _groups_digest(run)
    if deciding.has_groups(run.store, digest):
        groups = deciding.load_groups(run.store)
    else:
        groups = deciding.find_groups(run.store, seen, digest, run.settings)
    verdicts = _verdicts(run, seen)
    situation = deciding.Situation(thresholds, verdicts, run.model_size, bool(run.look.identity))
    decisions = deciding.decide_all(run.store, shards, seen, groups, situation, run.settings.gate)
    counts = Counter(each.decision for each in decisions)
    told = ", ".join(f"{count} {decision}" for decision, count in sorted(counts.items()))
    typer.echo(f"decided: {told}", err=True)


def _verdicts(run: CleanRun, seen: "pa.Table") -> overrule.Overrules:
    """What a person decided, the user's file included; of unknown keys nothing is kept."""
    there = overrule.load(run.store)
    if run.request.overrule is None:
        return there
    places = set(zip(seen["shard"].to_pylist(), seen["key"].to_pylist(), strict=True))
    places |= {("", key) for _, key in places}
    more = overrule.read_file(run.request.overrule)
    known = {place: verdict for place, verdict in more.items() if place in places}
    if len(known) < len(more):
        first = next(place[1] for place in more if place not in places)
        typer.echo(
            f"{run.request.overrule}: {len(more) - len(known)} of {len(more)} keys are not in this "
            f"set, the first {first!a}", err=True,
        )  # fmt: skip
    joined = overrule.joined(there, known)
    overrule.save(run.store, joined)
    return joined


# -------------------------------------------------------------------------------------- clean


def check_out(run: CleanRun) -> None:
    """Refuse an output folder that is not this run's, before hours of work.

    Raises:
        UserError: If it holds something else, or was begun otherwise.
    """
    from pipeline.plan import check_own

    there = Ledger(run.store).plan()
    if there is None:
        check_own(run.store, None, set())
    else:
        config = there.config if run.flags.restart else _clean_config(run).provenance.config
        _check_same(run, config)


def start_over(run: CleanRun) -> CleanRun:
    """Forget what every step has done; killed here, the same command forgets the rest.

    Returns:
        The run, which has no more to forget.
    """
    for place in (run.out, *(f"{run.out}/{step}" for step in (CALIBRATE, INSPECT, ALIGNED))):
        ledger = Ledger(open_store(place))
        there = ledger.plan()
        if there is not None:
            ledger.forget(there, sorted(ledger.committed(there)), outputs=True)
            ledger.store.remove(PLAN)
    for name in (GROUPS, THRESHOLDS, FACES):
        run.store.remove(name)
    return replace(run, flags=replace(run.flags, restart=False))


def _clean_config(run: CleanRun) -> "CleanConfig":
    from pipeline.stages.clean import CleanConfig

    return CleanConfig.model_validate(
        dict(run.values) | {"look": run.look, "scorer_sha256": run.scorer_sha256,
                            "align": _aligner(run)}
    )  # fmt: skip


def clean(run: CleanRun) -> "Summary":
    """Write the cleaned shards; those whose decisions have changed are written again.

    Raises:
        Stopped: By a signal.
    """
    from pipeline.cleaning.decide import version_of
    from pipeline.stages.clean import CleanStage

    config = _clean_config(run)
    units = tuple(
        replace(unit, version=version_of(run.store, unit.version, unit.shard)) for unit in run.units
    )
    grows, again = _changed(run, units, config.provenance.config)
    job = Job(
        "clean", partial(CleanStage, config), config.provenance, units, run.out,
        versions=versions(), grows=grows, again=again, is_locked=True,
    )  # fmt: skip
    return run_part(job, "cleaned", model_flags(run))


def _aligner(run: CleanRun) -> str:
    if not run.request.align:
        return ""
    from pipeline.stages.align import AlignStage

    return AlignStage(run.settings.align, run.out).provenance.config


def _changed(run: CleanRun, units: tuple[Unit, ...], config: str) -> tuple[bool, frozenset[str]]:
    """Whether the folder's plan goes on, and its finished shards that are to be done again.

    Raises:
        UserError: If the folder was begun with other settings.
    """
    ledger = Ledger(run.store)
    there = ledger.plan()
    if there is None:
        return False, frozenset()
    _check_same(run, config)
    before = {unit.shard: unit.version for unit in there.units}
    done = ledger.committed(there)
    again = {u.shard for u in units if u.shard in done and before.get(u.shard) != u.version}
    if run.flags.only_failed:
        again |= {r["shard"] for r in ledger.commits(there) if r["counts"].get("failed")}
    return True, frozenset(again)


def _check_same(run: CleanRun, config: str) -> None:
    from pipeline.errors import UserError

    there = Ledger(run.store).plan()
    assert there, "a plan to compare with"
    if there.job != "clean":
        raise UserError(f"{run.out}: begun by `vsp {there.job}`; choose another OUT")
    if changed := difference(there.settings, json.loads(config)):
        raise UserError(
            f"{run.out}: begun with other settings ({changed}); "
            "choose another OUT, or start over with --restart"
        )


def remove_embeddings(run: CleanRun) -> None:
    """Take away what can tell a person again: the run needs it no more."""
    from pipeline.cleaning.output import TRIALS

    for place, folder in ((INSPECT, PRIVATE), (CALIBRATE, f"{OWN_FOLDER}/{TRIALS}")):
        store = open_store(f"{run.out}/{place}")
        for name in list(store.list(folder)):
            store.remove(name)
