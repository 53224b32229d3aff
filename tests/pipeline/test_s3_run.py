"""A whole run from S3 to S3, against a real server that fails as networks do."""

from functools import partial
from pathlib import Path

import pytest

from pipeline.ledger import Ledger
from pipeline.plan import find_shards, new_plan, shard_units
from pipeline.pools.base import PoolConfig
from pipeline.pools.local import LocalPool
from pipeline.runner import EXIT_DONE, RunnerConfig, run
from pipeline.stages.restore import RestoreStage
from pipeline.storage import LocalStore, open_store
from pipeline.verify import verify


@pytest.fixture
def shards(object_store, make):
    """Three shards of ten records, in the bucket."""
    store = open_store(f"{object_store.url}/in")
    for shard in range(3):
        members = {f"{shard}-{n}.jpg": make.jpeg(10 * shard + n) for n in range(10)}
        store.write(f"{shard:06d}.tar", make.tar_bytes(members))
    return f"{object_store.url}/in/*.tar"


def restore(source: str, out: str, config, folder: Path, load):
    ledger = Ledger(open_store(out))
    plan = ledger.plan()
    if plan is None:
        plan = new_plan("restore", config.provenance, shard_units(find_shards(source)), {})
        ledger.save(plan)
    ledger.recover(plan, discard=True)
    todo = [unit for unit in plan.units if unit.shard not in ledger.committed(plan)]
    pool = LocalPool(PoolConfig(ledger.folder), folder)
    stage = partial(RestoreStage, config, load)
    return run(stage, ledger, plan, todo, pool, RunnerConfig(poll_s=0.05)), ledger, plan


def outputs(url: str) -> dict[str, bytes]:
    store = open_store(url)
    return {name: store.read(name) for name in store.list()}


def test_a_run_on_s3_gives_the_bytes_of_a_run_on_disk(shards, object_store, config, make, tmp_path):
    def load(config):
        return make.Identity()

    summary, ledger, plan = restore(shards, f"{object_store.url}/out", config, tmp_path, load)
    assert summary.exit_code == EXIT_DONE
    assert not verify(ledger, plan).problems
    assert not ledger.store.attempts()
    local = tmp_path / "local"
    assert restore(shards, str(local), config, tmp_path, load)[0].exit_code == EXIT_DONE
    assert outputs(f"{object_store.url}/out") == outputs(str(LocalStore(local).root))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["503", "500", "lose", "cut"])
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_faults_of_the_store_change_no_byte(
    shards, object_store, config, make, tmp_path, fault, method
):
    def load(config):
        return make.Identity()

    local = tmp_path / "local"
    restore(shards, str(local), config, tmp_path, load)
    for path in ("/in/", "/attempts/", "/commits/", "/out/00000"):
        object_store.proxy.break_next(method, fault, times=2, path=path)
    summary, ledger, plan = restore(shards, f"{object_store.url}/out", config, tmp_path, load)
    assert summary.exit_code == EXIT_DONE
    assert not verify(ledger, plan).problems
    assert outputs(f"{object_store.url}/out") == outputs(str(local))
