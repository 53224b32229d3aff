"""The runner on the local pool, with stages of a few lines."""

import os
import signal

import pytest

from pipeline.errors import RunError
from pipeline.plan import Plan
from pipeline.pools.local import LocalPool
from pipeline.runner import run
from pipeline.shards import Provenance, Row, ShardWriter
from pipeline.stage import Task


class Stage:
    """Reports one record a shard; what it does besides hangs on the shard's name."""

    def __init__(self):
        self.closed = 0

    def setup(self):
        pass

    def process(self, task):
        if "bad" in task.shard:
            return {"restored": 1, "refused": 1}
        if "error" in task.shard:
            raise OSError("no\nsuch thing")
        task.attempt_folder.mkdir(parents=True)
        if "signal" in task.shard:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"restored": 1}

    def close(self):
        self.closed += 1


def plan(tmp_path, *names, finished=()):
    def tasks(names):
        return tuple(Task(name, tmp_path / f"{name}.tar", tmp_path) for name in names)

    return Plan(tasks(names), tasks(finished))


def test_every_shard_is_done_once_and_counted(tmp_path):
    stage, seen = Stage(), []
    summary = run(lambda: stage, plan(tmp_path, "a", "b", "c"), LocalPool(),
                  lambda s: seen.append(s.num_done))  # fmt: skip
    assert (summary.num_done, summary.counts, summary.exit_code) == (3, {"restored": 3}, 0)
    assert seen == [1, 2, 3]
    assert stage.closed == 1


def test_bad_records_give_exit_code_3(tmp_path):
    summary = run(Stage, plan(tmp_path, "a", "bad"), LocalPool())
    assert (summary.num_bad, summary.exit_code) == (1, 3)


def test_a_shard_that_fails_does_not_stop_the_others(tmp_path):
    summary = run(Stage, plan(tmp_path, "a", "error", "b"), LocalPool())
    assert summary.num_done == 2
    assert summary.errors == ["error: OSError: no such thing"]
    assert summary.exit_code == 1


def test_a_signal_stops_the_run_as_resumable(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    stage = Stage()
    summary = run(lambda: stage, plan(tmp_path, "a", "signal", "b"), LocalPool())
    assert (summary.num_done, summary.stopped, summary.exit_code) == (1, True, 75)
    assert stage.closed == 1
    assert signal.getsignal(signal.SIGTERM) is before
    assert not list((tmp_path / "_vsp" / "attempts").iterdir())


def test_finished_shards_are_counted_from_their_sidecars(tmp_path):
    with ShardWriter(Task("done", tmp_path, tmp_path), Provenance(0, "m", "0", "{}")) as writer:
        writer.add(Row(0, "x", "failed"), [])
        writer.commit()
    summary = run(Stage, plan(tmp_path, finished=["done"]), LocalPool())
    assert (summary.num_skipped, summary.counts, summary.exit_code) == (1, {"failed": 1}, 3)


def test_a_stage_that_cannot_be_set_up_is_one_line(tmp_path):
    def broken():
        raise ValueError("no\nweights")

    with pytest.raises(RunError, match="did not start: ValueError: no weights"):
        run(broken, plan(tmp_path, "a"), LocalPool())
