"""Two workers against one, and the reader against the trainer: parts of `training.py`."""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from training_sides import SameFaces, Setup, Strict, our_stage

from pipeline.training.data import DataConfig
from pipeline.training.source import FaceSource, open_source
from vsp_model.runtime import keep_freed_memory
from vsp_model.train.batch import Parts
from vsp_model.train.distributed import Alone, Comm, ProcessGroup
from vsp_model.train.loop import Trainer, Watcher
from vsp_model.train.store import FolderStore

_WARM_STEPS, _STEPS = 2, 4
_READ_S = 10.0
_R1_INTERVAL = 1_000_000  # only in the first step, which is a warm-up


class Case(NamedTuple):
    """How a global batch of two parts is computed."""

    workers: int
    threads: int

    def __str__(self) -> str:
        return f"{self.workers} worker(s) of {self.threads} thread(s)"


CASES = (Case(1, 1), Case(2, 1), Case(1, 2))


class _Steps(Watcher):
    """Notes when steps end, on the wall and in processor time."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def stepped(self, images_seen: int, num_images: int, terms: Mapping[str, Tensor]) -> None:
        """A step has ended."""
        self.ends.append((time.perf_counter(), time.process_time()))

    def medians(self) -> list[float]:
        """Median seconds of a step after the warm-up, wall and processor."""
        sides = zip(*self.ends[_WARM_STEPS - 1 :], strict=True)
        return [statistics.median(b - a for a, b in itertools.pairwise(ends)) for ends in sides]


def _work(rank: int, case: Case, name: str, setup: Setup, folder: str, seconds: Any) -> None:
    """One worker's run; the first one hands on its medians."""
    torch.set_num_threads(case.threads)
    keep_freed_memory()
    comm: Comm = Alone()
    if case.workers > 1:
        dist.init_process_group(
            "gloo", f"file://{folder}/meeting", rank=rank, world_size=case.workers
        )
        comm = ProcessGroup("cpu")
    _, stage = our_stage(name, setup, _R1_INTERVAL)
    steps = _Steps()
    store = FolderStore(Path(folder) / "checkpoints")
    Trainer(stage, comm, store, Strict(), watcher=steps).train(SameFaces(setup.batch_size))
    if rank == 0:
        seconds.put(steps.medians())
    if case.workers > 1:
        dist.destroy_process_group()


def _seconds_of(case: Case, name: str, setup: Setup) -> list[float]:
    """Median seconds of a step in fresh processes: wall, and processor of the first worker."""
    context = multiprocessing.get_context("spawn")
    seconds = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (case, name, setup, folder, seconds)
        workers = [
            context.Process(target=_work, args=(rank, *arguments)) for rank in range(case.workers)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit(f"{case}: a worker failed")
    return list(seconds.get())


def compare_workers(name: str, setup: Setup, rounds: int) -> None:
    """Print images/s of every case, the same global batch of two parts for all."""
    setup = setup._replace(part_size=setup.batch_size // 2, num_steps=_WARM_STEPS + _STEPS)
    found: dict[Case, list[list[float]]] = {case: [] for case in CASES}
    for _ in range(rounds):
        for case in CASES:
            found[case].append(_seconds_of(case, name, setup))
    print(f"{name}, batch {setup.batch_size} in two parts, steps without R1:")
    print(f"{'':30}{'images/s':>10}{'scaling':>10}{'cpu s of a worker a step':>28}")
    base = 0.0
    for case, seconds in found.items():
        wall, cpu = (statistics.median(values) for values in zip(*seconds, strict=True))
        base = base or wall
        speed = setup.batch_size / wall
        print(f"    {case!s:26}{speed:10.2f}{base / wall:10.2f}{cpu:28.2f}", flush=True)


def report_reader(shards: str, needed: float) -> None:
    """Print the reader's images/s by itself, and what the fastest stage above takes.

    Args:
        shards: a folder of shards of faces.
        needed: images/s.
    """
    source, _ = open_source(DataConfig(train=(shards,), size=128), 0)
    assert isinstance(source, FaceSource)
    batches = source.batches(Parts(16, 16), 0)
    next(batches)
    start, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < _READ_S:
        count += sum(len(batch.keys) for batch in next(batches))
    speed = count / (time.perf_counter() - start)
    cost = (time.process_time() - cpu) / count
    print(
        f"\nreader: {speed:.0f} images/s by itself with one thread, {cost * 1e3:.2f} ms of a core "
        f"an image; the fastest stage above takes {needed:.1f}, {speed / needed:.0f} times less"
    )
