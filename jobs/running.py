"""What every command that runs a stage over shards shares: plan, lock, pool, run, summary."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

if TYPE_CHECKING:
    from pipeline.flow import FlowConfig
    from pipeline.ledger import Ledger
    from pipeline.plan import Plan, Unit
    from pipeline.pools.base import Pool
    from pipeline.runner import RunnerConfig, Summary
    from pipeline.sidecar import Provenance
    from pipeline.stage import StageFactory

PoolName = Literal["auto", "local", "ray"]
ZOMBIES_S = 60.0


@dataclass(frozen=True, slots=True)
class RunFlags:
    """What the user chose about the run; nothing here changes a byte of the output.

    Attributes:
        pool: Where the workers are.
        workers: How many.
        ray_address: A running cluster, "" for none.
        gpus_per_worker: A fraction shares one GPU; 0 for work on the CPU.
        threads: Torch threads of a worker, for the cluster's bookkeeping.
        codec_threads: Threads of a worker that decode and encode.
        memory_mb: What a worker may hold in flight.
        patience_s: How long a full disk or silent store is waited for.
        restart: Forget what was done.
        only_failed: Do failed records again.
        dry_run: Say what would be done, and stop.
        as_json: The summary as JSON on stdout.
    """

    pool: PoolName = "auto"
    workers: int = 1
    ray_address: str = ""
    gpus_per_worker: float = 0.0
    threads: int = 1
    codec_threads: int = 2
    memory_mb: int = 256
    patience_s: float = 600.0
    restart: bool = False
    only_failed: bool = False
    dry_run: bool = False
    as_json: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """A stage and what it is to be run on.

    Attributes:
        name: The command.
        factory: Makes the stage; it is pickled for workers in other processes.
        provenance: What decides the bytes of the output.
        units: The input.
        out: The output folder.
        root: The folder the user named as input, if it was one.
        grows: The output folder takes units of many runs: those that are new join its plan, and
            this run does and tells of its own alone.
        again: Units of earlier runs that are taken back, outputs and all.
        begin: Writes what the workers need beside the plan, once the folder is this run's alone.
        is_locked: The caller holds the folder's lock already.
    """

    name: str
    factory: "StageFactory"
    provenance: "Provenance"
    units: Sequence["Unit"]
    out: str
    root: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    grows: bool = False
    again: frozenset[str] = frozenset()
    begin: Callable[[], None] = lambda: None
    is_locked: bool = False


def open_ledger(out: str) -> "tuple[Ledger, Plan]":
    """The records of the runs on an output folder.

    Raises:
        UserError: If no run has begun there.
    """
    from pipeline.errors import UserError
    from pipeline.ledger import Ledger
    from pipeline.storage import open_store

    ledger = Ledger(open_store(out))
    plan = ledger.plan()
    if plan is None:
        raise UserError(f"{out}: no run has begun here; give the OUT of a run")
    return ledger, plan


def versions() -> dict[str, str]:
    """What computes, for the plan: another version may change the last bits."""
    from importlib.metadata import version

    import cv2

    names = ("vsp-restore", "torch", "numpy", "simplejpeg", "pillow", "pyarrow")
    return {name: version(name) for name in names} | {"opencv": cv2.__version__}


def existing_settings(out: str) -> Mapping[str, Any]:
    """The settings that an output folder was begun with; empty where there is none."""
    from pipeline.ledger import Ledger
    from pipeline.storage import open_store

    plan = Ledger(open_store(out)).plan()
    return plan.settings if plan else {}


def run_job(job: Job, flags: RunFlags) -> "Summary | None":
    """Do what is left to do; None after a dry run.

    Raises:
        UserError: If the folders or the settings do not fit.
        RunError: If the run cannot go on.
    """
    from pipeline.ledger import Ledger
    from pipeline.locks import run_lock
    from pipeline.plan import check_apart
    from pipeline.storage import open_store

    check_apart([unit.source for unit in job.units], job.out, job.root)
    ledger = Ledger(open_store(job.out))
    plan = _plan(job, ledger, flags)
    if flags.dry_run:
        _tell_plan(job, ledger, plan)
        return None
    _make_out(ledger)
    with nullcontext() if job.is_locked else run_lock(ledger.store):
        return _run_locked(job, flags, ledger, plan)


def _plan(job: Job, ledger: "Ledger", flags: RunFlags) -> "Plan":
    """The folder's plan, or a new one; refuses what does not fit."""
    from pipeline.plan import check_own, check_same, new_plan

    there = ledger.plan()
    plan = new_plan(job.name, job.provenance, job.units, job.versions)
    if job.grows:
        return _grown(there, plan, job, ledger)
    if there is not None and not flags.restart:
        check_same(there, plan, job.out)
        plan = replace(there, units=plan.units)  # the input may have moved
    known = ledger.committed(there) | ledger.redone(there) if there else set[str]()
    check_own(ledger.store, there, known)
    return plan


def _grown(there: "Plan | None", plan: "Plan", job: Job, ledger: "Ledger") -> "Plan":
    """What the folder's plan has finished, with this run's units; another job's is refused."""
    from pipeline.errors import UserError

    if there is None:
        return plan
    if there.job != plan.job:
        raise UserError(f"{job.out}: begun by `vsp {there.job}`; choose another OUT")
    done = ledger.committed(there) - job.again - {unit.shard for unit in plan.units}
    kept = tuple(unit for unit in there.units if unit.shard in done)
    return replace(there, units=kept + plan.units)


def _tell_plan(job: Job, ledger: "Ledger", plan: "Plan") -> None:
    num_done = len(ledger.committed(plan))
    typer.echo(job.provenance.config)
    typer.echo(f"{len(plan.units) - num_done} shards to do, {num_done} finished -> {job.out}")


def _make_out(ledger: "Ledger") -> None:
    from pipeline.plan import make_out
    from pipeline.storage import LocalStore

    if isinstance(ledger.store, LocalStore):
        make_out(ledger.store.root)


def _run_locked(job: Job, flags: RunFlags, ledger: "Ledger", plan: "Plan") -> "Summary":
    from pipeline.runner import run

    suspects = _clear(ledger, plan, flags)
    if job.grows:
        for shard in sorted(job.again):
            ledger.note("redo", plan=plan.id, shard=shard)
        ledger.forget(plan, sorted(job.again), outputs=True)
        job.begin()
        ledger.save(plan)
        plan = replace(plan, units=tuple(job.units))
    todo = _todo(ledger, plan, flags)
    runner_config = _runner_config(flags)
    pool = make_pool(flags, ledger, apart=bool(suspects))
    from jobs.display import Display

    with Display(as_json=flags.as_json) as display:
        summary = run(
            job.factory, ledger, plan, todo, pool, runner_config, display.update, suspects
        )
    display.close(summary, job.out)
    return summary


def _clear(ledger: "Ledger", plan: "Plan", flags: RunFlags) -> dict[str, frozenset[int]]:
    """Bring an interrupted run's remains in order, or start over; the lock is held.

    Returns:
        The records that were in hand when a driver died with the worker in its own process.
    """
    from pipeline.locks import wait_exclusive
    from pipeline.tracker import read_traces

    suspects: dict[str, frozenset[int]] = {}
    if ledger.folder is not None:
        wait_exclusive(ledger.folder / "actors.lock", ZOMBIES_S)
        suspects = dict(read_traces(ledger.folder / "workers" / "local").in_hand)
        shutil.rmtree(ledger.folder / "workers", ignore_errors=True)
    there = ledger.plan()
    ledger.recover(there, discard=True)
    if there is None or there.id != plan.id:
        if there is not None:
            ledger.forget(there, sorted(ledger.committed(there)), outputs=True)
        ledger.save(plan)
        suspects = {}
    return suspects


def _todo(ledger: "Ledger", plan: "Plan", flags: RunFlags) -> list["Unit"]:
    """The units to do; with `only_failed` those with failed records, whose decision is undone."""
    _undo_missing(ledger, plan)
    committed = ledger.committed(plan)
    todo = [unit for unit in plan.units if unit.shard not in committed]
    if not flags.only_failed:
        return todo
    failed = {record["shard"] for record in ledger.commits(plan) if record["counts"].get("failed")}
    for shard in sorted(failed):
        ledger.note("redo", plan=plan.id, shard=shard)
    ledger.forget(plan, sorted(failed), outputs=False)
    again = [replace(unit, redo=True) for unit in plan.units if unit.shard in failed]
    return todo + again


def _undo_missing(ledger: "Ledger", plan: "Plan") -> None:
    """Take back the decision about a shard whose output somebody has removed."""
    from pipeline.storage import OWN_FOLDER

    there = set(ledger.store.list())
    for record in list(ledger.commits(plan)):
        names = {file["name"] for file in record["files"]}
        if any(name not in there for name in names if not name.startswith(f"{OWN_FOLDER}/")):
            ledger.note("redo", plan=plan.id, shard=record["shard"])
            ledger.forget(plan, [record["shard"]], outputs=False)


def _runner_config(flags: RunFlags) -> "RunnerConfig":
    from pipeline.runner import RunnerConfig

    return RunnerConfig(patience_s=flags.patience_s)


def make_pool(flags: RunFlags, ledger: "Ledger", *, apart: bool = False) -> "Pool":
    """Make the pool that the flags name; Ray is imported only if it is needed.

    Args:
        flags: What the user chose.
        ledger: The output folder's.
        apart: The worker may die: not in this process.
    """
    from tempfile import gettempdir

    from pipeline.pools.base import PoolConfig

    workers = flags.workers
    config = PoolConfig(folder=ledger.folder, flow=_flow(flags))
    scratch = Path(gettempdir()) / f"vsp-{os.getpid()}"
    wants_ray = flags.pool == "ray" or bool(flags.ray_address)
    if wants_ray or (flags.pool == "auto" and workers > 1):
        from pipeline.pools.ray import Placement, RayPool

        placement = Placement(
            num_cpus=flags.threads if flags.ray_address else 1,
            num_gpus=flags.gpus_per_worker,
            address=flags.ray_address,
        )
        return RayPool(workers, config, placement)
    if workers > 1 or apart:
        from pipeline.pools.processes import ProcessPool

        return ProcessPool(workers, config, scratch)
    from pipeline.pools.local import LocalPool

    return LocalPool(config, scratch)


def _flow(flags: RunFlags) -> "FlowConfig":
    from pipeline.flow import FlowConfig

    return FlowConfig(codec_threads=flags.codec_threads, budget_bytes=flags.memory_mb * 2**20)
