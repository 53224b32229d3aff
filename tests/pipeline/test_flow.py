"""The budget of what is in flight."""

import threading

from pipeline.flow import Budget


def test_who_asks_for_more_waits_until_some_is_given_back():
    budget = Budget(max_bytes=100, max_records=10)
    budget.take(60, 1)
    passed = threading.Event()

    def ask():
        budget.take(60, 1)
        passed.set()

    threading.Thread(target=ask, daemon=True).start()
    assert not passed.wait(0.05)
    assert budget.is_asked
    budget.give(60, 1)
    assert passed.wait(5)
    assert not budget.is_asked


def test_a_record_larger_than_the_budget_passes_alone():
    budget = Budget(max_bytes=100, max_records=10)
    budget.take(10**9, 1)
    passed = threading.Event()
    threading.Thread(target=lambda: (budget.take(1, 1), passed.set()), daemon=True).start()
    assert not passed.wait(0.05)
    budget.give(10**9, 1)
    assert passed.wait(5)
    budget.give(1, 1)
    budget.wait_empty()


def test_records_are_counted_as_well_as_bytes():
    budget = Budget(max_bytes=100, max_records=3)
    budget.take(0, 3)
    passed = threading.Event()
    threading.Thread(target=lambda: (budget.take(0, 1), passed.set()), daemon=True).start()
    assert not passed.wait(0.05)
    budget.give(0, 1)
    assert passed.wait(5)
