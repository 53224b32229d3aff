"""Steps a second of each training stage: ours against the same stage written the naive way.

    python benchmarks/training.py --threads 2 --rounds 5
    python benchmarks/training.py --stage restorer --lpips vgg --width 128
    python benchmarks/training.py --stage restorer --reader SHARDS
    python benchmarks/training.py --stage restorer --workers --rounds 3

Ours runs through ``vsp_model.train.loop.Trainer``; the naive side (`training_naive.py`) steps in
the pauses between its steps, in the same process, so that the ratio survives a busy machine. Both
hold the same networks, losses and batch. Before anything is timed their losses and the norm of
their gradient are compared on one set of random numbers. Steps with R1, which come every 16th time,
are timed by themselves and counted as a sixteenth. "cpu" is processor time, which other processes
disturb least; with more than one thread it includes waiting for each other.

Both sides run in float32, with freed memory kept as the trainer keeps it. The networks are small,
so the judge is too: with ``--lpips vgg``, which nobody made smaller, it dominates the step and both
sides spend the same on it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import training_workers
from torch import Tensor
from training_naive import NaiveStage
from training_sides import (
    STAGES,
    TIMED_R1_INTERVAL,
    WITH_ADVERSARY,
    SameFaces,
    Setup,
    Strict,
    both_sides,
    largest_difference,
    smooth_faces,
)

from vsp_model.runtime import keep_freed_memory
from vsp_model.train.batch import Batch
from vsp_model.train.distributed import Alone
from vsp_model.train.loop import Trainer, Watcher
from vsp_model.train.store import FolderStore

R1_INTERVAL = 16
AIM = 1.5


class Clock(NamedTuple):
    """A moment, or seconds between two."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Clock:
        """This moment."""
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: Clock) -> Clock:
        """Seconds from ``start`` on."""
        return Clock(self.wall - start.wall, self.cpu - start.cpu)


class Turns(Watcher):
    """Lets the naive side step after each of ours, and times both."""

    def __init__(self, naive: NaiveStage, batch_size: int) -> None:
        self.ours: list[Clock] = []
        self.naive: list[Clock] = []
        self._rival = naive
        self._batch = naive_faces(batch_size)
        self._start = Clock.now()

    def stepped(self, images_seen: int, num_images: int, terms: Mapping[str, Tensor]) -> None:
        """A step of ours has ended."""
        self.ours.append(Clock.now().since(self._start))
        self._start = Clock.now()
        penalised = len(self.naive) % TIMED_R1_INTERVAL == 0
        self._rival.step(self._batch, penalised=penalised)
        self.naive.append(Clock.now().since(self._start))
        self._start = Clock.now()


class Times(NamedTuple):
    """Median seconds of a step, R1 counted as often as it comes."""

    ours: Clock
    naive: Clock
    steps: Mapping[str, Clock]
    """Medians of each kind of step, for the reader."""


def naive_faces(batch_size: int) -> Batch:
    """The batch in default memory format."""
    batch = smooth_faces(batch_size)
    return batch._replace(lq=batch.lq.contiguous(), hq=batch.hq.contiguous())


def timed(name: str, setup: Setup, rounds: int) -> Times:
    """Train both sides in turns; the first step of each kind is a warm-up."""
    kinds = TIMED_R1_INTERVAL if name in WITH_ADVERSARY else 1
    setup = setup._replace(num_steps=kinds * (1 + rounds))
    sides = both_sides(name, setup)
    turns = Turns(sides.naive, setup.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(sides.ours, Alone(), FolderStore(Path(folder)), Strict(), watcher=turns)
        trainer.train(SameFaces(setup.batch_size))
    ours, ours_kinds = amortised(turns.ours, kinds)
    naive, naive_kinds = amortised(turns.naive, kinds)
    steps = {f"ours, {k}": v for k, v in ours_kinds.items()}
    return Times(ours, naive, steps | {f"naive, {k}": v for k, v in naive_kinds.items()})


def amortised(clocks: Sequence[Clock], kinds: int) -> tuple[Clock, dict[str, Clock]]:
    """The mean step of a long run, and the median of each kind; the first of each is left out."""
    medians = [median(clocks[kinds + kind :: kinds]) for kind in range(kinds)]
    if kinds == 1:
        return medians[0], {}
    with_r1, plain = medians
    share = 1 / R1_INTERVAL
    mean = Clock(
        share * with_r1.wall + (1 - share) * plain.wall,
        share * with_r1.cpu + (1 - share) * plain.cpu,
    )
    return mean, {"without R1": plain, "with R1": with_r1}


def median(clocks: Sequence[Clock]) -> Clock:
    """Of wall and processor time each."""
    return Clock(
        statistics.median(c.wall for c in clocks), statistics.median(c.cpu for c in clocks)
    )


def report(name: str, times: Times, batch_size: int) -> None:
    """One stage's figures."""
    ours, naive = times.ours, times.naive
    wall, cpu = naive.wall / ours.wall, naive.cpu / ours.cpu
    print(
        f"{name:10}{1 / naive.wall:14.3f}{1 / ours.wall:12.3f}{batch_size / ours.wall:10.2f}"
        f"{wall:8.2f}{cpu:11.2f}{'' if wall >= AIM else f'  below {AIM}'}",
        flush=True,
    )
    for kind, seconds in times.steps.items():
        print(f"    {kind:20}{seconds.wall:8.3f} s wall{seconds.cpu:8.3f} s cpu")


def compare(name: str, setup: Setup) -> None:
    """Refuse to time what does not compute the same."""
    figure, difference = largest_difference(name, setup)
    if not difference <= 1:
        raise SystemExit(f"{name}: {figure} differs by {difference:.1f} times the tolerance")
    print(f"{name}: losses and gradient agree within {difference:.3f} of the tolerance ({figure})")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--width", type=int, default=64, help="channels up to 64 pixels")
    parser.add_argument("--lpips", choices=("squeeze", "alex", "vgg"), default="squeeze")
    parser.add_argument("--reader", metavar="SHARDS", help="also time the reader of these shards")
    parser.add_argument("--workers", action="store_true", help="time two workers against one")
    return parser.parse_args()


def main() -> None:
    """Parse the command line and run."""
    options = parse()
    setup = Setup(options.width, options.lpips, options.batch)
    if options.workers:
        for name in options.stage:
            training_workers.compare_workers(name, setup, options.rounds)
        return
    torch.set_num_threads(options.threads)
    kept = keep_freed_memory()
    print(
        f"torch {torch.__version__}, {options.threads} threads, fp32, batch {options.batch}, "
        f"LPIPS-{options.lpips}, {options.width} channels, freed memory kept: {kept}"
    )
    for name in options.stage:
        compare(name, setup)
    columns = ("naive steps/s", "ours", "images/s", "ratio", "cpu ratio")
    print(
        f"\n{'':10}{columns[0]:>14}{columns[1]:>12}{columns[2]:>10}{columns[3]:>8}{columns[4]:>11}"
    )
    needed = 0.0
    for name in options.stage:
        times = timed(name, setup, options.rounds)
        report(name, times, options.batch)
        needed = max(needed, options.batch / times.ours.wall)
    if options.reader:
        training_workers.report_reader(options.reader, needed)


if __name__ == "__main__":
    main()
