"""Pools in this process and in others: the same bytes, and deaths that cost what they must."""

from functools import partial

import pytest

from pipeline.errors import RunError
from pipeline.flow import FlowConfig
from pipeline.replica import load_model
from pipeline.stages.restore import RestoreStage

SMALL = FlowConfig(codec_threads=5, block_records=2, budget_bytes=20_000)


@pytest.fixture
def mixed(engine, make):
    """Three shards of everything that a record may be."""
    for number, shard in enumerate("abc"):
        members = {f"{shard}{n}.png": make.png(n + number) for n in range(5)}
        members |= {f"{shard}{n}.jpg": make.jpeg(n + number, 40 + n) for n in range(5, 8)}
        members |= {f"{shard}-nan.png": make.png(9), f"{shard}-bad.jpg": b"text"}
        members |= {f"{shard}-note.json": b"{}", f"{shard}-last.png": make.png(10)}
        engine.shard(shard, members)
    return engine


def test_every_pool_and_any_threads_and_blocks_write_the_same_bytes(mixed):
    mixed.run(out="plain")
    assert len(mixed.files("plain")) == 6
    mixed.run(mixed.pool("local", flow=SMALL, out="small"), out="small")
    mixed.run(mixed.pool("processes", 2, out="two"), out="two")
    assert mixed.files("small") == mixed.files("plain")
    assert mixed.files("two") == mixed.files("plain")


@pytest.mark.ray
def test_two_actors_write_the_bytes_of_one_process(mixed, ray_started):
    mixed.run(out="plain")
    mixed.run(mixed.pool("ray", 2, out="ray"), out="ray")
    assert mixed.files("ray") == mixed.files("plain")


def test_a_record_that_kills_its_worker_is_condemned_and_its_neighbours_restored(engine, make):
    faces = {f"a{n}.png": make.png(n) for n in range(3)}
    engine.shard("a", faces | {"deadly.png": make.png(7), "b.png": make.png(8)})
    stage = partial(make.Hazard, engine.config, make.load)
    # As after the death of a driver that had these in hand: each runs alone from the start.
    suspects = {"a": frozenset({2, 3})}
    summary = engine.run(engine.pool("processes"), factory=stage, suspects=suspects)
    assert (summary.counts, summary.exit_code) == ({"restored": 4, "failed": 1}, 3), summary
    assert summary.num_deaths == 2
    assert "a: record 3 killed the worker twice; it is left out" in summary.notes
    (failed,) = [row for row in engine.rows("a") if row["status"] == "failed"]
    assert (failed["key"], failed["reason"]) == ("deadly", "killed the worker twice")
    # A run that starts anew knows it without a death.
    assert engine.ledger().condemned(engine.plan()) == {"a": {3: "killed the worker twice"}}


@pytest.mark.slow
def test_one_kill_from_outside_condemns_nobody(engine, make):
    engine.shard("a", {f"once{n}.png": make.png(n) for n in range(4)})
    engine.shard("b", {f"b{n}.png": make.png(n) for n in range(4)})
    engine.run(out="whole")
    stage = partial(make.Hazard, engine.config, make.load)
    summary = engine.run(engine.pool("processes"), factory=stage)
    assert (summary.num_deaths, summary.num_done, summary.exit_code) == (1, 2, 0)
    assert engine.files() == engine.files("whole")


def test_a_stage_that_cannot_be_set_up_elsewhere_is_one_line(engine, make):
    engine.shard("a", {"a.png": make.png()})
    with pytest.raises(RunError, match="did not start: FileNotFoundError") as told:
        engine.run(
            engine.pool("processes"), factory=partial(RestoreStage, engine.config, load_model)
        )
    assert "\n" not in str(told.value)
