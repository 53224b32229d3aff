"""What the engine adds to the work: images/s and CPU time with a model that changes nothing.

    OMP_NUM_THREADS=1 python benchmarks/engine.py
    OMP_NUM_THREADS=1 python benchmarks/engine.py --no-ray-data --rounds 5
    OMP_NUM_THREADS=1 python benchmarks/engine.py --growth        # 1,000 and 10,000 records
    OMP_NUM_THREADS=1 python benchmarks/engine.py --growth --full # and 100,000

JPEGs of 128 px, each with a small JSON, in shards of 1,000, made in a temporary folder. The
contenders (`engine_contender.py`) take turns, each in a fresh process that may use `--cores` cores:

    plain     single process as people write it: tarfile, cv2, torch, batch 64, one thread
    best      the best single-thread loop of the engine's own kernels; no queue, no commit, no fsync
    local     the engine, local pool: one worker of several threads
    ray       the engine, Ray pool: a worker a core, the full commit protocol
    ray-data  read_webdataset -> map_batches -> write_webdataset with the engine's kernels

Columns, each the median over the rounds; ratios are taken within a round first:

    images/s  from the first record (the mean of the workers) to the last commit; for Ray Data
              the slope between two sizes
    CPU us    of the working processes, an image
    vs plain  images/s over those of the plain loop
    per core  images/s a core over those of the best loop, which has one
    per CPU   the best loop's CPU time an image over this one's: says less of a busy machine
    start s   from the start of Python to the first worker's ready

`--growth` runs the Ray pool on more and more records: CPU time an image and memory ought to stay.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from skimage import data

from pipeline.tar import TarWriter

CONTENDER = Path(__file__).resolve().parent / "engine_contender.py"
PER_SHARD = 1000
NUM_DISTINCT = 250
CORES_OF = {"plain": 1, "best": 1}
GROWTH_SHARDS = (1, 10, 100)

Result = dict[str, Any]  # `engine_loops.Measured` as JSON


def faces(size_px: int) -> list[bytes]:
    """JPEGs of a portrait's surroundings: other crop, side and brightness each."""
    rng = np.random.default_rng(0)
    photo = data.astronaut()
    found = []
    for number in range(NUM_DISTINCT):
        side = int(rng.integers(150, 200))
        x, y = int(rng.integers(130, 180)), int(rng.integers(0, 60))
        crop = cv2.resize(photo[y : y + side, x : x + side], (size_px, size_px), None, 0, 0, 3)
        crop = cv2.convertScaleAbs(crop[:, :: (-1) ** number], alpha=rng.uniform(0.7, 1.1))
        crop = np.ascontiguousarray(crop)
        found.append(simplejpeg.encode_jpeg(crop, quality=95, colorsubsampling="420"))
    return found


def make_shards(folder: Path, num_shards: int, size_px: int = 128, num_distinct: int = 10) -> None:
    """Write shards; beyond the first ten, further names of these."""
    folder.mkdir(parents=True)
    jpegs = faces(size_px)
    for shard in range(num_shards):
        path = folder / f"{shard:06d}.tar"
        if shard >= num_distinct:
            os.link(folder / f"{shard % num_distinct:06d}.tar", path)
            continue
        with path.open("wb") as file:
            tar = TarWriter(file)
            for number in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
                tar.add(f"{number:08d}.jpg", jpegs[number % NUM_DISTINCT])
                tar.add(f"{number:08d}.json", b'{"id": %d}' % number)
            tar.finish()


def measure(name: str, folder: Path, num_shards: int, options: argparse.Namespace) -> Result:
    """Run a contender in a process of its own."""
    out = folder / "out"
    command = [sys.executable, CONTENDER, name, folder / "shards", out]
    command += ["--shards", num_shards, "--cores", options.cores]
    command += ["--codec-threads", options.codec_threads, "--spawned", time.time()]
    environment = os.environ | {"PYTHONPATH": str(CONTENDER.parent.parent)}
    try:
        ended = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, env=environment
        )
        if ended.returncode:
            raise SystemExit(f"{name}: {ended.stderr[-2000:]}")
        result: Result = json.loads(ended.stdout.splitlines()[-1])
        return result
    finally:
        for path in folder.glob("out*"):
            shutil.rmtree(path)


def rate(result: Result) -> float:
    """Images a second."""
    return result["images"] / result["seconds"]


def cpu_us(result: Result) -> float:
    """CPU microseconds an image."""
    return 1e6 * result["cpu_s"] / result["images"]


def race(folder: Path, options: argparse.Namespace) -> None:
    """Alternating rounds of all contenders, then the table."""
    names = ["plain", "best", "local", "ray"] + ["ray-data"] * options.ray_data
    rounds: list[dict[str, Result]] = []
    for number in range(options.rounds):
        results = {}
        for name in names:
            few = name in CORES_OF
            num_shards = options.loop_shards if few else options.shards
            # Starting Ray Data's workers takes longer than all the rest.
            if name != "ray-data" or number < options.ray_data_rounds:
                results[name] = measure(name, folder, num_shards, options)
        rounds.append(results)
        print(
            f"round {number + 1}:", *(f"{n} {rate(r):,.0f}" for n, r in results.items()), flush=True
        )
    print(f"\n{'':10}{'images/s':>10}{'CPU us':>8}{'vs plain':>10}", end="")
    print(f"{'per core':>10}{'per CPU':>9}{'start s':>9}")
    for name in names:
        print_row(name, [results for results in rounds if name in results], options.cores)


def print_row(name: str, rounds: list[dict[str, Result]], cores: int) -> None:
    """One contender: medians over the rounds it took part in."""
    median = statistics.median
    own = [results[name] for results in rounds]
    vs_plain = median(rate(r[name]) / rate(r["plain"]) for r in rounds)
    per_core = median(rate(r[name]) / rate(r["best"]) for r in rounds) / CORES_OF.get(name, cores)
    row = f"{name:10}{median(map(rate, own)):10,.0f}"
    has_cpu = own[0]["cpu_s"] >= 0
    row += f"{median(map(cpu_us, own)):8.0f}" if has_cpu else f"{'':8}"
    row += f"{vs_plain:10.2f}{per_core:10.2f}"
    per_cpu = median(cpu_us(r["best"]) / cpu_us(r[name]) for r in rounds) if has_cpu else 0
    row += f"{per_cpu:9.2f}" if has_cpu else f"{'':9}"
    print(row + f"{median(result['start_s'] for result in own):9.1f}")


def grow(folder: Path, options: argparse.Namespace) -> None:
    """The Ray pool on more and more records, in alternating rounds."""
    sizes = [size for size in GROWTH_SHARDS if size < 100 or options.full]
    found: dict[int, list[Result]] = {size: [] for size in sizes}
    for _ in range(options.rounds):
        for size in sizes:
            found[size].append(measure("ray", folder, size, options))
    print(f"{'records':>8}{'images/s':>10}{'CPU us':>8}{'driver us':>11}", end="")
    print(f"{'vs first':>10}{'driver MB':>11}{'actor MB':>10}")
    base = statistics.median(map(cpu_us, found[sizes[0]]))
    for size, results in found.items():
        cpu = statistics.median(map(cpu_us, results))
        driver = statistics.median(1e6 * r["driver_cpu_s"] / r["images"] for r in results)
        memory = statistics.median(r["rss_mb"][0] for r in results)
        actors = statistics.median(max(r["rss_mb"][1:]) for r in results)
        print(
            f"{size * PER_SHARD:8,d}{statistics.median(map(rate, results)):10,.0f}{cpu:8.0f}"
            f"{driver:11.1f}{cpu / base:10.2f}{memory:11.0f}{actors:10.0f}"
        )


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=int, default=16, help="for the engine and Ray Data")
    parser.add_argument("--loop-shards", type=int, default=8, help="for the loops")
    parser.add_argument("--codec-threads", type=int, default=0, help="0: 1 on Ray, 2 in one worker")
    parser.add_argument("--ray-data", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--ray-data-rounds", type=int, default=1)
    parser.add_argument("--growth", action="store_true", help="more and more records")
    parser.add_argument("--full", action="store_true", help="with --growth: 100,000 too")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{options.cores} of {os.cpu_count()} cores, load before {load:.1f}")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        largest = (100 if options.full else 10) if options.growth else 0
        make_shards(folder / "shards", largest or max(options.shards, options.loop_shards))
        (grow if options.growth else race)(folder, options)


if __name__ == "__main__":
    main()
