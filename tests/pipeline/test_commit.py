"""Decide once, then roll forward: late attempts, crashes between the steps."""

import json

import pytest

from pipeline import commit
from pipeline.commit import Attempt
from pipeline.ledger import Ledger
from pipeline.plan import Plan, Unit
from pipeline.stage import Task
from pipeline.status import look
from pipeline.storage import LocalStore

PLAN = Plan("restore", "{}", (Unit("s", "in/s.tar", 1, ""),), id="p")


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "out")


def attempt(store, data):
    with Attempt(store, Task("s", "in/s.tar", store.url, plan="p")) as here:
        here.open("s.tar").write(data)
        return here.commit(["s.tar"], {"restored": 1}, {"began": 1.0, "seconds": 1.0})


def test_who_comes_late_changes_nothing_and_learns_what_counts(store):
    first = attempt(store, b"first")
    late = attempt(store, b"second")
    assert late == first
    assert store.read("s.tar") == b"first"
    assert not store.attempts()


def test_a_worker_that_wakes_up_after_its_replacement_finished_changes_nothing(store):
    with Attempt(store, Task("s", "in/s.tar", store.url, plan="p")) as sleeper:
        sleeper.open("s.tar").write(b"old")
        first = attempt(store, b"new")
        assert sleeper.commit(["s.tar"], {"restored": 1}, {}) == first
    assert store.read("s.tar") == b"new"
    assert json.loads(store.read(commit.commit_name("p", "s"))) == first
    assert not store.attempts()


def test_an_attempt_that_is_left_leaves_nothing(store):
    with Attempt(store, Task("s", "x", store.url, plan="p")) as here:
        here.open("s.tar").write(b"half")
        assert len(store.attempts()) == 1
    assert not store.attempts()
    assert not list(store.list())


@pytest.fixture
def crashed(store, monkeypatch):
    """A worker died between the decision and the first rename."""

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(commit, "roll_forward", die)
        with pytest.raises(KeyboardInterrupt):
            attempt(store, b"whole")
    assert not list(store.list())
    assert len(store.attempts()) == 1
    return Ledger(store)


@pytest.mark.parametrize("look_at", [
    lambda ledger: ledger.recover(PLAN, discard=True),
    lambda ledger: ledger.recover(PLAN, discard=False),
    lambda ledger: look(ledger, PLAN),
])  # fmt: skip
def test_whoever_comes_next_gives_the_files_their_names(crashed, store, look_at):
    look_at(crashed)
    assert store.read("s.tar") == b"whole"
    assert not store.attempts()
    crashed.recover(PLAN, discard=True)
    assert store.read("s.tar") == b"whole"


def test_other_attempts_are_removed_only_by_who_may(store):
    Attempt(store, Task("s", "x", store.url, plan="p", attempt="1")).__enter__()
    ledger = Ledger(store)
    ledger.recover(PLAN, discard=False)
    assert store.attempts() == ["s.1"]
    ledger.recover(PLAN, discard=True)
    assert not store.attempts()
