"""The contenders of `engine.py`: one job each, in a process of its own; prints a line of JSON.

    python benchmarks/engine_loops.py ray shards/ out/ --shards 24 --cores 2

The job: every JPEG of the shards is decoded, goes through a model that changes nothing, is rounded
to bytes and encoded again; its neighbours are copied; a Parquet file holds one row a record with
both checksums. Seconds and CPU seconds are counted from the first record on, `start_s` is what came
before, the start of Python included.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CPU_CLOCK = 2  # of a process, by its id: what `process_time` reads of our own (Linux)
PLAIN_BATCH, BATCH = 64, 16
SIZE_PX = 128


@dataclass(frozen=True, slots=True)
class Job:
    """What a contender is to do.

    Attributes:
        shards: The input, in order.
        out: Folder for the output.
        cores: Cores that it may use.
        codec_threads: Of each worker of the engine; 0 for what suits the pool.
        spawned: When its process was started, in seconds since 1970.
    """

    shards: tuple[Path, ...]
    out: Path
    cores: int
    codec_threads: int
    spawned: float


@dataclass(slots=True)
class Measured:
    """What it took.

    Attributes:
        images: How many were done in `seconds`.
        seconds: From ready to the last commit.
        start_s: From the start of the process to ready.
        cpu_s: CPU seconds in that time of the processes that work; negative where not known.
        driver_cpu_s: The driver's part of it, where there is a driver.
        rss_mb: Largest resident memory of the driver, then of each actor.
    """

    images: int
    seconds: float
    start_s: float
    cpu_s: float = -1.0
    driver_cpu_s: float = 0.0
    rss_mb: list[float] = field(default_factory=list)


class Clock:
    """Time and CPU time of this process since it was ready."""

    def __init__(self, job: Job) -> None:
        """Ready now."""
        self._start_s = time.time() - job.spawned
        self._began_s, self._began_cpu_s = time.perf_counter(), time.process_time()

    def stop(self, images: int) -> Measured:
        """The last image is done."""
        cpu_s = time.process_time() - self._began_cpu_s
        return Measured(images, time.perf_counter() - self._began_s, self._start_s, cpu_s)


# ------------------------------------------------------------------------------------- the loops


def plain(job: Job) -> Measured:
    """The loop as people write it: tarfile, cv2, one batch after another, one thread."""
    import hashlib
    import io
    import tarfile

    import cv2
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)

    def restore(faces: list[np.ndarray]) -> list[bytes]:
        blob = cv2.dnn.blobFromImages(faces, 1 / 127.5, mean=(127.5,) * 3, swapRB=True)
        restored = torch.from_numpy(blob).clone()  # where the model would be
        pixels = ((restored + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        quality = [cv2.IMWRITE_JPEG_QUALITY, 95]
        return [
            cv2.imencode(".jpg", cv2.cvtColor(face, cv2.COLOR_RGB2BGR), quality)[1].tobytes()
            for face in pixels.permute(0, 2, 3, 1).contiguous().numpy()
        ]

    def flush(pending: list[tuple[str, bytes]], sink: tarfile.TarFile) -> list[dict[str, Any]]:
        inputs = [data for name, data in pending if name.endswith(".jpg")]
        faces = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in inputs]
        outputs = iter(restore(faces)) if faces else iter(())
        rows = []
        for name, data in pending:
            written = data
            if name.endswith(".jpg"):
                written = next(outputs)
                sums = [hashlib.sha256(it).hexdigest() for it in (data, written)]
                rows.append({"key": name[:-4], "sha256_in": sums[0], "sha256_out": sums[1]})
            info = tarfile.TarInfo(name)
            info.size = len(written)
            sink.addfile(info, io.BytesIO(written))
        pending.clear()
        return rows

    num_images = 0
    clock = Clock(job)
    for path in job.shards:
        rows: list[dict[str, Any]] = []
        pending: list[tuple[str, bytes]] = []
        with tarfile.open(path) as source, tarfile.open(job.out / path.name, "w") as sink:
            for info in source:
                if info.name.endswith(".jpg") and len(pending) >= 2 * PLAIN_BATCH:
                    rows += flush(pending, sink)
                pending.append((info.name, source.extractfile(info).read()))
            rows += flush(pending, sink)
        pq.write_table(pa.Table.from_pylist(rows), job.out / f"{path.stem}.parquet")
        num_images += len(rows)
    return clock.stop(num_images)


def best(job: Job) -> Measured:
    """The best loop in one thread: the engine's kernels, no queue, no commit, no fsync."""
    import cv2
    import torch

    from pipeline import images, sidecar
    from pipeline.sample import Sample, group
    from pipeline.tar import TarWriter, read_tar

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    sidecar.warm()
    batch = images.new_batch(BATCH, SIZE_PX)
    provenance = identity_config().provenance

    def flush(pending: list[Sample], tar: TarWriter) -> Iterator[sidecar.Row]:
        for slot, sample in enumerate(pending):
            images.to_model(images.decode(sample.image.data)[1], batch, slot)
        pixels = images.to_uint8(batch.clone())
        for slot, sample in enumerate(pending):
            image, data = sample.image, images.encode(pixels[slot], "jpeg")
            for member in sample.members:
                tar.add(member.name, data if member is image else member.data)
            sums = sidecar.sha256(image.data), sidecar.sha256(data)
            sizes = (SIZE_PX,) * 4
            yield sidecar.Row(sample.index, sample.key, "restored", "", image.name, *sizes, *sums)
        pending.clear()

    num_images = 0
    clock = Clock(job)
    for path in job.shards:
        rows: list[sidecar.Row] = []
        pending: list[Sample] = []
        with path.open("rb") as source, (job.out / path.name).open("wb") as sink:
            tar = TarWriter(sink)
            for sample in group(read_tar(source)):
                pending.append(sample)
                if len(pending) == BATCH:
                    rows += flush(pending, tar)
            rows += flush(pending, tar)
            tar.finish()
        with (job.out / f"{path.stem}.parquet").open("wb") as sink:
            sidecar.write_sidecar(sink, path.stem, rows, provenance)
        num_images += len(rows)
    return clock.stop(num_images)


# ------------------------------------------------------------------------------------- the engine


class IdentityModel:
    """A restorer that gives back what it gets."""

    size = SIZE_PX

    def restore(self, lq: Any, keys: Any, *, seed: int = 0, noise: str = "seeded") -> Any:
        """Return `lq`."""
        return lq


def load_identity(config: Any) -> IdentityModel:
    """What the stage calls to load its model."""
    return IdentityModel()


def identity_config() -> Any:
    """Settings of a restore stage around the identity."""
    from pipeline.replica import Bundle
    from pipeline.stages.restore import RestoreConfig

    model = Bundle(path=Path("identity.safetensors"), sha256="0" * 64)
    return RestoreConfig(model=model, batch_size=BATCH, threads=1)


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
    from pipeline.stages.restore import RestoreStage
    from pipeline.storage import open_store

    config = identity_config()
    ledger = Ledger(open_store(str(job.out)))
    units = shard_units([str(path) for path in job.shards])
    plan = new_plan("restore", config.provenance, units, {})
    ledger.save(plan)
    flow = FlowConfig(codec_threads=job.codec_threads or codec_threads)
    pool = make_pool(pool_config(folder=ledger.folder, flow=flow))
    meter = Meter(job)
    stage = partial(RestoreStage, config, load_identity)
    summary = run(stage, ledger, plan, units, pool, on_progress=meter.look)
    if summary.exit_code:
        raise SystemExit(f"{summary.errors} {summary.notes}")
    return meter.measured


class Meter:
    """Reads a run's clocks when its first worker is ready, and when its last shard is done."""

    def __init__(self, job: Job) -> None:
        """Nothing is measured yet."""
        self._spawned = job.spawned
        self._before: dict[int, float] = {}
        self._start_s = 0.0

    def look(self, summary: Any) -> None:
        """What the runner calls after every event."""
        if summary.began_s and not self._before:
            self._start_s = time.time() - self._spawned
            self._before = {pid: cpu_seconds(pid) for pid in working()}
        if summary.num_done == summary.num_shards:
            seconds = time.monotonic() - summary.began_s
            spent = {pid: cpu_seconds(pid) - self._before.get(pid, 0.0) for pid in working()}
            self.measured = Measured(
                images=summary.counts.total(),
                seconds=seconds,
                start_s=self._start_s,
                cpu_s=sum(spent.values()),
                driver_cpu_s=spent[os.getpid()],
                rss_mb=[largest_rss_mb(pid) for pid in spent],
            )


def working() -> list[int]:
    """This process, then the actors below it; Ray's own processes are not counted."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    own = os.getpid()
    return [own, *sorted(pid for pid in parents if is_below(pid, own, parents) and is_actor(pid))]


def is_below(pid: int, root: int, parents: dict[int, int]) -> bool:
    """Whether `root` is among the parents of `pid`."""
    while pid in parents and parents[pid] != root:
        pid = parents[pid]
    return pid in parents


def is_actor(pid: int) -> bool:
    """Whether Ray calls the process an actor."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Actor")
    except OSError:
        return False


def cpu_seconds(pid: int) -> float:
    """CPU time of a process with all threads it has had."""
    return time.clock_gettime(~pid << 3 | CPU_CLOCK)


def largest_rss_mb(pid: int) -> float:
    """The largest resident memory a process has had."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) / 1024


# --------------------------------------------------------------------------------------- Ray Data


def ray_data(job: Job) -> Measured:
    """Ray Data with the engine's kernels: the slope between a quarter of the shards and all."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    import logging

    import ray
    from ray.data import DataContext

    logging.disable(logging.WARNING)
    ray.init(num_cpus=job.cores, include_dashboard=False, log_to_driver=False)
    DataContext.get_current().enable_progress_bars = False
    start_s = time.time() - job.spawned
    few = job.shards[: max(1, len(job.shards) // 4)]
    counted = [0.0, 0.0]
    for turn, shards in enumerate((few, job.shards)):
        began_s = time.perf_counter()
        rows = ray.data.read_webdataset([str(path) for path in shards], decoder=None)
        done = rows.map_batches(restore_rows, batch_size=PLAIN_BATCH, batch_format="pandas")
        done.write_webdataset(str(job.out / f"{turn}"), encoder=None)
        counted[turn] = time.perf_counter() - began_s
    num_images = count_images(job.shards) - count_images(few)
    ray.shutdown()
    return Measured(num_images, counted[1] - counted[0], start_s)


def restore_rows(rows: Any) -> Any:
    """One batch of Ray Data: the column `jpg` done over."""
    import cv2
    import torch

    from pipeline import images

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    batch = images.new_batch(len(rows), SIZE_PX)
    for slot, data in enumerate(rows["jpg"]):
        images.to_model(images.decode(data)[1], batch, slot)
    pixels = images.to_uint8(batch.clone())
    return rows.assign(jpg=[images.encode(face, "jpeg") for face in pixels])


def count_images(shards: tuple[Path, ...]) -> int:
    """Images in some shards."""
    import tarfile

    found = 0
    for path in shards:
        with tarfile.open(path) as tar:
            found += sum(name.endswith(".jpg") for name in tar.getnames())
    return found


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
