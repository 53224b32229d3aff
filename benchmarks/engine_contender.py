"""One contender of `engine.py`, in a process of its own; prints a line of JSON.

    python benchmarks/engine_contender.py ray shards/ out/ --shards 16 --cores 2

The engine's are here, the others in `engine_loops.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine_loops import SIZE_PX, Job, Measured, best, identity_config, plain, ray_data

from pipeline.stages.restore import RestoreStage

CPU_CLOCK = 2  # of a process, by its id: what `process_time` reads of our own (Linux)


class IdentityModel:
    """A restorer that gives back what it gets."""

    size = SIZE_PX

    def restore(self, lq: Any, keys: Any, *, seed: int = 0, noise: str = "seeded") -> Any:
        """Return `lq`."""
        return lq


def load_identity(config: Any) -> IdentityModel:
    """What the stage calls to load its model."""
    return IdentityModel()


class NotingStage(RestoreStage):
    """Notes when its worker reads the first shard, and the CPU time until then."""

    def __init__(self, notes: Path, *settings: Any) -> None:
        """Plan the stage; `notes` is a folder."""
        super().__init__(*settings)
        self._notes = notes

    def read(self, task: Any) -> Any:
        """Read the tar."""
        path = self._notes / str(os.getpid())
        if not path.exists():
            path.write_text(json.dumps([time.time(), time.process_time()]))
        return super().read(task)


def local(job: Job) -> Measured:
    """The engine in one process: one worker."""
    from pipeline.pools.base import PoolConfig
    from pipeline.pools.local import LocalPool

    return run_engine(job, lambda config: LocalPool(config, job.out), PoolConfig, 2)


def ray(job: Job) -> Measured:
    """The engine on Ray: a worker a core."""
    from pipeline.pools.base import PoolConfig
    from pipeline.pools.ray import Placement, RayPool

    return run_engine(job, lambda config: RayPool(job.cores, config, Placement()), PoolConfig, 1)


def run_engine(
    job: Job, make_pool: Callable[[Any], Any], pool_config: Any, codec_threads: int
) -> Measured:
    """Run the stage with the full commit protocol: fsync, commit records, journal."""
    from functools import partial

    from pipeline.flow import FlowConfig
    from pipeline.ledger import Ledger
    from pipeline.plan import new_plan, shard_units
    from pipeline.runner import run
    from pipeline.storage import open_store

    config = identity_config()
    ledger = Ledger(open_store(str(job.out)))
    units = shard_units([str(path) for path in job.shards])
    plan = new_plan("restore", config.provenance, units, {})
    ledger.save(plan)
    flow = FlowConfig(codec_threads=job.codec_threads or codec_threads)
    pool = make_pool(pool_config(folder=ledger.folder, flow=flow))
    meter = Meter(job)
    notes(job).mkdir()
    stage = partial(NotingStage, notes(job), config, load_identity)
    summary = run(stage, ledger, plan, units, pool, on_progress=meter.look)
    if summary.exit_code:
        raise SystemExit(f"{summary.errors} {summary.notes}")
    return meter.measured


class Meter:
    """Reads a run's clocks when its workers are ready, and when its last shard is done."""

    def __init__(self, job: Job) -> None:
        """Nothing is measured yet."""
        self._job = job
        self._began = self._began_cpu_s = 0.0

    def look(self, summary: Any) -> None:
        """What the runner calls after every event."""
        if summary.began_s and not self._began:
            self._began, self._began_cpu_s = time.time(), time.process_time()
        if summary.num_done == summary.num_shards:
            self.measured = self._measure(summary.counts.total())

    def _measure(self, images: int) -> Measured:
        now = time.time()
        ready = {
            int(path.name): json.loads(path.read_text()) for path in notes(self._job).iterdir()
        }
        driver_cpu_s = time.process_time() - self._began_cpu_s
        # In the local pool the driver is the worker: not to be counted twice.
        others = [pid for pid in ready if pid != os.getpid()]
        return Measured(
            images=images,
            seconds=now - sum(at for at, _ in ready.values()) / len(ready),
            start_s=self._began - self._job.spawned,
            cpu_s=driver_cpu_s + sum(cpu_seconds(pid) - ready[pid][1] for pid in others),
            driver_cpu_s=driver_cpu_s,
            rss_mb=[largest_rss_mb(pid) for pid in (os.getpid(), *others)],
        )


def notes(job: Job) -> Path:
    """Where each worker notes when it began, and its CPU time by then."""
    return job.out.parent / f"{job.out.name}-ready"


def cpu_seconds(pid: int) -> float:
    """CPU time of a process with all threads it has had."""
    return time.clock_gettime(~pid << 3 | CPU_CLOCK)


def largest_rss_mb(pid: int) -> float:
    """The largest resident memory a process has had."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) / 1024


CONTENDERS: dict[str, Callable[[Job], Measured]] = {
    "plain": plain,
    "best": best,
    "local": local,
    "ray": ray,
    "ray-data": ray_data,
}


def main() -> None:
    """Do one job and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shards", type=int, default=0, help="only the first so many")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--codec-threads", type=int, default=0)
    parser.add_argument("--spawned", type=float, default=time.time())
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-options.cores :])
    shards = tuple(sorted(options.source.glob("*.tar")))[: options.shards or None]
    options.out.mkdir(parents=True, exist_ok=True)
    job = Job(shards, options.out, options.cores, options.codec_threads, options.spawned)
    json.dump(asdict(CONTENDERS[options.contender](job)), sys.stdout)


if __name__ == "__main__":
    main()
