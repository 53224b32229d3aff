import errno
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline import locks, storage
from pipeline.errors import RunError, UserError
from pipeline.locks import hold_shared, run_lock, wait_exclusive
from pipeline.storage import LocalStore, Stat, StoreTrouble, load_json, open_store, read_log


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "out")


def run_python(code, *arguments, **options):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


# What a store promises


def test_an_attempt_becomes_visible_only_when_it_is_published(store):
    folder = store.begin("000000.1")
    (folder / "deep").mkdir()
    (folder / "deep" / "a.tar").write_bytes(b"tar")
    (folder / "a.parquet").write_bytes(b"parquet")
    store.stage("000000.1", ["a.parquet", "deep/a.tar"])
    assert list(store.list()) == []
    assert store.attempts() == ["000000.1"]
    store.publish("000000.1", "a.parquet")
    store.publish("000000.1", "a.parquet")  # another process may do the same
    store.publish("000000.1", "deep/a.tar")
    store.discard("000000.1")
    store.discard("000000.1")
    assert [store.read(name) for name in store.list()] == [b"parquet", b"tar"]
    assert store.attempts() == []


def test_publishing_what_is_gone_keeps_what_is_there(store):
    store.write("tar", b"the winner's")
    store.publish("000000.2", "tar")
    assert store.read("tar") == b"the winner's"


def test_create_is_for_one_only_but_a_repeat_of_the_same_is_success(store):
    assert store.create("_vsp/commits/1.json", b"a")
    assert store.create("_vsp/commits/1.json", b"a")
    assert not store.create("_vsp/commits/1.json", b"b")
    assert store.read("_vsp/commits/1.json") == b"a"
    assert list(store.list("_vsp")) == ["_vsp/commits/1.json"]  # nothing is left beside


def _race(root, gate, won):
    store = LocalStore(root)
    for number in range(50):
        gate.wait()
        if store.create(f"{number}", str(os.getpid()).encode()):
            won.put((number, os.getpid()))
    won.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_of_processes_that_create_exactly_one_wins(tmp_path):
    context = multiprocessing.get_context("fork")
    gate, won = context.Barrier(4), context.Queue()
    racers = [context.Process(target=_race, args=(tmp_path, gate, won)) for _ in range(4)]
    for racer in racers:
        racer.start()
    winners = [won.get(timeout=60) for _ in range(50)]
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    assert won.empty()
    assert {number for number, _ in winners} == set(range(50))
    store = LocalStore(tmp_path)
    assert all(store.read(f"{number}") == str(pid).encode() for number, pid in winners)


def test_threads_may_write_the_same_file(store):
    with ThreadPoolExecutor(8) as threads:
        tries = [threads.submit(store.write, "a", bytes([n]) * 1000) for n in range(64)]
        assert [each.result() for each in tries] == [None] * 64
    assert len(set(store.read("a"))) == 1
    assert [path.name for path in store.root.iterdir()] == ["a"]


def test_files_are_written_read_listed_and_removed(store):
    for name in ("b", "a/2", "a/1", "_vsp/plan.json"):
        store.write(name, name.encode())
    assert list(store.list()) == ["b", "a/1", "a/2"]
    assert list(store.list("a")) == ["a/1", "a/2"]
    assert list(store.list("_vsp")) == ["_vsp/plan.json"]
    assert list(store.list("none")) == []
    before = store.stat("b")
    assert before == Stat(1, str((store.root / "b").stat().st_mtime_ns))
    store.remove("b")
    store.remove("b")
    assert store.stat("b") is None
    assert store.stat("a/1/none") is None
    with pytest.raises(FileNotFoundError):
        store.read("b")


def test_a_path_without_a_scheme_is_a_folder(tmp_path):
    assert isinstance(open_store(str(tmp_path)), LocalStore)


def test_a_damaged_object_is_told_with_the_way_out(store):
    for damaged in (b"{", b"[]", b"\xff"):
        store.write("_vsp/plan.json", damaged)
        with pytest.raises(UserError, match="--restart"):
            load_json(store, "_vsp/plan.json")


def test_a_file_system_without_links_is_told(store, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(UserError, match="no hard links"):
        store.create("a", b"")


# Logs


def test_a_torn_line_is_left_out_and_takes_no_other_with_it(store):
    store.append("_vsp/journal.jsonl", "one")
    with (store.root / "_vsp/journal.jsonl").open("ab") as file:
        file.write('{"torn": "ä'.encode()[:-1])
    assert read_log(store, "_vsp/journal.jsonl") == ["one"]
    store.append("_vsp/journal.jsonl", "two")
    store.append("_vsp/journal.jsonl", "three")
    assert read_log(store, "_vsp/journal.jsonl") == ["one", "two", "three"]
    assert read_log(store, "_vsp/none.jsonl") == []


def test_lines_of_several_writers_all_arrive(store):
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: LocalStore(store.root).append("log", f"{n} " * 50), range(100)))
    lines = read_log(store, "log")
    assert sorted(lines) == sorted(f"{n} " * 50 for n in range(100))


# Full disks

FULL = """
import resource, sys
from pathlib import Path
from pipeline.storage import LocalStore, StoreTrouble, read_log
root, limit = Path(sys.argv[1]), int(sys.argv[2])
store = LocalStore(root)
store.write("a", b"before")
store.append("log", "before")
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for use in (
    lambda: store.create("new", b"x" * 3_000_000),
    lambda: store.write("a", b"x" * 3_000_000),
    lambda: store.append("log", "x" * 3_000_000),
):
    try:
        use()
    except StoreTrouble as trouble:
        assert trouble.errno in (27, 28), trouble
        print(trouble.errno)
assert store.read("a") == b"before"
assert store.stat("new") is None
assert read_log(store, "log") == ["before"], read_log(store, "log")
assert sorted(path.name for path in root.iterdir()) == ["a", "log"]
(root / "log").write_bytes((root / "log").read_bytes()[:1000])  # room again
store.append("log", "after")
assert read_log(store, "log") == ["before", "after"]
"""


def test_a_file_size_limit_is_trouble_and_leaves_what_was(tmp_path):
    done = run_python(FULL, tmp_path, 1_000_000)
    assert done.stderr == ""
    assert done.stdout.split() == [str(errno.EFBIG)] * 3


def test_a_full_disk_is_trouble_and_leaves_what_was(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("may not mount a small file system here; the file-size limit ran")
    try:
        done = run_python(FULL, tmp_path, 0)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert done.stderr == ""
    assert done.stdout.split() == [str(errno.ENOSPC)] * 3


# Locks

HOLD = """
import sys, time
from pathlib import Path
from pipeline.locks import hold_shared, run_lock
from pipeline.storage import LocalStore
root = Path(sys.argv[1])
lock = run_lock(LocalStore(root))
kept = lock.acquire() if sys.argv[2] == "run" else hold_shared(root)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def hold():
    """Start a process that holds a lock until it is killed."""
    started = []

    def start(path, kind):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, path, kind], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_driver_is_told_who_is_at_work_until_that_dies(store, hold):
    first = hold(store.root, "run")
    with pytest.raises(RunError, match=rf"out: another run .*pid {first.pid}, since 20") as caught:
        run_lock(store).acquire()
    assert "\n" not in str(caught.value)
    first.kill()
    first.wait()
    with run_lock(store) as lock:
        assert not lock.is_lost
        with pytest.raises(RunError, match=f"pid {os.getpid()}"):
            run_lock(store).acquire()
    with run_lock(store):
        pass


def test_a_driver_waits_for_the_workers_of_the_one_before(tmp_path, hold):
    path = tmp_path / "new" / "actors.lock"
    wait_exclusive(path, 0)
    ours = hold_shared(path)
    worker = hold(path, "shared")  # two at once
    with pytest.raises(RunError, match=r"workers of an earlier run still live after 0 s"):
        wait_exclusive(path, 0.2)
    ours.close()
    threading.Timer(0.3, worker.kill).start()
    begun = time.monotonic()
    wait_exclusive(path, 30)
    assert 0.2 < time.monotonic() - begun < 20
    wait_exclusive(path, 0)  # it let go


def test_a_file_system_without_locks_is_told_and_used(store, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with run_lock(store):
        pass
    assert "no locks; start no second run" in caplog.text


def test_trouble_passes_other_errors(tmp_path):
    with pytest.raises(StoreTrouble, match="out: full"), storage.trouble("out"):
        raise OSError(errno.ENOSPC, "full")
    with pytest.raises(FileNotFoundError), storage.trouble("out"):
        raise FileNotFoundError(errno.ENOENT, "gone")
