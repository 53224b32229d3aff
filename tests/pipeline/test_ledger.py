"""Plan, decisions and journal of an output folder."""

import pytest

from pipeline.errors import UserError
from pipeline.ledger import JOURNAL, PLAN


@pytest.fixture
def done(engine, make):
    for shard in "ab":
        engine.shard(shard, {f"{shard}.png": make.png(1)})
    engine.run()
    return engine


def test_a_folder_without_a_run_has_no_plan_and_a_damaged_one_is_told(done):
    assert done.ledger("nowhere").plan() is None
    assert done.ledger().plan() == done.plan()
    done.ledger().store.write(PLAN, b"{")
    with pytest.raises(UserError, match=r"plan\.json"):
        done.ledger().plan()


def test_decisions_are_listed_and_read(done):
    ledger, plan = done.ledger(), done.plan()
    assert ledger.committed(plan) == {"a", "b"}
    assert [record["shard"] for record in ledger.commits(plan)] == ["a", "b"]
    assert [record["shard"] for record in ledger.commits(plan, ["b", "none"])] == ["b"]
    assert ledger.commit(plan, "none") is None


def test_what_is_forgotten_is_done_again(done):
    ledger, plan, whole = done.ledger(), done.plan(), done.files()
    ledger.forget(plan, ["a"], outputs=True)
    assert sorted(done.files()) == ["b.parquet", "b.tar"]
    summary = done.run()
    assert (summary.num_done, summary.num_skipped) == (1, 1)
    assert done.files() == whole


def test_the_journal_survives_a_torn_line_and_knows_the_condemned(done):
    ledger, plan = done.ledger(), done.plan()
    ledger.note("condemned", plan=plan.id, shard="a", index=3, reason="why")
    with (done.folder / "out" / JOURNAL).open("ab") as file:
        file.write(b'{"event": "condem')
    ledger.note("condemned", plan=plan.id, shard="b", index=0, reason="too")
    ledger.note("condemned", plan="another", shard="b", index=9, reason="no")
    assert ledger.condemned(plan) == {"a": {3: "why"}, "b": {0: "too"}}
    ledger.note("redo", plan=plan.id, shard="a")
    assert ledger.condemned(plan) == {"b": {0: "too"}}
