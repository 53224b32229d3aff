"""A restore run with a real model against the model alone: what the rest of the engine costs.

    python benchmarks/end_to_end.py
    python benchmarks/end_to_end.py --model configs/models/vspbfr-512.yaml --faces 12 --batch 4
    python benchmarks/end_to_end.py --device cuda --faces 2048 --batch 16 --codec-threads 4

Both sides share one loaded model, device and number of torch threads, in one process that may use
`--cores` cores (as many as threads by default), and take turns. The model alone runs full batches
that were decoded and converted before; the engine (local pool, full commit protocol) reads shards
of the same faces, decodes, encodes and commits. Counted from ready to the last result, so loading
is left out. The ratio is taken within a round; the last line has its median.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.replica import Replica
    from pipeline.stages.restore import RestoreConfig
    from vsp_model.registry import Restorer


def full_batches(replica: Replica, jpegs: list[bytes], num_faces: int) -> list[Any]:
    """The faces of the shards, decoded and converted, in batches of the replica's shape."""
    from pipeline import images

    batches = []
    for start in range(0, num_faces, replica.batch_size):
        batch = replica.new_batch()
        for slot in range(replica.batch_size):
            _, pixels = images.decode(jpegs[(start + slot) % len(jpegs)])
            images.to_model(images.resize(pixels, replica.size), batch, slot)
        batches.append(batch)
    return batches


def time_alone(replica: Replica, batches: list[Any]) -> float:
    """Seconds an image of the model on batches that are ready."""
    keys = [f"{number:08d}" for number in range(replica.batch_size)]
    began_s = time.perf_counter()
    for batch in batches:
        replica.run(batch, keys)
    return (time.perf_counter() - began_s) / (len(batches) * replica.batch_size)


def time_engine(
    config: RestoreConfig, model: Restorer, shards: Path, out: Path, codec_threads: int
) -> float:
    """Seconds an image of a run into a new folder, from ready to the last commit."""
    from pipeline.flow import FlowConfig
    from pipeline.ledger import Ledger
    from pipeline.plan import find_shards, new_plan, shard_units
    from pipeline.pools.base import PoolConfig
    from pipeline.pools.local import LocalPool
    from pipeline.runner import Summary, run
    from pipeline.stages.restore import RestoreStage
    from pipeline.storage import open_store

    ledger = Ledger(open_store(str(out)))
    units = shard_units(find_shards(str(shards)))
    plan = new_plan("restore", config.provenance, units, {})
    ledger.save(plan)
    pool_config = PoolConfig(folder=ledger.folder, flow=FlowConfig(codec_threads=codec_threads))
    ended_s = 0.0

    def look(summary: Summary) -> None:
        nonlocal ended_s
        ended_s = time.monotonic()

    stage = partial(RestoreStage, config, lambda config: model)
    summary = run(stage, ledger, plan, units, LocalPool(pool_config, out), on_progress=look)
    if summary.exit_code:
        raise SystemExit(f"{summary.errors} {summary.notes}")
    return (ended_s - summary.began_s) / summary.counts.total()


def write_shards(folder: Path, jpegs: list[bytes], num_faces: int, per_shard: int) -> None:
    """Write the faces as shards."""
    from pipeline.tar import TarWriter

    folder.mkdir()
    for start in range(0, num_faces, per_shard):
        with (folder / f"{start // per_shard:06d}.tar").open("wb") as file:
            tar = TarWriter(file)
            for number in range(start, min(start + per_shard, num_faces)):
                tar.add(f"{number:08d}.jpg", jpegs[number % len(jpegs)])
            tar.finish()


def compare(config: RestoreConfig, options: argparse.Namespace, folder: Path) -> None:
    """Alternating rounds and the table."""
    from engine import faces

    from pipeline.replica import Replica, load_model

    model = load_model(config)
    replica = Replica(config, lambda config: model)
    jpegs = faces(model.size)
    write_shards(folder / "shards", jpegs, options.faces, options.per_shard)
    batches = full_batches(replica, jpegs, options.faces)
    replica.run(batches[0], [])  # what comes first pays for what is done once
    print(f"{'round':>5}{'alone ms/face':>15}{'engine ms/face':>16}{'ratio':>7}")
    ratios = []
    for number in range(1, options.rounds + 1):
        alone_s = time_alone(replica, batches)
        out = folder / f"out{number}"
        engine_s = time_engine(config, model, folder / "shards", out, options.codec_threads)
        ratios.append(alone_s / engine_s)
        print(f"{number:5d}{1e3 * alone_s:15.2f}{1e3 * engine_s:16.2f}{ratios[-1]:7.3f}")
    print(f"{'median':>5}{'':30}{statistics.median(ratios):7.3f}")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a bundle, or a model's YAML, untrained")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--faces", type=int, default=512, help="a multiple of the batch")
    parser.add_argument("--per-shard", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--codec-threads", type=int, default=1)
    parser.add_argument("--cores", type=int, default=0, help="0: as many as threads")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.faces % options.batch:
        parser.error(f"--faces {options.faces}: not a multiple of --batch {options.batch}")
    # Before torch is imported, so that it makes no thread for another core.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-(options.cores or options.threads) :])
    from jobs import config as configs
    from jobs.models import model_values
    from pipeline.stages.restore import RestoreConfig

    values = {
        "model": model_values(options.model),
        "batch_size": options.batch,
        "threads": options.threads,
        "runtime": {"device": options.device},
    }
    config = configs.resolve(values, RestoreConfig, ())
    print(
        f"{config.model.name}, {options.device}, batch {options.batch}, {options.threads} threads"
    )
    with tempfile.TemporaryDirectory() as name:
        compare(config, options, Path(name))


if __name__ == "__main__":
    main()
