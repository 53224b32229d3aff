"""The driver's loop on the local pool: what is done again, what is given up, what stops a run."""

import os
import signal
import threading
from functools import partial

import pytest

from pipeline.errors import RunError
from pipeline.runner import RunnerConfig
from pipeline.shards import ShardOutput
from pipeline.stages.restore import RestoreStage
from pipeline.storage import StoreTrouble

SHORT = RunnerConfig(poll_s=0.05, patience_s=0.4)


@pytest.fixture
def three(engine, make):
    """An engine with shards a, b and c of two faces each."""
    for shard in "abc":
        engine.shard(shard, {f"{shard}{n}.png": make.png(n) for n in range(2)})
    return engine


class Broken(RestoreStage):
    """Fails to write the shards it is told to, as often as it is told to."""

    shards, times, error = "", 99, OSError("no\nsuch thing")

    def open(self, task):
        if task.shard in self.shards and self.times:
            type(self).times -= 1
            raise self.error
        return super().open(task)


def broken(engine, make, **facts):
    stage = type("Mine", (Broken,), facts)
    return partial(stage, engine.config, make.load)


def test_every_shard_is_done_once_and_a_second_run_does_nothing(three):
    seen = []
    summary = three.run(on_progress=lambda summary: seen.append(summary.num_done))
    assert (summary.num_done, summary.counts, summary.exit_code) == (3, {"restored": 6}, 0)
    assert seen == sorted(seen)
    assert seen[-1] == 3
    times = {path: path.stat().st_mtime_ns for path in (three.folder / "out").glob("*.*")}
    assert len(times) == 6
    again = three.run()
    assert (again.num_done, again.num_skipped, again.counts) == (0, 3, {"restored": 6})
    assert times == {path: path.stat().st_mtime_ns for path in times}
    assert not list((three.folder / "out" / "_vsp" / "attempts").iterdir())


def test_bad_records_give_exit_code_3_in_this_run_and_the_next(engine, make):
    engine.shard("a", {"a.png": make.png(), "b.png": b"text"})
    assert (engine.run().exit_code, engine.run().exit_code) == (3, 3)


def test_a_shard_that_fails_for_a_while_is_done_and_costs_nothing(three, make):
    summary = three.run(factory=broken(three, make, shards="b", times=4))
    assert (summary.num_done, summary.exit_code, summary.errors) == (3, 0, [])


def test_a_shard_that_cannot_be_written_is_an_error_and_the_others_are_done(three, make):
    summary = three.run(factory=broken(three, make, shards="b"))
    assert (summary.num_done, summary.exit_code) == (2, 1)
    assert summary.errors == ["b: OSError: no such thing"]
    assert sorted(three.files()) == ["a.parquet", "a.tar", "c.parquet", "c.tar"]


class Picky(ShardOutput):
    def add(self, result):
        if result.row.key == "b1" and result.members:
            raise RuntimeError("this face and no other")
        super().add(result)


class Refusing(RestoreStage):
    def open(self, task):
        return Picky(task, self._config.provenance)


def test_a_shard_that_failed_five_times_is_given_up_with_a_row_for_every_record(three, make):
    summary = three.run(factory=partial(Refusing, three.config, make.load))
    assert (summary.counts, summary.exit_code) == ({"restored": 4, "failed": 2}, 3)
    reasons = {row["reason"] for row in three.rows("b")}
    assert reasons == {"the shard failed 5 times, last of: RuntimeError: this face and no other"}


def test_the_same_error_in_three_shards_is_no_fault_of_the_input(three, make):
    with pytest.raises(RunError, match="no such thing: the same in shards a, b, c") as told:
        three.run(factory=broken(three, make, shards="abc"))
    assert "\n" not in str(told.value)


def test_a_full_disk_is_waited_for_and_charges_nobody(three, make):
    full = StoreTrouble(28, "out: no space left")
    summary = three.run(
        factory=broken(three, make, shards="b", times=1, error=full), patience=SHORT
    )
    assert (summary.num_done, summary.exit_code, summary.errors) == (3, 0, [])
    assert any("no space left; waiting" in note for note in summary.notes)


def test_patience_ends(three, make):
    full = StoreTrouble(28, "out: no space left")
    with pytest.raises(RunError, match="no space left; free space"):
        three.run(factory=broken(three, make, shards="abc", error=full), patience=SHORT)
    assert three.run().exit_code == 0


def test_a_signal_ends_the_run_in_good_order_and_the_next_one_finishes(engine, make):
    for shard in "abcdef":
        engine.shard(shard, {f"{shard}{n}.png": make.png(n) for n in range(2)})
    engine.run(out="whole")

    class Stopped(RestoreStage):
        def prepare(self, sample):
            if sample.key == "b0":
                os.kill(os.getpid(), signal.SIGTERM)
            return super().prepare(sample)

    before = signal.getsignal(signal.SIGTERM)
    summary = engine.run(factory=partial(Stopped, engine.config, make.load))
    assert (summary.stopped, summary.exit_code) == (True, 75)
    assert 2 <= summary.num_done <= 4
    assert signal.getsignal(signal.SIGTERM) is before
    again = engine.run()
    assert (again.num_skipped, again.exit_code) == (summary.num_done, 0)
    assert engine.files() == engine.files("whole")


def test_a_stage_that_cannot_be_set_up_is_one_line(three):
    def no_weights(config):
        raise ValueError("no\nweights")

    with pytest.raises(RunError, match="did not start: ValueError: no weights"):
        three.run(load=no_weights)


def test_a_model_that_fails_without_any_face_stops_the_run_not_the_records(three, make):
    class Dead(make.Identity):
        def restore(self, lq, keys, **options):
            if self.shapes:
                raise RuntimeError("the device is gone")
            return super().restore(lq, keys, **options)

    dead = Dead()
    with pytest.raises(RunError, match="the device is gone"):
        three.run(load=lambda config: dead)
    assert not three.files()


def test_a_worker_of_this_process_that_hangs_ends_the_run_with_the_way_out(three, make):
    go_on = threading.Event()

    class Hanging(RestoreStage):
        def prepare(self, sample):
            go_on.wait(10)
            return super().prepare(sample)

    stage = partial(Hanging, three.config, make.load)
    with pytest.raises(RunError, match="hangs; run the same command again with --pool ray"):
        three.run(factory=stage, patience=RunnerConfig(poll_s=0.05, stall_s=0.3))
    go_on.set()
