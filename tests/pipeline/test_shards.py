import hashlib
import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from pipeline.sample import Member
from pipeline.shards import ShardOutput, ShardResult, read_shard
from pipeline.sidecar import (
    CONFIG_KEY,
    LAYOUTS,
    SCHEMA,
    FaceRow,
    Provenance,
    Row,
    read_rows,
    write_sidecar,
)
from pipeline.stage import Task

PROVENANCE = Provenance(seed=3, model="m", model_sha256="a" * 64, config='{"seed":3}')
RESULTS = [
    ShardResult(Row(0, "a", "restored", member="a.jpg"), (Member("a.jpg", b"1"),)),
    ShardResult(Row(1, "b", "refused", "why"), rejected=(Member("000001.0.jpg", b"bad"),)),
]


def task(out):
    return Task("000000", "in.tar", str(out), plan="p")


def write(out, results=RESULTS):
    with ShardOutput(task(out), PROVENANCE) as output:
        for result in results:
            output.add(result)
        return output.commit({"seconds": 1.5})


def visible(out):
    return sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())


def test_a_committed_shard_is_a_tar_a_sidecar_a_decision_and_the_quarantine(tmp_path):
    record = write(tmp_path)
    assert visible(tmp_path) == [
        "000000.parquet", "000000.tar", "_vsp/commits/p/000000.json", "_vsp/quarantine/000000.tar"
    ]  # fmt: skip
    assert record == json.loads((tmp_path / "_vsp/commits/p/000000.json").read_bytes())
    assert (record["counts"], record["num_records"]) == ({"restored": 1, "refused": 1}, 2)
    assert record["seconds"] == 1.5
    for file in record["files"]:
        data = (tmp_path / file["name"]).read_bytes()
        assert (file["size_bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    table = pq.read_table(tmp_path / "000000.parquet")
    assert table.schema.equals(SCHEMA)
    assert table.schema.metadata[CONFIG_KEY] == b'{"seed":3}'
    assert table["key"].to_pylist() == ["a", "b"]
    assert set(table["config_hash"].to_pylist()) == {hashlib.sha256(b'{"seed":3}').hexdigest()}
    found = [(s.key, s.members[0].data) for s in read_shard(str(tmp_path / "000000.tar"))]
    assert found == [("a", b"1")]


def test_the_same_records_give_the_same_bytes(tmp_path):
    write(tmp_path / "x")
    write(tmp_path / "y")
    for name in ("000000.tar", "000000.parquet"):
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()


def test_an_empty_shard_keeps_the_schema(tmp_path):
    write(tmp_path, [])
    assert pq.read_table(tmp_path / "000000.parquet").schema.equals(SCHEMA)
    assert not list(read_shard(str(tmp_path / "000000.tar")))


def test_a_shard_that_fails_leaves_nothing(tmp_path):
    bad = ShardResult(Row(2, "c", "restored"), (Member("c.jpg", "no bytes"),))
    with pytest.raises(TypeError, match="bytes-like"):
        write(tmp_path, [*RESULTS, bad])
    assert not visible(tmp_path)


def test_the_sidecar_is_published_before_its_tar_and_both_after_the_decision(tmp_path, monkeypatch):
    """Whatever instant a kill falls on, a tar under its final name has its sidecar."""
    import os

    seen = []
    replace = os.replace

    def watched(source, target):
        assert (tmp_path / "_vsp/commits/p/000000.json").exists()
        replace(source, target)
        seen.append(sorted(path.name for path in tmp_path.iterdir() if path.is_file()))

    monkeypatch.setattr(os, "replace", watched)
    write(tmp_path, RESULTS[:1])
    assert seen == [["000000.parquet"], ["000000.parquet", "000000.tar"]]


def test_rows_are_read_back_as_they_were_written(tmp_path):
    face = FaceRow((1.0, 2.0, 3.5, 4.0), ((0.0, 1.0),) * 5, 0.5, "restored")
    rows = [
        Row(0, "ä.jpg", "restored", "", "ä.jpg", 3, 4, 5, 6, "in", "out", (face, face)),
        Row(1, "b", "truncated", "cut", faces=()),
        Row(2, "c", "copied"),
    ]
    with (tmp_path / "x").open("wb") as file:
        write_sidecar(file, "x", rows, PROVENANCE)
    with (tmp_path / "x").open("rb") as file:
        assert read_rows(file) == rows


def test_a_sidecar_of_before_the_quality_is_read(tmp_path):
    rows = [Row(0, "a", "restored", sha256_out="out", quality=0.5), Row(1, "b", "copied")]
    with (tmp_path / "new").open("wb") as file:
        write_sidecar(file, "x", rows, PROVENANCE)
    old = pq.read_table(tmp_path / "new").drop_columns(["quality"])
    assert tuple(old.column_names) in LAYOUTS
    pq.write_table(old, tmp_path / "old")
    with (tmp_path / "old").open("rb") as file:
        assert read_rows(file) == [replace(row, quality=None) for row in rows]


def test_a_cut_shard_yields_what_is_whole_and_then_the_loss(tmp_path, make):
    data = make.tar_bytes({"a.jpg": b"x" * 600, "b.jpg": b"y" * 600})
    for end in range(0, len(data), 512):
        path = tmp_path / f"{end}.tar"
        path.write_bytes(data[:end])
        *whole, loss = read_shard(str(path))
        assert [sample.key for sample in whole] == ["a", "b"][: end // 1536]
        assert loss.truncated
        assert loss.fault == f"truncated at byte {end}"
        assert (loss.index, loss.key, loss.members) == (len(whole), "", ())
