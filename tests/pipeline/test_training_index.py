import io
import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.shards import read_shard
from pipeline.tar import TarFault, read_tar, walk_tar
from pipeline.training import index as indexes
from pipeline.training.cache import local_copy
from pipeline.training.index import Record, build_index, index_shard, record_of

LONG = "folder/" * 30 + "long.PNG"
POINTS = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0], [9.0, 10.0]]
AWKWARD = [
    ("a.jpg", b"first"),
    ("a.json", b"{}"),
    ("alone.json", b"{}"),
    ("b.seg.png", b"mask"),
    ("b.JSON", b"[]"),
    ("b.jpg", b"second"),
    (LONG, b"third" * 300),
    ("no-suffix", b"x"),
    ("../out.jpg", b"x"),
    ("c.json", b"{}"),
    ("c.jpeg", b""),
    ("c.jpeg", b"twice"),
    ("a.webp", b"again"),
    ("d.txt", b"x"),
    ("d.tif", b"not last"),
    ("d.json", b" " * (2**20 + 1)),
    ("e.bmp", b"last"),
]


@pytest.fixture
def shard(make, tmp_path):
    def write(members, name="s.tar", cut=None):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(make.tar_bytes(members)[:cut])
        return path

    return write


def read_all(index):
    return [index.read(number) for number in range(len(index))]


def sequential(path):
    return [record for sample in read_shard(str(path)) if (record := record_of(sample))]


def test_members_lie_where_the_walk_says(make):
    data = make.tar_bytes(AWKWARD)
    places, entries = list(walk_tar(io.BytesIO(data))), list(read_tar(io.BytesIO(data)))
    assert [(p.name, p.fault) for p in places] == [(e.name, e.fault) for e in entries]
    assert [data[p.body : p.body + p.size_bytes] for p in places] == [e.data for e in entries]


def test_the_walk_breaks_where_reading_does(make):
    data = make.tar_bytes(AWKWARD)
    for end in range(0, len(data), 256):
        with pytest.raises(TarFault) as read:
            list(read_tar(io.BytesIO(data[:end])))
        with pytest.raises(TarFault) as walked:
            list(walk_tar(io.BytesIO(data[:end])))
        assert str(walked.value) == str(read.value)


def test_the_index_holds_what_reading_in_order_finds(shard):
    path = shard(AWKWARD)
    records = read_all(build_index([str(path)]))
    assert records == sequential(path)
    keys = ["a", "b", LONG.removesuffix(".PNG"), "c", "d", "e"]
    assert [record.key for record in records] == keys
    assert [record.image for record in records][:2] == [b"first", b"mask"]
    assert [record.facts for record in records] == [b"{}", b"[]", b"", b"{}", b"", b""]


def test_a_record_costs_twenty_bytes(shard):
    path = shard([(f"{number:05d}.jpg", b"x") for number in range(100)])
    rows, fault, keys = index_shard(path)
    assert rows.nbytes == 2000
    assert not fault
    assert keys == [f"{number:05d}" for number in range(100)]


def test_shards_follow_each_other_by_name_and_come_once(shard, tmp_path):
    for name, members in (("1.tar", [("b.jpg", b"b")]), ("0.tar", [("a.jpg", b"a")])):
        shard(members, name)
    shard([("none.txt", b"")], "00.tar")
    patterns = [str(tmp_path / "1.tar"), str(tmp_path)]
    assert [record.key for record in read_all(build_index(patterns))] == ["b", "a"]


def test_the_records_before_a_break_count_and_the_loss_is_told(shard):
    members = [(f"{name}.jpg", name.encode() * 600) for name in "abc"]
    path = shard(members, cut=512 + 1024 + 512 + 1024 + 512 + 600)
    index = build_index([str(path)])
    assert [record.key for record in read_all(index)] == ["a", "b"]
    (warning,) = index.warnings
    assert warning == f"{path}: truncated at byte 4184; the 2 faces before it are used"


def test_few_shards_stay_open_and_threads_may_share_them(shard, tmp_path, monkeypatch):
    monkeypatch.setattr(indexes, "MAX_OPEN_SHARDS", 2)
    for number in range(8):
        shard([(f"{number}.jpg", b"%d" % number)], f"{number}.tar")
    index = build_index([str(tmp_path)])
    before = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(4) as threads:
        keys = list(threads.map(lambda n: index.read(n % 8).key, range(400)))
    assert keys == [str(n % 8) for n in range(400)]
    assert len(os.listdir("/proc/self/fd")) <= before + 2


@pytest.mark.parametrize("change", [lambda p: p.write_bytes(b"\1" * 600), lambda p: p.unlink()])
def test_a_shard_that_changes_is_told(shard, change):
    path = shard([("a.jpg", b"x" * 2000)])
    index = build_index([str(path)])
    change(path)
    with pytest.raises(UserError, match="changed since training began"):
        index.read(0)


@pytest.mark.parametrize("members", [[], [("a.txt", b"x")]])
def test_shards_without_a_face_are_refused_in_one_line(shard, members):
    path = shard(members)
    with pytest.raises(UserError, match="no face in 1 shards") as told:
        build_index([str(path)])
    assert str(told.value).startswith(str(path))
    assert "\n" not in str(told.value)


def test_no_shard_at_all_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.train is empty"):
        build_index([])
    with pytest.raises(UserError, match="no such shard"):
        build_index([str(tmp_path / "gone.tar")])


@pytest.mark.parametrize(
    "facts",
    [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"landmarks5": [[1, 2]]}', b'{"landmarks5": "x"}']
    + [
        json.dumps({"landmarks5": points}).encode()
        for points in (None, {}, [[None, 1]] * 5, [["x", 1]] * 5, [[1e300, 1]] * 5, [[1], [2, 3]])
    ]
    + [b'{"landmarks5": [[%d, 1], [1, 1], [1, 1], [1, 1], [1, 1]]}' % 10**400],
)
def test_points_that_are_none_are_unknown(facts):
    points = Record("k", b"", facts).points
    assert points.shape == (5, 2)
    assert np.isnan(points).all()


def test_points_are_read():
    facts = json.dumps({"landmarks5": POINTS}).encode()
    assert Record("k", b"", facts).points.tolist() == POINTS


def test_remote_shards_are_copied_once_and_anew_when_they_change(object_store, make, tmp_path):
    from pipeline.storage import open_store

    store = open_store(f"{object_store.url}/in")
    store.write("0.tar", make.tar_bytes(AWKWARD))
    url, cache = f"{object_store.url}/in/0.tar", tmp_path / "cache"
    with ThreadPoolExecutor(4) as threads:  # flock counts files, so threads stand for processes
        copies = set(threads.map(lambda _: local_copy(url, str(cache)), range(4)))
    assert object_store.proxy.num_seen("GET", "0.tar") == 1
    (copy,) = copies
    assert os.listdir(cache) == [copy.name]
    assert read_all(build_index([url], str(cache))) == sequential(copy)
    store.write("0.tar", make.tar_bytes([("new.jpg", b"x")]))
    assert [record.key for record in read_all(build_index([url], str(cache)))] == ["new"]


def test_a_copy_that_fails_leaves_nothing(object_store, make, tmp_path, monkeypatch):
    from pipeline.storage import open_store
    from pipeline.training import cache as copies

    open_store(object_store.url).write("0.tar", make.tar_bytes([("a.jpg", b"x")]))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(copies.shutil, "copyfileobj", full)
    with pytest.raises(UserError, match="No space left on device; set data"):
        build_index([f"{object_store.url}/0.tar"], str(tmp_path / "cache"))
    assert os.listdir(tmp_path / "cache") == []
