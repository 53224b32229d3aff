"""How far a run is, as its output folder tells."""

from pipeline.status import look


def test_what_is_done_pending_and_failed_is_told(engine, make):
    engine.shard("a", {"a.png": make.png(1), "nan.png": make.png(2)})
    engine.shard("b", {"b.png": make.png(3)})
    plan = engine.plan()
    status = look(engine.ledger(), plan)
    assert (status.num_shards, status.num_done, status.num_pending) == (2, 0, 2)
    assert (status.rate, status.left_s) == (0, None)
    engine.run()
    engine.ledger().forget(plan, ["b"], outputs=True)
    status = look(engine.ledger(), plan)
    assert (status.num_done, status.num_pending, status.failed) == (1, 1, ["a"])
    assert status.counts == {"restored": 1, "failed": 1}
    assert status.rate > 0
    assert status.left_s is None
    assert look(engine.ledger(), plan, "host x").left_s >= 0


def test_what_living_workers_wrote_and_what_was_condemned_is_told(engine, make):
    from pipeline.tracker import Tracker

    engine.shard("a", {"a.png": make.png(1)})
    ledger, plan = engine.ledger(), engine.plan()
    tracker = Tracker(ledger.folder / "workers" / "process-0-1")
    tracker.count({"done": 7})
    ledger.note("condemned", plan=plan.id, shard="a", index=0, reason="why")
    status = look(ledger, plan, "host x")
    tracker.close()
    assert (status.num_workers, status.num_live, status.condemned) == (1, 7, {"a": [0]})
    assert look(ledger, plan).num_workers == 0
