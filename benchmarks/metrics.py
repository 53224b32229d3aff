"""Scores into tables: FID's reduction, 540,000 rows aggregated, and judges' images a second.

    python benchmarks/metrics.py --weights weights/
    python benchmarks/metrics.py --only fid rows --rounds 5 --threads 2

**fid** reduces synthetic features like Inception's (2,048 dimensions, of rank 256 and noise, not
negative) to a distance: ours against the usual way, scipy's root of the product of covariances,
which both sides get as features. They take turns in one process; the ratio is taken within a round
and the median printed. The values must agree: relative 1e-6 with more features than dimensions;
with fewer the usual way is itself 1e-5 off.

**rows** aggregates what 15 methods x 3,000 images x 12 metrics come to, in files of 64 images as
`vsp score` writes them, in a process of its own, whose time and peak memory are printed: means,
paired intervals, 105 pairs of methods a metric, ranks, both result files. Imports (half of them
torch, which the aggregation does not use) come before the clock and count in the memory.

**images** is benchmarks/metrics_images.py: each judge beside library calls, on one thread.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

DIM, RANK = 2048, 256
NUM_METHODS, NUM_IMAGES, IMAGES_PER_UNIT = 15, 3000, 64
METRICS = (
    "psnr", "ssim", "lpips-squeeze", "lpips-alex", "identity", "dsr-yunet", "nme-yunet",
    "nme-yunet-all", "expression", "detail", "finest", "niqe-small",
)  # fmt: skip
PARTS = ("fid", "rows", "images")


def features(count: int, seed: int) -> np.ndarray:
    """(count, DIM) float32, not negative, with a falling spectrum."""
    scale = 0.3 / np.sqrt(np.arange(1, RANK + 1))
    basis = np.random.default_rng(0).normal(size=(RANK, DIM)) * scale[:, None]
    stream = np.random.default_rng(seed)
    latent = stream.normal(size=(count, RANK)) + 0.02 * seed
    noisy = latent @ basis + 0.02 * stream.normal(size=(count, DIM))
    return np.maximum(noisy, 0).astype(np.float32)


def usual(one: np.ndarray, other: np.ndarray) -> float:
    """As pytorch-fid and BasicSR do: scipy's matrix root."""
    from scipy import linalg

    first, second = (np.cov(each.astype(np.float64), rowvar=False) for each in (one, other))
    step = one.mean(axis=0, dtype=np.float64) - other.mean(axis=0, dtype=np.float64)
    root = linalg.sqrtm(first @ second)
    return float(step @ step + np.trace(first) + np.trace(second) - 2 * np.trace(root).real)


def compare_fid(count: int, rounds: int) -> None:
    """One line: both times, their ratio, how far apart the values are."""
    from pipeline.metrics.frechet import frechet_of

    one, other = features(count, 1), features(count, 2)
    sides: dict[str, Callable[..., float]] = {"usual": usual, "ours": frechet_of}
    times: dict[str, list[float]] = {name: [] for name in sides}
    values: dict[str, float] = {}
    for number in range(rounds):
        for name in sorted(sides, reverse=bool(number % 2)):
            start = time.perf_counter()
            values[name] = sides[name](one, other)
            times[name].append(time.perf_counter() - start)
    ratio = statistics.median(a / b for a, b in zip(times["usual"], times["ours"], strict=True))
    apart = abs(values["usual"] - values["ours"]) / values["ours"]
    print(
        f"fid {count:>5} x {DIM}: usual {statistics.median(times['usual']):7.2f} s, "
        f"ours {statistics.median(times['ours']):6.3f} s, ratio {ratio:6.1f}, "
        f"values {values['ours']:.6f}, apart {apart:.1e}"
    )


def write_scores(root: Path) -> None:
    """An evaluation folder of every method, image and metric."""
    import hashlib

    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.metrics.table import BY_NAME
    from pipeline.scoring.current import CURRENT
    from pipeline.scoring.tables import PAIRS_SCHEMA, SCORES_SCHEMA

    stream = np.random.default_rng(0)
    ids = [f"{number:05}" for number in range(NUM_IMAGES)]
    truths = [hashlib.sha256(key.encode()).hexdigest() for key in ids]
    for folder in ("pairs/faces", "scores"):
        (root / folder).mkdir(parents=True)

    def write(name: str, schema: pa.Schema, columns: dict[str, object], count: int) -> None:
        full = {f.name: columns.get(f.name, 0 if f.type == pa.int64() else "") for f in schema}
        arrays = [
            pa.array(value if isinstance(value, list) else [value] * count, schema.field(each).type)
            for each, value in full.items()
        ]
        pq.write_table(pa.table(arrays, schema=schema), root / name, compression="zstd",
                       row_group_size=512)  # fmt: skip

    for number in range(NUM_METHODS):
        method = f"method{number:02}"
        restored = [hashlib.sha256(f"{method}{key}".encode()).hexdigest() for key in ids]
        shared = {"method": method, "method_rev": method, "dataset": "faces", "dataset_rev": "1"}
        pairs = {"image_id": ids, "restored_sha256": restored, "gt_sha256": truths}
        write(f"pairs/faces/{method}.parquet", PAIRS_SCHEMA, shared | pairs, NUM_IMAGES)
        for start in range(0, NUM_IMAGES, IMAGES_PER_UNIT):
            chosen = range(start, min(start + IMAGES_PER_UNIT, NUM_IMAGES))
            rows = [(place, name) for place in chosen for name in METRICS]
            columns = shared | {
                "image_id": [ids[place] for place, _ in rows],
                "metric": [BY_NAME[name].protocol for _, name in rows],
                "value": stream.normal(20 + 0.01 * number, 3, len(rows)).tolist(),
                "higher_is_better": [BY_NAME[name].better == "higher" for _, name in rows],
                "status": "ok", "lib": "vsp-restore", "lib_version": "0.1.0", "dtype": "float64",
                "restored_sha256": [restored[place] for place, _ in rows],
                "gt_sha256": [truths[place] for place, _ in rows],
            }  # fmt: skip
            name = f"scores/faces.{method}.{start:05}.parquet"
            write(name, SCORES_SCHEMA, columns, len(rows))
    weights = {BY_NAME[name].protocol: "" for name in METRICS}
    facts = {"weights": weights, "files": {}, "missing": [], "references": {}}
    (root / CURRENT).write_text(json.dumps(facts))


def aggregate_rows(root: Path) -> None:
    """Aggregate the folder and print what it took; runs in a process of its own."""
    start = time.perf_counter()
    import scipy.stats  # noqa: F401  (half of the imports, and not what is measured)

    from pipeline.aggregate import AggregateConfig, aggregate
    from pipeline.storage import LocalStore

    loaded, cpu = time.perf_counter(), time.process_time()
    results = aggregate(LocalStore(root), AggregateConfig())
    taken, taken_cpu = time.perf_counter() - loaded, time.process_time() - cpu
    assert len(results.cells) == NUM_METHODS * len(METRICS)
    assert all(cell.num_ok == NUM_IMAGES for cell in results.cells)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    files = len(list((root / "scores").iterdir()))
    print(
        f"rows {NUM_METHODS * NUM_IMAGES * len(METRICS):,} in {files} files: aggregated in "
        f"{taken:.2f} s ({taken_cpu:.2f} s of CPU; imports before it {loaded - start:.2f} s), "
        f"peak {peak_gb:.2f} GB"
    )


def measure_rows(rounds: int) -> None:
    """The same a few times, each in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        write_scores(Path(folder))
        sys.stdout.flush()
        for _ in range(rounds):
            subprocess.run([sys.executable, __file__, "--aggregate", folder], check=True)


def main() -> None:
    """Parse the arguments and print the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of linear algebra")
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--iqa-python", type=Path, help="Python of an environment with pyiqa")
    parser.add_argument("--aggregate", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.aggregate:
        aggregate_rows(options.aggregate)
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(options.threads):
        if "fid" in options.only:
            compare_fid(5000, options.rounds)
            compare_fid(407, options.rounds)
        if "rows" in options.only:
            measure_rows(options.rounds)
    if "images" in options.only:
        from metrics_images import as_table, measure

        print(as_table(measure(options.images, 1, options.weights, options.iqa_python)))


if __name__ == "__main__":
    main()
