"""The lock of a run in a remote store: one driver at a time, the next after its death."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from remote_stores import QUICK

from pipeline.errors import RunError
from pipeline.locks import run_lock
from pipeline.remote import RemoteStore


@pytest.fixture
def store(object_store):
    return RemoteStore(f"{object_store.url}/out", QUICK)


def test_a_second_driver_is_told_who_is_at_work(store):
    with run_lock(store):
        assert store.stat("_vsp/run.lock")
        with pytest.raises(RunError, match=rf"another run .*pid {os.getpid()}, since 20"):
            run_lock(store).acquire()
    assert store.stat("_vsp/run.lock") is None
    with run_lock(store):
        pass


def test_of_many_drivers_one_gets_the_lock(store):
    def take(_):
        lock = run_lock(RemoteStore(store.url, QUICK))
        try:
            lock.acquire()
        except RunError:
            return None
        return lock

    with ThreadPoolExecutor(6) as threads:
        held = [lock for lock in threads.map(take, range(6)) if lock]
    assert len(held) == 1
    held[0].release()


def test_a_dead_driver_of_this_machine_is_replaced_at_once(store):
    code = (
        "import os; from pipeline.locks import run_lock; from pipeline.storage import open_store\n"
        f"run_lock(open_store({store.url!r})).acquire(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert store.stat("_vsp/run.lock")
    with run_lock(store):
        pass


def test_a_silent_driver_elsewhere_is_replaced_after_its_time(store):
    store.write("_vsp/run.lock", b'{"host": "elsewhere", "pid": 1, "since": "then"}')
    with pytest.raises(RunError, match="host elsewhere, pid 1, since then"):
        run_lock(store).acquire()
    time.sleep(1.1)  # moto keeps whole seconds
    with run_lock(store, stale_s=0.5), pytest.raises(RunError, match=f"pid {os.getpid()}"):
        run_lock(store).acquire()


def test_a_lock_is_kept_fresh_and_its_loss_noticed(store, object_store, caplog):
    with run_lock(store, beat_s=0.05) as lock:
        versions = {store.stat("_vsp/run.lock").version}
        until = time.monotonic() + 10
        while len(versions) < 2 and time.monotonic() < until:
            versions.add(store.stat("_vsp/run.lock").version)
        object_store.proxy.break_next("PUT", "lose", path="run.lock")
        time.sleep(0.3)
        assert not lock.is_lost
        other = RemoteStore(store.url, QUICK)
        while not lock.is_lost and time.monotonic() < until:
            other.write("_vsp/run.lock", b'{"host": "elsewhere", "pid": 1, "since": "now"}')
            time.sleep(0.02)
        assert lock.is_lost
    assert "another run has taken the lock over" in caplog.text
    assert b"elsewhere" in store.read("_vsp/run.lock")  # not ours to remove
    assert len(versions) > 1


def test_no_thread_is_left(store, object_store):
    before = threading.active_count()
    store.write("a", b"1")
    with store.open("a") as file:
        file.read()
    with run_lock(store):
        pass
    time.sleep(0.1)
    assert threading.active_count() <= before + 1  # fsspec's own
