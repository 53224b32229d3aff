"""A cluster of three nodes on this machine, one of which is killed while it works."""

import os
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from pipeline.flow import FlowConfig
from pipeline.ledger import Ledger
from pipeline.plan import find_shards, new_plan, shard_units
from pipeline.pools.base import Died, PoolConfig
from pipeline.pools.local import LocalPool
from pipeline.pools.ray import Placement, RayPool
from pipeline.runner import run
from pipeline.stages.restore import RestoreStage
from pipeline.storage import open_store
from pipeline.verify import verify

pytestmark = [pytest.mark.slow, pytest.mark.ray]
NUM_SHARDS, NUM_RECORDS = 12, 24
WAIT_S = 60.0


class Slow:
    """Gives back its input, after a while: a node can be killed in the middle of it."""

    size = 32

    def restore(self, lq, keys, *, seed=0, noise="seeded"):
        time.sleep(0.1)
        return lq.clone()


def load(config):
    return Slow()


@pytest.fixture(scope="module")
def cluster():
    """A head without room for actors and two nodes with room for two each, all behind a token."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_MODE", "token")
    patch.setenv("RAY_AUTH_TOKEN", "a token of the cluster's own")
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.cluster_utils import Cluster

    # A dead node refuses at once and is found out within seconds; a busy one has time to answer.
    soon = {"health_check_period_ms": 500, "health_check_timeout_ms": 5000,
            "health_check_failure_threshold": 3, "health_check_initial_delay_ms": 0}  # fmt: skip
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": soon}
    made = Cluster(initialize_head=True, head_node_args=head)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield made
    ray.shutdown()
    made.shutdown()
    patch.undo()


@pytest.fixture
def nodes(cluster):
    """Two nodes of the test's own; those it did not kill are removed."""
    added = [cluster.add_node(num_cpus=2) for _ in range(2)]
    yield added
    for node in added:
        if node in cluster.worker_nodes:
            cluster.remove_node(node)


@pytest.fixture
def shards(make, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(NUM_SHARDS):
        faces = {f"{number}-{n}.jpg": make.jpeg(n) for n in range(NUM_RECORDS)}
        (folder / f"{number:06d}.tar").write_bytes(make.tar_bytes(faces))
    return str(folder)


def begin(out: Path, shards, config):
    ledger = Ledger(open_store(str(out)))
    units = shard_units(find_shards(shards))
    plan = new_plan("restore", config.provenance, units, {})
    ledger.save(plan)
    return ledger, plan


def outputs(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def nodes_at_work(pool: RayPool) -> set[str]:
    """The nodes whose actors have records in hand, by their ids.

    Asked from a thread beside the run, whose pool starts and loses actors meanwhile: so a copy.
    """
    handles = list(pool._handles.items())
    return {there.node for worker, there in handles if pool.traces(worker).in_hand}


def kill_one_at_work(cluster, nodes, pool, killed):
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        victims = [node for node in nodes if node.node_id in nodes_at_work(pool)]
        if len(victims) == len(nodes):
            cluster.remove_node(victims[0], allow_graceful=False)
            killed.append(victims[0].node_id)
            return
        time.sleep(0.05)


def test_a_node_that_dies_costs_no_record_and_changes_no_byte(
    cluster, nodes, shards, config, tmp_path
):
    factory = partial(RestoreStage, config, load)
    ledger, plan = begin(tmp_path / "peace", shards, config)
    here = PoolConfig(folder=ledger.folder)
    assert not run(factory, ledger, plan, plan.units, LocalPool(here, tmp_path)).errors

    ledger, plan = begin(tmp_path / "out", shards, config)
    pool = RayPool(4, PoolConfig(folder=ledger.folder), Placement(address=cluster.address))
    killed: list[str] = []
    killer = threading.Thread(target=kill_one_at_work, args=(cluster, nodes, pool, killed))
    killer.start()
    summary = run(factory, ledger, plan, plan.units, pool)
    killer.join()
    assert killed
    assert summary.num_deaths >= 2
    assert (summary.num_done, summary.errors) == (NUM_SHARDS, [])
    assert summary.counts == {"restored": NUM_SHARDS * NUM_RECORDS}
    assert not verify(ledger, plan).problems
    assert not ledger.condemned(plan)
    assert outputs(tmp_path / "out") == outputs(tmp_path / "peace")


class Deadly(Slow):
    """Dies of the first record, not of what the set-up warms it with."""

    def restore(self, lq, keys, *, seed=0, noise="seeded"):
        if "0-0" in keys:
            os._exit(9)
        return lq.clone()


def load_deadly(config):
    return Deadly()


def test_what_a_dead_actor_had_in_hand_is_fetched_from_its_node(
    cluster, nodes, shards, config, tmp_path
):
    pool = RayPool(1, PoolConfig(folder=None, flow=FlowConfig(codec_threads=1)),
                   Placement(address=cluster.address))  # fmt: skip
    ledger, plan = begin(tmp_path / "out", shards, config)
    pool.start(partial(RestoreStage, config, load_deadly))
    try:
        died = until_death(pool, ledger, plan)
        assert died.was_ready
        assert 0 in died.traces.in_hand["000000"]
    finally:
        pool.close()


def until_death(pool, ledger, plan) -> Died:
    from pipeline.cases import Case

    deadline = time.monotonic() + WAIT_S
    given = False
    while time.monotonic() < deadline:
        for event in pool.wait(0.5):
            if isinstance(event, Died):
                return event
            if not given:
                pool.submit(0, Case(plan.units[0]).task(ledger.store.url, plan.id))
                given = True
    raise AssertionError("it lives")
