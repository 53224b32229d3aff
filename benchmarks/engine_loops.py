"""The contenders of `engine.py` that are not the engine, and what a contender is told and tells.

The job: every JPEG of the shards is decoded, goes through a model that changes nothing, is rounded
to bytes and encoded again; its neighbours are copied; a Parquet file holds one row a record with
both checksums.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline import images, sidecar
from pipeline.replica import Bundle
from pipeline.sample import Sample, group
from pipeline.sidecar import Row
from pipeline.stages.restore import RestoreConfig
from pipeline.tar import TarWriter, read_tar

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
        seconds: From the first record (the mean of the workers) to the last commit.
        start_s: From the start of the process to the first ready.
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


def identity_config() -> RestoreConfig:
    """Settings of a restore stage around the identity."""
    model = Bundle(path=Path("identity.safetensors"), sha256="0" * 64)
    return RestoreConfig(model=model, batch_size=BATCH, threads=1)


def plain(job: Job) -> Measured:
    """The loop as people write it: tarfile, cv2, one batch after another, one thread."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    num_images = 0
    clock = Clock(job)
    for path in job.shards:
        rows: list[dict[str, Any]] = []
        pending: list[tuple[str, bytes]] = []
        with tarfile.open(path) as source, tarfile.open(job.out / path.name, "w") as sink:
            for info in source:
                if info.name.endswith(".jpg") and len(pending) >= 2 * PLAIN_BATCH:
                    rows += plain_batch(pending, sink)
                pending.append((info.name, source.extractfile(info).read()))
            rows += plain_batch(pending, sink)
        pq.write_table(pa.Table.from_pylist(rows), job.out / f"{path.stem}.parquet")
        num_images += len(rows)
    return clock.stop(num_images)


def plain_batch(pending: list[tuple[str, bytes]], sink: tarfile.TarFile) -> list[dict[str, Any]]:
    """Restore the images among some files, write them all, and empty the list."""
    inputs = [data for name, data in pending if name.endswith(".jpg")]
    outputs = iter(plain_restore(inputs))
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


def plain_restore(inputs: list[bytes]) -> list[bytes]:
    """JPEGs in, JPEGs out."""
    faces = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in inputs]
    blob = cv2.dnn.blobFromImages(faces, 1 / 127.5, mean=(127.5,) * 3, swapRB=True)
    restored = torch.from_numpy(blob).clone()  # where the model would be
    pixels = ((restored + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    # Colours at full resolution, as the engine writes them: the same work for the codec.
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    settings = [cv2.IMWRITE_JPEG_QUALITY, 95, *sampling]
    return [
        cv2.imencode(".jpg", cv2.cvtColor(face, cv2.COLOR_RGB2BGR), settings)[1].tobytes()
        for face in pixels.permute(0, 2, 3, 1).contiguous().numpy()
    ]


def best(job: Job) -> Measured:
    """The best loop in one thread: the engine's kernels, no queue, no commit, no fsync."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    sidecar.warm()
    batch = images.new_batch(BATCH, SIZE_PX)
    provenance = identity_config().provenance
    num_images = 0
    clock = Clock(job)
    for path in job.shards:
        rows: list[Row] = []
        pending: list[Sample] = []
        with path.open("rb") as source, (job.out / path.name).open("wb") as sink:
            tar = TarWriter(sink)
            for sample in group(read_tar(source)):
                pending.append(sample)
                if len(pending) == BATCH:
                    rows += best_batch(pending, batch, tar)
            rows += best_batch(pending, batch, tar)
            tar.finish()
        with (job.out / f"{path.stem}.parquet").open("wb") as sink:
            sidecar.write_sidecar(sink, path.stem, rows, provenance)
        num_images += len(rows)
    return clock.stop(num_images)


def best_batch(pending: list[Sample], batch: torch.Tensor, tar: TarWriter) -> Iterator[Row]:
    """Restore some samples, write them, and empty the list; yields their rows."""
    for slot, sample in enumerate(pending):
        images.to_model(images.decode(sample.image.data)[1], batch, slot)
    pixels = images.to_uint8(batch.clone())
    for slot, sample in enumerate(pending):
        image, data = sample.image, images.encode(pixels[slot], "jpeg")
        for member in sample.members:
            tar.add(member.name, data if member is image else member.data)
        sums = sidecar.sha256(image.data), sidecar.sha256(data)
        sizes = (SIZE_PX,) * 4
        yield Row(sample.index, sample.key, "restored", "", image.name, *sizes, *sums)
    pending.clear()


def ray_data(job: Job) -> Measured:
    """Ray Data with the engine's kernels: the slope between a quarter of the shards and all.

    The quarter runs twice, because the first time its workers are still starting.
    """
    # Its workers are not to give way to other processes: ours do not.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    import logging

    import ray
    from ray.data import DataContext

    logging.disable(logging.WARNING)
    ray.init(address="local", num_cpus=job.cores, include_dashboard=False, log_to_driver=False)
    DataContext.get_current().enable_progress_bars = False
    start_s = time.time() - job.spawned
    few = job.shards[: max(1, len(job.shards) // 4)]
    seconds: list[float] = []
    for turn, shards in enumerate((few, few, job.shards)):
        began_s = time.perf_counter()
        rows = ray.data.read_webdataset([str(path) for path in shards], decoder=None)
        done = rows.map_batches(restore_rows, batch_size=PLAIN_BATCH, batch_format="pandas")
        done.write_webdataset(str(job.out / f"{turn}"), encoder=None)
        seconds.append(time.perf_counter() - began_s)
    ray.shutdown()
    num_images = count_images(job.shards)
    if count_images((job.out / "2").glob("*.tar")) != num_images:
        raise SystemExit("Ray Data lost images")
    return Measured(num_images - count_images(few), seconds[2] - seconds[1], start_s)


def restore_rows(rows: Any) -> Any:
    """One batch of Ray Data: the column `jpg` done over."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    batch = images.new_batch(len(rows), SIZE_PX)
    for slot, data in enumerate(rows["jpg"]):
        images.to_model(images.decode(data)[1], batch, slot)
    pixels = images.to_uint8(batch.clone())
    return rows.assign(jpg=[images.encode(face, "jpeg") for face in pixels])


def count_images(shards: Iterable[Path]) -> int:
    """Images in some shards."""
    found = 0
    for path in shards:
        with tarfile.open(path) as tar:
            found += sum(name.endswith(".jpg") for name in tar.getnames())
    return found
