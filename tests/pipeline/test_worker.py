"""One worker: batches across shards, what is in flight, a model that fails on one face."""

import threading
import time
from functools import partial

import pytest
import torch

from pipeline.flow import FlowConfig
from pipeline.shards import ShardOutput
from pipeline.stage import Task
from pipeline.stages.restore import RestoreStage
from pipeline.tracker import read_traces
from pipeline.verify import verify
from pipeline.worker import Worker, WorkerConfig


@pytest.fixture
def work(engine):
    """Feed shards to one worker, without a driver; returns the reports in the order they came."""

    def run(shards, stage, flow=None, **facts):
        reports = []
        config = WorkerConfig(engine.folder / "tracker", flow=flow or FlowConfig())
        worker = Worker(config, reports.append)
        worker.setup(lambda: stage)
        for shard in shards:
            source, out = engine.folder / "in" / f"{shard}.tar", engine.folder / "out"
            worker.feed(Task(shard, str(source), str(out), plan="p", **facts))
        worker.close()
        return reports

    return run


def test_batches_fill_across_the_ends_of_shards(engine, make, work):
    for shard in "abc":
        engine.shard(shard, {f"{shard}{n}.png": make.png(n) for n in range(4)})
    model = make.Identity()
    reports = work("abc", RestoreStage(engine.config, lambda config: model))
    assert [(r.shard, r.counts, r.error) for r in reports] == [
        (shard, {"restored": 4}, "") for shard in "abc"
    ]
    assert len(model.shapes) == 1 + 12 // 3  # one to warm up
    assert set(model.shapes) == {(3, 3, 32, 32)}
    assert not (engine.folder / "tracker").exists()


def test_a_suspect_runs_with_nothing_else_in_hand(engine, make, work):
    engine.shard("a", {f"a{n}.png": make.png(n) for n in range(9)})
    seen = []

    class Watching(RestoreStage):
        def prepare(self, sample):
            if sample.index == 4:
                seen.append(read_traces(engine.folder / "tracker").in_hand)
            return super().prepare(sample)

    (report,) = work("a", Watching(engine.config, make.load), suspects=frozenset({4}))
    assert report.counts == {"restored": 9}
    assert seen == [{"a": {4}}]


@pytest.mark.parametrize(("budget_bytes", "most"), [(2**30, 32 + 5), (8 * 4000, 8 + 5)])
def test_what_is_in_flight_is_bounded_in_records_and_in_bytes(
    engine, make, work, budget_bytes, most
):
    """One block more is read ahead, and one record that did not fit into it."""
    engine.shard("a", {f"{n:03}.txt": b"x" * 4000 for n in range(120)})
    gate, read, written, gap = threading.Event(), [], [], []
    threading.Timer(0.3, gate.set).start()

    class Slow(ShardOutput):
        def add(self, result):
            gate.wait()
            gap.append(len(read) - len(written))
            written.append(result)
            super().add(result)

    class Counting(RestoreStage):
        def read(self, task):
            for sample in super().read(task):
                read.append(sample.index)
                yield sample

        def open(self, task):
            return Slow(task, self._config.provenance)

    flow = FlowConfig(block_records=4, budget_bytes=budget_bytes)
    (report,) = work("a", Counting(engine.config, make.load), flow)
    assert report.counts == {"copied": 120}
    assert 4 <= max(gap) <= most


def test_a_model_that_fails_on_one_face_costs_one_record(engine, make, work):
    engine.shard("a", {f"{'bad' if n == 4 else n}.png": make.png(n) for n in range(7)})

    class Choosy(make.Identity):
        def restore(self, lq, keys, **options):
            if "bad" in keys:
                raise RuntimeError("this\nface")
            return super().restore(lq, keys, **options)

    (report,) = work("a", RestoreStage(engine.config, lambda config: Choosy()))
    assert report.counts == {"restored": 6, "failed": 1}
    (row,) = [row for row in engine.rows("a") if row["status"] == "failed"]
    assert (row["key"], row["reason"]) == ("bad", "the model failed (RuntimeError: this face)")


def test_memory_that_ends_halves_the_batch_and_verify_says_so(engine, make):
    engine.config = engine.config.model_copy(update={"batch_size": 8})
    engine.shard("a", {f"{n}.png": make.png(n) for n in range(11)})
    shapes = []

    class Small(make.Identity):
        def restore(self, lq, keys, **options):
            if len(lq) > 3 and shapes:
                raise torch.OutOfMemoryError("CUDA out of memory")
            shapes.append(len(lq))
            return super().restore(lq, keys, **options)

    engine.run(out="whole")
    summary = engine.run(load=lambda config: Small())
    assert (summary.counts, summary.exit_code) == ({"restored": 11}, 0)
    assert shapes == [8] + [2] * 6
    assert engine.files() == engine.files("whole")
    (note,) = verify(engine.ledger(), engine.plan()).notes
    assert "a: memory ran out; made in batches of 2, not 8" in note
    assert not verify(engine.ledger("whole"), engine.plan("whole")).notes


def test_an_answer_that_is_not_finite_is_a_failed_row(engine, make):
    engine.shard("a", {"a.png": make.png(1), "nan.png": make.png(2), "b.png": make.png(3)})
    assert engine.run().counts == {"restored": 2, "failed": 1}
    assert engine.rows("a")[1]["reason"] == "the model returned NaN or infinity"


@pytest.mark.parametrize(("part", "told"), [("prepare", "decoded"), ("finish", "encoded")])
def test_an_error_nobody_thought_of_costs_one_record(engine, make, work, part, told):
    engine.shard("a", {f"{n}.png": make.png(n) for n in range(4)})

    class Odd(RestoreStage):
        def _fail(self, method, record, *rest):
            if record.key == "2":
                raise ZeroDivisionError("by\nzero")
            return method(*rest)

        def prepare(self, sample):
            method = super().prepare
            return self._fail(method, sample, sample) if part == "prepare" else method(sample)

        def finish(self, prepared, restored):
            method = partial(super().finish, prepared, restored)
            return self._fail(method, prepared.record) if part == "finish" else method()

    (report,) = work("a", Odd(engine.config, make.load))
    assert report.counts == {"restored": 3, "failed": 1}
    reason = engine.rows("a")[2]["reason"]
    assert reason == f"could not be {told} (ZeroDivisionError: by zero)"


def test_a_shard_that_cannot_be_read_is_reported_and_the_next_is_done(engine, make, work):
    engine.shard("b", {"b.png": make.png()})
    missing, fine = work(["a", "b"], RestoreStage(engine.config, make.load))
    assert missing.error.startswith("FileNotFoundError")
    assert not missing.counts
    assert fine.counts == {"restored": 1}


def test_work_goes_on_while_a_batch_waits_to_be_filled(engine, make, work):
    """A shard that ends in a part of a batch is not held up when nothing follows."""
    engine.shard("a", {"a.png": make.png()})
    start_s = time.monotonic()
    (report,) = work("a", RestoreStage(engine.config, make.load))
    assert report.counts == {"restored": 1}
    assert time.monotonic() - start_s < 5
