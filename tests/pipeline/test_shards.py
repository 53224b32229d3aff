import hashlib

import pyarrow.parquet as pq
import pytest

from pipeline.sample import Member
from pipeline.shards import SCHEMA, Provenance, Row, ShardWriter, count_statuses, read_config
from pipeline.shards import read_shard as read
from pipeline.stage import Task

PROVENANCE = Provenance(seed=3, model="m", model_sha256="a" * 64, config='{"seed":3}')


def task(out):
    return Task("000000", out / "in.tar", out)


def write(out):
    with ShardWriter(task(out), PROVENANCE) as writer:
        writer.add(Row(0, "a", "restored", member="a.jpg"), [Member("a.jpg", b"1")])
        writer.add(Row(1, "b", "refused", "why"), [])
        return writer.commit()


def test_a_committed_shard_is_a_tar_and_a_sidecar_and_nothing_else(tmp_path):
    assert write(tmp_path) == {"restored": 1, "refused": 1}
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert files == ["000000.parquet", "000000.tar"]
    table = pq.read_table(tmp_path / "000000.parquet")
    assert table.schema.equals(SCHEMA)
    assert table["key"].to_pylist() == ["a", "b"]
    assert set(table["config_hash"].to_pylist()) == {hashlib.sha256(b'{"seed":3}').hexdigest()}
    assert read_config(tmp_path / "000000.parquet") == '{"seed":3}'
    assert count_statuses(tmp_path / "000000.parquet") == {"restored": 1, "refused": 1}
    assert [(s.key, s.members[0].data) for s in read(tmp_path / "000000.tar")] == [("a", b"1")]


def test_the_same_records_give_the_same_bytes(tmp_path):
    write(tmp_path / "x")
    write(tmp_path / "y")
    for name in ("000000.tar", "000000.parquet"):
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()


def test_an_empty_shard_keeps_the_schema(tmp_path):
    with ShardWriter(task(tmp_path), PROVENANCE) as writer:
        writer.commit()
    assert pq.read_table(tmp_path / "000000.parquet").schema.equals(SCHEMA)
    assert not list(read(tmp_path / "000000.tar"))


def test_a_shard_that_fails_leaves_nothing(tmp_path):
    members = [Member("a.jpg", b"1"), Member("b.jpg", "no bytes")]
    with (
        pytest.raises(TypeError, match="bytes-like"),
        ShardWriter(task(tmp_path), PROVENANCE) as writer,
    ):
        writer.add(Row(0, "a", "restored"), members)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_sidecar_is_published_before_its_tar(tmp_path, monkeypatch):
    """Whatever instant a kill falls on, a tar under its final name has its sidecar."""
    import os

    seen = []
    replace = os.replace

    def watched(source, target):
        replace(source, target)
        seen.append(sorted(path.name for path in tmp_path.iterdir() if path.is_file()))

    monkeypatch.setattr(os, "replace", watched)
    write(tmp_path)
    assert seen == [["000000.parquet"], ["000000.parquet", "000000.tar"]]


def test_a_cut_shard_yields_what_is_whole_and_then_the_loss(tmp_path, make):
    data = make.tar_bytes({"a.jpg": b"x" * 600, "b.jpg": b"y" * 600})
    for end in range(0, len(data), 512):
        path = tmp_path / f"{end}.tar"
        path.write_bytes(data[:end])
        *whole, loss = read(path)
        assert [sample.key for sample in whole] == ["a", "b"][: end // 1536]
        assert loss.truncated
        assert loss.fault == f"truncated at byte {end}"
        assert (loss.index, loss.key, loss.members) == (len(whole), "", ())
