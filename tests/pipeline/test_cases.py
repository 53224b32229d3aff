"""What a shard's next try is, after each kind of failure."""

from pipeline.cases import MAX_CHARGES, Case
from pipeline.plan import Unit
from pipeline.tracker import Traces


def case(**facts):
    return Case(Unit("s", "in/s.tar", 1, ""), **facts)


def in_hand(*indices, **others):
    return Traces({"s": frozenset(indices)} | {k: frozenset(v) for k, v in others.items()})


def test_a_death_with_nothing_of_the_shard_in_hand_charges_nothing():
    here = case()
    assert not here.after_death("exit code -9", Traces({"other": frozenset({1})}), 8)
    assert (here.charges, here.suspects) == (0, set())


def test_a_death_makes_suspects_and_only_one_alone_twice_is_condemned():
    here = case()
    assert not here.after_death("exit code -9", in_hand(3, 4), 8)
    assert here.task("out", "p").suspects == {3, 4}
    assert not here.after_death("exit code -9", in_hand(3), 8)
    assert not here.after_death("exit code -9", in_hand(4), 8)
    assert here.after_death("exit code -9", in_hand(4), 8) == {4: "killed the worker twice"}
    task = here.task("out", "p")
    assert (task.suspects, task.condemned) == ({3}, {4: "killed the worker twice"})
    assert here.charges == 0


def test_alone_means_that_no_other_shard_was_in_hand_either():
    here = case()
    for _ in range(3):
        assert not here.after_death("exit code -9", in_hand(4, other={0}), 8)
    assert not here.deaths


def test_a_death_for_want_of_memory_halves_the_batch_before_it_charges():
    here = case()
    for batch in (4, 2, 1):
        assert not here.after_death("OutOfMemoryError: killed", in_hand(3), 8)
        assert (here.max_batch, here.charges) == (batch, 0)
    here.after_death("OutOfMemoryError: killed", in_hand(3), 8)
    assert (here.max_batch, here.charges) == (1, 1)


def test_five_charges_give_the_shard_up_and_a_sixth_loses_it():
    here = case()
    for number in range(MAX_CHARGES):
        assert not here.task("out", "p").given_up
        here.after_error(f"OSError: {number}")
    assert here.task("out", "p").given_up == "the shard failed 5 times, last of: OSError: 4"
    assert not here.is_lost
    here.after_error("OSError: 5")
    assert here.is_lost
