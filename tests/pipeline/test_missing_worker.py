"""A worker that never gets a place, as on a cluster that lost a node: the others go on."""

import time
from functools import partial

import pytest

from pipeline.errors import RunError
from pipeline.ledger import Ledger
from pipeline.plan import find_shards, new_plan, shard_units
from pipeline.pools.base import PoolConfig, Ready
from pipeline.pools.local import LocalPool
from pipeline.runner import RunnerConfig, run
from pipeline.stages.restore import RestoreStage
from pipeline.storage import open_store

IMPATIENT = RunnerConfig(poll_s=0.02, start_s=0.1)


class Slow:
    size = 32

    def restore(self, lq, keys, *, seed=0, noise="seeded"):
        time.sleep(0.1)
        return lq.clone()


def load(config):
    return Slow()


class HalfPool(LocalPool):
    """Two workers, of which only the first ever has a place."""

    num_workers = 2


class EmptyPool(HalfPool):
    """Nobody has a place."""

    def wait(self, timeout_s):
        return [event for event in super().wait(timeout_s) if not isinstance(event, Ready)]


@pytest.fixture
def work(make, tmp_path, config):
    """What `run` takes first: a stage, a ledger, a plan and its units."""
    (tmp_path / "in").mkdir()
    for number in range(3):
        faces = {f"{number}-{n}.jpg": make.jpeg(n) for n in range(6)}
        (tmp_path / "in" / f"{number}.tar").write_bytes(make.tar_bytes(faces))
    ledger = Ledger(open_store(str(tmp_path / "out")))
    units = shard_units(find_shards(str(tmp_path / "in")))
    plan = new_plan("restore", config.provenance, units, {})
    ledger.save(plan)
    return partial(RestoreStage, config, load), ledger, plan, plan.units


def test_a_worker_without_a_place_does_not_end_the_run_of_the_others(work, tmp_path):
    pool = HalfPool(PoolConfig(folder=tmp_path), tmp_path)
    summary = run(*work, pool, IMPATIENT)
    assert (summary.num_done, summary.errors) == (3, [])


def test_a_run_in_which_nobody_has_a_place_ends_with_one_line(work, tmp_path):
    pool = EmptyPool(PoolConfig(folder=tmp_path), tmp_path)
    with pytest.raises(RunError, match=r"not ready after .* has room"):
        run(*work, pool, IMPATIENT)
