"""Images a second of each step of `vsp clean`, and of the whole.

    python benchmarks/clean.py SHARDS --weights FOLDER [--images 2000] [--threads 1] [--workers 1]

SHARDS hold aligned faces; every third is damaged here by known amounts, so that there is something
to restore. The steps run one after the other on the same machine; each prints what it did in which
time. The search for copies among a million entries is measured by `benchmarks/clean_copies.py`.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from jobs import cleaning_steps as steps
from jobs.cleaning import CleanRequest
from jobs.cleaning_estimate import tell_estimate
from jobs.cleaning_plan import make_run
from jobs.cleaning_trials import calibrate
from jobs.running import RunFlags
from pipeline import images
from pipeline.cleaning.calibration.levels import LEVELS, damage
from pipeline.locks import run_lock
from pipeline.plan import find_shards
from pipeline.sample import Member, Sample
from pipeline.shards import read_shard
from pipeline.tar import TarWriter

PER_SHARD = 256
DAMAGED_EVERY = 3


def faces(pattern: str, num_images: int) -> Iterator[Sample]:
    """The first images of the shards."""
    records = (sample for source in find_shards(pattern) for sample in read_shard(source))
    return islice((sample for sample in records if sample.image), num_images)


def members(sample: Sample, number: int) -> list[Member]:
    """A record, damaged if it is its turn."""
    image = sample.image
    assert image
    if number % DAMAGED_EVERY:
        return list(sample.members)
    header, pixels = images.decode(image.data)
    level = 1 + (number // DAMAGED_EVERY) % len(LEVELS)
    lq = damage(pixels, level, seed=0, key=sample.key)
    data = images.encode(lq, header.format)
    return [Member(m.name, data) if m is image else m for m in sample.members]


def build(pattern: str, num_images: int, folder: Path) -> int:
    """Write the shards that are cleaned; returns the number of images."""
    count = 0
    records = faces(pattern, num_images)
    while block := list(islice(records, PER_SHARD)):
        with (folder / f"{count // PER_SHARD:06d}.tar").open("wb") as file:
            writer = TarWriter(file)
            for number, sample in enumerate(block, count):
                for member in members(sample, number):
                    writer.add(member.name, member.data)
            writer.finish()
        count += len(block)
    return count


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Run the steps one by one and print a line each."""
    (folder / "in").mkdir()
    count = build(arguments.shards, arguments.images, folder / "in")
    request = CleanRequest(
        str(folder / "in"), str(folder / "out"), weights=arguments.weights,
        threads=arguments.threads, device="cpu",
    )  # fmt: skip
    flags = RunFlags(workers=arguments.workers, codec_threads=0)
    run = make_run(request, flags)
    run.begin()
    total_s = 0.0
    with run_lock(run.store):
        tell_estimate(run)
        thresholds = None
        for name in ("inspect", "calibrate", "decide", "clean"):
            start_s = time.perf_counter()
            if name == "calibrate":
                thresholds = calibrate(run)
            elif name == "decide":
                steps.decide(run, thresholds)
            else:
                getattr(steps, name)(run)
            spent_s = time.perf_counter() - start_s
            total_s += spent_s
            print(f"{name:<10} {spent_s:8.1f} s  {count / spent_s:8.1f} images/s")
    print(f"{'all':<10} {total_s:8.1f} s  {count / total_s:8.1f} images/s of {count}")
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this process {peak_mb:.0f} MB")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, Path(folder))


if __name__ == "__main__":
    main()
