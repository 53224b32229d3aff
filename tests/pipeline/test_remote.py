import io
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline import objects, remote, scratch
from pipeline.errors import RunError, UserError
from pipeline.locks import run_lock
from pipeline.objects import Patience
from pipeline.remote import RemoteStore, find_remote, open_remote, stat_remote
from pipeline.storage import StoreTrouble, open_store, read_log

QUICK = Patience(tries=8, first_s=0.01, longest_s=0.05, total_s=10, connect_s=2, read_s=5)
BRIEF = Patience(tries=3, first_s=0.01, longest_s=0.05, total_s=2, connect_s=1, read_s=0.5)


@pytest.fixture
def store(object_store):
    return RemoteStore(f"{object_store.url}/out", QUICK)


def staged(store, attempt="000000.1", **files):
    folder = store.begin(attempt)
    for name, data in (files or {"tar": b"x" * 1000}).items():
        (folder / name).write_bytes(data)
    store.stage(attempt, list(files or {"tar": b""}))
    return attempt


# What a store promises


def test_an_attempt_becomes_visible_only_when_it_is_published(store):
    attempt = staged(store, tar=b"tar", parquet=b"parquet")
    assert list(store.list()) == []
    assert store.attempts() == [attempt]
    store.publish(attempt, "parquet")
    assert list(store.list()) == ["parquet"]
    store.publish(attempt, "tar")
    store.publish(attempt, "tar")  # another process may do the same
    store.discard(attempt)
    assert [store.read(name) for name in store.list()] == [b"parquet", b"tar"]
    assert store.attempts() == []
    assert list(store.list("_vsp")) == []


def test_discard_removes_what_was_built_and_uploaded(store):
    folder = store.begin("s.1")
    (folder / "deep").mkdir()
    (folder / "deep" / "tar").write_bytes(b"1")
    store.stage("s.1", ["deep/tar"])
    store.discard("s.1")
    store.discard("s.1")
    assert not folder.exists()
    assert store.attempts() == []


def test_publishing_what_is_gone_keeps_what_is_there(store):
    store.write("tar", b"the winner's")
    store.publish("s.2", "tar")
    assert store.read("tar") == b"the winner's"


def test_create_is_for_one_only_but_a_repeat_of_the_same_is_success(store):
    assert store.create("_vsp/commits/1.json", b"a")
    assert store.create("_vsp/commits/1.json", b"a")
    assert not store.create("_vsp/commits/1.json", b"b")
    assert store.read("_vsp/commits/1.json") == b"a"


def test_of_two_creators_exactly_one_wins(object_store):
    with ThreadPoolExecutor(8) as threads:
        for number in range(4):
            names = [bytes([each]) for each in range(8)]
            stores = [RemoteStore(object_store.url, QUICK) for _ in names]
            tries = [
                threads.submit(store.create, f"{number}", name)
                for store, name in zip(stores, names, strict=True)
            ]
            won = [name for name, each in zip(names, tries, strict=True) if each.result()]
            assert won == [stores[0].read(f"{number}")]


def test_files_are_written_read_listed_and_removed(store):
    for name in ("b", "a/2", "a/1", "_vsp/plan.json"):
        store.write(name, name.encode())
    assert list(store.list()) == ["a/1", "a/2", "b"]
    assert list(store.list("a")) == ["a/1", "a/2"]
    assert list(store.list("_vsp")) == ["_vsp/plan.json"]
    before = store.stat("b")
    assert before.size_bytes == 1
    store.write("b", b"other")
    assert store.stat("b") != before
    store.remove("b")
    store.remove("b")
    assert store.stat("b") is None
    assert store.stat("a") is None  # a folder is no file
    with pytest.raises(FileNotFoundError):
        store.read("b")
    with pytest.raises(FileNotFoundError):
        store.open("b")


def test_an_empty_file_is_a_file(store):
    attempt = staged(store, tar=b"")
    store.publish(attempt, "tar")
    assert store.stat("tar").size_bytes == 0
    assert store.open("tar").read() == b""
    assert store.read("tar") == b""


@pytest.mark.parametrize(
    "name", ["a b+c.tar", "gesicht-ä-顔.tar", "100%.tar", "a#b?c=d&e.tar", "[1]"]
)
def test_any_name_is_kept(store, name):
    attempt = staged(store, **{name: b"1"})
    store.publish(attempt, name)
    store.write(f"x/{name}", b"2")
    assert sorted(store.list()) == sorted([name, f"x/{name}"])
    assert (store.read(name), store.read(f"x/{name}")) == (b"1", b"2")
    store.remove(name)
    assert list(store.list()) == [f"x/{name}"]


def test_a_log_is_read_in_order_over_processes_and_parts(store, object_store, monkeypatch):
    monkeypatch.setattr(remote, "SEGMENT_LINES", 3)
    later = RemoteStore(store.url, QUICK)
    for number in range(7):
        store.append("_vsp/journal.jsonl", f"first {number}")
    later.append("_vsp/journal.jsonl", "second")
    store.append("_vsp/journal.jsonl", "first 7")
    lines = read_log(store, "_vsp/journal.jsonl")
    assert lines == [*(f"first {number}" for number in range(8)), "second"]
    assert len(store.parts("_vsp/journal.jsonl")) == 4
    assert read_log(store, "_vsp/none.jsonl") == []


def test_every_store_is_opened_by_its_url(object_store):
    assert isinstance(open_store(object_store.url), RemoteStore)
    with pytest.raises(UserError, match="unknown store ftp://"):
        open_store("ftp://host/path")
    with pytest.raises(UserError, match="names no bucket"):
        open_store("s3://")


def test_the_endpoint_comes_from_the_environment_alone(store, object_store):
    store.write("a", b"1")
    assert ("PUT", f"/{object_store.bucket}/out/a") in object_store.proxy.seen


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_a_forked_process_has_connections_of_its_own(store):
    store.write("parent", b"1")
    child = multiprocessing.get_context("fork").Process(target=store.write, args=("child", b"1"))
    child.start()
    child.join(60)
    child.close()
    assert list(store.list()) == ["child", "parent"]


# What a user does wrong


def test_a_missing_bucket_is_one_line(object_store):
    there = RemoteStore(f"{object_store.url}-other/out", QUICK)
    for ask in (
        lambda: there.write("a", b""),
        lambda: there.read("a"),
        lambda: there.stat("a"),
        lambda: there.create("a", b""),
        lambda: list(there.list()),
        lambda: find_remote(there.url),
        lambda: open_remote(f"{there.url}/a.tar"),
    ):
        with pytest.raises(UserError, match="no such bucket") as caught:
            ask()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("status", "text"), [("403", "access denied"), ("400", "another region")])
def test_a_refusal_is_told_at_once(store, object_store, status, text):
    object_store.proxy.break_next("PUT", status)
    with pytest.raises(UserError, match=text):
        store.write("a", b"")
    assert object_store.proxy.num_seen("PUT", "/a") == 1


def test_another_refusal_ends_the_run(store, object_store):
    object_store.proxy.break_next("PUT", "405")
    with pytest.raises(RunError, match="the store refuses"):
        store.write("a", b"")


def test_missing_credentials_are_one_line(store, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match="set AWS_ACCESS_KEY_ID"):
        store.write("a", b"")


def test_a_missing_package_is_one_line_with_the_command(store, monkeypatch):
    objects._filesystem.cache_clear()
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(UserError, match=r"pip install -e '\.\[s3\]'"):
        store.write("a", b"")


def test_nothing_is_imported_before_a_url_is_used():
    code = "import sys, pipeline.remote, pipeline.locks; print({'s3fs', 'fsspec'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.strip() == b"set()"


# Reading


@pytest.fixture
def big(object_store, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK_BYTES", 10_000)
    data = random.Random(0).randbytes(123_456)
    RemoteStore(object_store.url, QUICK).write("in/a.tar", data)
    return f"{object_store.url}/in/a.tar", data


def test_reads_and_seeks_are_those_of_a_file(big):
    url, data = big
    like = io.BytesIO(data)
    chance = random.Random(1)
    with open_remote(url, QUICK) as file:
        assert file.seekable()
        for _ in range(60):
            if chance.random() < 0.3:
                place = chance.randrange(len(data) + 10)
                assert file.seek(place) == like.seek(place)
            size = chance.choice([0, 1, 512, 9_999, 10_001, 35_000])
            assert file.read(size) == like.read(size)
        assert file.seek(-5, os.SEEK_END) == len(data) - 5
        assert file.read() == data[-5:]
    assert stat_remote(url).size_bytes == len(data)


def test_the_next_block_is_fetched_while_one_is_used(big, object_store):
    url, data = big
    with open_remote(url, QUICK) as file:
        file.read(1)
        until = time.monotonic() + 10
        while object_store.proxy.num_seen("GET", "a.tar") < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert object_store.proxy.num_seen("GET", "a.tar") == 2
        assert file.read() == data[1:]
    assert object_store.proxy.num_seen("GET", "a.tar") == 13


def test_a_change_while_reading_is_noticed(big, object_store):
    url, data = big
    with open_remote(url, QUICK) as file:
        assert file.read(100) == data[:100]
        RemoteStore(object_store.url, QUICK).write("in/a.tar", data[::-1])
        with pytest.raises(StoreTrouble, match="changed while it was read"):
            file.read()
    with open_remote(url, QUICK) as file:
        file.read(100)
        RemoteStore(object_store.url, QUICK).remove("in/a.tar")
        with pytest.raises(StoreTrouble, match="changed while it was read"):
            file.read()


def test_shards_are_found_by_name_folder_and_glob(object_store):
    store = RemoteStore(f"{object_store.url}/in", QUICK)
    for name in ("b.tar", "a.tar", "a.parquet", "deep/c.tar"):
        store.write(name, b"1")
    url = store.url
    assert find_remote(url) == [f"{url}/a.tar", f"{url}/b.tar"]
    assert find_remote(f"{url}/") == [f"{url}/a.tar", f"{url}/b.tar"]
    assert find_remote(f"{url}/[b-z]*.tar") == [f"{url}/b.tar"]
    assert find_remote(f"{url}/*/*.tar") == [f"{url}/deep/c.tar"]
    assert find_remote(f"{url}/a.parquet") == [f"{url}/a.parquet"]
    for none in (f"{url}/x.tar", f"{url}/x*.tar", f"{url}/none"):
        with pytest.raises(UserError, match="no such object"):
            find_remote(none)


# Faults


@pytest.mark.parametrize(
    "kind",
    ["500", "lose", *(pytest.param(k, marks=pytest.mark.slow) for k in ("503", "429", "stop"))],
)
def test_one_fault_is_not_noticed(store, object_store, kind):
    proxy = object_store.proxy
    proxy.break_next("PUT", kind, path="/a")
    store.write("a", b"1" * 1000)
    assert proxy.num_seen("PUT", "/a") == 2
    for kind_of_read in (kind, "cut"):
        proxy.break_next("GET", kind_of_read, path="/a")
        assert store.read("a") == b"1" * 1000
    proxy.break_next("HEAD", kind, path="/a")
    assert store.stat("a").size_bytes == 1000
    proxy.break_next("DELETE", kind, path="/a")
    store.remove("a")
    proxy.break_next("GET", kind)
    assert list(store.list()) == []


def test_a_create_whose_answer_is_lost_is_success_once(store, object_store):
    store.create("first", b"")
    object_store.proxy.break_next("PUT", "lose", times=2, path="/record")
    assert store.create("record", b"ours")
    assert object_store.proxy.num_seen("PUT", "/record") == 3
    assert not store.create("record", b"theirs")


def test_an_upload_whose_answer_is_lost_is_not_sent_twice(store, object_store):
    # Below botocore, aiohttp repeats a request once when its connection breaks.
    object_store.proxy.break_next("PUT", "lose", times=2, path="/tar")
    attempt = staged(store, tar=b"x" * 100_000)
    assert object_store.proxy.num_seen("PUT", "/tar") == 2
    store.publish(attempt, "tar")
    assert store.stat("tar").size_bytes == 100_000


def test_trouble_while_publishing_rolls_forward(store, object_store):
    proxy = object_store.proxy
    attempt = staged(store)
    proxy.break_next("PUT", "lose", path="/out/tar")
    proxy.break_next("DELETE", "lose")
    store.publish(attempt, "tar")
    assert store.read("tar") == b"x" * 1000
    assert store.attempts() == []


def test_a_log_begins_a_new_part_after_trouble(store, object_store):
    store.append("log", "one")
    object_store.proxy.break_next("PUT", "lose", times=2, path="/log")
    store.append("log", "two")
    store.append("log", "three")
    assert len(store.parts("log")) == 2
    object_store.proxy.break_next("PUT", "500", times=8, path="/log")
    with pytest.raises(StoreTrouble):
        store.append("log", "four")
    store.append("log", "four")
    assert read_log(store, "log") == ["one", "two", "three", "four"]


def test_a_store_gone_for_good_is_trouble_within_the_bound(object_store, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    there = RemoteStore(object_store.url, BRIEF)
    begun = time.monotonic()
    with pytest.raises(StoreTrouble, match="no answer in 3 tries"):
        there.write("a", b"")
    assert time.monotonic() - begun < BRIEF.total_s + BRIEF.connect_s + 1


@pytest.mark.parametrize("status", ["501", None])
def test_a_store_without_conditions_is_told_of_once_and_used(store, object_store, caplog, status):
    if status:
        object_store.proxy.break_next("PUT", status)
    else:
        object_store.proxy.without.add("if-none-match")
    assert store.create("a", b"1")
    assert not store.create("a", b"2")
    assert store.create("a", b"1")
    assert [r.message for r in caplog.records if "no conditional writes" in r.message] != []
    assert len(caplog.records) == 1
    assert list(store.list()) == ["a"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["503", "lose", "stop", "cut"])
@pytest.mark.parametrize("seed", range(3))
def test_a_store_with_many_faults_gives_the_same_result(object_store, kind, seed, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK_BYTES", 10_000)
    chance = random.Random(seed)
    store = RemoteStore(f"{object_store.url}/out", QUICK)
    proxy, data = object_store.proxy, chance.randbytes(100_000)

    def trouble():
        proxy.break_next(chance.choice(["*", "PUT", "GET", "HEAD"]), kind, chance.randrange(1, 4))

    for number in range(10):
        trouble()
        attempt = staged(store, f"{number}.1", **{f"{number}.tar": data})
        trouble()
        assert store.create(f"_vsp/commits/{number}.json", attempt.encode())
        trouble()
        store.publish(attempt, f"{number}.tar")
        store.discard(attempt)
        store.append("log", f"{number}")
        trouble()
        with store.open(f"{number}.tar") as file:
            assert file.read() == data
    proxy.heal()
    assert sorted(store.list()) == sorted([*(f"{n}.tar" for n in range(10)), *store.parts("log")])
    assert store.attempts() == []
    assert read_log(store, "log") == [str(number) for number in range(10)]


@pytest.mark.slow
def test_a_large_upload_goes_in_parts_and_survives_a_lost_one(store, object_store):
    size = 40 * 2**20
    folder = store.begin("s.1")
    with (folder / "tar").open("wb") as file:
        file.truncate(size)
    object_store.proxy.break_next("PUT", "lose", path="partNumber=2")
    object_store.proxy.break_next("POST", "lose", path="uploadId")
    store.stage("s.1", ["tar"])
    store.publish("s.1", "tar")
    assert store.stat("tar").size_bytes == size
    with store.open("tar") as file:
        num_bytes = sum(len(piece) for piece in iter(lambda: file.read(2**20), b""))
    assert num_bytes == size


@pytest.mark.slow
def test_slow_answers_are_given_up_within_the_bound(object_store):
    store = RemoteStore(object_store.url, BRIEF)
    store.write("a", b"1")
    object_store.proxy.break_next("GET", "slow", seconds=1)
    assert store.read("a") == b"1"
    object_store.proxy.break_next("GET", "slow", times=99, seconds=1)
    begun = time.monotonic()
    with pytest.raises(StoreTrouble):
        store.read("a")
    assert time.monotonic() - begun < BRIEF.total_s + BRIEF.read_s + 1


@pytest.mark.slow
def test_whatever_breaks_only_our_classes_come_out(object_store):
    patience = Patience(tries=2, first_s=0.001, total_s=1, connect_s=1, read_s=1)
    store = RemoteStore(object_store.url, patience)
    store.create("there", b"1")
    uses = [
        lambda: store.create("a", b"1"),
        lambda: store.write("b", b"1"),
        lambda: store.append("c", "1"),
        lambda: store.read("there"),
        lambda: store.stat("there"),
        lambda: list(store.list()),
        lambda: store.remove("b"),
        lambda: staged(store, os.urandom(4).hex()),
        lambda: store.open("there").read(),
        lambda: find_remote(f"{object_store.url}/*.tar", patience),
    ]
    for kind in ("500", "503", "429", "400", "401", "403", "404", "405", "409", "412", "501",
                 "lose", "cut", "stop"):  # fmt: skip
        for use in uses:
            object_store.proxy.break_next("*", kind, times=99)
            try:
                use()
            except (StoreTrouble, UserError, RunError, FileNotFoundError):
                pass
            finally:
                object_store.proxy.heal()


# Scratch folders


def test_a_killed_process_leaves_nothing_for_long(tmp_path, monkeypatch):
    monkeypatch.setenv("VSP_SCRATCH", str(tmp_path))
    code = (
        "from pipeline.scratch import scratch_folder; import os, signal\n"
        "(scratch_folder() / 'tar').write_bytes(b'1')\n"
    )
    killed = [sys.executable, "-c", f"{code}os.kill(os.getpid(), signal.SIGKILL)"]
    subprocess.run(killed, check=False)
    root = next(tmp_path.iterdir())
    assert len([*root.rglob("tar")]) == 1
    ours = scratch.scratch_folder()
    assert [path for path in root.iterdir() if path.is_dir()] == [ours]
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [path for path in root.iterdir() if path.is_dir()] == [ours]


# The run lock


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
