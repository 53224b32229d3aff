"""A remote store in trouble: what is not noticed, what is told, and within which time."""

import os
import random
import time

import pytest
from remote_stores import BRIEF, QUICK, staged

from pipeline import remote
from pipeline.errors import RunError, UserError
from pipeline.objects import Patience
from pipeline.remote import RemoteStore, find_remote
from pipeline.storage import StoreTrouble, read_log


@pytest.fixture
def store(object_store):
    return RemoteStore(f"{object_store.url}/out", QUICK)


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
