"""A store behind a URL: what it promises, what a user does wrong, how it is read."""

import io
import multiprocessing
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from remote_stores import QUICK, staged

from pipeline import objects, remote, scratch
from pipeline.errors import RunError, UserError
from pipeline.remote import RemoteStore, find_remote, open_remote, stat_remote
from pipeline.storage import StoreTrouble, open_store, read_log


@pytest.fixture
def store(object_store):
    return RemoteStore(f"{object_store.url}/out", QUICK)


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
